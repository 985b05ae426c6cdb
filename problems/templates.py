"""A stranger's chat template and tokenizer, as transformers runs them, in a child process with limits.

A template is a program, and a tokenizer's normalizer can multiply its text. jinja2's sandbox keeps a template from
files and attributes but not from endless loops or gigabytes of text, so a forked child renders and encodes, within
limits of the operating system on its time and memory.
"""

import faulthandler
import gc
import json
import os
import resource
import signal
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from configs import UserError

SECONDS = 5  # of computation before the first result; CPU time, so that a suspended or crowded machine does no harm
CHARS_A_SECOND = 20_000  # each prompt earns its length and PROMPT_CHARS at this speed, a fiftieth of the usual one
PROMPT_CHARS = 200
MEMORY = 512 << 20  # bytes beyond those of the parent
MAX_RENDERED = 1_000_000  # characters of one prompt


class Generation(Extension):
    """`{% generation %}` marks what an assistant wrote, for masks; the text stays as it is."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def compile_template(source: str) -> Template:
    """In the environment of transformers' apply_chat_template. Even this may take forever: constants are computed."""

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def to_json(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    extensions = [Generation, "jinja2.ext.loopcontrols"]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = to_json  # jinja2's own escapes HTML
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(source)


def _limit(kind: int, amount: int) -> None:
    hard = resource.getrlimit(kind)[1]
    try:
        resource.setrlimit(kind, (amount if hard == resource.RLIM_INFINITY else min(amount, hard), hard))
    except (ValueError, OSError):  # macOS refuses limits on memory
        pass


def _child(make: Callable[[], Callable[[str], Any]], texts: list[str], pipe: int) -> None:
    gc.disable()  # what a collection destroys may wait for threads that only the parent has, as gloo's groups do
    faulthandler.disable()  # it may abort for want of memory, which is no news to the user
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    _limit(resource.RLIMIT_CORE, 0)
    statm = Path("/proc/self/statm")  # the first number: pages of address space
    pages = int(statm.read_text().split()[0]) if statm.is_file() else 0
    _limit(resource.RLIMIT_AS, pages * resource.getpagesize() + MEMORY)
    _limit(resource.RLIMIT_CPU, SECONDS)
    characters = 0
    with os.fdopen(pipe, "w", encoding="utf-8") as lines:
        try:
            function = make()
            for text in texts:
                characters += len(text) + PROMPT_CHARS
                _limit(resource.RLIMIT_CPU, SECONDS + characters // CHARS_A_SECOND)
                lines.write(json.dumps({"result": function(text)}) + "\n")
        except UserError as e:
            lines.write(json.dumps({"error": str(e)}) + "\n")
        except MemoryError:
            pass  # the parent knows what it means that no more comes
        except Exception as e:  # the template and the tokenizer are somebody else's: they can raise anything
            reason = str(e).strip()[:300].replace("\n", " ")
            lines.write(json.dumps({"error": f"the chat template fails: {type(e).__name__}: {reason}"}) + "\n")


def map_in_child(make: Callable[[], Callable[[str], Any]], texts: list[str]) -> list[Any]:
    """`make()(text)` of every text, as JSON brings it back, from a forked child that is killed where it takes too long
    or too much. A fork, since it needs nothing but what is loaded. Raises UserError."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            signal.signal(signal.SIGXCPU, signal.SIG_DFL)
            _child(make, texts, writer)
        finally:
            os._exit(0)
    os.close(writer)
    results, limits = [], f"more than {SECONDS} s or {MEMORY >> 20} MiB for a prompt"
    error = f"the chat template or the tokenizer takes {limits}"  # unless the child lives to say another
    try:
        with os.fdopen(reader, encoding="utf-8") as lines:
            for line in lines:
                answer = json.loads(line) if line.endswith("\n") else {}  # it was killed as it wrote
                error = answer.get("error", error)
                if "result" in answer:
                    results.append(answer["result"])
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    if len(results) < len(texts):
        raise UserError(error)
    return results
