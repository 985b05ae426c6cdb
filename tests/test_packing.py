"""Who computes what: gradients that do not know the world, plans and packs, old log-probabilities."""

from dataclasses import replace

import pytest
import torch

import gradients
import train_grpo
from configs import load_config
from gradients import DEEPSCALER, DENOMINATORS, MIDDLE, SMALL, WHOLE
from rollout import Rollout
from runs import (
    flags,
    run_ranks,
)
from training import packing

# ------------------------------------------------------------------------------------------------- gradients and packs


@pytest.fixture(scope="session")
def gradient(tiny_model_dir, tmp_path_factory):
    """gradient(ranks, *case): what gradients.py makes of a case on so many ranks."""
    results = {}
    for ranks in (1, 2, 4):
        out = tmp_path_factory.mktemp("gradients") / "results"
        if ranks == 1:
            gradients.main([str(tiny_model_dir), str(out)])
        else:
            run_ranks(ranks, [tiny_model_dir, out], main=gradients.main)
        results[ranks] = torch.load(out)
    return lambda ranks, *case: results[ranks][case]


def largest_difference(a, b):
    """Of each tensor's difference, relative to its norm: the largest."""
    return max(float((a["gradients"][n] - g).norm() / g.norm()) for n, g in b["gradients"].items())


@pytest.mark.xdist_group("gradients")
def test_world_size_and_token_budget_do_not_change_gradients(gradient):
    whole = gradient(1, WHOLE)
    assert whole["packs"] == [1]
    empty = 0
    for ranks, budgets in ((1, (SMALL, MIDDLE)), (2, (SMALL, MIDDLE, WHOLE)), (4, (SMALL, MIDDLE, WHOLE))):
        for budget in budgets:
            other = gradient(ranks, budget)
            assert largest_difference(other, whole) < 1e-6, (ranks, budget)
            empty += other["empty"]
    assert empty > 0, "no dummy pack was ever needed"


@pytest.mark.xdist_group("gradients")
@pytest.mark.parametrize("setting", DENOMINATORS)
def test_other_denominators_do_not_know_the_world_either(gradient, setting):
    whole = gradient(1, WHOLE, setting)
    assert largest_difference(gradient(2, SMALL, setting), whole) < 1e-6
    assert largest_difference(whole, gradient(1, WHOLE)) > 1e-2


@pytest.mark.xdist_group("gradients")
def test_deepscaler_aggregation_sums_means_of_micro_batches_and_averages_ranks(gradient):
    """On two ranks, one with a dummy pack: as if each micro-batch's mean were added by hand, over the ranks."""
    two = gradient(2, *DEEPSCALER)
    assert two["empty"] > 0 and max(two["packs"]) > 1
    by_hand = gradient(1, *DEEPSCALER, "by_hand")
    assert by_hand["packs"] == two["packs"] and largest_difference(two, by_hand) < 1e-6
    assert largest_difference(two, gradient(2, DEEPSCALER[0])) > 1  # the mean over all tokens


@pytest.mark.xdist_group("gradients")
@pytest.mark.parametrize("shard_size", [1, 2, 4])
def test_shards_within_a_node_and_copies_across_nodes_do_not_change_gradients(gradient, shard_size):
    """HSDP: four ranks as copies of the model, each in `shard_size` shards."""
    split = gradient(4, SMALL, f"shard_size={shard_size}")
    assert split["copies"] == 4 // shard_size and max(split["packs"]) > 1
    assert split["all_reduces"] == (split["units"] if shard_size < 4 else 0)  # after the last micro-batch alone
    assert largest_difference(split, gradient(1, WHOLE)) < 1e-6


@pytest.mark.xdist_group("gradients")
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_mean_of_means_would_be_noticed(gradient, ranks):
    assert largest_difference(gradient(ranks, SMALL, "mean_of_means"), gradient(1, WHOLE)) > 1e-2


def test_rows_that_pad_the_vocabulary_have_no_gradient(padded_dir, tmp_path, group_of_one):
    """Not with the KL and entropy terms either, and whatever the packs."""
    cfg = load_config(flags(padded_dir, tmp_path, kl_coef=0.1, entropy_coef=0.1, minibatches=1))
    model = packing.load_model(cfg, padded_dir, group_of_one, torch.float32)
    reference = packing.load_model(cfg, padded_dir, group_of_one, torch.float32)
    ((batches, minibatch),) = small_minibatches(cfg, group_of_one)
    ref_logprobs = packing.fixed_logprobs(reference, batches, cfg)
    batches = [replace(b, ref_logprobs=logprobs - 0.1) for b, logprobs in zip(batches, ref_logprobs, strict=True)]
    train_grpo.backward(model, batches, minibatch, cfg)
    grad = model.lm_head.weight.grad.full_tensor()
    assert grad.shape[0] == model.vocab_size + 50
    assert (grad[model.vocab_size :] == 0).all() and (grad[: model.vocab_size] != 0).any(1).all()


def make_groups(lengths):
    groups = []
    for p, group in enumerate(lengths):
        groups.append([Rollout(p, s, [1, 2], [3] * n, [-1.0] * n, "stop", 0.0, 1.0) for s, n in enumerate(group)])
    return groups


def test_plan_keeps_every_sequence_once_within_the_budget(world, tmp_path):
    cfg = load_config(flags(world, tmp_path, token_budget=64))
    groups = make_groups([[5, 30, 1, 9], [2, 2, 2, 2], [32, 31, 7, 8], [20, 21, 22, 23], [1, 1, 1, 1]])
    for ranks in (1, 2, 3, 4, 7):
        planned, prompts_of_minibatch = [], []
        for minibatch in packing.plan_minibatches(groups, 32, cfg, ranks):
            assert len(minibatch.micro_batches) == ranks and len({len(m) for m in minibatch.micro_batches}) == 1
            micro_batches = [m for micro_batches in minibatch.micro_batches for m in micro_batches]
            assert all(m.num_tokens == sum(map(packing.packed_length, m.rollouts)) <= 64 for m in micro_batches)
            rollouts = [r for m in micro_batches for r in m.rollouts]
            assert minibatch.num_tokens == sum(len(r.response_ids) for r in rollouts)
            assert minibatch.num_sequences == len(rollouts) and minibatch.max_len == 32
            prompts_of_minibatch.append(sorted({r.prompt_id for r in rollouts}))
            planned += [(r.prompt_id, r.sample_id) for r in rollouts]
        assert prompts_of_minibatch == [[0, 1, 2], [3, 4]]
        assert sorted(planned) == sorted((r.prompt_id, r.sample_id) for g in groups for r in g)


def test_pack_shifts_once_and_aligns_everything_with_targets():
    a = Rollout(0, 0, [10, 11, 12], [13, 14], [-0.1, -0.2], "stop", advantage=2.0)
    b = Rollout(1, 0, [20], [21, 22, 23], [-0.3, -0.4, -0.5], "length", advantage=-1.0)
    batch = packing.pack([a, b], False, torch.device("cpu"))
    assert batch.input_ids.tolist() == [10, 11, 12, 13, 20, 21, 22]
    assert batch.targets.tolist() == [11, 12, 13, 14, 21, 22, 23]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert batch.cu_seqlens.tolist() == [0, 4, 7] and batch.cu_seqlens.dtype == torch.int32 and batch.longest == 4
    assert batch.response_mask.tolist() == [0, 0, 1, 1, 1, 1, 1]
    assert batch.advantages.tolist() == [0, 0, 2, 2, -1, -1, -1]
    assert batch.rollout_logprobs.tolist() == pytest.approx([0, 0, -0.1, -0.2, -0.3, -0.4, -0.5])
    assert packing.pack([a, b], True, torch.device("cpu")).response_mask.tolist() == [0, 0, 1, 1, 0, 0, 0]
    assert packing.pack([], False, torch.device("cpu")).response_mask.tolist() == [0, 0]  # not one token, see `pack`


# ------------------------------------------------------------------------------------------ old log-probabilities, FSDP


def small_minibatches(cfg, device):
    """[(batches, Minibatch)] of two groups with an advantage each."""
    groups = []
    for group in make_groups([[5, 30, 1, 9], [32, 31, 7, 8]]):
        changed = []
        for r in group:
            ids = [(7 * i + r.sample_id) % 40 for i in range(len(r.response_ids))]
            changed.append(replace(r, response_ids=ids, advantage=1.0 - 0.7 * r.sample_id))
        groups.append(changed)
    minibatches = packing.plan_minibatches(groups, 32, cfg, 1)
    return [(packing.pack_share(minibatch, cfg, device), minibatch) for minibatch in minibatches]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_recomputed_old_logprobs_are_bitwise_equal(world, tmp_path, group_of_one, checkpointing):
    cfg = load_config(flags(world, tmp_path))
    model = packing.load_model(cfg, world / "base", group_of_one, torch.float32)
    model.set_activation_checkpointing(checkpointing)
    batches = [b for batches, _ in small_minibatches(cfg, group_of_one) for b in batches]
    for b, old_logprobs in zip(batches, packing.fixed_logprobs(model, batches, cfg), strict=True):
        logprobs, _ = packing.batch_logprobs(model, b, cfg)
        assert torch.equal(logprobs, old_logprobs)
        logprobs.sum().backward()


def test_skipping_the_first_minibatchs_pass_ends_in_equal_weights(world, tmp_path, group_of_one):
    cfg, weights_at_end = load_config(flags(world, tmp_path)), []
    for skip in (True, False):
        model = packing.load_model(cfg, world / "base", group_of_one, torch.float32)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        scored = []
        for i, (batches, minibatch) in enumerate(small_minibatches(cfg, group_of_one)):
            if i > 0 or not skip:
                old = packing.fixed_logprobs(model, batches, cfg)
                batches = [replace(b, old_logprobs=logprobs) for b, logprobs in zip(batches, old, strict=True)]
            scored.append((batches, minibatch))
        for batches, minibatch in scored:
            train_grpo.backward(model, batches, minibatch, cfg)
            assert train_grpo.optimizer_step(model, optimizer, 0.0, cfg) is not None
        weights_at_end.append({n: p.full_tensor() for n, p in model.named_parameters()})
    skipped, whole = weights_at_end
    assert all(torch.equal(skipped[n], whole[n]) for n in whole)


def test_a_gradient_that_is_not_finite_moves_nothing(world, tmp_path, group_of_one):
    cfg = load_config(flags(world, tmp_path))
    model = packing.load_model(cfg, world / "base", group_of_one, torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    before = {n: p.full_tensor().clone() for n, p in model.named_parameters()}
    batches, minibatch = small_minibatches(cfg, group_of_one)[0]
    batches[0].advantages[-1] = float("inf")
    train_grpo.backward(model, batches, minibatch, cfg)
    assert train_grpo.optimizer_step(model, optimizer, 0.0, cfg) is None
    assert all(torch.equal(before[n], p.full_tensor()) for n, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters()) and not optimizer.state


def test_a_minibatch_of_which_no_token_counts_is_left_out(world, tmp_path):
    """Its gradient would be zero, and Adam's moments would move the weights all the same."""
    cfg = load_config(flags(world, tmp_path, mask_truncated="true"))
    groups = make_groups([[5, 6], [7, 8]])
    truncated = [[replace(r, finish_reason="length") for r in group] for group in groups]
    assert len(packing.plan_minibatches(groups, 32, cfg, 2)) == 2
    (kept,) = packing.plan_minibatches([truncated[0], groups[1]], 32, cfg, 2)
    assert {r.prompt_id for rank in kept.micro_batches for m in rank for r in m.rollouts} == {1}
    assert packing.plan_minibatches(truncated, 32, cfg, 2) == []
