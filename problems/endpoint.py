"""Answers by a language model, where a row has a solution but no answer that could be read from it.

Any server that speaks OpenAI's chat completions protocol, named by the user. Replies are kept on disk, so that an
interrupted run asks nothing twice; what comes back is text like any other, and graded like any other.
"""

import hashlib
import io
import json
import os
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from socket import socket
from threading import Lock
from typing import Any, BinaryIO

from tqdm import tqdm

from configs import UserError
from problems.rows import damage
from reward import last_boxed

PROMPT = (
    "Below are a mathematics problem and its solution. What is the final answer? Copy it from the solution as one "
    "value or expression, without words, inside \\boxed{{}}. If the problem asks for a proof, or the solution reaches "
    "no single answer, write \\boxed{{none}}.\n\nProblem:\n{problem}\n\nSolution:\n{solution}"
)
ATTEMPTS = 5  # for one question, when the server is busy or out of reach
PARALLEL = 8  # questions at once
MAX_BYTES = 2**22  # of a reply, its headers included


class NoAnswer(Exception):
    """The server will not answer this question; asking again would not help."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The key is for the server that the user named, not for one that it redirects to."""

    def redirect_request(self, *_: Any) -> None:
        return None


class _BoundedReads(io.RawIOBase):
    """What a server sends, until `end` (of time.monotonic()) and for MAX_BYTES. A socket's own timeout begins anew with
    each byte, so a server that drips headers, `100 Continue`, trailers or an error's text would hold us forever."""

    def __init__(self, sock: socket, end: float) -> None:
        self.sock, self.end, self.raw, self.left = sock, end, sock.makefile("rb", buffering=0), MAX_BYTES

    def makefile(self, _: str) -> io.BufferedReader:  # all that HTTPResponse asks of a socket
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        seconds = self.end - time.monotonic()
        if seconds <= 0 or self.left <= 0:
            raise TimeoutError("a reply that does not end")
        self.sock.settimeout(seconds)
        size = self.raw.readinto(buffer)
        self.left -= size or 0
        return size

    def close(self) -> None:
        self.raw.close()
        super().close()


class _Bounded(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """One deadline for the whole of a request. (Connecting and TLS, before it, have the same timeout each.)"""

    def _connection(self, kind: type[HTTPConnection], host: str, timeout: float, **options: Any) -> HTTPConnection:
        connection, end = kind(host, timeout=timeout, **options), time.monotonic() + timeout
        connection.response_class = lambda sock, *a, **k: HTTPResponse(_BoundedReads(sock, end), *a, **k)
        return connection

    def http_open(self, request: urllib.request.Request) -> HTTPResponse:
        return self.do_open(partial(self._connection, HTTPConnection), request)

    def https_open(self, request: urllib.request.Request) -> HTTPResponse:
        return self.do_open(partial(self._connection, HTTPSConnection), request)


@dataclass
class Endpoint:
    """The user's server. A key for it, if it needs one, is read from OPENAI_API_KEY."""

    url: str  # the base, as in http://localhost:8000/v1
    model: str
    budget: int  # the most requests of a run, repeated ones included
    cache: Path  # the file that keeps replies
    timeout: float = 120.0  # seconds for a whole reply
    pause: float = 1.0  # seconds before the first repetition; doubled each time
    requests: int = 0

    def __post_init__(self) -> None:
        self.lock = Lock()
        self.known: dict[str, str] = {}
        self.opener = urllib.request.build_opener(_NoRedirects, _Bounded)
        self.cache.parent.mkdir(parents=True, exist_ok=True)
        if self.cache.exists() and not self.cache.is_file():
            raise UserError(f"{self.cache}: not a regular file")
        lines = self.cache.read_bytes().split(b"\n") if self.cache.is_file() else []
        for line in lines:
            try:
                row = json.loads(line)
                self.known[row["key"]] = str(row["text"])
            except (ValueError, KeyError, TypeError, RecursionError):
                continue  # a torn line is asked again

    def answers(self, questions: list[tuple[str, str]]) -> list[str]:
        """The answer to each (problem, solution): the reply's last box; "" where it is none, where the server will not
        answer, and once the budget is spent. Every reply is kept at once.

        Raises UserError where the server refuses key or model, or is out of reach for all ATTEMPTS of a question.
        """
        keys = [hashlib.sha256("\0".join((PROMPT, self.model, *q)).encode()).hexdigest() for q in questions]
        new = {key: q for key, q in zip(keys, questions, strict=True) if key not in self.known}
        bar = tqdm(total=len(new), desc=f"asking {self.model}", mininterval=1, disable=not new)
        with open(self.cache, "ab") as f, ThreadPoolExecutor(PARALLEL) as pool, bar:
            f.write(b"\n")  # ends a line that was torn
            tasks = [pool.submit(self._ask, key, question, f) for key, question in new.items()]
            try:
                for task in as_completed(tasks):
                    task.result()
                    bar.update()
            except BaseException:
                pool.shutdown(cancel_futures=True)  # requests under way end, and their replies are kept
                raise
        boxes = [last_boxed(self.known.get(key, "")) or "" for key in keys]
        return ["" if box.strip().lower() in ("none", "\\text{none}") else box for box in boxes]

    def _ask(self, key: str, question: tuple[str, str], f: BinaryIO) -> None:
        text = self._reply(*question)
        if text is not None:
            with self.lock:
                self.known[key] = text
                f.write(json.dumps({"key": key, "model": self.model, "text": text}).encode() + b"\n")
                f.flush()

    def _reply(self, problem: str, solution: str) -> str | None:
        """The reply, "" where there is none to be had, or None when the budget is spent."""
        message = {"role": "user", "content": PROMPT.format(problem=problem, solution=solution)}
        body = json.dumps({"model": self.model, "temperature": 0, "max_tokens": 512, "messages": [message]}).encode()
        reason = ""
        for attempt in range(ATTEMPTS):
            with self.lock:
                if self.requests >= self.budget:
                    return None
                self.requests += 1
            wait = self.pause * 2**attempt  # seconds, unless the server names others
            try:
                return self._post(body)
            except NoAnswer:
                return ""
            except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError, HTTPException) as e:
                reason = " ".join(f"{type(e).__name__}: {e}".split())[:300]
                retry_after = e.headers.get("Retry-After", "") if isinstance(e, urllib.error.HTTPError) else ""
                if retry_after.isdecimal():
                    wait = min(60.0, float(retry_after))
            if attempt + 1 < ATTEMPTS:
                time.sleep(wait)
        raise UserError(f"{self.url} did not answer {ATTEMPTS} times: {reason} (the replies so far are kept)")

    def _post(self, body: bytes) -> str:
        headers = {"Content-Type": "application/json"}
        key = os.environ.get("OPENAI_API_KEY")
        if key:
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self.url.rstrip("/") + "/chat/completions", body, headers)
        data = b""
        try:
            with self.opener.open(request, timeout=self.timeout) as response:
                while chunk := response.read1(2**16):
                    data += chunk
        except urllib.error.HTTPError as e:
            if e.code in (408, 409, 425, 429) or e.code >= 500:
                raise
            try:
                message = " ".join(e.read(300).decode(errors="replace").split())
            except (OSError, HTTPException):  # the status says enough
                message = ""
            if e.code in (400, 413, 422):  # it refuses this question only: too long, for instance
                raise NoAnswer(message) from None
            raise UserError(f"{self.url} refuses the request: {e.code} {e.reason} {message}") from None
        text = json.loads(data)["choices"][0]["message"]["content"]
        if not isinstance(text, str) or damage(text):
            raise NoAnswer("no text")
        return text
