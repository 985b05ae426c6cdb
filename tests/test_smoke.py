"""The smoke run's parts: the fullest pack, a resume that must give everything back, and its own folder."""

import json
import subprocess
from functools import partial

import pytest
import torch
import torch.distributed as dist

import train_grpo
from configs import UserError, load_config
from model import ModelConfig, full_tensors
from problems.prompts import ChatTokenizer, load_prompts
from rollout import TorchSampler
from test_train import flags, start_ranks
from training import checkpoint, smoke


@pytest.fixture
def one_rank():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield torch.device("cpu")
    dist.destroy_process_group()


def parts(world, folder, device):
    cfg = smoke.settings(load_config([*flags(world, folder), "--smoke=true"]))
    model = train_grpo.load_model(cfg, world / "base", device, torch.float32)
    return cfg, model, torch.optim.AdamW(model.parameters(), lr=cfg.lr)


def test_two_steps_the_second_at_the_last_context(world, tmp_path):
    cfg = smoke.settings(load_config([*flags(world, tmp_path, max_response_len="24,32"), "--smoke=true"]))
    assert cfg.max_response_len == (24, 32) and cfg.total_steps == 2 and cfg.run_name == "run-smoke"


@pytest.mark.parametrize("budget", [128, 100, 97, 48])
def test_the_worst_pack_fills_the_budget_with_the_longest_sequences(world, tmp_path, budget):
    cfg = smoke.settings(load_config([*flags(world, tmp_path, token_budget=budget), "--smoke=true"]))
    b = smoke.worst_pack(cfg, ModelConfig.from_folder(world / "base"), torch.device("cpu"))
    lengths = b.cu_seqlens.diff().tolist()
    assert budget - 1 <= sum(lengths) <= budget and lengths[0] == 48 == 16 + 32
    assert b.response_mask.sum() == sum(lengths)


def test_the_worst_case_moves_nothing(world, tmp_path, one_rank):
    cfg, model, optimizer = parts(world, tmp_path, one_rank)
    before = [p.full_tensor().clone() for p in model.parameters()]
    timer = train_grpo.worst_case(model, None, optimizer, cfg)
    assert all(torch.equal(a, p.full_tensor()) for a, p in zip(before, model.parameters(), strict=True))
    assert not optimizer.state and optimizer.param_groups[0]["lr"] == cfg.lr and timer.seconds["worst pack"] > 0


def trained(world, folder, device):
    """What the smoke run has after its first step: trainer, checkpoint, a sampler that agrees, its two callables."""
    cfg, model, optimizer = parts(world, folder, device)
    sampler = TorchSampler(world / "base", torch.float32, "cpu", 16)
    checkpoint.save(cfg.run_dir / "ckpt" / "step_000001", model, optimizer, {"step": 1})
    prompts, _ = load_prompts(cfg, ChatTokenizer(world / "base"))

    def sync():
        return sampler.load_weights(full_tensors(model, torch.float32))

    return cfg, model, optimizer, sync, partial(train_grpo.probe, sampler, model, prompts, cfg, 1)


def test_a_wiped_run_comes_back_with_its_sampler(world, tmp_path, one_rank):
    cfg, model, optimizer, sync, look = trained(world, tmp_path, one_rank)
    before = smoke.fingerprint(model, optimizer)
    smoke.wipe_and_resume(cfg, model, optimizer, sync, look)
    assert smoke.fingerprint(model, optimizer) == before and look()["k3"] < 1e-10


def test_a_resume_that_gives_back_something_else_fails(world, tmp_path, one_rank, monkeypatch):
    load = checkpoint.load

    def forgetful(folder, model, optimizer):
        state = load(folder, model, optimizer)
        with torch.no_grad():
            next(model.parameters())._local_tensor[0, 0] += 1e-6
        return state

    monkeypatch.setattr(checkpoint, "load", forgetful)
    with pytest.raises(SystemExit, match="gave back other weights"):
        smoke.wipe_and_resume(*trained(world, tmp_path, one_rank))


@pytest.mark.parametrize("working", [0, 1])
def test_a_sync_that_moves_nothing_fails(world, tmp_path, one_rank, working):
    """Neither the first sync, of disturbed weights, nor the second, of resumed ones, can be skipped unseen."""
    cfg, model, optimizer, sync, look = trained(world, tmp_path, one_rank)
    calls = iter([sync] * working)
    with pytest.raises(SystemExit, match="after the sync of step 1: sampler and trainer disagree"):
        smoke.wipe_and_resume(cfg, model, optimizer, lambda: next(calls, lambda: 0)(), look)


def test_only_an_earlier_smoke_run_is_removed(world, tmp_path, one_rank):
    cfg, _, _ = parts(world, tmp_path, one_rank)
    cfg.run_dir.mkdir(parents=True)
    info = {"config": {"smoke": False}}
    (cfg.run_dir / "config.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match="is not a smoke run"):
        smoke.remove_folder(cfg)
    info["config"]["smoke"] = True
    (cfg.run_dir / "config.json").write_text(json.dumps(info))
    smoke.remove_folder(cfg)
    assert not cfg.run_dir.exists()


@pytest.mark.slow
def test_a_smoke_run_refuses_what_the_real_run_would(world, tmp_path):
    argv = [*flags(world, tmp_path, eval_every=3, eval_data=tmp_path / "none.jsonl"), "--smoke=true"]
    (process,) = start_ranks(1, ["train_grpo.py", *argv], stderr=subprocess.STDOUT)
    said = process.stdout.read()
    assert process.wait() == 2 and "none.jsonl: cannot" in said and "smoke: FAILED" in said


@pytest.mark.slow
def test_a_smoke_run_with_nothing_to_learn_says_so(world, tmp_path):
    rows = [json.loads(line) | {"answer": "10^{99}"} for line in (world / "train.jsonl").read_text().splitlines()]
    (tmp_path / "hard.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    argv = [*flags(world, tmp_path, train_data=tmp_path / "hard.jsonl"), "--smoke=true"]
    (process,) = start_ranks(1, ["train_grpo.py", *argv])
    said = process.stdout.read()
    assert process.wait() == 0 and "smoke: PASSED" in said and "2 steps (0 with an update" in said


@pytest.mark.slow
def test_a_smoke_run_that_fails_ends_in_its_verdict(world, tmp_path):
    argv = [*flags(world, tmp_path, mismatch_limit=1e-30), "--smoke=true"]
    (process,) = start_ranks(1, ["train_grpo.py", *argv])
    said = process.stdout.read().splitlines()
    assert process.wait() == 1
    assert said[-1].startswith("smoke: FAILED on rank 0: after the sync of step 0: sampler and trainer disagree")
