"""Our rules beside math-verify on labelled answer pairs: verdicts, hostile text, speed; the tables of grader/README.md.

  python tests/conformance.py                       # the labelled pairs beside this file, and HOSTILE
  python tests/conformance.py --data FILE.jsonl     # rows {"gold", "answer", "equal", "category"} of your own
  python tests/conformance.py --golds FILE ...      # which golds of .json or .jsonl files are not gradable, and why

Each grader runs in one process of its own, one pair at a time. A pair that takes over TIME_LIMIT seconds counts as a
hang, and the process is replaced. Speed is measured inside the grader, without import and first call. math-verify
(Hugging Face) gets both answers in \\boxed{} and its default settings.
"""

import argparse
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CASES = Path(__file__).with_name("grader_cases.txt")  # written with the grader
BLIND_CASES = Path(__file__).with_name("grader_cases_blind.txt")  # written by someone who had not seen it
REPORTS = Path(__file__).with_name("grader_reports.jsonl")  # the same, after public reports on graders; answer and gold
TIME_LIMIT = 10.0
GRADERS = ("exact", "strict", "deepscaler", "math-verify")
HOSTILE = [  # answers that must be wrong against any gold, soon, and without running anything
    *("9^{9^{9^9}}", "(10^9)!", "(((9!)!)!)!", "1e999999999", "10^{10^{10}}", "e^{e^{e^{e^{e}}}}", "2^2^2^2^2^2^2"),
    r"\sum_{i=0}^{200}{\sum_{j=0}^{200}{\binom{5000}{2500}^0}}",
    r"\sum_{j=0}^{1000}{\sum_{k=0}^{1000}{\pi}}",
    *("7^{123456789}\\mod 10", "\\prod_{k=1}^{10^9} k", "(x+y+z)^{300}", "1/0", "0/0", "\\infty-\\infty", "\\frac{}{}"),
    *("(" * 5000, "{" * 5000, "-" * 5000, "|" * 1500, "5" + "!" * 1500, "9" * 1999, "1/" * 900 + "1", "\\sqrt" * 390),
    *("x^{" * 49 + "}" * 49, "\\frac{1}{" * 60, "(1+" * 48 + "1" + ")!" * 48, "x_", "\\", "\x00", "\ud800", "^"),
    *("7'" * 900, "1^" * 900 + "1", "i!" * 900, "99999e9999" * 180, "\\sin" * 400, "\\text{" * 300, "1," * 999),
    *("\\sqrt[999999]{2}", "\\binom{10^9}{10^8}", "\\sin(10^{10^5})", "\\log_{1}2", "\\frac{\\pi}{99999999991}"),
    *("__import__('os').system('touch MARKER')", "open('MARKER','w')", "\\text{open('MARKER','w')}", "x=exit()"),
    *("[].__class__.__base__.__subclasses__()", "lambda: open('MARKER','w')", "os._exit(1)", "\\input{MARKER}"),
]  # fmt: skip


def load_cases(path: Path = CASES) -> list[tuple[bool, str, str, str]]:
    """Rows (equal, kind, one answer, the other) of a grader_cases*.txt."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    rows = [line.split(" | ", 3) for line in lines]
    return [(sign == "=", kind, a, b) for sign, kind, a, b in rows]


def load_rows(path: Path) -> list[dict[str, Any]]:
    """Rows {"answer", "gold", "equal", "hostile"} of a .jsonl file, or of a grader_cases*.txt, both ways round."""
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        rows = [r for r in rows if r.get("kind", "answer") == "answer" and r["category"] != "ambiguous"]
        return [{**r, "hostile": r["category"].startswith("hostile")} for r in rows]
    rows = []
    for equal, _, a, b in load_cases(path):
        rows += [{"answer": x, "gold": y, "equal": equal, "hostile": False} for x, y in ((a, b), (b, a))]
    golds = ("6", "\\frac{x+1}{2}", "(2,1)")
    hostile = [{"answer": h, "gold": g, "equal": False, "hostile": True} for h in HOSTILE for g in golds]
    return rows + hostile if path.resolve() == CASES else rows


def worker(name: str) -> None:
    """Grades in this process: lines {"answer", "gold"} from stdin, lines {"equal", "seconds"} to stdout."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # a grader may print
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    if name != "math-verify":
        sys.path.insert(0, str(ROOT))
        from reward import grade

        def same(answer: str, gold: str) -> bool:
            return grade(answer, gold, name)
    else:
        from math_verify import parse, verify

        def same(answer: str, gold: str) -> bool:
            gold, answer = (f"\\boxed{{{text.strip().strip('$')}}}" for text in (gold, answer))
            return verify(parse(gold), parse(answer))

    same("\\sqrt{2}", "\\frac{2}{\\sqrt2}")
    out.write("ready\n")
    for line in sys.stdin:
        row = json.loads(line)
        start = time.perf_counter()
        try:
            verdict = bool(same(row["answer"], row["gold"]))
        except Exception:  # either grader may raise on hostile text: that counts as no verdict
            verdict = None
        out.write(json.dumps({"equal": verdict, "seconds": time.perf_counter() - start}) + "\n")


class Process:
    """A grader in a `worker` process, which is replaced when it hangs or dies."""

    def __init__(self, name: str) -> None:
        self.command = [sys.executable, __file__, "--worker", name]
        self.process: subprocess.Popen | None = None

    def read_line(self, seconds: float) -> bytes | None:
        """One line; b"" where the process has ended, None where no line came within `seconds`."""
        deadline = time.monotonic() + seconds
        while b"\n" not in self.buffer:
            if not select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return None
            chunk = os.read(self.process.stdout.fileno(), 65536)
            if not chunk:
                return b""
            self.buffer += chunk
        line, _, self.buffer = self.buffer.partition(b"\n")
        return line

    def ask(self, row: dict) -> dict:
        if self.process is None:
            self.buffer = b""
            self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            if self.read_line(120) != b"ready":
                sys.exit(f"{self.command[-1]} did not start; is it installed (requirements-test.txt)?")
        self.process.stdin.write(json.dumps(row).encode() + b"\n")
        self.process.stdin.flush()
        line = self.read_line(TIME_LIMIT)
        if line:
            return json.loads(line)
        self.close()
        return {"equal": None, "seconds": TIME_LIMIT, "hung": line is None}

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


def measure(name: str, rows: list[dict]) -> dict[str, Any]:
    """A grader on `load_rows`: counts (fp, fn: false positives and negatives) and speed; hostile rows apart."""
    process, seconds = Process(name), []
    score = {"right": 0, "ordinary": 0, "fp": 0, "fn": 0, "stopped": 0, "hostile": 0, "hostile_right": 0, "ran": 0}
    with tempfile.TemporaryDirectory() as folder:
        marker = Path(folder) / "marker"
        for row in rows:
            answer = row["answer"].replace("MARKER", str(marker)).replace("@@PWN@@", folder)
            result = process.ask({"answer": answer, "gold": row["gold"]})
            right = bool(result["equal"]) == row["equal"]
            if row["hostile"]:
                ran = bool(os.listdir(folder))
                for file in Path(folder).iterdir():
                    file.unlink()
                score["hostile"] += 1
                score["hostile_right"] += right and not ran and "hung" not in result
                score["stopped"] += "hung" in result
                score["ran"] += ran
                continue
            seconds.append(result["seconds"])
            score["ordinary"] += 1
            score["right"] += right
            score["fp" if result["equal"] else "fn"] += not right
    process.close()
    p99 = sorted(seconds)[int(0.99 * len(seconds))]
    return {**score, "p99_ms": 1000 * p99, "max_ms": 1000 * max(seconds), "per_second": len(seconds) / sum(seconds)}


def table(results: dict[str, dict]) -> str:
    head = "| grader | pairs | right | false positives | false negatives | hostile: right | hung or died | ran code "
    lines = [head + "| p99, ms | pairs/s |", "|---" * 10 + "|"]
    for name, r in results.items():
        lines.append(
            f"| {name} | {r['ordinary']:,} | {r['right'] / r['ordinary']:.1%} | {r['fp']} | {r['fn']} "
            f"| {r['hostile_right']} of {r['hostile']} | {r['stopped']} | {r['ran']} "
            f"| {r['p99_ms']:.1f} | {r['per_second']:,.0f} |"
        )
    return "\n".join(lines)


def load_golds(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8-sig")
    rows = json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines() if line]
    golds = [next((row[key] for key in ("answer", "final_answer", "Answer") if key in row), None) for row in rows]
    return [str(g) for gold in golds if gold is not None for g in (gold if isinstance(gold, list) else [gold])]


def list_golds(paths: list[str]) -> None:
    """Every gold that cannot be graded, with the reason, and a count a file."""
    sys.path.insert(0, str(ROOT))
    from grader.answers import refusal
    from reward import grade

    for path in map(Path, paths):
        golds = load_golds(path)
        refused = {gold: reason for gold in golds if (reason := refusal(gold))}
        unequal = [gold for gold in golds if gold not in refused and not grade(gold, gold)]
        for gold, reason in refused.items():
            print(f"{path.name}: {gold.strip()!r}: {reason}")
        for gold in unequal:
            print(f"{path.name}: {gold.strip()!r}: NOT EQUAL TO ITSELF")
        num_refused = sum(gold in refused for gold in golds)
        counts = f"{len(golds)} golds, {num_refused} not gradable, {len(unequal)} gradable but not equal to themselves"
        print(f"{path.name}: {counts}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", type=Path, default=[CASES, BLIND_CASES, REPORTS])
    parser.add_argument("--golds", nargs="+")
    parser.add_argument("--worker", choices=GRADERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args.worker)
    elif args.golds:
        list_golds(args.golds)
    else:
        for path in args.data:
            rows = load_rows(path)
            print(f"\n{path.name}\n\n{table({name: measure(name, rows) for name in GRADERS})}", flush=True)


if __name__ == "__main__":
    main()
