"""The run folder: one run at a time, nothing lost that could not be read, and only the run that began there resumes."""

import dataclasses
import errno
import json
import os
import resource
import shutil
import stat
import tempfile

import pytest

import train_grpo
from configs import load_config
from runs import assert_same_run, flags, metrics, run_ranks, start_ranks, status_of, train, weights_hash
from training import checkpoint, run_folder
from training import metrics as metrics_module
from training.checkpoint import RunState


@pytest.fixture
def three_steps(world, tmp_path):
    """A run cut short after its first checkpoint, and its arguments."""
    argv = flags(world, tmp_path)
    train([*argv, "--max_steps=3"])
    return tmp_path / "run", argv


def resumed(argv, status=0):
    return train([*argv, "--resume=true"], status=status)


# ------------------------------------------------------------------------------------------------- one run in a folder


def test_a_second_start_is_refused_while_the_first_lives_and_not_after(three_steps, group_of_one):
    run_dir, argv = three_steps
    lock = run_folder.RunLock(run_dir)
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    ((process, stream),) = start_ranks(1, [*argv, "--resume=true"])
    output = stream.read()
    assert status_of(process) == 2 and "Traceback" not in output
    assert "a run is under way here" in output and '"pid": ' in output and '"host": ' in output
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before
    lock.file.close()  # as when the process ends, however it does
    ((process, stream),) = start_ranks(1, [*argv, "--resume=true"])
    assert "resuming after step 3" in stream.read() and status_of(process) == 0
    assert not (run_dir / "lock").exists()


def in_a_folder_of_its_own(argv):
    import os

    train_grpo.main([*argv, f"--out_dir={argv[-1].removeprefix('--out_dir=')}/{os.environ['RANK']}"])


def test_ranks_without_a_common_folder_are_refused_before_a_step(world, tmp_path):
    argv = [*flags(world, tmp_path), f"--out_dir={tmp_path}"]
    output = run_ranks(2, argv, status=2, main=in_a_folder_of_its_own)
    assert output.count("does not see the folder of rank 0; all ranks need one folder") == 2
    assert not list(tmp_path.rglob("metrics.jsonl"))


# ---------------------------------------------------------------------------------------------------- nothing is lost


def test_copies_and_stray_files_are_no_checkpoints_and_stay(three_steps, six_steps, world):
    run_dir, argv = three_steps
    shutil.copytree(run_dir / "ckpt/step_000003", run_dir / "ckpt/step_best_3")
    shutil.copytree(run_dir / "ckpt/step_000003", run_dir / "ckpt/step_0000003")
    (run_dir / "ckpt/step_mine_1").mkdir()
    (run_dir / "ckpt/step_000009").write_text("not a folder")
    (run_dir / "ckpt/step_000005.tmp").mkdir()
    (run_dir / "hf/step_000005.tmp").mkdir()
    assert checkpoint.find(run_dir).name == "step_000003"
    assert "resuming after step 3" in resumed(argv)
    names = {path.name for path in (run_dir / "ckpt").iterdir()}
    assert {"step_best_3", "step_0000003", "step_mine_1", "step_000009", "step_000006"} <= names
    assert not list(run_dir.glob("*/*.tmp"))
    assert weights_hash(run_dir, 6) == weights_hash(six_steps, 6)


def test_a_checkpoint_that_cannot_be_read_today_is_kept_with_its_export(three_steps, six_steps, monkeypatch):
    run_dir, argv = three_steps
    resumed([*argv, "--max_steps=4"])
    hash_file = checkpoint.hash_file

    def failing(path):
        if "ckpt/step_000004" in str(path):
            raise OSError(errno.EIO, "Input/output error")
        return hash_file(path)

    monkeypatch.setattr(checkpoint, "hash_file", failing)
    before = (run_dir / "ckpt/step_000004/state.json").read_bytes()
    output = resumed([*argv, "--max_steps=3"])
    assert "Input/output error" in output and "it is kept as step_000004.unreadable-1" in output
    assert (run_dir / "ckpt/step_000004.unreadable-1/state.json").read_bytes() == before
    assert (run_dir / "hf/step_000004.unreadable-1/model.safetensors").is_file()
    monkeypatch.undo()
    resumed(argv)
    assert weights_hash(run_dir, 6) == weights_hash(six_steps, 6)
    assert (run_dir / "ckpt/step_000004.unreadable-1").is_dir()


def test_a_resume_without_a_checkpoint_keeps_the_earlier_metrics_and_says_so(three_steps):
    run_dir, argv = three_steps
    before = (run_dir / "metrics.jsonl").read_bytes()
    shutil.rmtree(run_dir / "ckpt")
    output = resumed([*argv, "--max_steps=1"])
    assert "there is no checkpoint of these steps, the run begins again; it is kept as metrics.jsonl" in output
    assert (run_dir / "metrics.jsonl.unreadable-1").read_bytes() == before
    assert (run_dir / "hf/step_000003.unreadable-1/model.safetensors").is_file()  # the model is not lost
    assert [row["step"] for row in metrics(run_dir)] == [1]


@pytest.mark.parametrize(
    "junk", [b"\n", b'{"step": 2, "rew\n', b"[1]\n", b"7\n", b'{"loss": 1}\n', b'{"step": "2"}\n', b"\xff\xfe\n"]
)
def test_a_bad_line_of_metrics_costs_no_other_line(tmp_path, junk):
    rows = [json.dumps({"step": step, "text": "\u2028"}, ensure_ascii=False).encode() + b"\n" for step in (1, 2, 3, 4)]
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(rows[0] + junk + b"".join(rows[1:]) + b'{"step": 5, "to')
    run_folder.rewind(tmp_path, RunState(step=3))
    kept = [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
    assert [row["step"] for row in kept] == [1, 2, 3]
    (aside,) = tmp_path.glob("metrics.jsonl.unreadable-*")
    assert junk in aside.read_bytes() and rows[3] in aside.read_bytes()


def test_missing_rows_are_said(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 3}\n')
    run_folder.rewind(tmp_path, RunState(step=3))
    assert "has 2 of 3 steps" in capsys.readouterr().out


def test_a_torn_config_and_ledger_are_set_aside_and_the_run_goes_on(three_steps, six_steps):
    run_dir, argv = three_steps
    for name in ("config.json", "ledger.json"):
        (run_dir / name).write_text('{"config": {"lr"')
    output = resumed(argv)
    assert "this run's settings were compared with nothing; it is kept as config.json.unreadable-1" in output
    assert "so the costs begin at 0; it is kept as ledger.json.unreadable-1" in output
    assert weights_hash(run_dir, 6) == weights_hash(six_steps, 6)


def test_what_a_crash_left_half_written_goes(tmp_path):
    for name in ("ckpt/step_000002", "ckpt/step_000004.tmp", "hf/step_000002", "hf/step_000004", "hf/step_mine_9"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "ledger.json.tmp").touch()
    run_folder.rewind(tmp_path, RunState(step=2))
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*")}
    assert left == {"ckpt/step_000002", "hf/step_000002", "hf/step_000004.unreadable-1", "hf/step_mine_9"}
    assert not (tmp_path / "ledger.json.tmp").exists()


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "summary.json", "ckpt"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "dangling link"])
def test_what_is_no_file_or_folder_of_a_run_is_refused(world, tmp_path, name, kind):
    path = tmp_path / "run" / name
    path.parent.mkdir()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        (path / "x" if name != "ckpt" else path.parent).mkdir(parents=True, exist_ok=True)
        if name == "ckpt":
            path.write_text("")  # of a folder the opposite
    else:
        path.symlink_to(tmp_path / "nowhere")
    output = resumed(flags(world, tmp_path), status=2)
    assert output.startswith(f"error: {path}: not a ") and output.endswith("move it away\n")


def test_deep_json_is_no_summary_manifest_state_or_smoke_run(three_steps, six_steps):
    run_dir, argv = three_steps
    deep = "[" * 100_000
    shutil.copytree(run_dir / "ckpt/step_000003", run_dir / "ckpt/step_000002")
    (run_dir / "ckpt/step_000002/state.json").write_text(deep)
    shutil.copytree(run_dir / "ckpt/step_000003", run_dir / "ckpt/step_000005")
    (run_dir / "ckpt/step_000005/manifest.json").write_text(deep)
    (run_dir / "summary.json").write_text(deep)
    output = resumed(argv)
    assert "nested too deeply" in output and weights_hash(run_dir, 6) == weights_hash(six_steps, 6)
    (run_dir / "summary.json").write_text(deep)
    assert "Traceback" not in resumed(argv)
    (run_dir.parent / "run-smoke").mkdir()
    (run_dir.parent / "run-smoke/config.json").write_text(deep)
    assert "is not a smoke run" in train([*argv, "--smoke=true"], status=2)


def test_no_checkpoint_goes_while_the_state_of_one_cannot_be_read(three_steps, monkeypatch, capsys):
    run_dir, _ = three_steps
    for step in (1, 2):
        shutil.copytree(run_dir / "ckpt/step_000003", run_dir / f"ckpt/step_00000{step}")
    read_state = checkpoint.read_state

    def failing(folder):
        if folder.name == "step_000001":
            raise OSError(errno.EIO, "Input/output error", str(folder))
        return read_state(folder)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "read_state", failing)
        checkpoint.prune(run_dir, 1)
    assert "step_000001: Input/output error: no checkpoint is removed this time" in capsys.readouterr().out
    assert len(checkpoint.checkpoint_dirs(run_dir)) == 3


def test_an_interrupted_removal_leaves_no_half_of_a_checkpoint(three_steps, monkeypatch):
    run_dir, _ = three_steps
    shutil.copytree(run_dir / "ckpt/step_000003", run_dir / "ckpt/step_000001")
    shutil.copytree(run_dir / "hf/step_000003", run_dir / "hf/step_000001")

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", killed)
        checkpoint.prune(run_dir, 1)
    names = {str(path.relative_to(run_dir)) for path in run_dir.glob("*/step_*")} - {"rollouts"}
    assert {"ckpt/step_000003", "ckpt/step_000001.tmp", "hf/step_000003", "hf/step_000001.tmp"} <= names
    assert not {"ckpt/step_000001", "hf/step_000001"} & names
    run_folder.rewind(run_dir, RunState(step=3))
    assert not list(run_dir.glob("*/*.tmp"))


# ------------------------------------------------------------------------------------------------------------ the disk


def files_at_most(size, owner, name, number):
    """At the `number`th call of owner.name, files of this process may not grow beyond `size` bytes: a write fails as on
    a full disk, wherever it is made."""
    function, calls = getattr(owner, name), []

    def wrapped(*args, **kwargs):
        calls.append(name)
        if len(calls) == number:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        return function(*args, **kwargs)

    setattr(owner, name, wrapped)


def full_at_an_export(argv):
    files_at_most(10_000, checkpoint, "_save_all", 2)
    train_grpo.main(argv)


def full_at_a_checkpoint(argv):
    files_at_most(10_000, checkpoint, "save", 2)
    train_grpo.main(argv)


def full_at_the_metrics(argv):
    files_at_most(6000, metrics_module.StepLog, "write", 4)
    train_grpo.main(argv)


@pytest.mark.parametrize(
    "main, words",
    [
        (full_at_an_export, "step 4 cannot be saved: "),
        (full_at_a_checkpoint, "step 4 cannot be saved: "),
        (full_at_the_metrics, "File too large; "),
    ],
)
def test_a_full_disk_ends_the_run_with_one_line_and_it_resumes(world, tmp_path, six_steps, main, words):
    argv = flags(world, tmp_path, eval_every=3)
    *_, last = run_ranks(1, argv, status=1, main=main).splitlines()
    assert words in last and "B are free" in last and "--resume=true" in last
    assert not list((tmp_path / "run").glob("*/*.tmp"))
    assert "resuming after step 3" in train([*argv, "--resume=true"])
    assert_same_run(tmp_path / "run", six_steps)


def test_a_disk_that_does_not_even_answer_is_one_line(world, tmp_path, monkeypatch):
    def stale(*args):
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(checkpoint, "_save_all", stale)
    usage, calls = shutil.disk_usage, []

    def first_two_only(path):
        calls.append(path)
        return usage(path) if len(calls) <= 2 else stale()

    monkeypatch.setattr(shutil, "disk_usage", first_two_only)
    *_, last = train(flags(world, tmp_path), status=1).splitlines()
    assert "step 3 cannot be saved: [Errno" in last and "its disk does not answer (Stale file handle)" in last


def test_a_disk_too_small_for_one_save_is_refused_before_the_first_step(world, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    output = train(flags(world, tmp_path), status=2)
    assert "a save takes" in output and "0.0 MB are free: make room" in output and "step 1/" not in output
    cfg = load_config([f"--out_dir={tmp_path}"])
    assert checkpoint.save_bytes(1_777_088_000, cfg) == 16 * 1_777_088_000


def test_the_trial_of_another_rank_is_no_run(world, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.trial-abc").touch()  # a file system without unnamed files shows it for a moment
    assert "step 1/" in train(flags(world, tmp_path, max_steps=1))


def test_a_folder_that_cannot_be_written_is_refused(world, tmp_path, monkeypatch):
    def read_only(dir, prefix):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    assert f"cannot write {tmp_path}/run: Read-only file system" in train(flags(world, tmp_path), status=2)


# -------------------------------------------------------------------------------------------------------- the same run


def changed_folder(source, target, name, change):
    shutil.copytree(source, target)
    (target / name).write_bytes(change((target / name).read_bytes()))
    return target


def test_a_kernel_that_fails_may_be_changed_for_another_at_a_resume():
    before = {"config": dataclasses.asdict(load_config(["configs/8k.py", "--attention=fa4", "--compile=layers"]))}
    run_folder.check_same_run(json.loads(json.dumps(before)), load_config(["configs/8k.py"]))


def test_a_resume_needs_the_same_files_wherever_they_are(world, three_steps, tmp_path):
    run_dir, argv = three_steps
    template = changed_folder(world / "base", tmp_path / "a", "tokenizer_config.json", lambda text: text + b"\n")
    weights = changed_folder(world / "base", tmp_path / "b", "model.safetensors", lambda data: data[:-1] + b"\1")
    rows = tmp_path / "train.jsonl"
    rows.write_bytes((world / "train.jsonl").read_bytes() + b'{"problem": "1+1=?", "answer": "2"}\n')
    for what, flag in [
        ("model: tokenizer_config.json", f"--model={template}"),
        ("model: model.safetensors", f"--model={weights}"),
        ("train_data", f"--train_data={rows}"),
    ]:
        output = resumed([*argv, flag], status=2)
        assert f"resume: {what} is not what the run began with" in output and "Traceback" not in output
    shutil.copytree(world / "base", tmp_path / "same")
    template = json.loads((world / "base/tokenizer_config.json").read_text())["chat_template"]
    (tmp_path / "same/chat_template.jinja").write_text(template)  # it comes before the other one
    output = resumed([*argv, f"--model={tmp_path}/same"], status=2)
    assert "resume: model: chat_template.jinja is not what the run began with" in output
    (tmp_path / "same/chat_template.jinja").unlink()
    info = json.loads((run_dir / "config.json").read_text())
    (run_dir / "config.json").write_text(json.dumps(info | {"identity": None}))
    assert "resuming after step 3" in resumed([*argv, "--max_steps=3"])
    assert "resuming after step 3" in resumed([*argv, f"--model={tmp_path}/../{tmp_path.name}/same"])


def test_a_hub_commit_that_moved_is_said_and_matters_only_with_the_files(three_steps, tmp_path, world):
    run_dir, argv = three_steps
    snapshots = tmp_path / "models--a--b/snapshots"
    for commit in ("a" * 40, "b" * 40):
        shutil.copytree(world / "base", snapshots / commit)
    argv = [*argv, f"--model={snapshots}/{'b' * 40}"]
    info = json.loads((run_dir / "config.json").read_text())
    info["identity"]["hub commit"] = "a" * 40
    (run_dir / "config.json").write_text(json.dumps(info))
    assert f"the hub's commit was {'a' * 40}, now {'b' * 40}; the model is the same" in resumed(
        [*argv, "--max_steps=3"]
    )
    info["identity"]["model: tokenizer_config.json"] = "0"
    (run_dir / "config.json").write_text(json.dumps(info))
    assert "model: tokenizer_config.json is not what the run began with" in resumed(argv, status=2)


def test_an_export_is_readable_by_others_and_a_damaged_one_is_no_base_model(world, three_steps, tmp_path):
    run_dir, _ = three_steps
    export = run_dir / "hf/step_000003"
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in export.iterdir()}
    assert set(modes.values()) == {0o644} and {"manifest.json", "model.safetensors", "tokenizer.json"} <= set(modes)
    data = bytearray((export / "model.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (export / "model.safetensors").write_bytes(data)
    output = train(flags(world, tmp_path / "next", model=export), status=2)
    assert "is damaged: model.safetensors does not match its hash" in output
