"""The algorithm as formulas on tensors: advantages, clipped losses, KL penalties, corrections, aggregation.

No I/O, no distribution, nothing in place. The tokens of S sequences lie end to end on one axis T: `cu_seqlens` (S+1,)
has each sequence's first position and the end, `mask` (T,) is 1 on the response tokens that count and 0 elsewhere.
Of each token, in the formulas:

    logprobs           log pi, of the policy in training, with its gradient
    old_logprobs       log pi_old, of the policy at the beginning of the step
    ref_logprobs       log pi_ref, of the frozen reference
    rollout_logprobs   log pi_sampler, as reported by the engine that sampled it
    advantages         A, of the response that the token belongs to

Dimensions: T packed tokens, S sequences, P prompts, G samples of a prompt.
"""

import torch
from torch import Tensor


def group_advantages(rewards: Tensor, normalize_std: bool) -> Tensor:
    """How much better a sample is than the other samples of its prompt. rewards (P, G) -> advantages (P, G)

        A = (r - mean(r)) / (std(r) + 1e-6)          mean and std over the G samples of a prompt

    GRPO (arXiv 2402.03300, section 4.1.2), with verl's unbiased std and its 1e-6. Without `normalize_std` there is no
    division: Dr. GRPO (2503.20783). A group of one has mean 0 and std 1, as in verl.
    """
    if rewards.shape[1] == 1:
        return rewards / (1 + 1e-6) if normalize_std else rewards.clone()
    advantages = rewards - rewards.mean(dim=1, keepdim=True)
    return advantages / (rewards.std(dim=1, keepdim=True) + 1e-6) if normalize_std else advantages


def overlong_penalty(lengths: Tensor, max_len: int, buffer: int) -> Tensor:
    """What is added to the rewards of long responses. lengths (tokens) -> penalties of the same shape

    0 up to max_len - buffer tokens, from there on a line down to -1 at max_len, and -1 beyond (DAPO, arXiv 2503.14476,
    eq. 13, as in TRL; in verl the line goes on below -1).
    """
    return ((max_len - buffer - lengths) / buffer).clamp(-1, 0)


def probability_ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """pi / pi_old (T,). The log-ratio is held to +-20, as in verl, so that a broken one cannot overflow."""
    return (logprobs - old_logprobs).clamp(-20, 20).exp()


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    clip_eps_low: float | Tensor,
    clip_eps_high: float | Tensor,
    dual_clip: float | None = None,
) -> Tensor:
    """PPO's clipped loss a token. All tensors (T,); the clips may be tensors too.

        loss = max(-A ratio, -A clamp(ratio, 1 - clip_eps_low, 1 + clip_eps_high))          ratio = pi / pi_old

    The maximum takes the gradient away once the ratio has moved far enough in the direction that A asks for, and never
    otherwise (arXiv 1707.06347, eq. 7; two clips: DAPO, 2503.14476, eq. 8). With a ratio of 1, on-policy, its gradient
    is that of -A log pi. `dual_clip` c > 1 bounds the loss of bad tokens, A < 0, by c |A| (1912.09729, eq. 5).
    """
    ratio = probability_ratio(logprobs, old_logprobs)
    losses = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip_eps_low, 1 + clip_eps_high))
    if dual_clip is not None:
        losses = torch.where(advantages < 0, torch.minimum(losses, -advantages * dual_clip), losses)
    return losses


def clipped(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    clip_eps_low: float | Tensor,
    clip_eps_high: float | Tensor,
) -> Tensor:
    """1.0 where clipping took the gradient of `policy_loss` away, else 0.0. (T,); its mean is verl's pg_clipfrac."""
    ratio = probability_ratio(logprobs, old_logprobs)
    bounded = ratio.clamp(1 - clip_eps_low, 1 + clip_eps_high)
    return (-advantages * bounded > -advantages * ratio).float()


def sequence_logratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, cu_seqlens: Tensor) -> Tensor:
    """GSPO's log-ratio: one a sequence, the mean of its tokens' log-ratios, repeated on each of them. (T,)

        s = mean(log pi - log pi_old) over the sequence's tokens whose mask is 1

    The value is the sequence's, the gradient that of the token's own log pi, as in GSPO-token (arXiv 2507.18071, eq. 7
    and 14). For policy_loss(s, zeros, ...), aggregated by "sequence".
    """
    log_ratio = torch.where(mask > 0, logprobs - old_logprobs, 0.0).detach()
    mean = sequence_sum(log_ratio, cu_seqlens) / sequence_sum(mask.to(log_ratio.dtype), cu_seqlens).clamp(min=1)  # (S,)
    # The difference is zero and carries the gradient.
    return mean[sequence_index(cu_seqlens, mask.numel())] + (logprobs - logprobs.detach())


def cispo_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_eps_low: float, clip_eps_high: float
) -> Tensor:
    """CISPO a token (MiniMax-M1, arXiv 2506.13585, eq. 4 and 5). All tensors (T,).

        loss = -w A log pi          w = clamp(pi / pi_old, 1 - clip_eps_low, 1 + clip_eps_high), without gradient

    REINFORCE with a bounded importance weight: unlike in `policy_loss` no token loses its gradient. `clip_eps_low` of 1
    or more means no lower bound.
    """
    ratio = probability_ratio(logprobs, old_logprobs)
    return -ratio.clamp(1 - clip_eps_low, 1 + clip_eps_high).detach() * advantages * logprobs


def kl_penalty(logprobs: Tensor, ref_logprobs: Tensor, estimator: str) -> Tensor:
    """An estimate of KL(pi || pi_ref) from each sampled token. All tensors (T,). Raises ValueError.

    With d = log pi_ref - log pi (J. Schulman, "Approximating KL divergence", 2020):

        k1           -d                unbiased, of either sign
        k2           d^2 / 2           biased, low variance
        k3           e^d - d - 1       unbiased, never negative
        k3_clamped   k3 held to +-10   DeepScaleR's low_var_kl; no gradient where the clamp holds

    For k3_clamped d is held to +-20 first, as in verl. That changes no value, but otherwise e^d = inf times the clamp's
    gradient of 0 would make the gradient nan, on masked tokens too.
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


def is_high_entropy(entropy: Tensor, mask: Tensor, cu_seqlens: Tensor, quantile: float) -> Tensor:
    """Whether the policy is less sure at a token than at a share `quantile` of its sequence's tokens. (T,) bool

        entropy > quantile of the entropies of the sequence's tokens whose mask is 1

    Archer (arXiv 2507.15778, eq. 2 and 3, where it is >=; its code has >), with torch.quantile's linear interpolation
    between two tokens. False where the mask is 0.
    """
    sequences = sequence_index(cu_seqlens, mask.numel())
    entropy = torch.where(mask > 0, entropy.detach(), torch.inf)  # masked tokens come last in their sequence
    order = entropy.argsort()
    order = order[sequences[order].argsort(stable=True)]  # by sequence, and within each by entropy
    counts = sequence_sum(mask.double(), cu_seqlens)  # (S,)
    place = quantile * (counts - 1).clamp(min=0)
    lower = place.floor()
    first, ascending = cu_seqlens[:-1] + lower.long(), entropy[order]
    below, above = ascending[first], ascending[first + (place > lower).long()]
    between = torch.where(place > lower, above - below, 0.0)
    threshold = below + (place - lower) * between  # (S,)
    return (mask > 0) & (entropy > threshold[sequences])


def next_entropy_coef(coef: float, entropy: float, target: float, step: float, most: float) -> float:
    """The coefficient of the entropy bonus after a step with this entropy (nats a token, like `target`): up by `step`
    where it is under the target, else down, within 0 .. `most`.

    Skywork-OR1 (arXiv 2505.22312; EntController in verl/trainer/ppo/core_algos.py of its code). The loss of the next
    step uses it only if this entropy was under the target.
    """
    return min(most, max(0.0, coef + (step if entropy < target else -step)))


def rollout_weights(
    old_logprobs: Tensor,
    rollout_logprobs: Tensor,
    mask: Tensor,
    cu_seqlens: Tensor,
    how: str,
    low: float | None,
    high: float,
) -> Tensor:
    """Weights that correct for a sampler whose probabilities differ from the trainer's. (T,). Raises ValueError.

    They multiply the losses and carry no gradient. With w = pi_old / pi_sampler of a token:

        none            1
        truncate        min(w, high)                                TIS
        mask            w where low <= w <= high, else 0            IcePop
        sequence_mask   the same, w being the sequence's product    TRL

    `low` of None or 0 is no lower bound.
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
        weights = sequence_sum(log_ratio * mask, cu_seqlens).exp()  # (S,)
        weights = torch.where((weights >= low) & (weights <= high), weights, 0.0)
        return weights[sequence_index(cu_seqlens, mask.numel())]
    raise ValueError(f"unknown rollout correction {how!r}")


def aggregate(
    losses: Tensor,
    mask: Tensor,
    cu_seqlens: Tensor,
    how: str,
    num_tokens: Tensor | float,
    num_sequences: Tensor | float,
    max_len: int,
) -> Tensor:
    """One scalar from the losses (T,) of a micro-batch, over the tokens whose mask is 1. Raises ValueError.

        token        sum / num_tokens                                     DAPO
        sequence     sum of each sequence's token mean / num_sequences    GRPO
        dr_grpo      sum / (num_sequences * max_len)                      Dr. GRPO
        deepscaler   sum / tokens of this micro-batch                     DeepScaleR's released code

    `num_tokens` and `num_sequences` (those with a token left) are the whole minibatch's, over all ranks: the scalars of
    its micro-batches add up to its loss, however it was cut. Not so for deepscaler, where they are means, added up over
    micro-batches and averaged over ranks. `max_len`: tokens that a response may have.
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
        per_sequence = sequence_sum(losses, cu_seqlens) / sequence_sum(mask, cu_seqlens).clamp(min=1)  # (S,)
        return per_sequence.sum() / num_sequences
    raise ValueError(f"unknown aggregation {how!r}")


def sequence_index(cu_seqlens: Tensor, size: int) -> Tensor:
    """The sequence that each of `size` = T tokens belongs to: cu_seqlens (S+1,) -> (T,)"""
    sequences = torch.arange(cu_seqlens.numel() - 1, device=cu_seqlens.device)
    return sequences.repeat_interleave(cu_seqlens.diff(), output_size=size)


def sequence_sum(values: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Sums over each sequence: values (T,) -> (S,)"""
    sums = values.new_zeros(cu_seqlens.numel() - 1)
    return sums.index_add(0, sequence_index(cu_seqlens, values.numel()), values)
