"""What a run reports: seconds and memory by phase, figures of a step's rollouts and their texts, the progress line, the
summary at the end, and wandb if asked."""

import dataclasses
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from configs import Config, UserError
from problems.prompts import ChatTokenizer, Prompt
from reward import extract_answer
from rollout import Rollout, response_text


def memory_in_use(device: torch.device) -> float:
    """GiB. A GPU: all that is taken of it, by whomever, with what torch's allocator keeps of its peak. The CPU: the
    most this process had resident since the last call, where Linux says so; else nan."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return (total - free) / 2**30
    try:
        with open("/proc/self/status", encoding="ascii") as f:
            peak = next((int(line.split()[1]) / 2**20 for line in f if line.startswith("VmHWM")), float("nan"))
        with open("/proc/self/clear_refs", "w", encoding="ascii") as f:
            f.write("5")  # begin a new peak
        return peak
    except OSError:  # not Linux, or a container that forbids it
        return float("nan")


class Timer:
    """Seconds and peak memory by phase: `with timer("rollout"): ...`; waits for the device at both ends."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self.memory: dict[str, float] = {}  # GiB

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Ends the run with one line where the GPU's memory does not suffice."""
        memory_in_use(self.device)
        start = self._now()
        try:
            yield
        except RuntimeError as e:
            if "out of memory" not in str(e):  # torch's allocator and vLLM's say it in errors of their own
                raise
            reason = str(e).splitlines()[0]
            raise SystemExit(f"out of memory in phase {phase!r}: {reason} Lower token_budget or logprob_chunk (the "
                             f"trainer), vllm_gpu_memory_utilization (vLLM), or use more GPUs") from e  # fmt: skip
        self.seconds[phase] = self.seconds.get(phase, 0.0) + self._now() - start
        memory = memory_in_use(self.device)
        self.memory[phase] = max(self.memory.get(phase, memory), memory)

    def over_ranks(self, phases: tuple[str, ...]) -> dict[str, float]:
        """The most memory that any rank took, by phase, GiB (0 for a phase that did not happen)."""
        memory = torch.tensor([self.memory.get(p, 0.0) for p in phases])
        dist.all_reduce(memory, dist.ReduceOp.MAX)
        return dict(zip(phases, memory.tolist(), strict=True))

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def rollout_metrics(groups: list[list[Rollout]]) -> dict[str, float | None]:
    """Rewards, lengths (tokens) and shares of a step's samples; None where there is nothing to average."""
    samples = [r for g in groups for r in g]

    def mean(values: list[float]) -> float | None:
        return sum(values) / len(values) if values else None

    return {
        "reward_mean": mean([r.reward for r in samples]),
        "response_len_mean": mean([len(r.response_ids) for r in samples]),
        "response_len_correct": mean([len(r.response_ids) for r in samples if r.reward == 1]),
        "response_len_incorrect": mean([len(r.response_ids) for r in samples if r.reward != 1]),
        "response_clip_ratio": mean([r.finish_reason == "length" for r in samples]),
        "solve_none": mean([all(r.reward == 0 for r in g) for g in groups]),
        "solve_all": mean([all(r.reward == 1 for r in g) for g in groups]),
        "tokens_generated": sum(len(r.response_ids) for r in samples),
    }


def time_columns(timer: Timer, seconds: float, tokens: int) -> dict[str, float]:
    """Of a step that took `seconds`: time by phase, tokens a second, memory by phase. Generation and its tail are means
    over ranks, which `timer` takes over: together they are equally long on all."""
    waited = torch.tensor([timer.seconds["rollout"], timer.seconds["tail"]], dtype=torch.float64)
    dist.all_reduce(waited)
    timer.seconds["rollout"], timer.seconds["tail"] = (waited / dist.get_world_size()).tolist()
    phases = ("rollout", "tail", "reward", "logprobs", "train", "sync", "probe", "eval")
    columns = {f"time_{phase}": timer.seconds.get(phase, 0.0) for phase in phases} | {"time_step": seconds}
    columns["tokens_per_second"] = tokens / (seconds - columns["time_eval"])
    memory = timer.over_ranks(("rollout", "logprobs", "train", "sync", "probe"))
    return columns | {f"memory_{phase}": gib for phase, gib in memory.items()}


def add_row(path: Path, row: dict[str, Any]) -> None:
    with open(path, "a", encoding="utf-8") as f:
        f.write(json.dumps(json_row(row), allow_nan=False) + "\n")


def json_row(row: dict[str, Any]) -> dict[str, Any]:
    """The row with null for what is not finite, which JSON cannot say."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def start_wandb(cfg: Config) -> Any:
    """A wandb run, the same one after a resume, or None if not asked for. Raises UserError where it cannot start."""
    if not cfg.wandb:
        return None
    import wandb

    try:
        return wandb.init(project="nanoscaler", id=cfg.run_name, config=dataclasses.asdict(cfg), resume="allow")
    except Exception as e:  # no login, no network, a bad name: wandb has an error of its own for each
        raise UserError(f"wandb: {e}") from None


def progress_line(row: dict[str, Any], last_step: int, seconds_left: float) -> str:
    evals = "".join(f"  {k} {v:.3f}" for k, v in row.items() if k.startswith("eval_"))
    words = [f"step {row['step']}/{last_step}", f"context {row['max_response_len']}",
             f"reward {row['reward_mean']:.3f}", f"length {row['response_len_mean']:.1f}",
             f"clipped {row['response_clip_ratio']:.3f}", f"{row['tokens_per_second']:,.0f} tokens/s",
             f"{seconds_left / 60:,.1f} min left"]  # fmt: skip
    return "  ".join(words) + evals


def dump_rollouts(path: Path, groups: list[list[Rollout]], prompts: list[Prompt], tokenizer: ChatTokenizer) -> None:
    with open(path, "w", encoding="utf-8") as f:
        for r in (r for g in groups for r in g):
            prompt = prompts[r.prompt_id]
            text = response_text(prompt, r, tokenizer)
            row = {"id": prompt.problem.id, "sample_id": r.sample_id, "prompt": prompt.problem.problem,
                   "response": text, "answer": extract_answer(text), "gold": prompt.problem.answer,
                   "reward": r.reward, "advantage": r.advantage, "length": len(r.response_ids),
                   "finish_reason": r.finish_reason}  # fmt: skip
            f.write(json.dumps(row) + "\n")


def write_summary(cfg: Config, state: dict[str, Any], final: dict[str, dict], wall_time: float,
                  cost: dict[str, float]) -> None:  # fmt: skip
    """summary.json: base and final over all benchmarks' problems at the first and the last context, and the cost."""
    summary: dict[str, Any] = {}
    for who, results in (("base", state["base"]), ("final", final)):
        for when in ("first", "last"):
            summary[f"{who}_{when}"] = {k: results[when]["all"][k] for k in ("accuracy", "stderr")}
            summary[f"{who}_{when}_benchmarks"] = results[when]
    summary |= {"first_context": cfg.max_response_len[0], "last_context": cfg.max_response_len[-1],
                "steps": state["step"], "wall_time": wall_time, "tokens": state["tokens"],
                "world_size": dist.get_world_size(), "verdict": state["verdict"], **cost}  # fmt: skip
    if dist.get_rank() == 0:
        for when, context in (("first", cfg.max_response_len[0]), ("last", cfg.max_response_len[-1])):
            base, end = summary[f"base_{when}"], summary[f"final_{when}"]
            print(f"accuracy at context {context}: {base['accuracy']:.3f} +- {base['stderr']:.3f} -> "
                  f"{end['accuracy']:.3f} +- {end['stderr']:.3f}")  # fmt: skip
        aside = cfg.run_dir / "summary.json.tmp"
        aside.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        aside.rename(cfg.run_dir / "summary.json")


# ----------------------------------------------------------------------------------------------------------- the ledger

PHASES = ("start", "generate", "tail", "reward", "logprobs", "train", "sync", "checkpoint", "eval", "other")
ENTRY = {"rollout": "generate", "probe": "sync"}  # phases of the loop that the ledger calls otherwise


class Ledger:
    """GPU-seconds of all ranks by phase; "other" is what no phase has measured, so they add up to the wall clock.
    All ranks read the file and rank 0 writes it. Raises UserError for one that cannot be read."""

    def __init__(self, run_dir: Path, started: float) -> None:
        """`started`: the time.perf_counter() that this process is charged from."""
        self.path, self.charged_at = run_dir / "ledger.json", started
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.wall_clock = 0.0  # seconds
        if self.path.is_file():
            try:
                found = json.loads(self.path.read_text(encoding="utf-8"))
                self.seconds = {phase: float(found["gpu_seconds"][phase]) for phase in PHASES}
                self.wall_clock = float(found["wall_clock"])
            except (OSError, ValueError, KeyError, TypeError) as e:
                raise UserError(f"{self.path}: cannot be read ({e}); without it the costs begin at 0") from None

    def charge(self, timer: Timer) -> None:
        """Add the time since the last charge, of which `timer` knows the phases."""
        now, world = time.perf_counter(), dist.get_world_size()
        elapsed, self.charged_at = now - self.charged_at, now
        for phase, seconds in timer.seconds.items():
            self.seconds[ENTRY.get(phase, phase)] += world * seconds
        self.seconds["other"] += world * (elapsed - sum(timer.seconds.values()))
        self.wall_clock += elapsed
        if dist.get_rank() == 0:
            aside = self.path.with_suffix(".tmp")
            aside.write_text(json.dumps({"wall_clock": self.wall_clock, "gpu_seconds": self.seconds}), encoding="utf-8")
            aside.rename(self.path)

    def columns(self, cfg: Config) -> dict[str, float]:
        """GPU-hours of the run so far, in all and by phase, and dollars where a price is set."""
        hours = sum(self.seconds.values()) / 3600
        columns = {"gpu_hours": hours} | {f"gpu_hours_{phase}": s / 3600 for phase, s in self.seconds.items()}
        return columns | ({"dollars": hours * cfg.gpu_dollars_per_hour} if cfg.gpu_dollars_per_hour else {})

    def table(self, cfg: Config) -> str:
        total, price = sum(self.seconds.values()), cfg.gpu_dollars_per_hour
        lines = [f"{'phase':<12}{'GPU-hours':>12}{'share':>9}" + (f"{'dollars':>12}" if price else "")]
        for phase, seconds in [*self.seconds.items(), ("total", total)]:
            line = f"{phase:<12}{seconds / 3600:>12,.4f}{seconds / max(total, 1e-9):>9.1%}"
            lines.append(line + (f"{seconds / 3600 * price:>12,.2f}" if price else ""))
        return "\n".join(lines)
