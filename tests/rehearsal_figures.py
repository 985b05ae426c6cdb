"""What the logs of tests/gpu_rehearsal_8.sh say, in a few lines.

    PYTHONPATH=. python tests/rehearsal_figures.py out/rehearsal_8 2048     # the script's OUT_DIR, and its LENGTHS

The script calls it at its end. Reads the logs and the runs' metrics.jsonl; prints when each run was ready, the verdicts
of its smoke runs, memory by phase and the plan's, what sleep and wake took, milliseconds an engine step, and sampler
against trainer (k3) beside the shipped limit.
"""

import json
import re
from pathlib import Path

from configs import Config, UserError, run

READY = re.compile(r"^ *(\d+)  .*(attention: .*, sampler: .*)$", re.MULTILINE)
VERDICT = re.compile(r"^ *\d+  (smoke: .*)$", re.MULTILINE)
SLEEP = re.compile(r"Sleep mode freed .*|It took [\d.]+ seconds to (?:fall asleep|wake up).*")
ROLLOUT = re.compile(r"^ *\d+  rollout +([\d.]+)", re.MULTILINE)
PEAK = re.compile(r"^ *\d+  (worst pack|rollout|logprobs|train|sync|probe) +[\d.]+ +([\d.]+)$", re.MULTILINE)
PLAN = re.compile(r"^ *\d+  ((?:GiB on a GPU|together) .*)$", re.MULTILINE)
PHASES = ("rollout", "tail", "logprobs", "train", "sync", "probe")


def of_log(name: str, text: str, length: int) -> list[str]:
    """Lines on the log of a step; `length`: the limit of a response in tokens."""
    lines = [f"ready after {seconds} s, {what}" for seconds, what in READY.findall(text)]
    lines += VERDICT.findall(text)
    lines += PLAN.findall(text)[:2]  # of the first stage
    if "peak GiB a rank" in text:
        lines.append("peak GiB a rank: " + ", ".join(f"{phase} {peak}" for phase, peak in PEAK.findall(text)))
    lines += SLEEP.findall(text)[:4]  # the first sleep and wake, of some rank
    rollout = ROLLOUT.search(text)
    if name.startswith("bench") and rollout:
        step = 1000 * float(rollout[1]) / length
        lines.append(f"{step:.2f} ms an engine step, where the longest response has {length} tokens")
    return [f"{name}: {line}" for line in lines]


def of_steps(name: str, file: Path) -> list[str]:
    """Lines on each step of a run: sampler against trainer after its sync and on its tokens, and seconds by phase."""
    lines = []
    for row in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
        for what, k3 in (("after the sync", row["mismatch_sync_k3"]), ("on all tokens", row["mismatch_k3"])):
            if k3 is not None:  # a step without an update has none
                verdict = "beyond" if k3 > Config.mismatch_limit else "within"
                lines.append(f"{name} step {row['step']}: k3 {what} {k3:.1e}, {verdict} {Config.mismatch_limit}")
        seconds = ", ".join(f"{phase} {row[f'time_{phase}']:.1f}" for phase in PHASES)
        lines.append(f"{name} step {row['step']}: seconds: {seconds}")
    return lines


def main(argv: list[str]) -> None:
    """Raises UserError unless argv is a rehearsal's folder and the limit of a response in tokens."""
    if len(argv) != 2 or not Path(argv[0], "report/logs").is_dir() or not argv[1].isdecimal():
        raise UserError("rehearsal_figures.py: needs the OUT_DIR of a rehearsal and the limit of a response in tokens")
    out, length = Path(argv[0]), int(argv[1])
    for log in sorted((out / "report" / "logs").glob("*.log"), key=lambda path: path.stat().st_mtime):
        for line in of_log(log.stem, log.read_text(encoding="utf-8", errors="replace"), length):
            print(line)
    for file in sorted((out / "runs").glob("t*/metrics.jsonl")):
        print(*of_steps(file.parent.name, file), sep="\n")


if __name__ == "__main__":
    run(main)
