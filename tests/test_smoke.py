"""The smoke run: the fullest pack, a resume that must give everything back, its own folder, its verdict."""

import json
import time

import pytest
import torch

import train_grpo
from configs import UserError, load_config
from grader.pool import RewardPool
from problems.prompts import ChatTokenizer, load_stage_prompts
from rollout import Rollout, TorchSampler
from runs import flags, train
from train_grpo import backward, optimizer_step
from training import checkpoint, metrics, packing, run_folder, smoke, watch
from training.checkpoint import RunState
from training.ledger import Ledger
from training.preemption import Preemption


def smoke_config(world, folder, **changes):
    return smoke.settings(load_config([*flags(world, folder, **changes), "--smoke=true"]))


@pytest.fixture
def run(world, tmp_path, group_of_one):
    """What a smoke run works with after its first step: a trainer, its checkpoint, a sampler that agrees."""
    tokenizer, whole = ChatTokenizer(world / "base"), smoke_config(world, tmp_path)
    stage_prompts, _ = load_stage_prompts(whole, tokenizer)
    cfg = whole.of_stage(0)
    model = packing.load_model(cfg, world / "base", group_of_one, torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=cfg.lr)
    checkpoint.save(cfg.run_dir / "ckpt" / "step_000001", model, optimizer, RunState(step=1))
    return train_grpo.Run(
        cfg=cfg,
        device=group_of_one,
        tokenizer=tokenizer,
        prompts=stage_prompts[0],
        stage_prompts=stage_prompts,
        benchmarks={},
        sampler=TorchSampler(world / "base", torch.float32, "cpu", 16),
        pool=RewardPool(1),
        model=model,
        reference=None,
        optimizer=optimizer,
        ledger=Ledger(cfg.run_dir, time.perf_counter()),
        log=metrics.StepLog(cfg, "id"),
        lock=run_folder.RunLock(cfg.run_dir),
        preemption=Preemption(0),
    )


def test_two_steps_the_second_at_the_last_context(world, tmp_path):
    cfg = smoke_config(world, tmp_path, max_response_len="24,32")
    assert cfg.max_response_len == (24, 32) and cfg.total_steps == 2 and cfg.run_name == "run-smoke"


@pytest.mark.parametrize("budget", [128, 100, 97, 48])
def test_the_worst_pack_fills_the_budget_with_the_longest_sequences(world, tmp_path, budget):
    cfg = smoke_config(world, tmp_path, token_budget=budget)
    b = smoke.worst_pack(cfg, 51, torch.device("cpu"))
    lengths = b.cu_seqlens.diff().tolist()
    assert budget - 1 <= sum(lengths) <= budget and lengths[0] == 48 == 16 + 32
    assert b.response_mask.sum() == sum(lengths)
    assert max(b.input_ids.max(), b.targets.max()) < 51


def test_the_worst_case_moves_nothing(run):
    before = [p.full_tensor().clone() for p in run.model.parameters()]
    assert len(run.optimizer.state) == len(before)  # the moments are there before the first activation
    timer = smoke.worst_case(run, backward, optimizer_step)
    assert all(torch.equal(a, p.full_tensor()) for a, p in zip(before, run.model.parameters(), strict=True))
    moments = [tensor for state in run.optimizer.state.values() for tensor in state.values()]
    assert len(moments) == 3 * len(list(run.model.parameters())) and not any(m.any() for m in moments)
    assert run.optimizer.param_groups[0]["lr"] == run.cfg.lr
    assert timer.seconds["worst pack"] > 0


def test_a_wiped_run_comes_back_with_its_sampler(run):
    before = smoke.fingerprint(run.model, run.optimizer)
    smoke.wipe_and_resume(run, 1)
    assert smoke.fingerprint(run.model, run.optimizer) == before
    assert watch.probe(run.sampler, run.model, run.prompts, run.cfg, 1).k3 < 1e-10


def test_a_resume_that_gives_back_something_else_fails(run, monkeypatch):
    load = checkpoint.load

    def forgetful(folder, model, optimizer):
        load(folder, model, optimizer)
        with torch.no_grad():
            next(model.parameters())._local_tensor[0, 0] += 1e-6

    monkeypatch.setattr(checkpoint, "load", forgetful)
    with pytest.raises(SystemExit, match="gave back other weights"):
        smoke.wipe_and_resume(run, 1)


@pytest.mark.parametrize("working", [0, 1])
def test_a_sync_that_moves_nothing_fails(run, monkeypatch, working):
    """Neither the first sync, of disturbed weights, nor the second, of resumed ones, can be skipped unseen."""
    sync_weights, calls = smoke.sync_weights, []

    def sometimes(*arguments):
        calls.append(arguments)
        return sync_weights(*arguments) if len(calls) <= working else 0

    monkeypatch.setattr(smoke, "sync_weights", sometimes)
    with pytest.raises(SystemExit, match="after the sync of step 1: sampler and trainer disagree"):
        smoke.wipe_and_resume(run, 1)


def test_only_an_earlier_smoke_run_is_removed(world, tmp_path, group_of_one):
    cfg = smoke_config(world, tmp_path)
    cfg.run_dir.mkdir(parents=True)
    info = {"config": {"smoke": False}}
    (cfg.run_dir / "config.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match="is not a smoke run"):
        smoke.remove_folder(cfg)
    info["config"]["smoke"] = True
    (cfg.run_dir / "config.json").write_text(json.dumps(info))
    smoke.remove_folder(cfg)
    assert not cfg.run_dir.exists()


def assert_passed(output):
    """The table by phase, and a verdict that names everything that was tried."""
    lines = output.splitlines()
    phases = [line.split()[0] for line in lines if line.startswith(("worst pack", "rollout ", "sync ", "train "))]
    assert phases == ["worst", "rollout", "train", "sync"]  # among others
    (verdict,) = (line for line in lines if line.startswith("smoke: "))
    assert verdict.startswith("smoke: PASSED: a pack of 128 tokens trained, 2 steps, sync, save and resume worked")


@pytest.mark.slow
def test_a_smoke_run_tries_everything_on_copies_of_shards_and_leaves_nothing_behind(world, tmp_path):
    """On four ranks as two copies of two shards: it disturbs the weights, which every copy must do alike, and asks for
    two stages of a config that has stage_from=best."""
    argv = flags(world, tmp_path, shard_size=2, stage_from="best", eval_max_len=32, smoke="true")
    assert_passed(train(argv, ranks=4))
    assert not list(tmp_path.iterdir())


def test_a_smoke_run_fails_where_nothing_could_have_been_earned(padded_dir, world, tmp_path):
    """A random model. (Ids of the fullest pack are tokens, never padding rows, which have no log-probability.)"""
    output = train(flags(world, tmp_path, model=padded_dir, kl_coef=0.1, smoke="true"), status=2)
    assert "smoke: FAILED on rank 0: two steps earned nothing, and no response had an answer" in output
    assert "step 1: no response has the answer in \\boxed{}" in output


def test_a_smoke_run_fails_where_the_grader_reads_no_gold(world, tmp_path):
    rows = [json.loads(line) | {"answer": "####"} for line in (world / "train.jsonl").read_text().splitlines()]
    (tmp_path / "odd.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    output = train(flags(world, tmp_path, train_data=tmp_path / "odd.jsonl", smoke="true"), status=2)
    assert "smoke: FAILED on rank 0: train_data: two steps earned nothing, and the grader cannot read one" in output


def test_a_step_without_an_answer_says_what_to_look_at(world, capsys, group_of_one):
    def rollouts(answer, reason, reward=0.0, thought=True):
        return [[Rollout(0, 0, [1], [1], [0.0], reason, reward, thought=thought, answer=answer)]]

    tokenizer = ChatTokenizer(world / "base")

    def said(groups, think="required", step=3):
        row = {"step": step, "max_response_len": 24} | metrics.rollout_metrics(groups)
        metrics.warn_if_nothing_can_be_earned(row, tokenizer, think)
        return capsys.readouterr().out

    assert said(rollouts("7", "stop")) == "" and said(rollouts(None, "stop", 0.5)) == ""
    cut_off = "step 3: all responses were cut off: is max_response_len=24 too short, or '<|eos|>' not what"
    assert cut_off in said(rollouts("7", "length"))
    no_box = "no response has the answer in \\boxed{} after <think> and </think>: "
    assert f"step 3: {no_box}" in said(rollouts(None, "stop"))
    # tags without a box, neither, and where none are needed: three lines
    assert f"step 1: {no_box}" in said(rollouts(None, "stop"), step=1)
    no_tags = said(rollouts(None, "stop", thought=False), step=1)
    assert "step 1: not one response has both <think> and </think>" in no_tags and "--think=optional" in no_tags
    assert no_tags.count("\n") == 1 and no_box not in no_tags
    optional = said(rollouts(None, "stop", thought=False), "optional", 1)
    assert "step 1: no response has the answer in \\boxed{}: look" in optional


def test_a_smoke_run_refuses_what_the_real_run_would(world, tmp_path):
    argv = flags(world, tmp_path, eval_every=3, eval_data=tmp_path / "none.jsonl", smoke="true")
    output = train(argv, status=2)
    assert "error: eval_data: no file " in output and "none.jsonl" in output and "smoke: FAILED" in output


def test_a_smoke_run_with_nothing_to_learn_says_so(world, tmp_path):
    rows = [json.loads(line) | {"answer": "10^{99}"} for line in (world / "train.jsonl").read_text().splitlines()]
    (tmp_path / "hard.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    output = train(flags(world, tmp_path, train_data=tmp_path / "hard.jsonl", smoke="true"))
    assert "smoke: PASSED" in output and "2 steps (0 with an update" in output


def test_a_smoke_run_that_fails_ends_in_its_verdict(world, tmp_path):
    output = train(flags(world, tmp_path, mismatch_limit=1e-30, smoke="true"), status=1)
    verdict, _ = output.splitlines()[-2:]  # after the last line of standard output, the one of the exit status
    assert verdict.startswith("smoke: FAILED on rank 0: after the sync of step 0: sampler and trainer disagree")
