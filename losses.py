"""The algorithm as formulas on tensors: advantages, clipped losses, KL penalties, corrections, aggregation.

Every per-token tensor is (T,), aligned with the targets of a packed batch. No I/O, no distribution, nothing in place.
Dimensions: T packed tokens, S sequences, P prompts, G samples of a prompt.
"""

import torch
from torch import Tensor


def group_advantages(rewards: Tensor, normalize_std: bool) -> Tensor:
    """(P, G) rewards -> (P, G) advantages: reward minus the group's mean, over its unbiased std + 1e-6 if asked.

    GRPO (arXiv 2402.03300, section 4.1.2) with verl's unbiased std; without the division, Dr. GRPO (2503.20783).
    A group of one has mean 0 and std 1, as in verl.
    """
    if rewards.shape[1] == 1:
        return rewards / (1 + 1e-6) if normalize_std else rewards.clone()
    advantages = rewards - rewards.mean(dim=1, keepdim=True)
    return advantages / (rewards.std(dim=1, keepdim=True) + 1e-6) if normalize_std else advantages


def policy_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_eps_low: float, clip_eps_high: float,
                dual_clip: float | None = None) -> Tensor:  # fmt: skip
    """PPO's clipped loss a token (arXiv 1707.06347, eq. 7), with a low and a high clip (DAPO, 2503.14476, eq. 8).

    `dual_clip` c > 1 bounds the loss of bad actions by c |A| (1912.09729, eq. 5). The log-ratio is clamped to +-20 as
    in verl, so that a broken ratio cannot overflow.
    """
    ratio = (logprobs - old_logprobs).clamp(-20, 20).exp()
    losses = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip_eps_low, 1 + clip_eps_high))
    if dual_clip is not None:
        losses = torch.where(advantages < 0, torch.minimum(losses, -advantages * dual_clip), losses)
    return losses


def sequence_logratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, cu_seqlens: Tensor) -> Tensor:
    """GSPO's log-ratio (arXiv 2507.18071, eq. 7 and 14): the mean over its sequence's tokens, with each token's own
    gradient, as in GSPO-token. (T,), for `policy_loss(it, zeros, ...)`, aggregated by "sequence"."""
    log_ratio = torch.where(mask > 0, logprobs - old_logprobs, 0.0).detach()
    mean = sequence_sum(log_ratio, cu_seqlens) / sequence_sum(mask.to(log_ratio.dtype), cu_seqlens).clamp(min=1)
    return mean[sequence_index(cu_seqlens, mask.numel())] + (logprobs - logprobs.detach())


def cispo_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_eps_low: float,
               clip_eps_high: float) -> Tensor:  # fmt: skip
    """CISPO a token (MiniMax-M1, arXiv 2506.13585, eq. 4 and 5): REINFORCE weighed by the clipped ratio, which carries
    no gradient, so that no token loses its own. `clip_eps_low` of 1 or more: no lower bound. (T,)"""
    ratio = (logprobs - old_logprobs).clamp(-20, 20).exp()
    return -ratio.clamp(1 - clip_eps_low, 1 + clip_eps_high).detach() * advantages * logprobs


def overlong_penalty(lengths: Tensor, max_len: int, buffer: int) -> Tensor:
    """What is added to the rewards of long responses (DAPO, 2503.14476, eq. 13): 0 up to max_len - buffer tokens, from
    there down to -1 at max_len and beyond, as in TRL (verl goes on below -1). lengths (S,) -> (S,)"""
    return ((max_len - buffer - lengths) / buffer).clamp(-1, 0)


def clipped(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_eps_low: float,
            clip_eps_high: float) -> Tensor:  # fmt: skip
    """1.0 where clipping took the gradient of `policy_loss` away (verl's pg_clipfrac before its mean). (T,)"""
    ratio = (logprobs - old_logprobs).clamp(-20, 20).exp()
    bounded = ratio.clamp(1 - clip_eps_low, 1 + clip_eps_high)
    return (-advantages * bounded > -advantages * ratio).float()


def kl_penalty(logprobs: Tensor, ref_logprobs: Tensor, estimator: str) -> Tensor:
    """Estimates of KL(policy || reference) a token (J. Schulman, "Approximating KL divergence", 2020).

    With d = ref - logprob: "k1" -d, "k2" d^2 / 2, "k3" e^d - d - 1, "k3_clamped" the same held to +-10, which is
    DeepScaleR's low_var_kl (the gradient is 0 where the clamp holds). There d is held to +-20 first, as in verl: it
    changes no number, and e^d = inf times that 0 would make the gradient nan, even on a masked token.
    """
    d = ref_logprobs - logprobs
    if estimator == "k1":
        return -d
    if estimator == "k2":
        return 0.5 * d.square()
    if estimator == "k3":
        return d.exp() - d - 1
    if estimator == "k3_clamped":
        d = d.clamp(-20, 20)
        return (d.exp() - d - 1).clamp(-10, 10)
    raise ValueError(f"unknown KL estimator {estimator!r}")


def rollout_weights(old_logprobs: Tensor, rollout_logprobs: Tensor, mask: Tensor, cu_seqlens: Tensor, how: str,
                    low: float | None, high: float) -> Tensor:  # fmt: skip
    """Importance weights between trainer and sampler, times the loss, without gradient. (T,)

    w = e^(old - rollout). "truncate": min(w, high) (TIS); "mask": w where low <= w <= high, else 0 (IcePop);
    "sequence_mask": the same of the product over a sequence (TRL's sequence_mask); "none": 1. Without `low`, no bound.
    """
    low = low or 0.0
    log_ratio = (old_logprobs - rollout_logprobs).detach()
    if how == "none":
        return torch.ones_like(log_ratio)
    if how == "truncate":
        return log_ratio.clamp(-20, 20).exp().clamp(max=high)
    if how == "mask":
        weights = log_ratio.clamp(-20, 20).exp()
        return torch.where((weights >= low) & (weights <= high), weights, 0.0)
    if how == "sequence_mask":
        weights = sequence_sum(log_ratio * mask, cu_seqlens).exp()
        weights = torch.where((weights >= low) & (weights <= high), weights, 0.0)
        return weights[sequence_index(cu_seqlens, mask.numel())]
    raise ValueError(f"unknown rollout correction {how!r}")


def aggregate(losses: Tensor, mask: Tensor, cu_seqlens: Tensor, how: str, num_tokens: Tensor | float,
              num_sequences: Tensor | float, max_len: int) -> Tensor:  # fmt: skip
    """One number from the per-token losses of this micro-batch; the counts are those of the whole minibatch.

    "token": sum / num_tokens (DAPO). "sequence": sum of each sequence's token mean / num_sequences (GRPO); sequences
    without a token left count nowhere. "dr_grpo": sum / (num_sequences * max_len). "deepscaler": this micro-batch's
    token mean, to be summed over micro-batches and averaged over ranks as the released code did.
    """
    mask = mask.to(losses.dtype)
    losses = torch.where(mask > 0, losses, 0.0)  # whatever stands on masked tokens, even inf, stays out
    total = losses.sum()
    if how == "token":
        return total / num_tokens
    if how == "dr_grpo":
        return total / (num_sequences * max_len)
    if how == "deepscaler":
        return total / mask.sum().clamp(min=1)
    if how == "sequence":
        per_sequence = sequence_sum(losses, cu_seqlens) / sequence_sum(mask, cu_seqlens).clamp(min=1)
        return per_sequence.sum() / num_sequences
    raise ValueError(f"unknown aggregation {how!r}")


def sequence_index(cu_seqlens: Tensor, size: int) -> Tensor:
    """The sequence each token belongs to. (T,)"""
    sequences = torch.arange(cu_seqlens.numel() - 1, device=cu_seqlens.device)
    return sequences.repeat_interleave(cu_seqlens.diff(), output_size=size)


def sequence_sum(values: Tensor, cu_seqlens: Tensor) -> Tensor:
    """(T,) -> (S,) sums over each packed sequence."""
    sums = values.new_zeros(cu_seqlens.numel() - 1)
    return sums.index_add(0, sequence_index(cu_seqlens, values.numel()), values)
