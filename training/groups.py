"""Which prompts a step draws, and which of the groups of their responses it learns from."""

import itertools
import math
from dataclasses import replace

import torch

from configs import Config
from rollout import Rollout, sample_seed
from training import packing
from training.checkpoint import RunState


def draw_prompts(state: RunState, num_prompts: int, cfg: Config) -> tuple[list[int], RunState]:
    """Indices of the next `prompts_per_step` prompts, and the state after the draw; the same on every rank.

    The next ones of a shuffled epoch, without those that the curriculum leaves out. The rest of an epoch that does not
    fill a step is passed over. If a whole epoch has too few, prompts that were left out fill it up.
    """
    epoch, position = state.epoch, state.position
    while True:
        order = epoch_order(epoch, num_prompts, cfg)
        drawn, left_out = [], []
        for place in range(position, num_prompts):
            if is_left_out(order[place], epoch, state, cfg):
                left_out.append(order[place])
            else:
                drawn.append(order[place])
            if len(drawn) == cfg.prompts_per_step:
                return drawn, replace(state, epoch=epoch, position=place + 1, left_out=len(left_out))
        if position == 0:
            filled = [*drawn, *left_out][: cfg.prompts_per_step]
            return filled, replace(state, epoch=epoch, position=num_prompts, left_out=num_prompts - len(filled))
        epoch, position = epoch + 1, 0


def epoch_order(epoch: int, num_prompts: int, cfg: Config) -> list[int]:
    """All prompt indices, shuffled."""
    generator = torch.Generator().manual_seed(sample_seed(cfg.seed, "epoch", epoch))
    return torch.randperm(num_prompts, generator=generator).tolist()


# ------------------------------------------------------------------------------------------- the curriculum of a stage


def is_left_out(index: int, epoch: int, state: RunState, cfg: Config) -> bool:
    """Does the curriculum leave a prompt out of this epoch, by what the model made of it?

    With `skip_solved`: where all samples were right in that many visits in a row, as Skywork-OR1 does after one (arXiv
    2505.22312, section 3). With `weigh_draw`: by chance, so that it is drawn with probability 4 p (1 - p): the variance
    of its reward over the most it could be, which is how much a prompt can teach (2502.12272). p counts one right and
    one wrong sample more than there were (Laplace), so that no prompt is lost for good. Unseen prompts stay in.
    """
    if index not in state.visits:
        return False
    pass_rate, solved_in_a_row = state.visits[index]
    if cfg.skip_solved and solved_in_a_row >= cfg.skip_solved:
        return True
    if not cfg.weigh_draw:
        return False
    samples = cfg.group_size[state.stage]
    p = (pass_rate * samples + 1) / (samples + 2)
    return sample_seed(cfg.seed, "weigh", epoch, index) / 2**63 >= 4 * p * (1 - p)


def after_visits(state: RunState, groups: list[list[Rollout]], cfg: Config) -> RunState:
    """The state with what these finished groups say of their prompts, for the curriculum."""
    if not cfg.skip_solved and not cfg.weigh_draw:
        return state
    visits = dict(state.visits)
    for group in groups:
        index, right = group[0].prompt_id, [rollout.reward >= 1 for rollout in group]
        before = visits.get(index, (0.0, 0))[1]
        visits[index] = sum(right) / len(right), before + 1 if all(right) else 0
    return replace(state, visits=visits)


def curriculum_columns(state: RunState, cfg: Config) -> dict[str, int]:
    """How many prompts the step's draw passed over, and how many are left out for being solved."""
    if not cfg.skip_solved and not cfg.weigh_draw:
        return {}
    solved = sum(in_a_row >= cfg.skip_solved for _, in_a_row in state.visits.values()) if cfg.skip_solved else 0
    return {"prompts_left_out": state.left_out, "prompts_solved": solved}


# ------------------------------------------------------------------------------------------- what is learned from


def refill_prompts(
    groups: list[list[Rollout]], state: RunState, attempt: int, num_prompts: int, cfg: Config
) -> list[int]:
    """Indices of other prompts in place of those with uniform groups (DAPO, 2503.14476, eq. 11), as many as should give
    the missing mixed groups at the share of mixed ones so far. An empty list if the step is full or its attempts are
    used up. DAPO takes the epoch's next prompts, this any that the step has not had and the curriculum does not leave
    out, by the visits before the step. The same on every rank. state: the one before the step."""
    mixed = sum(is_mixed(group) for group in groups)
    missing = cfg.prompts_per_step - mixed
    if attempt > cfg.refill_attempts or missing <= 0:
        return []
    mixed_share = max(0.1, mixed / len(groups))  # not below a tenth: no more than ten times as many as are missing
    wanted = min(cfg.prompts_per_step, math.ceil(missing / mixed_share))
    generator = torch.Generator().manual_seed(sample_seed(cfg.seed, "refill", state.step + 1, attempt))
    drawn = {group[0].prompt_id for group in groups}
    order = torch.randperm(num_prompts, generator=generator).tolist()
    others = (index for index in order if index not in drawn and not is_left_out(index, state.epoch, state, cfg))
    return list(itertools.islice(others, wanted))


def is_mixed(group: list[Rollout]) -> bool:
    """Do its rewards differ: is it neither all right nor all wrong?"""
    return len({rollout.reward for rollout in group}) > 1


def groups_to_train_on(groups: list[list[Rollout]], cfg: Config) -> list[list[Rollout]]:
    """All groups, or the first `prompts_per_step` mixed ones in the order drawn; sorted by prompt. An empty list if
    no token counts, or every advantage is 0 though there is a reward."""
    if cfg.drop_uniform_groups:
        groups = [group for group in groups if is_mixed(group)][: cfg.prompts_per_step]
    rollouts = [rollout for group in groups for rollout in group if packing.counts_in_loss(rollout, cfg.mask_truncated)]
    nothing_to_compare = cfg.reward != "none" and all(r.advantage == 0 for group in groups for r in group)
    if not rollouts or nothing_to_compare:
        return []
    return sorted(groups, key=lambda group: group[0].prompt_id)
