"""The watch over the two policies: is what sampled the tokens still what learns from them?

Sampler and trainer compute the same log-probabilities with different code, and often another precision. A difference
is harmless as rounding and ruinous as a bug: weights that did not arrive, another temperature, a truncated
distribution, a stale prefix cache. `mismatch` measures it, `check` stops the run before the optimizer moves, `explain`
says what it looks like. All ranks call everything together.

Dimensions: T packed tokens of a batch; d = trainer's log-probability - sampler's, of each response token.
"""

import math

import torch
import torch.distributed as dist
from torch import Tensor

from configs import Config
from model import Qwen2, token_logprobs
from training.packing import Batch

TEMPERATURES = [tenths / 10 for tenths in range(1, 21)]  # what `explain` tries
TOP_PS = [0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.97, 0.98, 0.99]


def mismatch(logprobs: Tensor, b: Batch) -> Tensor:
    """Sums over a batch's response tokens of k3 = e^d - 1 - d, k3^2, w = e^d, w^2, d, d^2 and 1; last, the largest
    |d|. (8,) float64"""
    mask = b.response_mask > 0
    d = torch.where(mask, logprobs - b.rollout_logprobs, 0.0).double()
    k3, w = torch.expm1(d) - d, torch.where(mask, d.exp(), 0.0)
    sums = torch.stack([k3, k3.square(), w, w.square(), d, d.square(), mask.double()]).sum(1)
    return torch.cat([sums, d.abs().max()[None]])


def nothing(device: torch.device) -> Tensor:
    """The sums over no tokens."""
    return torch.zeros(8, dtype=torch.float64, device=device)


def merge(a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([a[:7] + b[:7], torch.maximum(a[7:], b[7:])])


def over_ranks(sums: Tensor) -> dict[str, float]:
    """The figures of all ranks' tokens: k3 and k1 = -mean d, two estimates of KL(sampler || trainer), with their
    standard errors; the largest |d|; `ess`, the effective sample size (sum w)^2 / sum w^2 as a share of the tokens."""
    total, largest = sums[:7].cpu(), sums[7:].cpu()
    dist.all_reduce(total)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    k3, k3_squared, w, w_squared, d, d_squared, n = total.tolist()
    n = max(1.0, n)

    def error(mean: float, squared: float) -> float:
        variance = squared / n - mean * mean
        return math.sqrt(max(0.0, variance) / n) if math.isfinite(variance) else math.inf

    return {"k3": k3 / n, "k3_error": error(k3 / n, k3_squared), "k1": -d / n, "k1_error": error(d / n, d_squared),
            "max": largest.item(), "ess": w * w / (n * w_squared) if w_squared else 1.0}  # fmt: skip


def divergence(figures: dict[str, float], sure: float = 0.0) -> float:
    """The larger estimate of KL(sampler || trainer): k3, `sure` standard errors down, or k1, five down.

    Where both distributions cover all tokens, k3 and k1 estimate the same number and k3 varies less. But of a truncated
    sampler (top_p) k3 sees only the square of the dropped mass, since E[w] < 1, and k1 is the divergence.
    """
    return max(figures["k3"] - sure * figures["k3_error"], figures["k1"] - 5 * figures["k1_error"])


def check(sums: Tensor, where: str, model: Qwen2, batches: list[Batch], cfg: Config,
          sure: float = 0.0) -> dict[str, float]:  # fmt: skip
    """The figures of `over_ranks`. Ends the run if their `divergence` is beyond `cfg.mismatch_limit` or no number;
    `batches`, as many on every rank, are then scored again to explain it."""
    figures = over_ranks(sums)
    k3, k1 = figures["k3"], figures["k1"]
    if math.isfinite(k3 + k1) and divergence(figures, sure) <= cfg.mismatch_limit:
        return figures
    raise SystemExit(f"{where}: sampler and trainer disagree: two estimates of their KL divergence are {k3:.3g} (k3) "
                     f"and {k1:.3g} (k1), beyond mismatch_limit={cfg.mismatch_limit}; nothing was learned from it. It "
                     f"looks like {explain(model, batches, figures, cfg)}")  # fmt: skip


@torch.no_grad()
def explain(model: Qwen2, batches: list[Batch], figures: dict[str, float], cfg: Config) -> str:
    """What a disagreement looks like: the same tokens are scored under each suspicion, and the one that fits is it."""
    if not math.isfinite(figures["k3"] + figures["k1"]):
        return "weights or log-probabilities that are not finite"

    def measure(scores: list[Tensor], reference: list[Tensor] | None = None) -> dict[str, float]:
        sums = nothing(scores[0].device)
        for i, b in enumerate(batches):
            # against other scores than the sampler's: the same difference, written as the sampler's minus theirs
            other = 0.0 if reference is None else b.rollout_logprobs - reference[i]
            sums = merge(sums, mismatch(scores[i] + other, b))
        return over_ranks(sums)

    def score(hidden: list[Tensor], temperature: float) -> list[Tensor]:
        head = model.lm_head.weight
        return [token_logprobs(h, head, b.targets, temperature, cfg.logprob_chunk)[0]
                for h, b in zip(hidden, batches, strict=True)]  # fmt: skip

    # Attention sees only the distances between positions: shifted by one, nothing changes but the rounding.
    shifted = [model(b.input_ids, b.position_ids + 1, b.cu_seqlens) for b in batches]
    hidden = [model(b.input_ids, b.position_ids, b.cu_seqlens) for b in batches]
    plain = score(hidden, cfg.temperature)
    rounding, here = measure(score(shifted, cfg.temperature), plain)["k3"], divergence(measure(plain))
    if here <= 2 * rounding:
        return (f"low precision and nothing else: the trainer's own rounding makes a k3 of {rounding:.2g} on these "
                f"tokens; raise mismatch_limit, and see rollout_correction")  # fmt: skip
    fits = {divergence(measure(score(hidden, t))): f"a wrong temperature: the sampler's log-probabilities fit {t}, the "
            f"trainer's is {cfg.temperature}" for t in TEMPERATURES}  # fmt: skip
    masses = [kept_mass(h, model.lm_head.weight, cfg) for h in hidden]  # (T, len(TOP_PS)) each
    for i, top_p in enumerate(TOP_PS):
        cut = [x - mass[:, i].log() for x, mass in zip(plain, masses, strict=True)]
        fits[divergence(measure(cut))] = f"a truncated distribution: the log-probabilities fit top_p={top_p}"
    best = min(fits)
    if best <= max(here / 20, 3 * rounding):
        return fits[best]
    if here <= 10 * rounding:
        return (f"low precision, or weights that are a little stale: the trainer's own rounding makes a k3 of "
                f"{rounding:.2g} on these tokens")  # fmt: skip
    return "stale weights: a sync that did not arrive or not in full, or cached prefixes of older weights"


def kept_mass(hidden: Tensor, lm_head_weight: Tensor, cfg: Config) -> Tensor:
    """The probability that each of TOP_PS keeps, at each position: hidden (T, D) -> (T, len(TOP_PS))."""
    masses = []
    for h in hidden.split(min(cfg.logprob_chunk, 256)):  # sorting takes several times the logits' memory
        probs = (h @ lm_head_weight.T).float().div_(cfg.temperature).softmax(-1).sort(-1, descending=True).values
        before = probs.cumsum(-1) - probs
        masses.append(torch.stack([torch.where(before < p, probs, 0.0).sum(-1) for p in TOP_PS], dim=-1))
    return torch.cat(masses)
