"""One timed run of train_grpo for the comparison with TRL: `python -m speed.our_side JOB.json`.

The real loop, with random rewards instead of grading. Reads a job (see `against`), writes its figures where that says.
"""

import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import train_grpo
from configs import run, write_whole
from speed import machine
from training import smoke


class Timed(smoke.NoHook):
    """The hook: replaces the rewards, and reads the clocks after each step."""

    def __init__(self, has_stop: bool) -> None:
        self.has_stop = has_stop
        self.rng = random.Random(0)
        self.rows: list[dict[str, Any]] = []  # of the steps, as metrics.jsonl has them
        self.readings: list[machine.Reading] = []  # after each step
        self.threads = 0

    def before_training(self, run: Any, backward: Any, optimizer_step: Any) -> None:
        self.write = run.log.write
        run.log.write = self.after_step
        run.pool.rewards = self.random_rewards
        if not self.has_stop:  # every response is as long as it may be
            run.sampler.eos_ids = torch.tensor([-1])
        self.threads = torch.get_num_threads()

    def random_rewards(self, problems: list[Any], responses: list[str], progress: str = "") -> list[float]:
        return [float(self.rng.random() < 0.5) for _ in responses]

    def after_step(self, row: dict[str, Any], last_step: int) -> None:
        self.write(row, last_step)
        self.rows.append(row)
        self.readings.append(machine.read_clocks())


def figures(hook: Timed, warm_up: int) -> dict[str, Any]:
    """Of the steps behind the first `warm_up`: seconds a step, in all and by phase, tokens, and who else computed."""
    timed = hook.rows[warm_up:]
    stretch = machine.stretch(hook.readings[warm_up - 1], hook.readings[-1])
    step = stretch.seconds / len(timed)
    generate = sum(row["time_rollout"] for row in timed) / len(timed)
    train = sum(row["time_train"] for row in timed) / len(timed)
    parts = {"generate": generate, "train": train, "rest": step - generate - train}
    tokens = sum(row["tokens_generated"] for row in timed)
    return {"step": step, **parts, "tokens": tokens, **asdict(stretch), "threads": hook.threads}


def main(argv: list[str]) -> None:
    job = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    hook = Timed(job["has_stop"])
    train_grpo.main(job["our_flags"], hook)
    write_whole(Path(job["result"]), json.dumps(figures(hook, job["warm_up"])))


if __name__ == "__main__":
    run(main)
