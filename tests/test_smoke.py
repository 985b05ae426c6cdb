"""The smoke run's parts: the fullest pack, a resume that must give everything back, and its own folder."""

import json

import pytest
import torch
import torch.distributed as dist

import checkpoint
import smoke
import train_grpo
from configs import UserError, load_config
from model import ModelConfig
from test_train import flags, start_ranks


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


def test_a_resume_that_gives_back_something_else_fails(world, tmp_path, one_rank, monkeypatch):
    cfg, model, optimizer = parts(world, tmp_path, one_rank)
    checkpoint.save(cfg.run_dir / "ckpt" / "step_000001", model, optimizer, {"step": 1})
    smoke.wipe_and_resume(cfg, model, optimizer)
    assert all(p.full_tensor().any() for n, p in model.named_parameters() if "bias" not in n)
    load = checkpoint.load

    def forgetful(folder, model, optimizer):
        state = load(folder, model, optimizer)
        with torch.no_grad():
            next(model.parameters())._local_tensor[0, 0] += 1e-6
        return state

    monkeypatch.setattr(checkpoint, "load", forgetful)
    with pytest.raises(SystemExit, match="gave back other weights"):
        smoke.wipe_and_resume(cfg, model, optimizer)


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
def test_a_smoke_run_that_fails_ends_in_its_verdict(world, tmp_path):
    argv = [*flags(world, tmp_path, mismatch_limit=1e-30), "--smoke=true"]
    (process,) = start_ranks(1, ["train_grpo.py", *argv])
    said = process.stdout.read().splitlines()
    assert process.wait() == 1
    assert said[-1].startswith("smoke: FAILED on rank 0: after the sync of step 0: sampler and trainer disagree")
