"""Checkpoints: exact resume after a crash and on other numbers of ranks, damage, pruning, files of older versions."""

import json
import os
import shutil
import signal
from threading import Timer

import pytest
import torch

import train_grpo
from configs import UserError
from model import ModelConfig, Qwen2
from problems import tiny
from runs import (
    assert_same_run,
    flags,
    metrics,
    responses,
    run_ranks,
    start_ranks,
    status_of,
    train,
    weights_hash,
)
from training import checkpoint, run_folder
from training.checkpoint import RunState

# ------------------------------------------------------------------------------------------------------------- resume


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.xdist_group("two_ranks"))])
def test_resume_is_exact(world, tmp_path, request, ranks):
    whole = request.getfixturevalue("six_steps" if ranks == 1 else "two_ranks")
    argv = flags(world, tmp_path, eval_every=3)
    started = start_ranks(ranks, argv)
    for line in started[0][1]:
        if line.startswith("step 4/"):
            for process, _ in started:
                os.kill(process.pid, signal.SIGKILL)  # after step 3's checkpoint, in the middle of things
    assert [status_of(process) for process, _ in started] == [-9] * ranks
    assert not (tmp_path / "run" / "summary.json").exists()
    with open(tmp_path / "run" / "metrics.jsonl", "a") as f:
        f.write('{"step": 5, "rewa')  # torn by the crash
    assert "resuming after step 3" in train([*argv, "--resume=true"], ranks)
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.slow
@pytest.mark.xdist_group("two_ranks")
def test_two_ranks_sample_the_same_tokens_and_learn_the_same(six_steps, two_ranks):
    assert responses(two_ranks, 1) == responses(six_steps, 1)
    one, two = metrics(six_steps)[0], metrics(two_ranks)[0]
    for key in ("reward_mean", "response_len_mean", "loss", "grad_norm", "entropy", "pg_clip_frac", "tokens_trained"):
        assert two[key] == pytest.approx(one[key], rel=1e-4, abs=1e-6), key


def stopped_after(run_dir, folder, step):
    """A copy of a run, in another out_dir, as if it had stopped at a checkpoint."""
    shutil.copytree(run_dir, folder / "run")
    run_folder.rewind(folder / "run", RunState(step=step))
    (folder / "run" / "summary.json").unlink()


@pytest.mark.slow
@pytest.mark.xdist_group("two_ranks")
def test_a_checkpoint_of_two_ranks_loads_on_one(world, tmp_path, six_steps, two_ranks):
    stopped_after(two_ranks, tmp_path, 3)
    assert "resuming after step 3" in train([*flags(world, tmp_path, eval_every=3), "--resume=true"])
    rows, expected = metrics(tmp_path / "run"), metrics(six_steps)
    assert [r["step"] for r in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[3]["grad_norm"] == pytest.approx(expected[3]["grad_norm"], rel=1e-3)
    assert rows[3]["kl"] == pytest.approx(expected[3]["kl"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.xdist_group("two_ranks")
def test_checkpoints_go_from_two_ranks_to_four_to_one(world, tmp_path, six_steps, two_ranks):
    """Each part of the run at another world size, the middle one as two copies of two shards: the same losses."""
    stopped_after(two_ranks, tmp_path, 3)
    argv = [*flags(world, tmp_path, eval_every=3), "--resume=true"]
    train([*argv, "--max_steps=5", "--shard_size=2"], ranks=4)
    assert "resuming after step 5" in train(argv)
    ours, theirs = metrics(tmp_path / "run"), metrics(six_steps)
    assert [r["step"] for r in ours] == [1, 2, 3, 4, 5, 6]
    for one, other in zip(ours, theirs, strict=True):
        for key in ("loss", "kl", "entropy", "grad_norm", "reward_mean", "tokens_generated"):
            assert one[key] == pytest.approx(other[key], rel=1e-4, abs=1e-6), (one["step"], key)


def lose_a_rank(argv, fault):
    """Two ranks, one of which is sent a signal after step 4: the other must end in one line, with status 1."""
    (survivor, stream), (victim, _) = start_ranks(2, argv)
    guard = Timer(150, survivor.kill)  # a survivor that hangs fails the test instead of hanging it
    guard.start()
    output = ""
    for line in stream:
        output += line
        if line.startswith("step 4/"):
            os.kill(victim.pid, fault)
    guard.cancel()
    victim.kill()
    victim.join()
    assert status_of(survivor) == 1, output
    assert "[rank 0] error: lost contact with another rank" in output and "--resume=true" in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_a_rank_that_falls_silent_ends_the_other_and_the_run_resumes(world, tmp_path):
    """A stopped process answers nobody and closes nothing: the others wait for it until the timeout."""
    argv = flags(world, tmp_path, process_group_timeout=10)
    lose_a_rank(argv, signal.SIGSTOP)
    assert "resuming after step 3" in train([*argv, "--resume=true"], ranks=2)
    assert [r["step"] for r in metrics(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


def dying_main(argv):
    """train_grpo.main, but the process is killed while the checkpoint of step 6 is given its name."""
    publish = checkpoint.publish

    def dying(aside, folder):
        if folder.parent.name == "ckpt" and folder.name == "step_000006":
            os.kill(os.getpid(), signal.SIGKILL)
        publish(aside, folder)

    checkpoint.publish = dying
    train_grpo.main(argv)


@pytest.mark.slow
def test_a_kill_while_a_checkpoint_is_written_leaves_the_earlier_one_in_use(world, tmp_path, six_steps):
    argv = flags(world, tmp_path, eval_every=3)
    run_ranks(1, argv, status=-9, main=dying_main)
    assert (tmp_path / "run/ckpt/step_000006.tmp").is_dir()
    assert checkpoint.find(tmp_path / "run").name == "step_000004"
    train([*argv, "--resume=true"])
    assert weights_hash(tmp_path / "run", 6) == weights_hash(six_steps, 6)
    assert not list((tmp_path / "run/ckpt").glob("*.tmp"))


def test_a_truncated_checkpoint_is_named_and_skipped(world, tmp_path, six_steps):
    shutil.copytree(six_steps, tmp_path / "run")
    (file,) = (tmp_path / "run/ckpt/step_000006").glob("*.distcp")
    file.write_bytes(file.read_bytes()[:-100])
    output = train([*flags(world, tmp_path, eval_every=3), "--resume=true"])
    assert f"skipping damaged checkpoint {tmp_path}/run/ckpt/step_000006: {file.name} has" in output
    assert "resuming after step 4" in output and weights_hash(tmp_path / "run", 6) == weights_hash(six_steps, 6)


# ------------------------------------------------------------------------------------------------- whole and damaged


def test_a_checkpoint_of_another_model_is_refused_in_one_line(six_steps, group_of_one):
    small = dict(tiny.MODEL, num_hidden_layers=2, hidden_size=64, num_attention_heads=2, vocab_size=51)
    model = Qwen2(ModelConfig.from_dict(small))
    with pytest.raises(UserError, match="does not fit this model") as e:
        checkpoint.load(six_steps / "ckpt" / "step_000006", model, torch.optim.AdamW(model.parameters()))
    assert "\n" not in str(e.value)


def test_a_run_without_a_whole_checkpoint_is_not_begun_again_silently(tmp_path):
    (tmp_path / "ckpt" / "step_000003.tmp").mkdir(parents=True)
    assert checkpoint.find(tmp_path) is None  # none was ever finished
    (tmp_path / "ckpt" / "step_000003").mkdir()
    with pytest.raises(UserError, match="no checkpoint is whole"):
        checkpoint.find(tmp_path)


def test_what_rank_0_refuses_every_rank_refuses(world, tmp_path):
    """It alone looks at files; the others neither go on nor wait for it."""
    (tmp_path / "run" / "ckpt" / "step_000003").mkdir(parents=True)
    argv = flags(world, tmp_path, resume="true", process_group_timeout=60)
    lines = run_ranks(2, argv, status=2).splitlines()
    refusal = f"error: {tmp_path}/run/ckpt: no checkpoint is whole; to begin again, move {tmp_path}/run away"
    assert [line for line in lines if "error" in line] == [f"[rank {rank}] {refusal}" for rank in range(2)]


def test_rewinding_sets_later_checkpoints_and_exports_aside_and_drops_later_metrics_and_a_torn_line(tmp_path):
    for step in (10, 20, 30):
        (tmp_path / "ckpt" / f"step_{step:06d}").mkdir(parents=True)
        (tmp_path / "hf" / f"step_{step:06d}").mkdir(parents=True)
    rows = "".join(json.dumps({"step": step}) + "\n" for step in (19, 20, 21))
    (tmp_path / "metrics.jsonl").write_text(rows + '{"st')
    run_folder.rewind(tmp_path, RunState(step=20))
    for kind in ("ckpt", "hf"):
        names = sorted(p.name for p in (tmp_path / kind).iterdir())
        assert names == ["step_000010", "step_000020", "step_000030.unreadable-1"]
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 19}\n{"step": 20}\n'


def test_every_kind_of_damage_is_noticed(six_steps, tmp_path):
    source = six_steps / "ckpt" / "step_000006"
    assert checkpoint.damage(source) is None

    def damage_after(change):
        folder = tmp_path / "copy"
        shutil.copytree(source, folder)
        change(folder)
        problem = checkpoint.damage(folder)
        shutil.rmtree(folder)
        return problem

    def flip(folder):
        file = next(folder.glob("*.distcp"))
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)

    assert "does not match its hash" in damage_after(flip)
    assert "FileNotFoundError" in damage_after(lambda f: (f / ".metadata").unlink())
    assert "FileNotFoundError" in damage_after(lambda f: (f / "manifest.json").unlink())
    assert "JSONDecodeError" in damage_after(lambda f: (f / "manifest.json").write_text("{"))
    assert damage_after(lambda f: (f / "manifest.json").write_text("{}")) is not None


def test_pruning_keeps_the_newest_the_best_of_each_stage_and_the_reference(tmp_path):
    for step, stage, score in ((5, 0, 0.1), (10, 0, 0.1), (20, 0, 0.9), (25, 1, 0.5), (30, 1, None), (40, 1, 0.4)):
        for kind in ("ckpt", "hf"):
            (tmp_path / kind / f"step_{step:06d}").mkdir(parents=True)
        (tmp_path / "ckpt" / f"step_{step:06d}" / "state.json").write_text(json.dumps({"score": score, "stage": stage}))
    (tmp_path / "ckpt/step_000030/state.json").unlink()  # damaged: in no one's way
    newest = tmp_path / "ckpt/step_000040/state.json"
    newest.write_text(json.dumps(json.loads(newest.read_text()) | {"reference": "step_000010"}))
    checkpoint.prune(tmp_path, 1)
    for kind in ("ckpt", "hf"):
        left = sorted(p.name for p in (tmp_path / kind).iterdir())
        assert left == ["step_000010", "step_000020", "step_000025", "step_000040"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "damage", lambda folder: "torn" if folder.name == "step_000020" else None)
        assert checkpoint.best(tmp_path, 0) == "step_000010"
    assert checkpoint.best(tmp_path, 0) is None and checkpoint.best(tmp_path, 7) is None  # none of these is whole


def test_a_state_file_reads_back_and_an_older_one_has_defaults(six_steps):
    text = (six_steps / "ckpt" / "step_000004" / "state.json").read_text()
    state = RunState.from_json(text)
    assert (state.step, state.stage, state.decision) == (4, 0, "lengthen") and len(state.history) == 4
    assert state.base["first"]["all"]["num_problems"] == 6
    assert RunState.from_json(state.to_json()) == state and json.loads(text)["verdict"] == "lengthen"
    assert RunState.from_json('{"step": 4, "stage": 1}') == RunState(step=4, stage=1, epoch=None)
    with pytest.raises(ValueError):
        RunState.from_json("[]")


def test_a_run_of_an_older_version_resumes_if_its_missing_settings_were_the_defaults(world, tmp_path, six_steps):
    """A setting that config.json does not have, since it was added later, is taken to have had its default."""
    shutil.copytree(six_steps, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    info = json.loads(path.read_text())
    argv = [*flags(world, tmp_path, eval_every=3), "--resume=true"]
    del info["config"]["dual_clip"]
    path.write_text(json.dumps(info))
    assert "was finished already" in train(argv)
    info["config"].pop("temperature")  # the default is 0.6
    path.write_text(json.dumps(info))
    output = train(argv, status=2)
    assert output.count("\n") == 1 and "error: resume: temperature was 0.6 and is now 1.0" in output
