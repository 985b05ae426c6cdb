"""Float16: the loss scale's rules, what it saves from underflow, and runs that find it, resume it or are broken."""

import types
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F

import train_grpo
from configs import load_config
from kernels.norm import rms_norm
from rollout import Rollout
from runs import flags, metrics, rows_of, train, weights_hash
from training import begin, packing, smoke
from training.checkpoint import RunState
from training.loss_scale import GROW_AFTER, after_update, divide_gradients, is_overflow, loss_scale

TWO_TO_16 = 65536.0


def small(world, folder, **changes):
    """The flags of a run in float16, which is slow on a CPU. The entropy bonus gives each update a gradient."""
    settings = dict(dtype="float16", prompts_per_step=4, max_response_len="16,24", save_every=1, max_steps=3)
    settings |= dict(entropy_coef=0.1)
    return flags(world, folder, **(settings | changes))


def minibatch_of(cfg, device, num_tokens=None):
    rollouts = []
    for i in range(4):
        ids = [(7 * i + j) % 40 for j in range(20)]
        rollouts.append(Rollout(i, 0, ids[:6], ids[6:], [-3.9] * 14, "stop", advantage=(-1.0) ** i))
    (minibatch,) = packing.plan_minibatches([rollouts], 32, replace(cfg, minibatches=1), 1)
    minibatch = replace(minibatch, num_tokens=num_tokens or minibatch.num_tokens)
    return packing.pack_share(minibatch, cfg, device), minibatch


def gradient(world, device, dtype, scale, **changes):
    """(the gradient as one vector, the model) of a minibatch, the scale divided out."""
    cfg = load_config(flags(world, "out", dtype=dtype, kl_coef=0.0))
    model = packing.load_model(cfg, world / "base", device, torch.float32)
    train_grpo.backward(model, *minibatch_of(cfg, device, **changes), cfg, scale)
    divide_gradients(model, scale)
    return torch.cat([p.grad.full_tensor().flatten() for p in model.parameters()]), model


# ----------------------------------------------------------------------------------------------------------- the rules


def test_the_scale_halves_where_it_overflows_and_doubles_after_good_updates(world, group_of_one):
    cfg = load_config(flags(world, "out", dtype="float16"))
    state = RunState()
    assert loss_scale(state, cfg) == TWO_TO_16
    state = after_update(state, None, 0.1, cfg)
    assert (state.loss_scale, state.good_updates, state.skipped) == (TWO_TO_16 / 2, 0, 1)
    for _ in range(GROW_AFTER - 1):
        state = after_update(state, 0.5, 0.1, cfg)
    assert state.loss_scale == TWO_TO_16 / 2
    assert after_update(state, None, 0.1, cfg).good_updates == 0  # the count begins again
    assert after_update(state, 0.5, 0.1, cfg) == replace(state, loss_scale=TWO_TO_16, good_updates=0)
    assert RunState.from_json(state.to_json()) == state


def test_what_no_smaller_scale_would_mend_is_no_overflow(world):
    cfg = load_config(flags(world, "out", dtype="float16"))
    assert is_overflow(None, 0.1, 2.0) and not is_overflow(0.5, 0.1, 2.0)
    assert not is_overflow(None, float("nan"), TWO_TO_16) and not is_overflow(None, 0.1, 1.0)
    for state, loss in ((RunState(), float("nan")), (RunState(loss_scale=1.0), 0.1)):
        assert after_update(state, None, loss, cfg) == state


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_other_types_have_no_scale(world, dtype):
    cfg, state = load_config(flags(world, "out", dtype=dtype)), RunState()
    assert loss_scale(state, cfg) == 1 and not is_overflow(None, 0.1, loss_scale(state, cfg))
    assert after_update(state, 0.5, 0.1, cfg) == after_update(state, None, 0.1, cfg) == state


# ------------------------------------------------------------------------------------------------------------ gradients


def test_the_scale_saves_a_gradient_that_float16_has_no_numbers_for(world, group_of_one):
    """A loss over ten million tokens, far more than a step has: without a scale half of the gradient is gone."""
    exact, _ = gradient(world, group_of_one, "float32", 1.0, num_tokens=10**7)
    scaled, _ = gradient(world, group_of_one, "float16", TWO_TO_16, num_tokens=10**7)
    plain, _ = gradient(world, group_of_one, "float16", 1.0, num_tokens=10**7)
    assert (scaled - exact).norm() / exact.norm() < 0.01
    assert (plain - exact).norm() / exact.norm() > 0.3


def test_dividing_by_the_scale_is_exact(world, group_of_one):
    plain, _ = gradient(world, group_of_one, "float32", 1.0)
    scaled, _ = gradient(world, group_of_one, "float32", TWO_TO_16)
    assert torch.equal(plain, scaled)


def test_a_gradient_that_overflows_moves_nothing(world, group_of_one):
    vector, model = gradient(world, group_of_one, "float16", 2.0**30)
    assert not vector.isfinite().all()
    before = [p.full_tensor().clone() for p in model.parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    assert train_grpo.optimizer_step(model, optimizer, 0.1, load_config(flags(world, "out"))) is None
    assert all(torch.equal(a, p.full_tensor()) for a, p in zip(before, model.parameters(), strict=True))


def test_norms_see_numbers_whose_squares_float16_has_not():
    x = torch.full((2, 64), 1000.0, dtype=torch.float16)
    assert torch.allclose(F.rms_norm(x, (64,), eps=1e-6).float(), torch.ones(2, 64), atol=1e-3)  # a GPU's
    normed = rms_norm(x, torch.ones(64, dtype=torch.float16), 1e-6)
    assert torch.allclose(normed.float(), torch.ones(2, 64), atol=1e-3)


def test_the_worst_pack_of_a_smoke_run_finds_its_scale(world, tmp_path, group_of_one, monkeypatch):
    cfg = load_config(small(world, tmp_path, token_budget=48))
    model = packing.load_model(cfg, world / "base", group_of_one, torch.float32)
    optimizer, scales = torch.optim.AdamW(model.parameters(), lr=cfg.lr), []

    def step(model, optimizer, loss, cfg, scale):
        scales.append(scale)
        return train_grpo.optimizer_step(model, optimizer, loss, cfg, scale)

    monkeypatch.setattr(smoke, "RunState", partial(RunState, loss_scale=2.0**20))
    run = types.SimpleNamespace(cfg=cfg, device=group_of_one, model=model, reference=None, optimizer=optimizer)
    smoke.worst_case(run, train_grpo.backward, step)
    assert 1 < len(scales) < 10 and scales == [2.0 ** (20 - i) for i in range(len(scales))]


# ----------------------------------------------------------------------------------------------------------------- runs


def test_a_scale_that_falls_from_its_start_ends_no_run_and_a_resume_goes_on_with_it(world, tmp_path, monkeypatch):
    monkeypatch.setattr(begin, "RunState", partial(RunState, loss_scale=2.0**28))
    output = train(small(world, tmp_path, run_name="whole"))
    rows = rows_of(tmp_path / "whole")
    skipped, scale = rows[-1]["updates_skipped"], rows[-1]["loss_scale"]
    assert 3 <= skipped <= 8 and scale == 2.0 ** (28 - skipped)  # three in a row that are broken would end the run
    assert output.count("the gradient overflows float16") == skipped and "not finite" not in output
    assert rows[0]["grad_norm"] is None and rows[-1]["grad_norm"] > 0
    assert all(row["mismatch_k3"] < 1e-5 for row in rows)
    train(small(world, tmp_path, run_name="resumed", max_steps=1))
    train(small(world, tmp_path, run_name="resumed", resume="true"))
    assert metrics(tmp_path / "resumed") == metrics(tmp_path / "whole")
    assert weights_hash(tmp_path / "resumed", 3) == weights_hash(tmp_path / "whole", 3)


def test_a_loss_that_is_not_finite_ends_a_float16_run_too(world, tmp_path, monkeypatch):
    backward = train_grpo.backward

    def broken(*arguments):
        sums, mismatch = backward(*arguments)
        return replace(sums, loss=sums.loss * float("nan")), mismatch

    monkeypatch.setattr(train_grpo, "backward", broken)
    output = train(small(world, tmp_path), status=1)
    assert "three updates in a row were not finite" in output
    assert rows_of(tmp_path / "run")[0]["loss_scale"] == TWO_TO_16


def test_two_ranks_have_one_scale(world, tmp_path):
    output = train(small(world, tmp_path, max_steps=1, save_every=0), ranks=2)
    (row,) = rows_of(tmp_path / "run")
    assert "2 x cpu" in output
    assert row["updates_skipped"] == 0 and row["loss_scale"] == TWO_TO_16 and row["grad_norm"] > 0
