"""Partial rollouts: a step's generation ends when `prompts_per_step` groups are finished, and the rest goes on later.

Generation otherwise waits for its few longest answers. Here the prompts of the next step are drawn one step ahead, so
that twice as many groups are in flight as are trained on. Those that are not finished are carried over, with their
tokens and the log-probabilities of the policy that sampled them, and go on under the next step's weights. The loss
weighs each token by the policy at the beginning of the step over the one that sampled it (`losses.rollout_weights`).

No length is favoured: every group that is drawn is trained on exactly once, with all of its samples, oldest first. (To
drop the unfinished would favour prompts and samples with short answers; to begin them anew with other random numbers as
well.) No token gets older than `max_staleness` steps: a step waits for groups that would. `RunState.carried` holds what
is carried over, the same on every rank; checkpoints have it.
"""

from dataclasses import replace

import torch.distributed as dist

from configs import Config
from problems.prompts import Prompt
from rollout import Rollout, sample_seed
from training.begin import Run
from training.checkpoint import RunState
from training.groups import draw_prompts
from training.metrics import Timer
from training.packing import gather_rollouts
from training.stages import begins_data_anew

Group = list[Rollout]  # the samples of a prompt

# ------------------------------------------------------------------------------------------------- what is in flight


def new_group(draw: int, index: int, prompt: Prompt, size: int) -> Group:
    """`size` samples without a token yet, of the prompt with this index among the run's."""
    return [Rollout(index, sample_id, prompt.ids, [], [], None, draw=draw) for sample_id in range(size)]


def age(group: Group, step: int) -> int:
    """Steps that lie between the weights of `step` and those that sampled the group's oldest token."""
    return max(step - r.segments[0][0] if r.segments else 0 for r in group)


def by_age(groups: list[Group], step: int) -> list[Group]:
    """The oldest first, those of one age in the order of their draws."""
    return sorted(groups, key=lambda group: (-age(group, step), group[0].draw, group[0].prompt_id))


def restarted(group: Group) -> Group:
    """Without its tokens. Its seeds remain what they were, so that a long answer is no new throw of the dice."""
    return [replace(r, response_ids=[], logprobs=[], finish_reason=None, segments=()) for r in group]


def in_flight(state: RunState, prompts: list[Prompt], cfg: Config) -> tuple[list[Group], RunState]:
    """The groups of the step after `state`, by age: what was carried over and what is drawn now, two steps' prompts
    where nothing was; and the state after these draws. The same on every rank. A stage draws for its own steps only,
    so that its last one finishes all.

    (For `max_steps` it would draw on, as if the run were killed there: a resumed run may raise it.)
    """
    step, size = state.step + 1, cfg.group_size[state.stage]
    # older only after a resume with a smaller max_staleness
    groups = [restarted(group) if age(group, step) > cfg.max_staleness else group for group in state.carried]
    last = state.stage_began + cfg.stage_steps[state.stage]
    for draw in [step + 1] if groups else [step, step + 1]:
        if draw <= last:
            indices, state = draw_prompts(state, len(prompts), cfg)
            groups += [new_group(draw, index, prompts[index], size) for index in indices]
    return by_age(groups, step), state


def for_next_stage(state: RunState, prompts: list[Prompt], cfg: Config) -> tuple[Group, ...]:
    """What the first step of a stage, which `state` has just begun, finds carried over.

    Only the controller's switch, which nobody foresees, leaves anything. Context, group size, KL reference and perhaps
    the weights are others now, so whole groups begin anew, finished ones too, with the seeds of the new stage; where
    the data order begins anew as well, they are forgotten. The old stage has then learned from its last draws only
    what was finished first: at most `prompts_per_step` groups a switch, and none under fixed stages.
    """
    if begins_data_anew(state.stage, cfg):
        return ()
    size = cfg.group_size[state.stage]
    return tuple(new_group(g[0].draw, g[0].prompt_id, prompts[g[0].prompt_id], size) for g in state.carried)


# ------------------------------------------------------------------------------------------------------------- sample


def sample(run: Run, state: RunState, timer: Timer) -> tuple[list[Rollout], list[int], RunState]:
    """This rank's share of the samples of `prompts_per_step` finished groups; the prompt indices of all these groups;
    and the state after it, whose `carried` are the others, on every rank all of them. Raises Preempted."""
    cfg, step, rank, world_size = run.cfg, state.step + 1, dist.get_rank(), dist.get_world_size()
    with timer("rollout"):
        groups, state = in_flight(state, run.prompts, cfg)
        groups = groups[rank::world_size]
        # Ranks do not talk while they generate: each has its part of the groups to finish, of the old ones too.
        num_groups = len(range(rank, cfg.prompts_per_step, world_size))
        must_finish = {i for i, group in enumerate(groups) if age(group, step) == cfg.max_staleness}
        seeds = []
        for group in groups:
            draw = (cfg.seed, state.stage, group[0].draw, 0, group[0].prompt_id)
            seeds.append([sample_seed(*draw, r.sample_id) for r in group])
        arguments = groups, seeds, num_groups, must_finish, cfg.max_response_len[state.stage], cfg.temperature
        groups = run.preemption.interruptible(run.sampler.generate_until, *arguments, cfg.top_p)
    with timer("tail"):
        run.preemption.check()  # waits for the rank that took the longest
        groups = in_groups(gather_rollouts([with_segment(r, step) for group in groups for r in group]))
    chosen, carried = split(groups, step, cfg.prompts_per_step)
    share = [r for group in chosen[rank::world_size] for r in group]
    return share, [group[0].prompt_id for group in chosen], replace(state, carried=tuple(carried))


def with_segment(r: Rollout, step: int) -> Rollout:
    """A sample whose last tokens the weights of `step` have sampled."""
    new = len(r.response_ids) - sum(tokens for _, tokens in r.segments)
    return replace(r, segments=(*r.segments, (step, new))) if new else r


def in_groups(rollouts: list[Rollout]) -> list[Group]:
    """The groups of samples in order. (A prompt may be in flight twice, from two draws.)"""
    groups: dict[tuple[int, int], Group] = {}
    for r in rollouts:
        groups.setdefault((r.draw, r.prompt_id), []).append(r)
    return list(groups.values())


def split(groups: list[Group], step: int, number: int) -> tuple[list[Group], list[Group]]:
    """The `number` oldest of the finished groups, and all others."""
    finished = [group for group in by_age(groups, step) if all(r.finish_reason for r in group)]
    chosen = finished[:number]
    identities = {(group[0].draw, group[0].prompt_id) for group in chosen}
    return chosen, [group for group in groups if (group[0].draw, group[0].prompt_id) not in identities]


# -------------------------------------------------------------------------------------------------------------- report


def columns(groups: list[Group], carried: tuple[Group, ...], step: int) -> dict[str, float | int]:
    """Tokens that this step has generated, groups that it carries over, and how many steps older than the step's
    weights those are that sampled the tokens of `groups`, which it has finished: mean over tokens, and maximum."""
    everything = [r for group in (*groups, *carried) for r in group]
    ages = [(step - sampled, tokens) for group in groups for r in group for sampled, tokens in r.segments]
    return {
        "tokens_generated": sum(n for r in everything for sampled, n in r.segments if sampled == step),
        "carried_groups": len(carried),
        "staleness_mean": sum(steps * n for steps, n in ages) / sum(n for _, n in ages),
        "staleness_max": max(steps for steps, _ in ages),
    }
