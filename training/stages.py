"""The context schedule carried out: when a stage ends, what the next one begins with, on which GPUs.

`schedule.py` judges the curves. The switch itself happens before the first step of the new stage, also if that step is
the first one after `--resume=true`, on more GPUs for example. Functions take a `RunState` and return a new one; every
rank calls them together.
"""

import os
import shlex
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from configs import PER_STAGE, Config, UserError
from model import DTYPES, Qwen2, full_tensors
from schedule import collapsed, settling, smoothed_reward, turning_point
from training import checkpoint
from training.checkpoint import RunState, step_name
from training.packing import from_rank0, print0, reset_moments

HISTORY = ("step", "reward_mean", "response_len_mean", "response_clip_ratio")  # what schedule.py reads of a step


# --------------------------------------------------------------------------------------------------- the end of a stage


def is_last(state: RunState, cfg: Config) -> bool:
    """Is this the last stage?"""
    return state.stage + 1 == len(cfg.stage_steps)


def is_due(state: RunState, cfg: Config) -> bool:
    """Does a new stage begin with the next step?"""
    return state.decision == "lengthen" and not is_last(state, cfg)


def last_step(state: RunState, cfg: Config) -> int:
    """The last step of the run, if this stage and all later ones take all of their `stage_steps`; of a collapsed run,
    the one it has taken last."""
    if state.decision == "collapsed":
        return state.step
    if is_due(state, cfg):
        last = state.step + sum(cfg.stage_steps[state.stage + 1 :])
    else:
        last = state.stage_began + sum(cfg.stage_steps[state.stage :])
    return min(last, cfg.max_steps) if cfg.max_steps else last


def is_over(state: RunState, cfg: Config) -> bool:
    """Has the run taken its last step, or collapsed?"""
    return state.step >= last_step(state, cfg)


def after_step(state: RunState, row: dict[str, Any], cfg: Config) -> RunState:
    """The state after the step that `row` reports, with the schedule's decision: "lengthen" (the stage ends here),
    "collapsed" (the run ends here) or None. In the last stage "lengthen" has no effect and, once decided, is kept."""
    history = (*state.history, {name: row[name] for name in HISTORY})
    settled = list(history[settling(cfg.partial_rollouts, cfg.max_staleness) :])
    decision = from_rank0(decide, settled, cfg)  # one rank decides: other machines may round differently
    if decision is None:
        out_of_patience = len(history) >= cfg.stage_steps[state.stage] and not is_last(state, cfg)
        decision = "lengthen" if out_of_patience else state.decision
    after = replace(
        state,
        step=row["step"],
        tokens=state.tokens + row["tokens_generated"],
        skipped=row["updates_skipped"],
        timeouts=row["reward_timeouts"],
        history=history,
        decision=decision,
        unreported=row,
    )
    log_decision(state, after, cfg)
    # Only checkpoints that every run would write compete for the best, not one written because of `max_steps`.
    competes = is_due(after, cfg) or (cfg.save_every and after.step % cfg.save_every == 0)
    return replace(after, score=smoothed_reward(settled, cfg.stage_window) if competes else None)


def decide(history: list[dict[str, Any]], cfg: Config) -> str | None:
    """What the controller makes of a stage so far; nothing under fixed stages."""
    if cfg.stage_policy == "auto":
        if collapsed(history, cfg.stage_window):
            return "collapsed"
        if turning_point(history, cfg.stage_window, cfg.stage_patience):
            return "lengthen"
    return None


def log_decision(before: RunState, state: RunState, cfg: Config) -> None:
    """What the schedule has decided in this step, once."""
    if state.decision in (None, before.decision):
        return
    context, steps = cfg.max_response_len[state.stage], len(state.history)
    if state.decision == "collapsed":
        print0("the run has collapsed: its reward is far below its best, responses are longer and cut off more often")
    elif is_last(state, cfg):
        print0(f"the turning point: {context} tokens now hold the model back, but this is the last stage")
    else:
        reason = "after all its steps" if steps >= cfg.stage_steps[state.stage] else "at its turning point"
        stage = f"stage {state.stage + 1} of {len(cfg.stage_steps)} (context {context})"
        print0(f"{stage} ends {reason}: {steps} steps")


def warn_if_too_short(cfg: Config) -> None:
    """Name the stages that end before the controller can decide anything."""
    first = settling(cfg.partial_rollouts, cfg.max_staleness) + cfg.stage_window + cfg.stage_patience - 1
    for stage, steps in enumerate(cfg.stage_steps[:-1]):
        if cfg.stage_policy == "auto" and steps <= first:
            limit = f"step {first} of a stage, by stage_window and stage_patience"
            print0(
                f"stage {stage + 1} ends after its {steps} steps: the controller sees no turning point before {limit}"
            )


# --------------------------------------------------------------------------------------------- what a stage begins with


def best_checkpoint(cfg: Config, state: RunState) -> str:
    """The name of the whole checkpoint with the highest smoothed reward of this stage. Of a collapsed run the last
    checkpoint does not count: if it is its stage's best, the best of the stage before is taken. Rank 0 calls it."""
    current = step_name(state.step)
    for stage in range(state.stage, -1, -1):
        best = checkpoint.best(cfg.run_dir, stage)
        if best and not (state.decision == "collapsed" and best == current):
            return best
    return current


def begin_next(
    cfg: Config, state: RunState, model: Qwen2, reference: Qwen2 | None, optimizer: torch.optim.Optimizer
) -> RunState:
    """Bring model, reference and optimizer, in place, to what the next stage begins with; returns its state."""
    name = step_name(state.step)
    if cfg.stage_from == "best":
        best = from_rank0(best_checkpoint, cfg, state)
        if best != name:
            name = best
            checkpoint.load(cfg.run_dir / "ckpt" / name, model, optimizer)
    if cfg.stage_optimizer == "reset":
        reset_moments(optimizer)
    if reference and cfg.stage_reference == "reset" and not cfg.reference:
        reference.load_weights(full_tensors(model, DTYPES[cfg.dtype]))
        state = replace(state, reference=name if cfg.save_every else None)  # where a resume finds it
    stage = state.stage + 1
    size = f"context {cfg.max_response_len[stage]}, {cfg.group_size[stage]} samples a prompt"
    order = "reset" if begins_data_anew(stage, cfg) else "keep"
    choices = f"optimizer: {cfg.stage_optimizer}, data order: {order}"
    choices += f", KL reference: {cfg.reference or cfg.stage_reference}"
    for setting in PER_STAGE:
        if isinstance(getattr(cfg, setting), tuple):
            choices += f", {setting}: {cfg.entries(setting)[stage]}"
    print0(f"stage {stage + 1} of {len(cfg.stage_steps)} begins from {name}: {size}; {choices}")
    if begins_data_anew(stage, cfg):
        state = replace(state, epoch=0, position=0, visits={})
    if isinstance(cfg.entropy_coef, tuple):
        state = replace(state, entropy_coef=None)  # with entropy_target it moves on from the stage's own
    return replace(state, stage=stage, stage_began=state.step, history=(), decision=None)


def begins_data_anew(stage: int, cfg: Config) -> bool:
    """Does a stage begin its data from the first epoch? By the setting, or since its data are others."""
    data = cfg.entries("train_data")
    return cfg.stage_data_order == "reset" or data[stage] != data[stage - 1]


def load_reference(cfg: Config, state: RunState, reference: Qwen2 | None) -> None:
    """After a resume: the KL reference of this stage, where an earlier switch has set one. Raises UserError."""
    if reference and state.reference:
        folder = cfg.run_dir / "ckpt" / state.reference
        problem = from_rank0(checkpoint.damage, folder)
        if problem:
            raise UserError(f"{folder}: the KL reference of this stage is damaged: {problem}")
        checkpoint.load_weights(folder, reference)


def set_learning_rate(optimizer: torch.optim.Optimizer, state: RunState, cfg: Config) -> float:
    """Of the step after `state`. Returns it."""
    lr = learning_rate(state, cfg)
    for group in optimizer.param_groups:
        group["lr"] = lr
    return lr


def learning_rate(state: RunState, cfg: Config) -> float:
    """Of the step after `state`, by a stage's config: `lr`, to which it rises in a line over `lr_warmup_steps` steps
    from where the optimizer began (the first of them has lr / lr_warmup_steps, unlike in verl, where it has 0)."""
    began = state.stage_began if cfg.stage_optimizer == "reset" else 0
    return cfg.lr * min(1.0, (state.step + 1 - began) / max(1, cfg.lr_warmup_steps))


# --------------------------------------------------------------------------------------------------- on how many GPUs


def check_gpus(state: RunState, cfg: Config) -> None:
    """Raises UserError where the next step belongs to a stage that `stage_gpus` wants other GPUs for."""
    begins_next = is_due(state, cfg) and not state.unreported  # else the stage before ends with its validation
    stage, gpus = state.stage + (1 if begins_next else 0), dist.get_world_size()
    if cfg.stage_gpus and gpus != cfg.stage_gpus[stage]:
        need = f"stage {stage + 1} is for {cfg.stage_gpus[stage]} GPUs, here are {gpus}"
        raise UserError(f"stage_gpus: {need}; start it on as many, or change stage_gpus")


def wants_other_gpus(state: RunState, cfg: Config) -> bool:
    """Is the next step to be taken on another number of GPUs than the stage before, by the config?"""
    if not cfg.stage_gpus or is_over(state, cfg) or not is_due(state, cfg):
        return False
    return cfg.stage_gpus[state.stage + 1] != cfg.stage_gpus[state.stage]


def next_command(state: RunState, cfg: Config, argv: list[str]) -> str:
    """What to type to go on with the next stage's GPUs, on nodes like this one."""
    gpus, gpus_of_node = cfg.stage_gpus[state.stage + 1], int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    arguments = shlex.join([*(a for a in argv if not a.startswith("--resume=")), "--resume=true"])
    if gpus <= gpus_of_node or gpus % gpus_of_node or gpus_of_node == 1:
        launch = f"--nproc_per_node={gpus}"
    else:
        nodes = gpus // gpus_of_node
        launch = f"--nnodes={nodes} --nproc_per_node={gpus_of_node}"
        launch += " --rdzv_backend=c10d --rdzv_endpoint=FIRST_NODE:29500"
    return f"torchrun {launch} train_grpo.py {arguments}"
