"""Accuracy of the sampler's weights on held-out problems, from the same sampler and grader that training uses."""

import json
import math
from pathlib import Path
from typing import Any

import torch.distributed as dist

from configs import Config
from prompts import ChatTokenizer, Prompt
from reward import RewardPool, extract_answer
from rollout import Rollout, TorchSampler, VLLMSampler, response_text, sample_seed


def evaluate(sampler: TorchSampler | VLLMSampler, tokenizer: ChatTokenizer, pool: RewardPool,
             benchmarks: dict[str, list[Prompt]], cfg: Config,
             max_tokens: int) -> dict[str, dict[str, float]]:  # fmt: skip
    """Mean of `cfg.eval_k` samples a problem, at most `max_tokens` each, for each benchmark and for "all" problems.

    Returns {accuracy, stderr, response_len_mean, response_clip_ratio, num_problems}; `stderr` is the standard error of
    the mean over problems. The seeds depend on run seed, problem and sample only: evaluations of two checkpoints share
    them. Every rank calls it with the same problems and gets the same numbers.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    keys = [(name, i) for name, prompts in benchmarks.items() for i in range(len(prompts))]
    mine = keys[rank::world]
    groups = sampler.generate(
        [benchmarks[name][i].ids for name, i in mine],
        [[sample_seed(cfg.seed, "eval", name, i, s) for s in range(cfg.eval_k)] for name, i in mine],
        max_tokens, cfg.eval_temperature, cfg.eval_top_p,
    )  # fmt: skip
    prompts = [benchmarks[name][i] for name, i in mine for _ in range(cfg.eval_k)]
    samples = [r for group in groups for r in group]
    texts = [response_text(p, r, tokenizer) for p, r in zip(prompts, samples, strict=True)]
    rewards = pool.rewards(texts, [p.problem.answer for p in prompts])
    rows = {}
    for j, key in enumerate(mine):
        part = slice(j * cfg.eval_k, (j + 1) * cfg.eval_k)
        rows[key] = (rewards[part], [(len(r.response_ids), r.finish_reason == "length") for r in samples[part]])
    parts: list[dict] = [{}] * world
    dist.all_gather_object(parts, rows)
    rows = {key: row for part in parts for key, row in part.items()}
    results = {name: summarize([rows[k] for k in keys if k[0] == name]) for name in benchmarks}
    return results | {"all": summarize([rows[k] for k in keys])}


def summarize(rows: list[tuple[list[float], list[tuple[int, bool]]]]) -> dict[str, float]:
    """Figures of one benchmark from each problem's (rewards, [(length, truncated)])."""
    means = [sum(rewards) / len(rewards) for rewards, _ in rows]
    samples = [s for _, group in rows for s in group]
    accuracy = sum(means) / len(means)
    variance = sum((m - accuracy) ** 2 for m in means) / max(1, len(means) - 1)
    return {"accuracy": accuracy, "stderr": math.sqrt(variance / len(means)), "num_problems": len(means),
            "response_len_mean": sum(n for n, _ in samples) / len(samples),
            "response_clip_ratio": sum(cut for _, cut in samples) / len(samples)}  # fmt: skip


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


def write_summary(cfg: Config, state: dict[str, Any], final: dict[str, dict], seconds: float) -> None:
    """summary.json: base and final over all benchmarks' problems at the first and the last context, and the cost."""
    summary: dict[str, Any] = {}
    for who, results in (("base", state["base"]), ("final", final)):
        for when in ("first", "last"):
            summary[f"{who}_{when}"] = {k: results[when]["all"][k] for k in ("accuracy", "stderr")}
            summary[f"{who}_{when}_benchmarks"] = results[when]
    summary |= {"first_context": cfg.max_response_len[0], "last_context": cfg.max_response_len[-1],
                "steps": state["step"], "wall_time": seconds, "tokens": state["tokens"],
                "world_size": dist.get_world_size()}  # fmt: skip
    if dist.get_rank() == 0:
        for when, context in (("first", cfg.max_response_len[0]), ("last", cfg.max_response_len[-1])):
            base, end = summary[f"base_{when}"], summary[f"final_{when}"]
            print(f"accuracy at context {context}: {base['accuracy']:.3f} +- {base['stderr']:.3f} -> "
                  f"{end['accuracy']:.3f} +- {end['stderr']:.3f}")  # fmt: skip
        aside = cfg.run_dir / "summary.json.tmp"
        aside.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        aside.rename(cfg.run_dir / "summary.json")
