"""Answers by a language model, where a row has a solution but no answer that could be read from it.

Any server that speaks OpenAI's chat completions protocol, named by the user. Replies are kept on disk, so that an
interrupted run asks nothing twice; what comes back is text like any other, and graded like any other.
"""

import hashlib
import json
import os
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from tqdm import tqdm

from configs import UserError
from reward import last_boxed

PROMPT = (
    "Below are a mathematics problem and its solution. What is the final answer? Copy it from the solution as one "
    "value or expression, without words, inside \\boxed{{}}. If the problem asks for a proof, or the solution reaches "
    "no single answer, write \\boxed{{none}}.\n\nProblem:\n{problem}\n\nSolution:\n{solution}"
)
ATTEMPTS = 5  # for one question, when the server is busy or out of reach
PARALLEL = 8  # questions at once


class Refused(Exception):
    """The server says that the request is wrong: asking again would not help."""


@dataclass
class Endpoint:
    """`url` is the base, as in http://localhost:8000/v1; the key, if any, is OPENAI_API_KEY's. `budget` is the most
    requests of a run, repeated ones included."""

    url: str
    model: str
    budget: int
    cache: Path
    timeout: float = 120.0  # seconds
    pause: float = 1.0  # seconds before the first repetition; doubled each time
    requests: int = 0

    def __post_init__(self) -> None:
        self.lock = Lock()
        self.known: dict[str, str] = {}
        if self.cache.is_file():
            for line in self.cache.read_bytes().split(b"\n")[:-1]:  # a torn last line is asked again
                row = json.loads(line)
                self.known[row["key"]] = row["text"]
        self.cache.parent.mkdir(parents=True, exist_ok=True)

    def answers(self, questions: list[tuple[str, str]]) -> list[str]:
        """The answer to each (problem, solution): the reply's last box; "" where it is none, or the budget is spent.

        Raises UserError where the server refuses the first question, or is out of reach for all ATTEMPTS of one.
        """
        keys = [hashlib.sha256("\0".join((self.model, *q)).encode()).hexdigest() for q in questions]
        todo = {key: q for key, q in zip(keys, questions, strict=True) if key not in self.known}
        if todo:
            self._drop_torn_line()
            with open(self.cache, "a", encoding="utf-8") as f, ThreadPoolExecutor(PARALLEL) as pool, \
                    tqdm(total=len(todo), desc=f"asking {self.model}", mininterval=1) as bar:  # fmt: skip
                tasks = [pool.submit(self._ask, *q) for q in todo.values()]
                try:
                    for key, task in zip(todo, tasks, strict=True):
                        text = task.result()
                        if text is not None:
                            self.known[key] = text
                            f.write(json.dumps({"key": key, "model": self.model, "text": text}) + "\n")
                            f.flush()
                        bar.update()
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
        boxes = [last_boxed(self.known.get(key, "")) or "" for key in keys]
        return ["" if box.strip().lower() in ("none", "\\text{none}") else box for box in boxes]

    def _drop_torn_line(self) -> None:
        if self.cache.is_file():
            whole = self.cache.read_bytes().rpartition(b"\n")
            with open(self.cache, "r+b") as f:
                f.truncate(len(whole[0]) + len(whole[1]))

    def _ask(self, problem: str, solution: str) -> str | None:
        """The reply, or None when the budget is spent."""
        body = {"model": self.model, "temperature": 0, "max_tokens": 512,
                "messages": [{"role": "user", "content": PROMPT.format(problem=problem, solution=solution)}],
                }  # fmt: skip
        reason = ""
        for attempt in range(ATTEMPTS):
            with self.lock:
                if self.requests >= self.budget:
                    return None
                self.requests += 1
            try:
                return self._post(body)
            except Refused as e:
                raise UserError(f"{self.url} refuses the question: {e}") from None
            except (OSError, ValueError, KeyError, TypeError, IndexError) as e:
                reason = f"{type(e).__name__}: {e}"
                wait = getattr(e, "headers", None) and e.headers.get("Retry-After")
            if attempt + 1 < ATTEMPTS:
                time.sleep(min(60.0, float(wait)) if wait and wait.isdecimal() else self.pause * 2**attempt)
        raise UserError(f"{self.url} did not answer {ATTEMPTS} times: {reason} (what it answered so far is kept)")

    def _post(self, body: dict[str, Any]) -> str:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        address = self.url.rstrip("/") + "/chat/completions"
        request = urllib.request.Request(address, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                text = json.loads(response.read(2**20))["choices"][0]["message"]["content"]
        except urllib.error.HTTPError as e:
            if e.code in (408, 409, 425, 429) or e.code >= 500:
                raise
            raise Refused(f"{e.code} {e.reason}: {e.read(300).decode(errors='replace')}") from None
        if not isinstance(text, str):
            raise ValueError("a reply without text")
        return text
