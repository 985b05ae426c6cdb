"""The watch over the two policies: do sampler and trainer still compute the same log-probabilities?

They use different code, and often another precision. A small difference is rounding; a larger one is a bug that ruins
the training: weights that did not arrive, another temperature, a truncated distribution, a stale prefix cache.
`mismatch` measures it, `check` stops the run before the optimizer moves, `explain` says what it looks like, `probe`
checks right after a sync. All ranks call everything together.

A token that older weights have sampled (partial_rollouts) differs by right: `stale_k3` measures these apart, and they
do not count elsewhere.

With d = trainer's log-probability - sampler's of each response token, the means of k3 = e^d - 1 - d and of k1 = -d both
estimate KL(sampler || trainer) per token.

Dimensions: T packed tokens of a batch, D hidden.
"""

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from configs import Config
from model import Qwen2, token_logprobs
from problems.prompts import Prompt
from rollout import Sampler, sample_seed
from training.packing import Batch, Minibatch, all_sum, fixed_logprobs, pack

TEMPERATURES = [tenths / 10 for tenths in range(1, 21)]  # what `explain` tries
TOP_PS = [0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.97, 0.98, 0.99]


# ------------------------------------------------------------------------------------------------------------- measure


@dataclass(frozen=True)
class MismatchSums:
    """Sums over response tokens, float64 scalars on the batches' device; `largest` is a maximum."""

    k3: Tensor  # e^d - 1 - d
    k3_squared: Tensor
    weight: Tensor  # e^d
    weight_squared: Tensor
    d: Tensor
    d_squared: Tensor
    tokens: Tensor
    stale_k3: Tensor  # over the response tokens of older weights, which all others leave out
    stale_tokens: Tensor
    largest: Tensor  # |d|

    def __add__(self, other: "MismatchSums") -> "MismatchSums":
        names = [f.name for f in fields(self) if f.name != "largest"]
        sums = {name: getattr(self, name) + getattr(other, name) for name in names}
        return MismatchSums(**sums, largest=torch.maximum(self.largest, other.largest))


@dataclass(frozen=True)
class Mismatch:
    """The figures of all ranks' tokens."""

    k3: float  # mean
    k3_error: float  # its standard error
    k1: float
    k1_error: float
    largest: float  # |d|
    ess: float  # effective sample size (sum of weights)^2 / sum of their squares, as a share of the tokens
    tokens: float = 1.0  # that these are of; without any they say nothing
    stale_k3: float | None = None  # mean over the tokens of older weights; None where there are none

    def divergence(self, standard_errors: float = 0.0) -> float:
        """The larger estimate of the KL divergence: k3 less so many standard errors, or k1 less five.

        Where both distributions cover all tokens, k3 and k1 estimate the same number and k3 varies less. But of a
        truncated sampler (top_p) k3 sees only the square of the dropped mass, since the mean weight is below 1, and k1
        is the divergence.
        """
        return max(self.k3 - standard_errors * self.k3_error, self.k1 - 5 * self.k1_error)

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.k3 + self.k1)


def zero_sums(device: torch.device) -> MismatchSums:
    """The sums over no tokens."""
    return MismatchSums(*torch.zeros(10, dtype=torch.float64, device=device))


def mismatch(logprobs: Tensor, b: Batch) -> MismatchSums:
    """The sums over a batch's response tokens, from the trainer's log-probabilities (T,)."""
    counted = b.response_mask > 0
    stale = torch.zeros_like(counted) if b.stale_mask is None else counted & (b.stale_mask > 0)
    mask = counted & ~stale
    d = torch.where(mask, logprobs - b.rollout_logprobs, 0.0).double()
    k3, weight = torch.expm1(d) - d, torch.where(mask, d.exp(), 0.0)
    stale_d = torch.where(stale, logprobs - b.rollout_logprobs, 0.0).double()
    return MismatchSums(
        k3=k3.sum(),
        k3_squared=k3.square().sum(),
        weight=weight.sum(),
        weight_squared=weight.square().sum(),
        d=d.sum(),
        d_squared=d.square().sum(),
        tokens=mask.double().sum(),
        stale_k3=(torch.expm1(stale_d) - stale_d).sum(),
        stale_tokens=stale.double().sum(),
        largest=d.abs().max(),
    )


def over_ranks(sums: MismatchSums) -> Mismatch:
    """The figures of all ranks' tokens."""
    names = [f.name for f in fields(sums) if f.name != "largest"]
    total = dict(zip(names, all_sum(torch.stack([getattr(sums, name) for name in names])), strict=True))
    largest = sums.largest.cpu()
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    n = max(1.0, total["tokens"])

    def standard_error(name: str) -> float:
        mean = total[name] / n
        variance = total[f"{name}_squared"] / n - mean * mean
        return math.sqrt(max(0.0, variance) / n) if math.isfinite(variance) else math.inf

    squares = n * total["weight_squared"]
    return Mismatch(
        k3=total["k3"] / n,
        k3_error=standard_error("k3"),
        k1=-total["d"] / n,
        k1_error=standard_error("d"),
        largest=largest.item(),
        ess=total["weight"] ** 2 / squares if squares else 1.0,
        tokens=total["tokens"],
        stale_k3=total["stale_k3"] / total["stale_tokens"] if total["stale_tokens"] else None,
    )


def columns(figures: Mismatch | None, cfg: Config) -> dict[str, float | None]:
    """What a step reports of them; None for a step without an update, or of whose tokens none is of these weights."""
    names = {"mismatch_k3": "k3", "mismatch_max": "largest", "mismatch_ess": "ess"}
    row = {column: getattr(figures, name) if figures and figures.tokens else None for column, name in names.items()}
    if cfg.partial_rollouts:
        row["mismatch_stale_k3"] = figures.stale_k3 if figures else None
    return row


def token_differences(
    model: Qwen2, minibatches: list[Minibatch], packed: list[list[Batch]], cfg: Config
) -> dict[tuple[int, int, int], list[float | None]]:
    """{(prompt_id, draw, sample_id): d of each response token, None of older weights} of all samples of a step, on rank
    0, by one forward pass over its packs."""
    own = {}
    for minibatch, batches in zip(minibatches, packed, strict=True):
        micro_batches = minibatch.micro_batches[dist.get_rank()]
        for m, b, logprobs in zip(micro_batches, batches, fixed_logprobs(model, batches, cfg), strict=True):
            d, ends = (logprobs - b.rollout_logprobs).tolist(), b.cu_seqlens[1:].tolist()
            if b.stale_mask is not None:
                d = [None if is_stale else x for x, is_stale in zip(d, b.stale_mask.tolist(), strict=True)]
            for r, end in zip(m.rollouts, ends, strict=bool(m.rollouts)):  # a dummy has a sequence of its own
                own[r.prompt_id, r.draw, r.sample_id] = d[end - len(r.response_ids) : end]
    of_ranks: list[Any] = [{} for _ in range(dist.get_world_size())]
    dist.gather_object(own, of_ranks if dist.get_rank() == 0 else None)
    return {key: d for differences in of_ranks for key, d in differences.items()}


# ----------------------------------------------------------------------------------------------------- check and probe


def check(
    sums: MismatchSums, where: str, model: Qwen2, batches: list[Batch], cfg: Config, standard_errors: float = 0.0
) -> Mismatch:
    """The figures of all ranks. Ends the run if their divergence is beyond `cfg.mismatch_limit` or not finite;
    `batches`, the same number on every rank, are then scored again to explain it."""
    figures = over_ranks(sums)
    if figures.is_finite and figures.divergence(standard_errors) <= cfg.mismatch_limit:
        return figures
    raise SystemExit(
        f"{where}: sampler and trainer disagree: two estimates of their KL divergence are {figures.k3:.3g} (k3) and "
        f"{figures.k1:.3g} (k1), beyond mismatch_limit={cfg.mismatch_limit}; nothing was learned from it. It looks "
        f"like {explain(model, batches, figures, cfg)}"
    )


def probe_sums(
    sampler: Sampler, model: Qwen2, prompts: list[Prompt], cfg: Config, step: int
) -> tuple[MismatchSums, list[Batch]]:
    """Two short samples of two prompts a rank, and how the trainer scores them.

    They answer the longest prompts, the same ones every time: a prefix cache of the old weights would show.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    longest = sorted(prompts, key=lambda p: len(p.ids), reverse=True)[: 2 * world_size]
    prompt_ids = [longest[i % len(longest)].ids for i in (rank, rank + world_size)]
    seeds = [[sample_seed(cfg.seed, "probe", step, rank, p, s) for s in range(2)] for p in range(2)]
    max_tokens = min(32, cfg.max_response_len[0])
    groups = sampler.generate(prompt_ids, seeds, max_tokens, cfg.temperature, cfg.top_p)
    device = next(model.parameters()).device
    rollouts = [r for group in groups for r in group]
    size = min(len(rollouts), cfg.token_budget // (cfg.max_prompt_len + max_tokens))  # of a pack, alike on every rank
    batches = [pack(rollouts[i : i + size], False, device) for i in range(0, len(rollouts), size)]
    sums = zero_sums(device)
    for b, logprobs in zip(batches, fixed_logprobs(model, batches, cfg), strict=True):
        sums = sums + mismatch(logprobs, b)
    return sums, batches


def probe(sampler: Sampler, model: Qwen2, prompts: list[Prompt], cfg: Config, step: int) -> Mismatch:
    """The watch right after a sync: has the sampler the trainer's weights? Ends the run if not."""
    sums, batches = probe_sums(sampler, model, prompts, cfg, step)
    # With so few tokens one outlier dominates the mean: it must be above the limit by three standard errors.
    return check(sums, f"after the sync of step {step}", model, batches, cfg, standard_errors=3.0)


# ------------------------------------------------------------------------------------------------------------- explain


@torch.no_grad()
def explain(model: Qwen2, batches: list[Batch], figures: Mismatch, cfg: Config) -> str:
    """What a disagreement looks like: the same tokens are scored under each suspicion, and the one that fits is it."""
    if not figures.is_finite:
        return "weights or log-probabilities that are not finite"
    # Rotary attention depends on differences of positions only: shifting all by one changes nothing but the rounding.
    shifted = [model(b.input_ids, b.position_ids + 1, b.cu_seqlens) for b in batches]
    hidden = [model(b.input_ids, b.position_ids, b.cu_seqlens) for b in batches]
    plain = scores(model, hidden, batches, cfg.temperature, cfg)
    rounding = own_rounding(scores(model, shifted, batches, cfg.temperature, cfg), plain, batches)
    divergence = total_mismatch(plain, batches).divergence()
    trainers_rounding = f"the trainer's own rounding makes a k3 of {rounding:.2g} on these tokens"
    if divergence <= 2 * rounding:
        advice = "raise mismatch_limit, and see rollout_correction"
        return f"low precision and nothing else: {trainers_rounding}; {advice}"
    suspicions = []  # (divergence that is left if it is true, what to say)
    for t in TEMPERATURES:
        left = total_mismatch(scores(model, hidden, batches, t, cfg), batches).divergence()
        fits = f"the sampler's log-probabilities fit {t}, the trainer's is {cfg.temperature}"
        suspicions.append((left, f"a wrong temperature: {fits}"))
    masses = [kept_mass(h, model.lm_head.weight[: model.vocab_size], cfg) for h in hidden]  # (T, len(TOP_PS)) each
    for i, top_p in enumerate(TOP_PS):
        truncated = [logprobs - mass[:, i].log() for logprobs, mass in zip(plain, masses, strict=True)]
        left = total_mismatch(truncated, batches).divergence()
        suspicions.append((left, f"a truncated distribution: the log-probabilities fit top_p={top_p}"))
    smallest, text = min(suspicions)
    if smallest <= max(divergence / 20, 3 * rounding):
        return text
    if divergence <= 10 * rounding:
        return f"low precision, or weights that are a little stale: {trainers_rounding}"
    return "stale weights: a sync that did not arrive or not in full, or cached prefixes of older weights"


def scores(model: Qwen2, hidden: list[Tensor], batches: list[Batch], temperature: float, cfg: Config) -> list[Tensor]:
    """The log-probabilities (T,) of each batch's targets at a temperature, from its hidden states (T, D)."""
    head, chunk = model.lm_head.weight, cfg.logprob_chunk
    return [
        token_logprobs(h, head, b.targets, temperature, chunk, model.vocab_size)[0]
        for h, b in zip(hidden, batches, strict=True)
    ]


def total_mismatch(logprobs: list[Tensor], batches: list[Batch]) -> Mismatch:
    """The mismatch of log-probabilities (T,) and the sampler's, over all batches of all ranks."""
    sums = zero_sums(logprobs[0].device)
    for values, b in zip(logprobs, batches, strict=True):
        sums = sums + mismatch(values, b)
    return over_ranks(sums)


def own_rounding(logprobs: list[Tensor], others: list[Tensor], batches: list[Batch]) -> float:
    """The k3 between two ways in which the trainer itself computes the same log-probabilities."""
    differences = zip(logprobs, others, batches, strict=True)
    return total_mismatch([x - y + b.rollout_logprobs for x, y, b in differences], batches).k3


def kept_mass(hidden: Tensor, lm_head_weight: Tensor, cfg: Config) -> Tensor:
    """The probability that each of TOP_PS keeps, at each position: hidden (T, D) -> (T, len(TOP_PS))."""
    masses = []
    for h in hidden.split(min(cfg.logprob_chunk, 256)):  # sorting takes several times the logits' memory
        probs = (h @ lm_head_weight.T).float().div_(cfg.temperature).softmax(-1).sort(-1, descending=True).values
        before = probs.cumsum(-1) - probs
        masses.append(torch.stack([torch.where(before < p, probs, 0.0).sum(-1) for p in TOP_PS], dim=-1))
    return torch.cat(masses)
