"""Stages within a run: who ends them, what the next one begins with, other numbers of GPUs, refills, the ledger."""

import json
import shlex
import subprocess
import sys
import time
from dataclasses import asdict, replace

import pytest
import torch

import schedule
from configs import load_config
from rollout import Rollout
from runs import ENV, ROOT, flags, metrics, responses, rows_of, run_here, run_ranks, summary_of, train, weights_hash
from schedule import replay
from train_grpo import with_advantages
from training import checkpoint, packing, stages
from training.checkpoint import RunState
from training.groups import groups_to_train_on, is_mixed, refill_prompts
from training.ledger import Ledger
from training.metrics import Timer

# --------------------------------------------------------------------------------------------------- the end of a stage


@pytest.mark.slow
def test_the_controller_ends_a_stage_where_the_replay_says(world, tmp_path):
    """Without learning, the reward is flat and many responses of at most 12 tokens are cut off."""
    changes = dict(max_response_len="12,24", stage_steps="40,3", lr=0, stage_window=8, stage_patience=1)
    output = train(flags(world, tmp_path, **changes, save_rollouts_every=0, kl_coef=0))
    rows = rows_of(tmp_path / "run")
    switch = sum(r["stage"] == 0 for r in rows)
    assert 8 <= switch < 40 and len(rows) == switch + 3  # the last stage takes its steps
    assert replay(rows, 8, 1)["fire_steps"][0] == switch
    assert f"stage 1 of 2 (context 12) ends at its turning point: {switch} steps" in output
    assert f"stage 2 of 2 begins from step_{switch:06d}: context 24" in output
    assert f"step {switch}/{switch + 3}  context 12" in output  # the steps it did not take are not to come
    _, output = run_here(schedule.main, [tmp_path / "run" / "metrics.jsonl"])  # reads the run's own window
    assert json.loads(output.splitlines()[-1])["fire_step"] == switch


def judged(cfg, rewards, lengths, clips, state=None):
    """The state after these steps, and what was decided after each."""
    state, decisions = state or RunState(), []
    for reward, length, clip in zip(rewards, lengths, clips, strict=True):
        row = dict(step=state.step + 1, reward_mean=reward, response_len_mean=length, response_clip_ratio=clip)
        row |= dict(tokens_generated=100, updates_skipped=1, reward_timeouts=2)
        state = stages.after_step(state, row, cfg)
        decisions.append(state.decision)
    return state, decisions


def test_the_first_steps_of_partial_rollouts_decide_nothing(world, tmp_path, group_of_one):
    """They finish what is short first, and are better than any later one."""
    argv = flags(world, tmp_path, stage_window=8, stage_patience=2, stage_steps="60,5", stage_policy="auto")
    rewards, lengths, clips = [1.0] * 5 + [0.3, 0.32] * 10, [5.0] * 5 + [20.0] * 20, [0.0] * 5 + [0.05] * 20
    partial = load_config([*argv, "--partial_rollouts=true", "--rollout_correction=truncate", "--max_staleness=4"])
    state, decisions = judged(partial, rewards, lengths, clips)
    assert set(decisions) == {None} and judged(load_config(argv), rewards, lengths, clips)[1][-1] == "collapsed"
    early, _ = judged(partial, rewards[:9], lengths[:9], clips[:9])
    assert early.score == pytest.approx(0.31, abs=0.011), "the checkpoint of a first step would pass for the best"
    (tmp_path / "config.json").write_text(json.dumps({"config": asdict(partial)}))
    settings = schedule.run_settings(tmp_path / "config.json")
    assert settings == (8, 2, 5) and replay(list(state.history), *settings)["collapse_step"] is None
    assert replay(list(state.history), 8, 2)["collapse_step"] is not None


def test_decisions_of_the_loop(world, tmp_path, group_of_one):
    cfg = load_config(flags(world, tmp_path, stage_window=8, stage_patience=2, stage_steps="20,5"))
    ups = [0.1 + 0.02 * i for i in range(30)]
    state, decisions = judged(cfg, ups[:20], [9.0] * 20, [0.5 - 0.01 * i for i in range(20)])
    assert decisions == [None] * 19 + ["lengthen"]  # out of patience
    assert (state.step, state.tokens, state.skipped, state.timeouts) == (20, 2000, 1, 2)
    assert stages.is_due(state, cfg) and not stages.is_last(state, cfg) and not stages.is_over(state, cfg)
    assert stages.last_step(state, cfg) == 25
    assert state.score == pytest.approx(sum(ups[15:20]) / 5)  # the mean of the last five
    assert judged(cfg, ups[:4], [9.0] * 4, [0.5] * 4)[0].score is None  # save_every=3: none to compete with
    state = replace(state, stage=1, stage_began=20, history=(), decision=None)
    _, decisions = judged(cfg, ups[:5], [9.0] * 5, [0.5] * 5, state)
    assert decisions == [None] * 5  # a limit is nothing the last stage goes on from
    flat, clips = [0.5, 0.52] * 6, [0.3, 0.31] * 6
    _, decisions = judged(cfg, [*flat, *ups[:8]], [9.0] * 20, [*clips, *clips[:8]], state)
    turned = decisions.index("lengthen")
    assert decisions == [None] * turned + ["lengthen"] * (20 - turned)  # once decided it stands, though rewards rise
    ruin = [0.6] * 8 + [0.1] * 5
    state, decisions = judged(cfg, ruin, [9.0] * 8 + [24.0] * 5, [0.2] * 8 + [1.0] * 5)
    assert "lengthen" not in decisions[8:] and decisions[-1] == "collapsed"
    assert not stages.is_due(state, cfg) and stages.is_over(state, cfg)
    fixed = load_config(flags(world, tmp_path, stage_policy="fixed", stage_window=8, stage_patience=2))
    _, decisions = judged(fixed, ruin, [9.0] * 8 + [24.0] * 5, [0.2] * 8 + [1.0] * 5)
    assert decisions[:4] == [None, None, None, "lengthen"] and "collapsed" not in decisions


@pytest.mark.slow
def test_a_collapsed_run_stops_and_its_result_is_the_best_checkpoint(world, tmp_path):
    """A KL penalty with the wrong sign drives the model away from its start until it only babbles."""
    changes = dict(max_response_len="24", group_size="4", stage_steps="60", kl_coef=-0.3, lr=3e-4, save_every=2)
    changes |= dict(
        stage_window=8, stage_patience=3, keep_checkpoints=1, save_rollouts_every=0, eval_every=50, eval_k=16
    )
    output = train(flags(world, tmp_path, **changes))
    rows, run_dir = rows_of(tmp_path / "run"), tmp_path / "run"
    assert len(rows) < 60 and replay(rows, 8, 3)["collapse_step"] == len(rows)
    assert "the run has collapsed" in output
    assert f"step {len(rows)}/{len(rows)}  context 24" in output  # the steps it did not take are not to come
    scores = {p.name: json.loads((p / "state.json").read_text()) for p in (run_dir / "ckpt").iterdir()}
    best = max((name for name in scores if scores[name]["score"]), key=lambda name: scores[name]["score"])
    assert scores[f"step_{len(rows):06d}"]["verdict"] == "collapsed" and best != f"step_{len(rows):06d}"
    assert f"its best checkpoint, {run_dir}/hf/{best}" in output
    summary = summary_of(run_dir)
    assert summary["verdict"] == "collapsed" and summary["final_first"]["accuracy"] > rows[-1]["eval_test"]
    (run_dir / "summary.json").unlink()
    again = train([*flags(world, tmp_path, **changes), "--resume=true"])
    assert len(rows_of(run_dir)) == len(rows) and f"hf/{best}" in again
    repeated = summary_of(run_dir)
    assert repeated["final_first"] == summary["final_first"] and repeated["final_last"] == summary["final_last"]


# --------------------------------------------------------------------------------------------- what a stage begins with


@pytest.mark.slow
@pytest.mark.parametrize("start", ["last", "best"])
def test_resume_across_a_switch_is_exact(world, tmp_path, start):
    """Stopped just before the switch, just after it (with another KL reference), or not at all: the same run."""
    changes = dict(stage_steps="4,3", stage_from=start, save_every=2, kl_coef=0.1, eval_every=0, keep_checkpoints=1)
    train(flags(world, tmp_path, run_name="whole", **changes))
    for stops in ((4,), (5, 6)):
        name = f"stopped{stops[0]}"
        for cut in (*stops, 0):
            train([*flags(world, tmp_path, run_name=name, **changes, max_steps=cut), "--resume=true"])
        assert metrics(tmp_path / name) == metrics(tmp_path / "whole")
        assert weights_hash(tmp_path / name, 7) == weights_hash(tmp_path / "whole", 7)


@pytest.mark.slow
def test_where_a_run_was_cut_does_not_choose_its_best_checkpoint(world, tmp_path):
    argv = flags(world, tmp_path, stage_steps="5,1", stage_from="best", save_every=2, keep_checkpoints=9)
    for name, cuts in (("whole", [0]), ("cut", [1, 3, 0])):
        for cut in cuts:
            train([*argv, f"--run_name={name}", f"--max_steps={cut}", "--resume=true"])
    assert set(checkpoint.read_states(tmp_path / "cut")) > set(checkpoint.read_states(tmp_path / "whole"))
    assert checkpoint.ranking(tmp_path / "cut") == checkpoint.ranking(tmp_path / "whole")
    assert checkpoint.ranking(tmp_path / "cut")[0] != []
    assert "resume: save_every was 2" in train([*argv, "--run_name=cut", "--save_every=1", "--resume=true"], status=2)


def test_weights_of_a_checkpoint_fill_a_model_of_another_type(world, tmp_path, group_of_one):
    """The KL reference in bfloat16, from float32: as if cast."""
    cfg = load_config(flags(world, tmp_path))
    model = packing.load_model(cfg, world / "base", group_of_one, torch.float32)
    checkpoint.save(tmp_path / "ckpt" / "step_000001", model, torch.optim.AdamW(model.parameters()), RunState(step=1))
    reference = packing.load_model(cfg, world / "base", group_of_one, torch.bfloat16)
    with torch.no_grad():
        for p in reference.parameters():
            p.zero_()
    checkpoint.load_weights(tmp_path / "ckpt" / "step_000001", reference)
    for (name, p), q in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert torch.equal(p.full_tensor().bfloat16(), q.full_tensor()), name


@pytest.mark.slow
def test_what_is_kept_and_what_is_reset_makes_a_difference(world, tmp_path):
    """The second stage of five runs that differ in one choice: nothing changes before it, and there each does."""
    keep = dict(stage_optimizer="keep", stage_data_order="keep", stage_reference="keep")
    runs = {"keep": keep, "reset": dict.fromkeys(keep, "reset")}
    runs |= {name: keep | {name: "reset"} for name in keep}
    for name, choice in runs.items():
        train(flags(world, tmp_path, run_name=name, stage_steps="3,2", kl_coef=0.1, save_every=9, **choice))
    rows_by_run = {name: metrics(tmp_path / name) for name in runs}
    assert all(rows[:3] == rows_by_run["keep"][:3] for rows in rows_by_run.values())
    drawn = {name: sorted({r["id"] for r in responses(tmp_path / name, 4)}) for name in runs}
    first = sorted({r["id"] for r in responses(tmp_path / "keep", 1)})
    assert drawn["reset"] == drawn["stage_data_order"] == first != drawn["keep"]
    assert drawn["keep"] == drawn["stage_optimizer"] == drawn["stage_reference"]
    kl = {name: rows[3]["kl"] for name, rows in rows_by_run.items()}  # in step 4, before its second minibatch moves
    assert kl["stage_reference"] < 0.7 * kl["keep"] and kl["stage_optimizer"] != kl["keep"]
    assert len({weights_hash(tmp_path / name, 5) for name in runs}) == len(runs)


@pytest.mark.parametrize("choice", ["keep", "reset"])
def test_the_next_stage_begins_with_the_best_weights(world, tmp_path, group_of_one, choice):
    cfg = load_config(flags(world, tmp_path, stage_from="best", keep_checkpoints=1, stage_optimizer=choice))
    model = packing.load_model(cfg, world / "base", group_of_one, torch.float32)
    reference = packing.load_model(cfg, world / "base", group_of_one, torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    state, weights = RunState(), {}
    for step, score in ((1, 0.2), (2, 0.9), (3, 0.5)):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        state = replace(state, step=step, score=score, decision="lengthen", history=({"step": step},))
        checkpoint.save_all(cfg, model, optimizer, state)
        weights[step] = {n: p.full_tensor().clone() for n, p in model.named_parameters()}
    state = stages.begin_next(cfg, state, model, reference, optimizer)
    for m in (model, reference):
        assert all(torch.equal(p.full_tensor(), weights[2][n]) for n, p in m.named_parameters())
    assert state.stage == 1 and state.stage_began == 3 and state.reference == "step_000002"
    assert state.decision is None and state.history == ()
    steps = {float(s["step"]) for s in optimizer.state.values()}
    assert steps == ({2.0} if choice == "keep" else {0.0})
    assert all(s["exp_avg"].full_tensor().any() == (choice == "keep") for s in optimizer.state.values())


def test_the_command_for_more_nodes(monkeypatch):
    cfg = load_config(["configs/faithful.py"])
    state = RunState(step=1040, decision="lengthen")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert stages.wants_other_gpus(state, cfg) and not stages.wants_other_gpus(replace(state, stage=1), cfg)
    command = stages.next_command(state, cfg, ["configs/faithful.py", "--run_name=a b", "--resume=false"])
    launch = "torchrun --nnodes=4 --nproc_per_node=8 --rdzv_backend=c10d --rdzv_endpoint=FIRST_NODE:29500"
    assert command == f"{launch} train_grpo.py configs/faithful.py '--run_name=a b' --resume=true"


def test_ranks_that_make_no_whole_copies_are_refused(world, tmp_path):
    output = train([*flags(world, tmp_path, shard_size=2), "--sampler=vllm"], status=2)  # before any engine starts
    assert "shard_size: 1 ranks are no multiple of 2" in output


@pytest.mark.slow
def test_a_stage_is_held_to_its_gpus_and_begun_by_the_printed_command(world, tmp_path):
    """Also where the number of ranks is part of the arithmetic, as with this loss_agg."""
    argv = flags(world, tmp_path, stage_gpus="1,2", loss_agg="deepscaler", save_rollouts_every=0, eval_every=3)
    run_dir, resume = tmp_path / "run", [*argv, "--resume=true"]
    assert run_ranks(2, argv, status=2).count("stage 1 is for 1 GPUs, here are 2") == 2  # on each
    train([*resume, "--max_steps=2"])
    assert "stage 1 is for 1 GPUs, here are 2" in run_ranks(2, resume, status=2)
    output = train(resume)
    assert [r["step"] for r in rows_of(run_dir)] == [1, 2, 3, 4]
    assert f"{run_dir}/hf/step_000004 is exported; the next stage wants 2 GPUs" in output
    assert "stage 2 is for 2 GPUs, here are 1" in train(resume, status=2)
    assert "stage_gpus was [1, 2]" in train([*resume, "--stage_gpus=1,1"], status=2)
    command = shlex.split(next(line for line in output.splitlines() if "torchrun" in line))
    assert command[1:3] == ["--nproc_per_node=2", "train_grpo.py"] and command[-1] == "--resume=true"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run([*torchrun, *command[1:]], cwd=ROOT, env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [r["stage"] for r in rows_of(run_dir)] == [0] * 4 + [1] * 2
    assert summary_of(run_dir)["world_size"] == 2


@pytest.mark.slow
def test_the_summary_of_an_earlier_end_is_no_end(world, tmp_path):
    """A run cut short, then gone on with, and killed in its last evaluation: resumed, it evaluates."""
    argv, summary = flags(world, tmp_path, eval_every=9), tmp_path / "run" / "summary.json"
    train([*argv, "--max_steps=3"])
    earlier = summary.read_text()
    assert "step 4/6" in train([*argv, "--resume=true"])
    final = summary_of(tmp_path / "run")
    summary.write_text(earlier)
    assert "was finished already" not in train([*argv, "--resume=true"])
    again = summary_of(tmp_path / "run")
    assert again["steps"] == 6 and again["final_last"] == final["final_last"]
    assert "was finished already" in train([*argv, "--resume=true"])


@pytest.mark.slow
def test_after_a_switch_a_damaged_checkpoint_is_still_skipped(world, tmp_path):
    """The ones before the newest keep the KL reference they need, and a damaged reference is refused."""
    changes = dict(stage_steps="3,2,2", max_response_len="16,24,32", group_size="4,4,4", kl_coef=0.1)
    argv = flags(world, tmp_path, **changes, save_every=1, keep_checkpoints=2)
    train([*argv, "--run_name=whole"])
    train([*argv, "--max_steps=6"])
    folder = tmp_path / "run" / "ckpt"
    assert json.loads((folder / "step_000005/state.json").read_text())["reference"] == "step_000003"
    (file,) = (folder / "step_000006").glob("*.distcp")
    file.write_bytes(file.read_bytes()[:-8] + bytes(8))
    assert "resuming after step 5" in train([*argv, "--resume=true"])
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    assert weights_hash(tmp_path / "run", 7) == weights_hash(tmp_path / "whole", 7)
    (file,) = (folder / "step_000005").glob("*.distcp")  # the last stage's reference
    file.write_bytes(file.read_bytes()[:-8] + bytes(8))
    output = train([*argv, "--resume=true"], status=2)
    assert "ckpt/step_000005: the KL reference of this stage is damaged" in output


# ------------------------------------------------------------------------------------------------------- groups, refill


def group(prompt_id, rewards, lengths=None):
    lengths = lengths or [3] * len(rewards)
    rollouts = []
    for sample_id, (reward, n) in enumerate(zip(rewards, lengths, strict=True)):
        rollouts.append(Rollout(prompt_id, sample_id, [1], [5] * n, [-1.0] * n, "stop", reward))
    return rollouts


def test_refills_are_other_prompts_as_many_as_are_expected_to_be_needed(world, tmp_path):
    cfg = load_config(flags(world, tmp_path, drop_uniform_groups=True, refill_attempts=2, prompts_per_step=8))
    groups = [group(p, [0.0, 1.0] if p < 4 else [1.0, 1.0]) for p in range(8)]
    before = RunState(step=4)
    drawn = refill_prompts(groups, before, 1, 64, cfg)
    assert len(drawn) == 8 and not set(drawn) & set(range(8))  # 4 are missing, half of them come out mixed
    assert drawn == refill_prompts(groups, before, 1, 64, cfg) != refill_prompts(groups, RunState(step=5), 1, 64, cfg)
    assert drawn != refill_prompts(groups, before, 2, 64, cfg) and refill_prompts(groups, before, 3, 64, cfg) == []
    assert refill_prompts([group(p, [0.0, 1.0]) for p in range(8)], before, 1, 64, cfg) == []
    assert len(refill_prompts(groups, before, 1, 10, cfg)) == 2  # no more than there are
    assert refill_prompts([group(p, [0.0, 0.0]) for p in range(8)], before, 1, 64, cfg) != []  # none mixed at all


def test_the_first_mixed_groups_are_trained_on_in_prompt_order(world, tmp_path):
    cfg = load_config(flags(world, tmp_path, drop_uniform_groups=True, prompts_per_step=2))
    rewards = {9: [0, 1], 3: [1, 1], 7: [1, 0], 5: [0, 1]}
    rollouts = [r for p in sorted(rewards) for r in group(p, rewards[p])]
    groups = with_advantages(rollouts, list(rewards), 8, cfg)
    assert [g[0].prompt_id for g in groups] == [9, 3, 7, 5]  # as they were drawn
    assert [g[0].prompt_id for g in groups_to_train_on(groups, cfg)] == [7, 9]
    cfg = load_config(flags(world, tmp_path))
    assert [g[0].prompt_id for g in groups_to_train_on(groups, cfg)] == [3, 5, 7, 9]
    uniform = with_advantages(group(3, [1, 1]), [3], 8, cfg)
    assert groups_to_train_on(uniform, cfg) == [] and not is_mixed(uniform[0])


def test_long_responses_are_punished_before_they_are_compared(world, tmp_path):
    cfg = load_config(flags(world, tmp_path, overlong_buffer=4, normalize_advantage_std=False))
    (shaped_group,) = with_advantages(group(3, [1.0, 1.0, 0.0], [3, 6, 8]), [3], 8, cfg)
    shaped = torch.tensor([1.0, 0.5, -1.0])
    assert [r.advantage for r in shaped_group] == pytest.approx((shaped - shaped.mean()).tolist())
    assert [r.reward for r in shaped_group] == [1.0, 1.0, 0.0]  # what is reported stays accuracy
    assert groups_to_train_on(with_advantages(group(3, [1.0, 1.0], [3, 6]), [3], 8, cfg), cfg) != []


@pytest.mark.slow
def test_uniform_groups_are_refilled_alike_on_any_number_of_ranks(world, tmp_path):
    changes = dict(drop_uniform_groups=True, refill_attempts=2, group_size="2,2", stage_steps="2,1", save_every=0)
    train(flags(world, tmp_path, run_name="one", **changes))
    train(flags(world, tmp_path, run_name="two", **changes), ranks=2)
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert responses(tmp_path / "one", 1) == responses(tmp_path / "two", 1)
    for a, b in zip(one, two, strict=True):
        assert (a["groups_drawn"], a["groups_trained"]) == (b["groups_drawn"], b["groups_trained"])
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4, abs=1e-6)
    assert all(r["groups_drawn"] > 8 >= r["groups_trained"] > 0 for r in one)
    ids = [r["id"] for r in responses(tmp_path / "one", 1)]
    assert len(ids) == 2 * len(set(ids)) == 2 * one[0]["groups_drawn"]  # no prompt twice in a step
    trained = {i for i in ids if len({r["reward"] for r in responses(tmp_path / "one", 1) if r["id"] == i}) > 1}
    assert len(trained) >= one[0]["groups_trained"]


# ---------------------------------------------------------------------------------------------------------- the ledger


def test_the_ledger_adds_up_and_goes_on_where_it_stopped(tmp_path, group_of_one):
    cfg, timer = load_config(["configs/tiny.py", "--gpu_dollars_per_hour=2"]), Timer(torch.device("cpu"))
    timer.seconds |= {"rollout": 3.0, "probe": 1.0, "train": 2.0}
    ledger = Ledger(tmp_path, time.perf_counter() - 10)  # ten seconds, of which six are known
    ledger.charge(timer)
    ledger.charge(Timer(torch.device("cpu")))
    assert (ledger.seconds["generate"], ledger.seconds["sync"], ledger.seconds["train"]) == (3, 1, 2)
    assert 4 <= ledger.seconds["other"] and sum(ledger.seconds.values()) == pytest.approx(ledger.wall_clock)
    again = Ledger(tmp_path, time.perf_counter() - 10)
    assert again.seconds == ledger.seconds and again.wall_clock == ledger.wall_clock
    again.charge(timer)
    assert again.seconds["generate"] == 6 and again.wall_clock >= ledger.wall_clock + 10
    columns = again.columns(cfg)
    hours = columns.pop("gpu_hours")
    assert columns.pop("dollars") == 2 * hours and sum(columns.values()) == pytest.approx(hours)
    assert again.table(cfg).splitlines()[-1].split()[0] == "total" and len(columns) == 10
    (tmp_path / "ledger.json").write_text('{"wall_clock": 3, "gpu_seconds": {"train": 2}}')  # of an older version
    older = Ledger(tmp_path, 0.0)
    assert older.wall_clock == 3 and older.seconds["train"] == 2 and older.seconds["eval"] == 0


@pytest.mark.slow
def test_a_runs_ledger_covers_its_wall_clock_over_resumptions(world, tmp_path):
    argv = flags(world, tmp_path, eval_every=3)
    for cut in (2, 4, 0):
        train([*argv, f"--max_steps={cut}", "--resume=true"])
    rows, summary = rows_of(tmp_path / "run"), summary_of(tmp_path / "run")
    for row in rows:
        phases = [row[k] for k in row if k.startswith("gpu_hours_")]
        assert len(phases) == 10 and sum(phases) == pytest.approx(row["gpu_hours"])
    assert [r["gpu_hours"] for r in rows] == sorted(r["gpu_hours"] for r in rows)
    starts = [r["gpu_hours_start"] for r in rows]  # each start of the program is charged
    assert starts[0] == starts[1] < starts[2] == starts[3] < starts[4] == starts[5]
    assert summary["gpu_hours"] * 3600 == pytest.approx(summary["wall_time"])
    assert summary["gpu_hours_checkpoint"] > rows[-1]["gpu_hours_checkpoint"] > 0  # the last one too
    assert summary["gpu_hours_eval"] > rows[-1]["gpu_hours_eval"] > 0
    spent = json.loads((tmp_path / "run" / "ledger.json").read_text())
    assert spent["wall_clock"] >= summary["wall_time"]
