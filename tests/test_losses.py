"""The formulas against the numbers of other trainers (../shared/golden) and against the slow loop over sequences.

Golden arrays are [sequence][token], padded with junk; here they are packed into (T,) with cu_seqlens.
"""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from losses import (
    aggregate,
    cispo_loss,
    clipped,
    group_advantages,
    kl_penalty,
    overlong_penalty,
    policy_loss,
    rollout_weights,
    sequence_logratio,
    sequence_sum,
)

GOLDEN = Path(__file__).parents[2] / "shared" / "golden"
AGGREGATIONS = ("token", "sequence", "dr_grpo", "deepscaler")
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden files at {GOLDEN}")
few_examples = settings(max_examples=60, deadline=None)


def golden(name: str) -> dict:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def ragged(rows: list, mask: list) -> Tensor:
    """[sequence][token] without its padding, end to end. (T,) float64"""
    return torch.tensor(rows, dtype=torch.float64)[torch.tensor(mask) > 0]


def per_token(values: list, mask: list) -> Tensor:
    """One value a sequence -> (T,)"""
    return ragged([[v] * len(row) for v, row in zip(values, mask, strict=True)], mask)


def offsets(mask: list) -> Tensor:
    lengths = (torch.tensor(mask) > 0).sum(1)
    return torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).int()


def same(got: Tensor | float, want: Tensor | float, rtol: float = 1e-6, atol: float = 1e-9) -> None:
    got, want = (torch.as_tensor(x, dtype=torch.float64) for x in (got, want))
    torch.testing.assert_close(got.detach(), want, rtol=rtol, atol=atol)


# ----------------------------------------------------------------------------------------------------------- advantages


@needs_golden
@pytest.mark.parametrize("case", ["ragged_groups_binary", "ragged_groups_continuous"])
def test_advantages_match_deepscaler_and_verl_group_by_group(case):
    (case,) = (c for c in golden("01_group_advantages")["cases"] if c["case"] == case)
    index, rewards = torch.tensor(case["inputs"]["group_index"]), torch.tensor(case["inputs"]["rewards"]).double()
    want = {k: torch.tensor(v).double() for k, v in case["expected"].items()}
    groups = [index == g for g in index.unique()]  # some of one member
    assert len(groups) >= 4
    for group in groups:
        normalized = group_advantages(rewards[group][None], True)[0]
        same(normalized, want["deepscaler_zscore"][group], atol=1e-6)
        same(normalized, want["verl_grpo_std"][group], atol=1e-6)
        same(group_advantages(rewards[group][None], False)[0], want["verl_grpo_no_std"][group], atol=1e-6)
        if group.sum() > 1 and set(rewards.tolist()) == {0.0, 1.0}:  # it gives 0 alone, and holds variances to 1e-6
            rows = group_advantages(rewards[group][None].float(), True)[0]
            same(rows, want["verl_grpo_vectorized_f32"][group], 1e-5, 1e-5)


@needs_golden
@pytest.mark.parametrize("case", ["equal_groups_one_reward", "equal_groups_two_rewards"])
def test_advantages_match_trl_on_a_whole_batch(case):
    (case,) = (c for c in golden("01_group_advantages")["cases"] if c["case"] == case)
    parts, weights = (torch.tensor(case["inputs"][k]).double() for k in ("rewards_per_func", "reward_weights"))
    rewards = (parts @ weights).view(-1, case["inputs"]["num_generations"])  # (P, G)
    same(group_advantages(rewards, False).flatten(), torch.tensor(case["expected"]["trl_none"]))
    std = rewards.std(dim=1, keepdim=True)  # TRL adds 1e-4 where DeepScaleR and verl add 1e-6
    rescaled = group_advantages(rewards, True) * (std + 1e-6) / (std + 1e-4)
    same(rescaled.flatten(), torch.tensor(case["expected"]["trl_group"]))


@needs_golden
def test_a_biased_std_would_be_noticed():
    (case,) = (c for c in golden("01_group_advantages")["cases"] if c["case"] == "ragged_groups_binary")
    index, rewards = torch.tensor(case["inputs"]["group_index"]), torch.tensor(case["inputs"]["rewards"]).double()
    want, wrong = torch.tensor(case["expected"]["deepscaler_zscore"]).double(), torch.zeros(len(rewards))
    for g in index.unique():
        group = rewards[index == g]
        wrong[index == g] = ((group - group.mean()) / (group.std(correction=0) + 1e-6)).float()
    with pytest.raises(AssertionError):
        same(wrong, want, rtol=1e-3)


@few_examples
@given(st.sampled_from([0.0, 1.0]), st.integers(2, 64), st.booleans())
def test_a_uniform_group_has_exactly_zero_advantages(reward, group_size, normalize_std):
    mixed = torch.arange(group_size) % 2
    advantages = group_advantages(torch.stack([torch.full((group_size,), reward), mixed.float()]), normalize_std)
    assert torch.equal(advantages[0], torch.zeros(group_size))
    assert advantages[1].isfinite().all() and advantages[1].abs().max() > 0


def test_advantages_leave_the_rewards_alone():
    rewards = torch.tensor([[0.0, 1.0, 1.0]])
    group_advantages(rewards, True)
    assert rewards.tolist() == [[0.0, 1.0, 1.0]]


# ---------------------------------------------------------------------------------------------------------- policy loss


class PolicyCase:
    """The packed inputs of 02_policy_loss; `loss` and its gradient from our functions."""

    def __init__(self) -> None:
        self.file = golden("02_policy_loss")
        i = self.file["inputs"]
        self.mask, self.cu_seqlens = i["mask"], offsets(i["mask"])
        self.logprobs, self.old, self.ref, self.entropy = (
            ragged(i[k], self.mask) for k in ("logprobs", "old_logprobs", "ref_logprobs", "entropies")
        )
        self.advantages = per_token(i["advantages_per_sequence"], self.mask)
        self.ones, self.num_sequences = torch.ones_like(self.logprobs), len(self.mask)
        self.max_len, self.micro_batches = self.file["const_max_len"], i["micro_batch_partition"]
        self.logprobs.requires_grad_()

    def losses(self, low: float, high: float, dual: float | None = None) -> Tensor:
        return policy_loss(self.logprobs, self.old, self.advantages, low, high, dual)

    def aggregate(self, losses: Tensor, how: str) -> Tensor:
        return aggregate(losses, self.ones, self.cu_seqlens, how, losses.numel(), self.num_sequences, self.max_len)

    def by_micro_batch(self, losses: Tensor, how: str) -> Tensor:
        """The sum over the file's micro-batches, each packed by itself, with the counts of the whole."""
        counts = losses.numel(), self.num_sequences, self.max_len
        total = losses.new_zeros(())
        for sequences in self.micro_batches:
            rows = [torch.arange(int(self.cu_seqlens[s]), int(self.cu_seqlens[s + 1])) for s in sequences]
            cu_seqlens = torch.tensor([0, *(len(r) for r in rows)]).cumsum(0).int()
            tokens = torch.cat(rows)
            total = total + aggregate(losses[tokens], self.ones[tokens], cu_seqlens, how, *counts)
        return total

    def check(self, loss: Tensor, want: dict, factor: float = 1.0) -> None:
        same(loss, want["loss"] * factor)
        (grad,) = torch.autograd.grad(loss, self.logprobs, retain_graph=True)
        same(grad, ragged(want["dloss_dlogprobs"], self.mask) * factor)


@pytest.fixture
def policy():
    if not GOLDEN.is_dir():
        pytest.skip(f"no golden files at {GOLDEN}")
    return PolicyCase()


def test_policy_loss_and_gradients_match_verl(policy):
    for case in policy.file["expected"]["verl"].values():
        losses = policy.losses(case["clip_low"], case["clip_high"], case["dual_clip_c"])
        same(losses, ragged(case["per_token_loss"], policy.mask))
        means = case["aggregations"]
        policy.check(policy.aggregate(losses, "token"), means["token_mean"])
        policy.check(policy.aggregate(losses, "sequence"), means["seq_mean_token_mean"])
        # verl's seq-mean-token-sum-norm leaves out the mean over sequences; Dr. GRPO and TRL have it
        policy.check(policy.aggregate(losses, "dr_grpo"), means["seq_sum_over_const"], 1 / policy.num_sequences)
        policy.check(policy.by_micro_batch(losses, "token"), case["microbatched_global_token_mean"])


def test_clip_fractions_match_verl(policy):
    for case in policy.file["expected"]["verl"].values():
        low, high, dual = case["clip_low"], case["clip_high"], case["dual_clip_c"]
        where = clipped(policy.logprobs, policy.old, policy.advantages, low, high)
        same(where.double().mean(), case["clipfrac"])
        (grad,) = torch.autograd.grad(policy.losses(low, high).sum(), policy.logprobs)
        assert torch.equal(where > 0, grad == 0)  # the tokens counted are those whose gradient is gone
        if dual:
            lower = policy.losses(low, high, dual) < policy.losses(low, high)
            same(lower.double().mean(), case["clipfrac_lower"])


def test_losses_match_trl(policy):
    """TRL's own `dr_grpo`, sum / (sequences * max_len), is ours; its grpo is "sequence", its bnpo and dapo "token"."""
    want = policy.file["expected"]["trl"]
    for name, how in {"grpo": "sequence", "bnpo": "token", "dapo": "token", "dr_grpo": "dr_grpo"}.items():
        policy.check(policy.aggregate(policy.losses(0.2, 0.2), how), want[name])
    policy.check(policy.aggregate(policy.losses(0.2, 0.28), "sequence"), want["grpo_0.2_0.28"])


def test_dual_clip_equals_trls_two_sided_clip(policy):
    losses = policy.losses(0.2, 0.28, 3.0)
    policy.check(policy.aggregate(losses, "sequence"), policy.file["expected"]["trl"]["grpo_two_sided_delta3"])


def test_deepscaler_aggregation_sums_micro_batch_means(policy):
    want, losses = policy.file["expected"]["deepscaler"], policy.losses(0.2, 0.2)
    policy.check(policy.by_micro_batch(losses, "deepscaler"), want["sum_of_microbatch_token_means"])
    policy.check(policy.aggregate(losses, "deepscaler"), want["whole_batch_token_mean"])


def test_means_of_means_would_be_noticed(policy):
    """Averaging micro-batch means is neither DeepScaleR's sum of them nor the token mean."""
    want, losses = policy.file["expected"], policy.losses(0.2, 0.2)
    mean_of_means = policy.by_micro_batch(losses, "deepscaler") / len(policy.micro_batches)
    for entry in (want["deepscaler"]["sum_of_microbatch_token_means"], want["deepscaler"]["whole_batch_token_mean"]):
        with pytest.raises(AssertionError):
            policy.check(mean_of_means, entry)


def test_whole_deepscaler_loss_matches_its_code(policy):
    """Policy loss, minus 0.001 entropy, plus 0.001 clamped k3, as a sum of micro-batch means."""
    policy.entropy.requires_grad_()
    kl = kl_penalty(policy.logprobs, policy.ref, "k3_clamped")
    losses = policy.losses(0.2, 0.2) - 0.001 * policy.entropy + 0.001 * kl
    loss = policy.by_micro_batch(losses, "deepscaler")
    want = policy.file["expected"]["deepscaler"]["full_loss_pg_minus_0.001_entropy_plus_0.001_kl"]
    policy.check(loss, want)
    (grad,) = torch.autograd.grad(loss, policy.entropy)
    same(grad, ragged(want["dloss_dentropy"], policy.mask))


def test_kl_in_the_token_loss_matches_trl(policy):
    """TRL's beta 0.04 with k3: DAPO's token mean of both."""
    losses = policy.losses(0.2, 0.2) + 0.04 * kl_penalty(policy.logprobs, policy.ref, "k3")
    policy.check(policy.aggregate(losses, "token"), policy.file["expected"]["trl"]["dapo_beta0.04"])


def test_a_sequence_without_tokens_counts_nowhere(policy):
    want = policy.file["edge_empty_sequence_row1_dapo_dual3"]
    mask = policy.ones.clone()
    mask[policy.cu_seqlens[1] : policy.cu_seqlens[2]] = 0
    args = policy.losses(0.2, 0.28, 3.0), mask, policy.cu_seqlens
    sequences = policy.num_sequences - 1
    tokens = mask.sum()
    same(aggregate(*args, "token", tokens, sequences, 29), want["token_mean"]["loss"])
    same(aggregate(*args, "sequence", tokens, sequences, 29), want["seq_mean_token_mean"]["loss"])
    same(aggregate(*args, "dr_grpo", tokens, sequences, 29) * sequences, want["seq_sum_over_const"]["loss"])


@needs_golden
def test_extreme_ratios_match_verl_and_stay_finite():
    """verl and we hold the log-ratio to +-20; DeepScaleR's code did not, so its numbers are other ones there."""
    for case in golden("02_policy_loss")["edge_extreme_ratio"]:
        old = torch.tensor(case["old_logprobs"][0]).double()
        logprobs = torch.tensor(case["logprobs"][0]).double().requires_grad_()
        loss = policy_loss(logprobs, old, torch.full((4,), case["advantage"]).double(), 0.2, 0.28, 3.0).sum()
        same(loss, case["verl_dual3_sum"])
        loss.backward()
        same(logprobs.grad, torch.tensor(case["verl_grad"][0]))


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3_clamped"])
def test_a_broken_logprob_never_breaks_the_gradient(estimator):
    """Float32: e^300 is inf, and inf times the clamp's zero gradient would be nan, masked token or not."""
    logprobs = torch.tensor([-300.0, -1.0, -0.001, -300.0, -1.0], requires_grad=True)
    other = torch.tensor([-0.001, -1.1, -300.0, -0.001, -0.9])
    mask, cu_seqlens = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0]), torch.tensor([0, 5], dtype=torch.int32)
    losses = policy_loss(logprobs, other, torch.tensor([1.0, 1.0, -1.0, 1.0, 1.0]), 0.2, 0.2)
    losses = losses + 0.001 * kl_penalty(logprobs, other, estimator)
    aggregate(losses, mask, cu_seqlens, "token", 3, 1, 5).backward()
    assert logprobs.grad.isfinite().all(), logprobs.grad
    assert torch.equal(logprobs.grad[3:], torch.zeros(2))


# ------------------------------------------------------------------------------------------------------------------- KL


@needs_golden
@pytest.mark.parametrize(
    "reference, estimator",
    [
        ("deepscaler_k1", "k1"),
        ("verl_k1", "k1"),
        ("deepscaler_k2_mse", "k2"),
        ("verl_k2", "k2"),
        ("deepscaler_low_var_kl", "k3_clamped"),
        ("verl_k3", "k3_clamped"),  # verl's k3 holds d to +-20, then k3 to +-10: the same numbers
    ],
)
def test_kl_values_and_gradients_match(reference, estimator):
    file = golden("03_kl")
    inputs, want = file["inputs"], file["expected"][reference]
    logprobs, ref, upstream = (ragged(inputs[k], inputs["mask"]) for k in ("logprobs", "ref_logprobs", "upstream"))
    kl = kl_penalty(logprobs.requires_grad_(), ref, estimator)
    same(kl, ragged(want["values"], inputs["mask"]), 1e-9, 1e-9)
    same(kl.mean(), want["token_mean"], 1e-7)
    kl.backward(upstream)
    same(logprobs.grad, ragged(want["grad_of_sum_upstream_times_value"], inputs["mask"]), 1e-9, 1e-9)


@needs_golden
def test_an_unclamped_k3_would_be_noticed():
    file = golden("03_kl")
    logprobs, ref = (ragged(file["inputs"][k], file["inputs"]["mask"]) for k in ("logprobs", "ref_logprobs"))
    want = ragged(file["expected"]["deepscaler_low_var_kl"]["values"], file["inputs"]["mask"])
    same(kl_penalty(logprobs, ref, "k3_clamped"), want, 1e-9, 1e-9)
    with pytest.raises(AssertionError):
        same(kl_penalty(logprobs, ref, "k3"), want, 1e-9, 1e-9)


@needs_golden
def test_k3_without_clamp_matches_trl():
    file = golden("03_kl")
    inputs, want = file["inputs"], file["expected"]["trl_k3_no_clamp"]
    logprobs, ref = (ragged(inputs[k], inputs["mask"]) for k in ("logprobs", "ref_logprobs"))
    total = kl_penalty(logprobs.requires_grad_(), ref, "k3").sum()
    same(total, want["sum"], 1e-9)
    total.backward()
    same(logprobs.grad, ragged(want["grad_of_sum"], inputs["mask"]), 1e-9, 1e-9)


# ------------------------------------------------------------------------------------------------- GSPO, CISPO, lengths


class Regime:
    """The packed inputs of one regime of 04_gspo_cispo."""

    def __init__(self, name: str) -> None:
        regime = golden("04_gspo_cispo")["regimes"][name]
        i, self.expected = regime["inputs"], regime["expected"]
        self.mask, self.cu_seqlens = i["mask"], offsets(i["mask"])
        self.logprobs, self.old = (ragged(i[k], self.mask) for k in ("logprobs", "old_logprobs"))
        self.advantages, self.ones = per_token(i["advantages_per_sequence"], self.mask), torch.ones_like(self.old)
        self.logprobs.requires_grad_()

    def check(self, losses: Tensor, how: str, loss: float, want: dict) -> None:
        total = aggregate(losses, self.ones, self.cu_seqlens, how, losses.numel(), len(self.mask), 1)
        same(total, loss)
        (grad,) = torch.autograd.grad(total, self.logprobs)
        same(grad, ragged(want["dloss_dlogprobs"], self.mask))


@needs_golden
@pytest.mark.parametrize("name", ["gspo_small_drift", "large_drift"])
def test_gspo_matches_verl_and_trl(name):
    """In double precision verl's loss a token as well; TRL computes a sequence's, with equal value and gradient."""
    regime = Regime(name)
    log_ratio = sequence_logratio(regime.logprobs, regime.old, regime.ones, regime.cu_seqlens)
    zeros = torch.zeros_like(log_ratio)
    want = regime.expected["verl_gspo"]
    first = regime.cu_seqlens[:-1].long()
    same(log_ratio[first].exp(), torch.tensor(want["seq_ratio"]).double())
    clip = want["clip_low"], want["clip_high"]
    losses = policy_loss(log_ratio, zeros, regime.advantages, *clip)
    same(losses, ragged(want["per_token_loss"], regime.mask))
    same(clipped(log_ratio, zeros, regime.advantages, *clip).double().mean(), want["clipfrac"])
    regime.check(losses, "sequence", want["loss_seq_mean_token_mean"], want)
    log_ratio = sequence_logratio(regime.logprobs, regime.old, regime.ones, regime.cu_seqlens)
    losses = policy_loss(log_ratio, zeros, regime.advantages, *clip)
    regime.check(losses, "sequence", regime.expected["trl_gspo"]["loss"], regime.expected["trl_gspo"])
    if name == "large_drift":
        tokens = policy_loss(regime.logprobs, regime.old, regime.advantages, *clip)
        with pytest.raises(AssertionError):  # a ratio a token is another algorithm
            regime.check(tokens, "sequence", want["loss_seq_mean_token_mean"], want)


@needs_golden
@pytest.mark.parametrize("name", ["gspo_small_drift", "large_drift"])
def test_cispo_matches_verl_and_trl(name):
    """TRL's weight has a cap and no lower bound: clip_eps_low 1."""
    regime = Regime(name)
    for key in ("verl_cispo_0.2_0.28", "verl_cispo_nolow_4"):
        want = regime.expected[key]
        losses = cispo_loss(regime.logprobs, regime.old, regime.advantages, want["clip_low"], want["clip_high"])
        same(losses, ragged(want["per_token_loss"], regime.mask))
        regime.check(losses, "token", want["loss_token_mean"], want)
        sign, clip = regime.ones, (want["clip_low"], want["clip_high"])
        outside = sum(clipped(regime.logprobs, regime.old, s, *clip) for s in (sign, -sign))
        same(outside.double().mean(), want["clipfrac"])
    for key in ("trl_cispo_max1.2", "trl_cispo_max5.0"):
        want = regime.expected[key]
        losses = cispo_loss(regime.logprobs, regime.old, regime.advantages, 1.0, want["weight_cap"] - 1)
        regime.check(losses, "token", want["loss_token_mean"], want)


def test_a_masked_token_leaves_the_sequence_ratio_alone():
    logprobs = torch.tensor([-9.0, -1.0, -1.0, -2.0], requires_grad=True)
    old, mask = torch.tensor([0.0, -1.1, -1.4, -1.5]), torch.tensor([0.0, 1.0, 1.0, 1.0])
    log_ratio = sequence_logratio(logprobs, old, mask, torch.tensor([0, 3, 4], dtype=torch.int32))
    torch.testing.assert_close(log_ratio.detach(), torch.tensor([0.25, 0.25, 0.25, -0.5]))
    (log_ratio * mask).sum().backward()
    torch.testing.assert_close(logprobs.grad, mask)


@needs_golden
def test_soft_overlong_penalty_matches_trl_and_verl():
    for case in golden("07_overlong")["cases"]:
        lengths = torch.tensor(case["lengths"], dtype=torch.float64)
        penalty = overlong_penalty(lengths, case["max_len"], case["buffer"])
        same(penalty, case["expected_trl"])
        within = lengths <= case["max_len"]  # beyond, verl goes on falling; no response is longer than its limit
        same(penalty[within] * case["penalty_factor"], torch.tensor(case["expected_verl_dapo"]).double()[within])


# ----------------------------------------------------------------------------------------------------------- correction


class CorrectionCase:
    def __init__(self) -> None:
        self.file = golden("05_rollout_correction")
        i = self.file["inputs"]
        self.mask, self.cu_seqlens = i["mask"], offsets(i["mask"])
        self.old, self.rollout = (ragged(i[k], self.mask) for k in ("old_logprobs", "rollout_logprobs"))
        self.ones = torch.ones_like(self.old)

    def weights(self, how: str, low: float, high: float) -> Tensor:
        return rollout_weights(self.old, self.rollout, self.ones, self.cu_seqlens, how, low, high)


@needs_golden
def test_rollout_weights_match_verl_icepop_and_trl():
    case = CorrectionCase()
    want = case.file["expected"]
    for how, low, high, weights in (
        ("truncate", 0, 2, want["verl"]["token_tis_C2"]["weights"]),
        ("truncate", 0, 5, want["verl"]["token_tis_C5"]["weights"]),
        ("truncate", 0, 2, want["trl"]["token_truncate_None_2.0"]["weights_times_mask"]),
        ("mask", 0.5, 5, want["icepop_0.5_5.0"]["weights"]),
        ("mask", 0.5, 5, want["trl"]["token_mask_0.5_5.0"]["weights_times_mask"]),
        ("mask", 0, 2, want["trl"]["token_mask_None_2.0"]["weights_times_mask"]),
        ("sequence_mask", 0, 3, want["trl"]["sequence_mask_None_3.0"]["weights_times_mask"]),
        ("sequence_mask", None, 3, want["trl"]["sequence_mask_None_3.0"]["weights_times_mask"]),
        ("sequence_mask", 0.5, 2, want["trl"]["sequence_mask_0.5_2.0"]["weights_times_mask"]),
    ):
        same(case.weights(how, low, high), ragged(weights, case.mask), 1e-9, 1e-12)
    assert torch.equal(case.weights("none", 0.5, 2), case.ones)


@needs_golden
def test_corrected_losses_match_verl_and_trl():
    case = CorrectionCase()
    inputs = case.file["in_loss"]["inputs"]
    logprobs = ragged(inputs["logprobs"], case.mask).requires_grad_()
    advantages = per_token(inputs["advantages_per_sequence"], case.mask)
    kept = case.weights("mask", 0.5, 5) > 0
    for name, dual, weights, mask in (
        ("verl_token_tis_C2_dual3_token_mean", 3.0, case.weights("truncate", 0, 2), case.ones),
        ("verl_icepop_0.5_5_dual3_token_mean_over_kept_tokens", 3.0, case.weights("mask", 0.5, 5), kept.double()),
        ("trl_token_mask_0.5_5_token_mean_over_all_tokens", None, case.weights("mask", 0.5, 5), case.ones),
        ("trl_sequence_mask_3_token_mean_over_all_tokens", None, case.weights("sequence_mask", 0, 3), case.ones),
    ):
        want = case.file["in_loss"][name]
        losses = policy_loss(logprobs, case.old, advantages, inputs["clip_low"], inputs["clip_high"], dual) * weights
        loss = aggregate(losses, mask, case.cu_seqlens, "token", mask.sum(), len(case.mask), 20)
        same(loss, want["loss"])
        (grad,) = torch.autograd.grad(loss, logprobs)
        same(grad, ragged(want["dloss_dlogprobs"], case.mask))


def test_rollout_weights_carry_no_gradient_and_never_overflow():
    old = torch.tensor([-1.0, -0.5, -500.0, -0.1], requires_grad=True)
    rollout = torch.tensor([-1.2, -500.0, -0.5, -0.1])
    cu_seqlens = torch.tensor([0, 2, 4], dtype=torch.int32)
    for how in ("none", "truncate", "mask", "sequence_mask"):
        weights = rollout_weights(old, rollout, torch.ones(4), cu_seqlens, how, 0.5, 2.0)
        assert not weights.requires_grad and weights.isfinite().all() and weights.max() <= 2, how


def test_sequence_mask_ignores_masked_tokens():
    old, rollout = torch.tensor([-9.0, -1.0, -1.0, -2.0]), torch.tensor([0.0, -1.1, -1.0, -1.5])
    mask, cu_seqlens = torch.tensor([0.0, 1.0, 1.0, 1.0]), torch.tensor([0, 3, 4], dtype=torch.int32)
    weights = rollout_weights(old, rollout, mask, cu_seqlens, "sequence_mask", 0.0, 2.0)
    torch.testing.assert_close(weights, torch.tensor([0.1, 0.1, 0.1, -0.5]).exp())


# ---------------------------------------------------------------------------------------------------------- aggregation


@st.composite
def packs(draw) -> tuple[Tensor, Tensor, list[int]]:
    """losses and mask (T,) float64, and the sequence lengths; every value finite, any mask."""
    lengths = draw(st.lists(st.integers(1, 7), min_size=1, max_size=8))
    size = sum(lengths)
    losses = draw(st.lists(st.floats(-100, 100), min_size=size, max_size=size))
    mask = draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=size, max_size=size))
    return torch.tensor(losses, dtype=torch.float64), torch.tensor(mask, dtype=torch.float64), lengths


def cumulative(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


def counts(mask: Tensor, lengths: list[int]) -> tuple[float, float]:
    """Tokens left, and sequences with a token left; 1 at least, as the trainer does."""
    return max(1.0, mask.sum().item()), max(1.0, sum(bool(m.any()) for m in mask.split(lengths)))


@few_examples
@given(packs())
def test_aggregate_equals_the_loop_over_sequences(pack):
    losses, mask, lengths = pack
    tokens, sequences = counts(mask, lengths)
    kept = [loss[m > 0] for loss, m in zip(losses.split(lengths), mask.split(lengths), strict=True)]
    want = {
        "token": sum(k.sum() for k in kept) / tokens,
        "sequence": sum(k.mean() for k in kept if len(k)) / sequences,
        "dr_grpo": sum(k.sum() for k in kept) / sequences / 7,
        "deepscaler": sum(k.sum() for k in kept) / tokens,
    }
    for how in AGGREGATIONS:
        same(aggregate(losses, mask, cumulative(lengths), how, tokens, sequences, 7), want[how], 1e-9)


@few_examples
@given(packs(), st.sampled_from([math.inf, -math.inf, math.nan, 1e300]), st.sampled_from(AGGREGATIONS))
def test_a_masked_token_changes_nothing(pack, junk, how):
    losses, mask, lengths = pack
    rest = (cumulative(lengths), how, *counts(mask, lengths), 7)
    dirty = torch.where(mask > 0, losses, junk).requires_grad_()
    loss = aggregate(dirty, mask, *rest)
    assert torch.equal(loss.detach(), aggregate(torch.where(mask > 0, losses, 0.0), mask, *rest))
    loss.backward()
    assert dirty.grad.isfinite().all() and (dirty.grad[mask == 0] == 0).all()


@few_examples
@given(packs(), st.integers(1, 8), st.sampled_from(["token", "sequence", "dr_grpo"]))
def test_micro_batches_with_global_counts_equal_the_whole(pack, sequences_a_part, how):
    losses, mask, lengths = pack
    tokens, sequences = counts(mask, lengths)
    total = torch.zeros((), dtype=torch.float64)
    for first in range(0, len(lengths), sequences_a_part):
        part = lengths[first : first + sequences_a_part]
        here = slice(sum(lengths[:first]), sum(lengths[:first]) + sum(part))
        total += aggregate(losses[here], mask[here], cumulative(part), how, tokens, sequences, 7)
    same(total, aggregate(losses, mask, cumulative(lengths), how, tokens, sequences, 7), 1e-9, 1e-9)


@pytest.mark.parametrize("how", AGGREGATIONS)
def test_a_fully_masked_micro_batch_adds_zero(how):
    losses = torch.tensor([3.0, math.nan], requires_grad=True)
    loss = aggregate(losses, torch.zeros(2), torch.tensor([0, 2], dtype=torch.int32), how, 5, 2, 7)
    loss.backward()
    assert loss.item() == 0 and torch.equal(losses.grad, torch.zeros(2))


def test_sequence_sum_handles_empty_sequences():
    sums = sequence_sum(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 2, 2, 3], dtype=torch.int32))
    assert sums.tolist() == [3.0, 0.0, 4.0]


def test_an_unknown_name_is_refused():
    x, cu_seqlens = torch.ones(2), torch.tensor([0, 2])
    with pytest.raises(ValueError, match="unknown aggregation 'mean'"):
        aggregate(x, x, cu_seqlens, "mean", 1, 1, 1)
    with pytest.raises(ValueError, match="unknown KL estimator 'k4'"):
        kl_penalty(x, x, "k4")
    with pytest.raises(ValueError, match="unknown rollout correction 'clip'"):
        rollout_weights(x, x, x, cu_seqlens, "clip", 0, 1)
