"""Which prompts a step draws, and which of their groups it learns from.

A group is the `group_size` samples of one prompt. Everything here is a function of the config, the step and the
rollouts, the same on every rank.
"""

import math
from dataclasses import replace

import torch

from configs import Config
from losses import group_advantages, overlong_penalty
from rollout import Rollout, sample_seed


def step_prompts(step: int, num_prompts: int, cfg: Config) -> list[int]:
    """The prompts of a step (from 1): consecutive parts of a shuffled epoch, the last incomplete part left out."""
    per_epoch = num_prompts // cfg.prompts_per_step
    epoch, part = divmod(step - 1, per_epoch)
    generator = torch.Generator().manual_seed(sample_seed(cfg.seed, "epoch", epoch))
    order = torch.randperm(num_prompts, generator=generator)
    return order[part * cfg.prompts_per_step : (part + 1) * cfg.prompts_per_step].tolist()


def refill_prompts(groups: list[list[Rollout]], step: int, attempt: int, num_prompts: int, cfg: Config) -> list[int]:
    """Other prompts, in the place of those whose groups came out uniform, as many as should give what is missing at
    the share of mixed groups so far; none when the step is full or its attempts are used up (DAPO, 2503.14476, eq. 11;
    there they are the next ones of the epoch, here any that the step has not had)."""
    mixed = sum(is_mixed(g) for g in groups)
    missing = cfg.prompts_per_step - mixed
    if attempt > cfg.refill_attempts or missing <= 0:
        return []
    wanted = min(cfg.prompts_per_step, math.ceil(missing / max(0.1, mixed / len(groups))))
    generator = torch.Generator().manual_seed(sample_seed(cfg.seed, "refill", step, attempt))
    used = {g[0].prompt_id for g in groups}
    return [p for p in torch.randperm(num_prompts, generator=generator).tolist() if p not in used][:wanted]


def is_mixed(group: list[Rollout]) -> bool:
    """Neither all right nor all wrong."""
    return len({r.reward for r in group}) > 1


def to_train_on(groups: list[list[Rollout]], cfg: Config) -> list[list[Rollout]]:
    """The groups that make the minibatches, by prompt: all, or the first `prompts_per_step` mixed ones as drawn. None
    where no sample has an advantage."""
    chosen = [g for g in groups if is_mixed(g)][: cfg.prompts_per_step] if cfg.drop_uniform_groups else groups
    return sorted(chosen, key=lambda g: g[0].prompt_id) if any(r.advantage for g in chosen for r in g) else []


def with_advantages(rollouts: list[Rollout], max_len: int, cfg: Config) -> list[list[Rollout]]:
    """The groups of a step, each sample with its advantage."""
    groups: dict[int, list[Rollout]] = {}
    for r in rollouts:
        groups.setdefault(r.prompt_id, []).append(r)
    rewards = torch.tensor([[r.reward for r in g] for g in groups.values()], dtype=torch.float64)
    if cfg.overlong_buffer:
        lengths = torch.tensor([[len(r.response_ids) for r in g] for g in groups.values()], dtype=torch.float64)
        rewards = rewards + overlong_penalty(lengths, max_len, cfg.overlong_buffer)
    advantages = group_advantages(rewards, cfg.normalize_advantage_std).tolist()
    return [[replace(r, advantage=a) for r, a in zip(g, row, strict=True)]
            for g, row in zip(groups.values(), advantages, strict=True)]  # fmt: skip
