"""The watch over the two policies: is what sampled the tokens still what learns from them?

Sampler and trainer compute the same log-probabilities with different code, and often another precision. A difference
is harmless as rounding and ruinous as a bug: weights that did not arrive, another temperature, a truncated
distribution, a stale prefix cache. `mismatch` measures it, `check` stops the run before the optimizer moves, `explain`
says what it looks like. Everything is called by all ranks together.

Dimensions: T packed tokens of a batch; d = trainer's log-probability - sampler's, of each response token.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from configs import Config

if TYPE_CHECKING:
    from train_grpo import Batch

Score = Callable[["list[Batch]", Config], list[Tensor]]  # the trainer's log-probabilities, (T,) of each batch


def mismatch(logprobs: Tensor, b: "Batch") -> Tensor:
    """Sums over a batch's response tokens of: k3 = e^d - 1 - d, tokens, w = e^d, w^2, d, |d|, d^2; last, the largest
    |d|. (8,) float64"""
    mask = b.response_mask > 0
    d = torch.where(mask, logprobs - b.rollout_logprobs, 0.0).double()
    w = torch.where(mask, d.exp(), 0.0)
    k3 = torch.expm1(d) - d
    return torch.stack([k3.sum(), mask.sum(), w.sum(), w.square().sum(), d.sum(), d.abs().sum(), d.square().sum(),
                        d.abs().max()])  # fmt: skip


def nothing(device: torch.device) -> Tensor:
    """The sums of no tokens."""
    return torch.zeros(8, dtype=torch.float64, device=device)


def merge(a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([a[:7] + b[:7], torch.maximum(a[7:], b[7:])])


def over_ranks(sums: Tensor) -> dict[str, float]:
    """The figures of all ranks' tokens: k3 and k1 (two estimates of KL(sampler || trainer)), k1's standard error, the
    largest |d|, the effective sample size's share of the tokens ((sum w)^2 / (n sum w^2), Kish 1965), and `one_sided`
    = sum d / sum |d|, which is -1 where the trainer finds every token less likely."""
    total, largest = sums[:7].cpu(), sums[7:].cpu()
    dist.all_reduce(total)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    k3, n, w, w2, d, absolute, d2 = total.tolist()
    n = max(1.0, n)
    return {"k3": k3 / n, "k1": -d / n, "k1_error": math.sqrt(max(0.0, d2 / n - (d / n) ** 2) / n) if d2 < math.inf
            else math.inf, "max": largest.item(), "ess": w * w / (n * w2) if w2 else 1.0,
            "one_sided": d / absolute if absolute else 0.0}  # fmt: skip


def check(sums: Tensor, where: str, score: Score, batches: "list[Batch]", cfg: Config) -> dict[str, float]:
    """The figures of `over_ranks`; stops the run where they say that sampler and trainer are not one policy.

    That is where k3 is beyond `mismatch_limit`; or k1 is, by more than five standard errors. Where both distributions
    cover all tokens the two estimate the same number and k3 has the smaller variance; but a truncated sampler (top_p)
    has E[w] < 1, k3 hides what it dropped, and only k1 is the divergence. `batches` are scored again to explain it.
    """
    figures = over_ranks(sums)
    k3, k1 = figures["k3"], figures["k1"]
    if k3 <= cfg.mismatch_limit and k1 - 5 * figures["k1_error"] <= cfg.mismatch_limit:  # nan is neither
        return figures
    raise SystemExit(f"{where}: sampler and trainer disagree: KL estimates k3 {k3:.3g} and k1 {k1:.3g}, mismatch_limit="
                     f"{cfg.mismatch_limit}; the optimizer did not move. It looks like "
                     f"{explain(score, batches, figures, cfg)}")  # fmt: skip


def explain(score: Score, batches: "list[Batch]", figures: dict[str, float], cfg: Config) -> str:
    """What the disagreement looks like, from scoring the same tokens again in other ways."""

    def measured(logprobs: list[Tensor]) -> dict[str, float]:
        sums = nothing(logprobs[0].device)
        for x, b in zip(logprobs, batches, strict=True):
            sums = merge(sums, mismatch(x, b))
        return over_ranks(sums)

    if not math.isfinite(figures["k3"] + figures["k1"]):
        return "weights or log-probabilities that are not finite"
    plain = score(batches, cfg)
    here = measured(plain)
    # Attention sees only distances between positions: shifted by one, all that changes is the rounding.
    shifted = score([replace(b, position_ids=b.position_ids + 1) for b in batches], cfg)
    own = [mismatch(x, replace(b, rollout_logprobs=y)) for x, y, b in zip(shifted, plain, batches, strict=True)]
    rounding = over_ranks(sum(own[1:], own[0]))["k3"]
    if here["k3"] <= 10 * rounding:
        return (f"low precision only: the trainer's own rounding gives k3 {rounding:.2g} on the same tokens; raise "
                f"mismatch_limit, and see rollout_correction")  # fmt: skip
    best, best_k3 = cfg.temperature, here["k3"]
    for tenths in range(1, 21):
        k3 = measured(score(batches, replace(cfg, temperature=tenths / 10)))["k3"]
        if k3 < best_k3:
            best, best_k3 = tenths / 10, k3
    if best_k3 < here["k3"] / 4:
        return (f"a wrong temperature: the sampler's log-probabilities fit {best:.1f} (k3 {best_k3:.2g}), the "
                f"trainer's is {cfg.temperature}")  # fmt: skip
    if figures["one_sided"] < -0.7:
        return (f"a truncated distribution (top_p, top_k, min_p): the trainer finds nearly every token less likely "
                f"than the sampler did, by {1 - math.exp(-figures['k1']):.1%} on average")  # fmt: skip
    return "stale weights: a sync that did not arrive or not in full, or cached prefixes of older weights"
