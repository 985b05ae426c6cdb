"""Where a run stands in its context schedule: when a stage ends, what the next one begins with, on which GPUs.

`schedule.py` judges curves; this file acts on it. All of a run's progress is one dictionary, a part of every
checkpoint. The switch itself happens before the first step of the new stage, also where that step is the first one
after `--resume=true`, with more GPUs, say. Functions take a state and return a new one; every rank calls them together.
"""

import os
import shlex
from typing import Any

import torch
import torch.distributed as dist

from configs import Config, UserError
from model import DTYPES, Qwen2, full_tensors
from schedule import collapsed, smoothed_reward, turning_point
from training import checkpoint

HISTORY = ("step", "reward_mean", "response_len_mean", "response_clip_ratio")


def new_state() -> dict[str, Any]:
    """The state of a run before its first step."""
    return {"step": 0, "tokens": 0, "skipped": 0, "timeouts": 0, "base": None,
            "score": 0.0, "stage": 0, "stage_began": 0, "order_began": 0, "reference": None, "history": [],
            "verdict": None}  # fmt: skip


def last_step(state: dict[str, Any], cfg: Config) -> int:
    """The step after which the run ends, if this stage and all later ones take all of their `stage_steps`."""
    if is_due(state, cfg):
        last = state["step"] + sum(cfg.stage_steps[state["stage"] + 1 :])
    else:
        last = state["stage_began"] + sum(cfg.stage_steps[state["stage"] :])
    return min(last, cfg.max_steps) if cfg.max_steps else last


def after_step(state: dict[str, Any], row: dict[str, Any], cfg: Config) -> dict[str, Any]:
    """The state with this step's `row` in it and the verdict on the stage: "lengthen" (it ends here), "collapsed" (the
    run does) or None. In the last stage "lengthen" ends nothing and, once seen, stands."""
    history = [*state["history"], {name: row[name] for name in HISTORY}]
    verdict = [None]
    if cfg.stage_policy == "auto" and dist.get_rank() == 0:  # one rank decides: another machine may round otherwise
        if collapsed(history, cfg.stage_window):
            verdict = ["collapsed"]
        elif turning_point(history, cfg.stage_window, cfg.stage_patience):
            verdict = ["lengthen"]
    dist.broadcast_object_list(verdict)
    out_of_patience = len(history) >= cfg.stage_steps[state["stage"]] and not is_last(state, cfg)
    found = verdict[0] or ("lengthen" if out_of_patience else state["verdict"])
    # Only checkpoints that every run has compete for the best, not those where `max_steps` happened to cut.
    ends = found == "lengthen" and not is_last(state, cfg)
    competes = ends or (cfg.save_every and row["step"] % cfg.save_every == 0)
    score = smoothed_reward(history, cfg.stage_window) if competes else None
    return state | {"step": row["step"], "history": history, "score": score, "verdict": found}


def is_last(state: dict[str, Any], cfg: Config) -> bool:
    return state["stage"] + 1 == len(cfg.stage_steps)


def is_due(state: dict[str, Any], cfg: Config) -> bool:
    """Does a new stage begin with the next step?"""
    return state["verdict"] == "lengthen" and not is_last(state, cfg)


def say(state: dict[str, Any], before: dict[str, Any], cfg: Config) -> None:
    """On rank 0: what the schedule has decided, once."""
    if dist.get_rank() or state["verdict"] in (None, before["verdict"]):
        return
    context, steps = cfg.max_response_len[state["stage"]], len(state["history"])
    if state["verdict"] == "collapsed":
        print("the run has collapsed: its reward is far below its best, responses are longer and cut off more often")
    elif is_last(state, cfg):
        print(f"the turning point: {context} tokens now hold the model back, but this is the longest context")
    else:
        limit = steps >= cfg.stage_steps[state["stage"]]
        why = "after all its steps" if limit else "at its turning point"
        print(f"stage {state['stage'] + 1} of {len(cfg.stage_steps)} (context {context}) ends {why}: {steps} steps")


def best_checkpoint(cfg: Config, state: dict[str, Any]) -> str:
    """The name of the whole checkpoint with the highest smoothed reward of this stage, or of an earlier one where a
    collapsed run's last is the best of its stage; rank 0 looks for all."""
    current, found = f"step_{state['step']:06d}", [None]
    for stage in range(state["stage"], -1, -1) if dist.get_rank() == 0 else ():
        found = [checkpoint.best(cfg.run_dir, stage)]
        if found[0] and not (state["verdict"] == "collapsed" and found[0] == current):
            break
    dist.broadcast_object_list(found)
    return found[0] or current


def begin_next(cfg: Config, state: dict[str, Any], model: Qwen2, reference: Qwen2 | None,
               optimizer: torch.optim.Optimizer) -> dict[str, Any]:  # fmt: skip
    """Change model, reference and optimizer to what the next stage begins with; returns its state."""
    name = f"step_{state['step']:06d}"
    if cfg.stage_from == "best" and (best := best_checkpoint(cfg, state)) != name:
        name = best
        checkpoint.load(cfg.run_dir / "ckpt" / name, model, optimizer)
    if cfg.stage_optimizer == "reset":
        optimizer.state.clear()
    if reference and cfg.stage_reference == "reset":
        reference.load_weights(full_tensors(model, DTYPES[cfg.dtype]))
        state = state | {"reference": name if cfg.save_every else None}
    stage = state["stage"] + 1
    if dist.get_rank() == 0:
        print(f"stage {stage + 1} of {len(cfg.stage_steps)} begins from {name}: context {cfg.max_response_len[stage]}, "
              f"{cfg.group_size[stage]} samples a prompt; optimizer: {cfg.stage_optimizer}, data order: "
              f"{cfg.stage_data_order}, KL reference: {cfg.stage_reference}", flush=True)  # fmt: skip
    order = state["step"] if cfg.stage_data_order == "reset" else state["order_began"]
    return state | {"stage": stage, "stage_began": state["step"], "order_began": order, "history": [], "verdict": None}


def load_reference(cfg: Config, state: dict[str, Any], reference: Qwen2 | None) -> None:
    """After a resume: the KL reference of this stage, where an earlier switch has set one. Raises UserError."""
    if reference and state["reference"]:
        folder = cfg.run_dir / "ckpt" / state["reference"]
        problem = [checkpoint.damage(folder) if dist.get_rank() == 0 else None]
        dist.broadcast_object_list(problem)
        if problem[0]:
            raise UserError(f"{folder}: the KL reference of this stage is damaged: {problem[0]}")
        checkpoint.load_weights(folder, reference)


def warn(cfg: Config) -> None:
    """Say where the controller can decide nothing."""
    first = cfg.stage_window + cfg.stage_patience - 1
    for stage, steps in enumerate(cfg.stage_steps[:-1]):
        if cfg.stage_policy == "auto" and steps <= first and dist.get_rank() == 0:
            print(f"stage {stage + 1} ends after its {steps} steps: the controller sees no turning point before step "
                  f"stage_window + stage_patience - 1 = {first} of a stage")  # fmt: skip


def check_gpus(state: dict[str, Any], cfg: Config) -> None:
    """Raises UserError where the next step belongs to a stage that `stage_gpus` wants other GPUs for."""
    stage = state["stage"] + is_due(state, cfg)
    if cfg.stage_gpus and dist.get_world_size() != cfg.stage_gpus[stage]:
        raise UserError(f"stage_gpus: stage {stage + 1} is for {cfg.stage_gpus[stage]} GPUs, here are "
                        f"{dist.get_world_size()}; start it on as many, or change stage_gpus")  # fmt: skip


def wants_other_gpus(state: dict[str, Any], cfg: Config) -> bool:
    stage = state["stage"]
    return bool(cfg.stage_gpus) and is_due(state, cfg) and cfg.stage_gpus[stage + 1] != cfg.stage_gpus[stage]


def farewell(state: dict[str, Any], cfg: Config, argv: list[str]) -> str:
    """What a run says that stops between two stages."""
    return (f"{cfg.run_dir}/hf/step_{state['step']:06d} is exported; the next stage wants "
            f"{cfg.stage_gpus[state['stage'] + 1]} GPUs. Go on with\n  {next_command(state, cfg, argv)}")  # fmt: skip


def next_command(state: dict[str, Any], cfg: Config, argv: list[str]) -> str:
    """What to type to go on with the next stage's GPUs, on nodes like this one."""
    gpus, here = cfg.stage_gpus[state["stage"] + 1], int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    args = shlex.join([*(a for a in argv if not a.startswith("--resume=")), "--resume=true"])
    if gpus <= here or gpus % here or here == 1:
        return f"torchrun --nproc_per_node={gpus} train_grpo.py {args}"
    return (f"torchrun --nnodes={gpus // here} --nproc_per_node={here} --rdzv_backend=c10d "
            f"--rdzv_endpoint=FIRST_NODE:29500 train_grpo.py {args}")  # fmt: skip
