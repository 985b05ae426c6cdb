"""The loss scale of a float16 run.

Float16 ends at 65,504 and has nothing between 0 and 6e-8, where most gradients of a loss over 10^5 tokens would lie. So
the loss is multiplied by a scale before the backward pass, and the gradients are divided by it before they are clipped.
Dynamic as torch.amp.GradScaler (Micikevicius et al., arXiv 1710.03740, section 3.2): it begins at 2^16; an update whose
gradient is not finite is skipped and halves it; so many good ones in a row double it. GradScaler waits for 2,000, about
as many as a whole run has here; with 200 a try that fails costs one update in 200.

Its state is in `RunState`, so a resumed run has the same. Other types run with a scale of 1.
"""

import math
from dataclasses import replace

import torch

from configs import Config
from training.checkpoint import RunState
from training.packing import print0

GROW_AFTER = 200  # good updates


def loss_scale(state: RunState, cfg: Config) -> float:
    """What the loss is multiplied by, a power of 2."""
    return state.loss_scale if cfg.dtype == "float16" else 1.0


@torch.no_grad()
def divide_gradients(model: torch.nn.Module, scale: float) -> None:
    """In place; exact but for float32 numbers below 1e-38, since `scale` is a power of 2."""
    for p in model.parameters():
        if scale != 1 and p.grad is not None:
            p.grad.mul_(1 / scale)


def is_overflow(norm: float | None, loss: float, scale: float) -> bool:
    """Was an update skipped (its gradient norm is None) because the scale was too large? Where the loss itself is not
    finite, or the scale is down at 1, it was something else."""
    return norm is None and math.isfinite(loss) and scale > 1


def after_update(state: RunState, norm: float | None, loss: float, cfg: Config) -> RunState:
    """The state with the scale of the next update; rank 0 says so where it falls."""
    scale = loss_scale(state, cfg)
    if is_overflow(norm, loss, scale):
        print0(f"the gradient overflows float16: this update is skipped, the loss scale falls to {scale / 2:g}")
        return replace(state, loss_scale=scale / 2, good_updates=0, skipped=state.skipped + 1)
    if cfg.dtype != "float16" or norm is None:
        return state
    if state.good_updates + 1 == GROW_AFTER:
        return replace(state, loss_scale=2 * scale, good_updates=0)
    return replace(state, good_updates=state.good_updates + 1)
