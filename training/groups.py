"""The groups of a step: which prompts it draws, their samples and rewards, and which of them it learns from.

A group is the `group_size` samples of one prompt. What is chosen is a function of the config, the step and the
rollouts, the same on every rank.
"""

import math
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from configs import Config
from grader.pool import RewardPool
from losses import group_advantages, overlong_penalty
from problems.prompts import ChatTokenizer, Prompt
from rollout import Rollout, TorchSampler, VLLMSampler, gather_rollouts, response_text, sample_seed
from training.metrics import Timer


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
    """The groups that make the minibatches, by prompt: all, or the first `prompts_per_step` mixed ones as drawn. An
    empty list where no sample has an advantage."""
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


def sample_groups(sampler: TorchSampler | VLLMSampler, tokenizer: ChatTokenizer, pool: RewardPool,
                  prompts: list[Prompt], state: dict[str, Any], cfg: Config,
                  timer: Timer) -> tuple[list[list[Rollout]], int]:  # fmt: skip
    """The step after `state`, up to its rewards: the groups of all ranks in the order their prompts were drawn, with
    rewards and advantages, and this rank's prompt tokens that were not computed again."""
    rank, world, step, stage = dist.get_rank(), dist.get_world_size(), state["step"] + 1, state["stage"]
    max_len, samples = cfg.max_response_len[stage], range(cfg.group_size[stage])
    groups, cached_tokens, attempt = [], 0, 0
    drawn = step_prompts(step - state["order_began"], len(prompts), cfg)
    while drawn:  # again, where uniform groups are replaced
        with timer("rollout"):  # each rank its share of the prompts
            mine = drawn[rank::world]
            seeds = [[sample_seed(cfg.seed, stage, step, attempt, p, s) for s in samples] for p in mine]
            sampled = sampler.generate([prompts[p].ids for p in mine], seeds, max_len, cfg.temperature, cfg.top_p)
            rollouts = [replace(r, prompt_id=mine[r.prompt_id]) for group in sampled for r in group]
            cached_tokens += sampler.cached_tokens if mine else 0
        with timer("tail"):
            dist.all_reduce(torch.zeros(1))  # wait for the rank whose answers are the longest
        with timer("reward"):
            texts = [response_text(prompts[r.prompt_id], r, tokenizer) for r in rollouts]
            rewards = pool.rewards([prompts[r.prompt_id].problem for r in rollouts], texts)
            rollouts = gather_rollouts([replace(r, reward=x) for r, x in zip(rollouts, rewards, strict=True)])
            groups += sorted(with_advantages(rollouts, max_len, cfg), key=lambda g: drawn.index(g[0].prompt_id))
        attempt += 1
        drawn = refill_prompts(groups, step, attempt, len(prompts), cfg)
    return groups, cached_tokens
