"""Which prompts a step draws, and which of the groups of their responses it learns from."""

import math

import torch

from configs import Config
from rollout import Rollout, sample_seed
from training import packing
from training.checkpoint import RunState


def draw_prompts(state: RunState, num_prompts: int, cfg: Config) -> list[int]:
    """Indices of the prompts of the step after `state`: consecutive slices of a shuffled epoch, without an incomplete
    last one. The same on every rank."""
    steps_per_epoch = num_prompts // cfg.prompts_per_step
    epoch, step_of_epoch = divmod(state.step - state.order_began, steps_per_epoch)
    generator = torch.Generator().manual_seed(sample_seed(cfg.seed, "epoch", epoch))
    order = torch.randperm(num_prompts, generator=generator)
    first = step_of_epoch * cfg.prompts_per_step
    return order[first : first + cfg.prompts_per_step].tolist()


def refill_prompts(groups: list[list[Rollout]], step: int, attempt: int, num_prompts: int, cfg: Config) -> list[int]:
    """Indices of other prompts in place of those with uniform groups (DAPO, 2503.14476, eq. 11), as many as should give
    the missing mixed groups at the share of mixed ones so far. An empty list if the step is full or its attempts are
    used up. DAPO takes the epoch's next prompts, this any that the step has not had. The same on every rank."""
    mixed = sum(is_mixed(group) for group in groups)
    missing = cfg.prompts_per_step - mixed
    if attempt > cfg.refill_attempts or missing <= 0:
        return []
    mixed_share = max(0.1, mixed / len(groups))  # not below a tenth: no more than ten times as many as are missing
    wanted = min(cfg.prompts_per_step, math.ceil(missing / mixed_share))
    generator = torch.Generator().manual_seed(sample_seed(cfg.seed, "refill", step, attempt))
    drawn = {group[0].prompt_id for group in groups}
    order = torch.randperm(num_prompts, generator=generator).tolist()
    return [index for index in order if index not in drawn][:wanted]


def is_mixed(group: list[Rollout]) -> bool:
    """Do its rewards differ: is it neither all right nor all wrong?"""
    return len({rollout.reward for rollout in group}) > 1


def groups_to_train_on(groups: list[list[Rollout]], cfg: Config) -> list[list[Rollout]]:
    """All groups, or the first `prompts_per_step` mixed ones in the order drawn; sorted by prompt. An empty list if
    every advantage is 0, or no token counts."""
    if cfg.drop_uniform_groups:
        groups = [group for group in groups if is_mixed(group)][: cfg.prompts_per_step]
    rollouts = [rollout for group in groups for rollout in group if packing.counts_in_loss(rollout, cfg.mask_truncated)]
    if not rollouts or all(rollout.advantage == 0 for group in groups for rollout in group):
        return []
    return sorted(groups, key=lambda group: group[0].prompt_id)
