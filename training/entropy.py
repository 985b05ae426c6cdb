"""The policy's entropy: where in a response it is unsure, whether it has collapsed, a bonus that follows a target."""

import math
from dataclasses import replace
from typing import Any

import numpy as np

from configs import Config
from losses import next_entropy_coef
from rollout import Rollout
from training.checkpoint import RunState
from training.packing import print0

POSITIONS = 8  # parts of the context whose entropy is reported
COLLAPSED = 0.2  # of the first step's entropy


def columns(groups: list[list[Rollout]], max_len: int, state: RunState) -> dict[str, Any]:
    """Where in a response the policy is unsure: `entropy_part_1` to 8, nats a token in each eighth of the context, None
    where no response got to. Estimated by the sampled tokens' own -log p, whose mean is the entropy (of all responses
    of the step, by the sampler). `entropy_collapsed`, 1 or 0: has the entropy of the trained tokens, in `state`, lost
    four fifths of its first value?"""
    nats, tokens = np.zeros(POSITIONS), np.zeros(POSITIONS)
    for r in (r for group in groups for r in group):
        part = np.arange(len(r.response_ids)) * POSITIONS // max_len
        nats += np.bincount(part, -np.asarray(r.logprobs), POSITIONS)
        tokens += np.bincount(part, minlength=POSITIONS)
    of_step: dict[str, Any] = {}
    for i in range(POSITIONS):
        of_step[f"entropy_part_{i + 1}"] = float(nats[i] / tokens[i]) if tokens[i] else None
    is_low = state.entropy is not None and state.entropy < COLLAPSED * state.first_entropy
    of_step["entropy_collapsed"] = int(is_low)
    return of_step


def warn_if_it_collapses(row: dict[str, Any], before: RunState) -> None:
    """Say it when it happens. before: the state before the step of the row."""
    if row["entropy_collapsed"] and before.entropy >= COLLAPSED * before.first_entropy:
        values = f"{row['entropy']:.3g} nats a token, {before.first_entropy:.3g} at first"
        remedy = "few answers are still tried: a higher clip_eps_high, temperature or entropy_target keeps more"
        print0(f"step {row['step']}: the entropy has collapsed: {values}; {remedy}")


def with_bonus(cfg: Config, state: RunState) -> Config:
    """The settings of the step after `state`, with the entropy bonus that the last step's entropy asks for."""
    if not cfg.entropy_target:
        return cfg
    coef = cfg.entropy_coef if state.entropy_coef is None else state.entropy_coef
    is_low = state.entropy is None or state.entropy < cfg.entropy_target
    return replace(cfg, entropy_coef=coef if is_low else 0.0)


def after_step(state: RunState, entropy: float | None, cfg: Config) -> RunState:
    """The state after a step with this entropy of its trained tokens (None: it trained nothing)."""
    if entropy is None or not math.isfinite(entropy):
        return state
    first = entropy if state.first_entropy is None else state.first_entropy
    state = replace(state, entropy=entropy, first_entropy=first)
    if not cfg.entropy_target:
        return state
    coef = cfg.entropy_coef if state.entropy_coef is None else state.entropy_coef
    limits = cfg.entropy_target, cfg.entropy_coef_step, cfg.entropy_coef_max
    return replace(state, entropy_coef=next_entropy_coef(coef, entropy, *limits))
