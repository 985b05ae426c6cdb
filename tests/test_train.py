"""The loop: gradients that do not know the world, exact resume, checkpoints a crash cannot spoil, clear refusals."""

import hashlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from threading import Timer

import pytest
import torch

import gradients
import train_grpo
from configs import UserError, load_config
from conftest import SHARED
from grader.pool import RewardPool
from gradients import DEEPSCALER, DENOMINATORS, MIDDLE, SMALL, WHOLE
from model import ModelConfig, Qwen2
from problems import tiny
from rollout import Rollout
from runs import (
    ENV,
    ROOT,
    flags,
    metrics,
    responses,
    rows_of,
    run_here,
    run_ranks,
    start_ranks,
    status_of,
    summary_of,
    train,
    weights_hash,
)
from training import checkpoint, packing
from training.checkpoint import RunState

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
    assert split["copies"] == 4 // shard_size
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
    assert batch.cu_seqlens.tolist() == [0, 4, 7] and batch.cu_seqlens.dtype == torch.int32
    assert batch.response_mask.tolist() == [0, 0, 1, 1, 1, 1, 1]
    assert batch.advantages.tolist() == [0, 0, 2, 2, -1, -1, -1]
    assert batch.rollout_logprobs.tolist() == pytest.approx([0, 0, -0.1, -0.2, -0.3, -0.4, -0.5])
    assert packing.pack([a, b], True, torch.device("cpu")).response_mask.tolist() == [0, 0, 1, 1, 0, 0, 0]
    assert packing.pack([], False, torch.device("cpu")).response_mask.tolist() == [0]


def test_an_epoch_gives_every_prompt_at_most_once_in_an_order_of_its_own(world, tmp_path):
    cfg = load_config(flags(world, tmp_path))
    first, second = [], []
    for step in range(3):
        first += train_grpo.draw_prompts(RunState(step=step), 26, cfg)
        second += train_grpo.draw_prompts(RunState(step=step + 3), 26, cfg)
    assert len(set(first)) == len(first) == 24 and first != second and set(first + second) <= set(range(26))
    assert train_grpo.draw_prompts(RunState(step=7, order_began=7), 26, cfg) == first[:8]


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


# ----------------------------------------------------------------------------------------------- whole runs and resume


def test_a_run_writes_what_the_design_lists(six_steps):
    assert {p.name for p in six_steps.iterdir()} == {
        *("config.json", "metrics.jsonl", "ledger.json", "summary.json"),
        *("rollouts", "ckpt", "hf"),
    }
    rows = rows_of(six_steps)
    assert [r["step"] for r in rows] == [1, 2, 3, 4, 5, 6] and [r["stage"] for r in rows] == [0, 0, 0, 0, 1, 1]
    names = """step stage max_response_len reward_mean response_len_mean response_len_correct response_len_incorrect
        response_clip_ratio solve_none solve_all loss pg_loss kl entropy pg_clip_frac grad_norm lr
        mismatch_k3 mismatch_max tokens_generated tokens_trained time_rollout time_reward time_logprobs time_train
        time_sync time_step tokens_per_second mfu gpu_hours""".split()
    assert all(set(names) <= set(r) for r in rows)
    assert 0 < rows[0]["reward_mean"] < 1 and rows[0]["mismatch_k3"] < 1e-6 and rows[0]["kl"] != rows[5]["kl"]
    assert [r["step"] for r in rows if "eval_test" in r] == [3, 4, 6]  # every third, and at a stage's end
    summary = summary_of(six_steps)
    for name in ("base_first", "base_last", "final_first", "final_last"):
        assert set(summary[name]) == {"accuracy", "stderr"}
    row = responses(six_steps, 1)[0]
    assert {"prompt", "response", "answer", "gold", "reward", "advantage", "length", "finish_reason"} <= set(row)
    assert row["response"].startswith("<|assistant|><think>\n")


def test_the_export_loads_in_transformers_with_equal_logits(six_steps):
    transformers = pytest.importorskip("transformers")
    path = six_steps / "hf" / "step_000006"
    ids = torch.tensor([0, 2, 11, 18, 12, 3, 4])
    ours = Qwen2.from_pretrained(path)
    hidden = ours(ids, torch.arange(7), torch.tensor([0, 7], dtype=torch.int32))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path)(ids[None]).logits[0]
    assert torch.allclose(hidden @ ours.lm_head.weight.T, theirs, atol=1e-4)
    assert transformers.AutoTokenizer.from_pretrained(path)("3+8").input_ids == [11, 18, 16]


def assert_same_run(ours, theirs):
    """Bitwise: metrics, responses, weights and the summary, but for what measures the machine."""
    assert metrics(ours) == metrics(theirs)
    last = metrics(ours)[-1]["step"]
    assert weights_hash(ours, last) == weights_hash(theirs, last)
    for step in range(1, last + 1):
        assert responses(ours, step) == responses(theirs, step)
    summaries = [summary_of(ours), summary_of(theirs)]
    for summary in summaries:
        for name in [n for n in summary if n.startswith(("wall_time", "gpu_hours"))]:
            assert summary.pop(name) >= 0
    assert summaries[0] == summaries[1]


@pytest.mark.slow
def test_a_run_in_the_tests_process_is_the_run_of_the_command(world, tmp_path, six_steps):
    """Bitwise, so that the other tests may run in one process; what is printed and the status too."""
    argv = flags(world, tmp_path, eval_every=3)
    command = [sys.executable, "train_grpo.py", *argv]
    done = subprocess.run(command, cwd=ROOT, env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "run", six_steps)
    refused = subprocess.run(command, cwd=ROOT, env=ENV, capture_output=True, text=True)
    assert (refused.returncode, refused.stderr) == run_here(train_grpo.main, argv) and refused.returncode == 2


@pytest.fixture(scope="session")
def two_ranks(world, tmp_path_factory):
    """The folder of the run `six_steps` on two ranks. Tests only read it."""
    out = tmp_path_factory.mktemp("two")
    train(flags(world, out, eval_every=3), ranks=2)
    return out / "run"


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
    checkpoint.rewind(folder / "run", step)
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


def test_rewinding_removes_later_checkpoints_exports_metrics_and_a_torn_line(tmp_path):
    for step in (10, 20, 30):
        (tmp_path / "ckpt" / f"step_{step:06d}").mkdir(parents=True)
        (tmp_path / "hf" / f"step_{step:06d}").mkdir(parents=True)
    rows = "".join(json.dumps({"step": step}) + "\n" for step in (19, 20, 21))
    (tmp_path / "metrics.jsonl").write_text(rows + '{"st')
    checkpoint.rewind(tmp_path, 20)
    for kind in ("ckpt", "hf"):
        assert sorted(p.name for p in (tmp_path / kind).iterdir()) == ["step_000010", "step_000020"]
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
    assert RunState.from_json('{"step": 4, "stage": 1}') == RunState(step=4, stage=1)
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


def byte_model(path):
    """A random model with a byte-level tokenizer, which any text can be written in."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {t: i for i, t in enumerate(["<|bos|>", "<|eos|>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|bos|>", "<|eos|>"])
    tiny.new_model(tokenizer, 0).save_pretrained(path)
    tokenizer.save(str(path / "tokenizer.json"))
    config = {"bos_token": "<|bos|>", "eos_token": "<|eos|>", "chat_template": tiny.TEMPLATE}
    (path / "tokenizer_config.json").write_text(json.dumps(config))


def test_real_problems_with_a_random_model_break_nothing(tmp_path):
    if not SHARED.is_dir():
        pytest.skip("the AIME problems in ../shared are not here")
    model = tmp_path / "model"
    byte_model(model)
    changes = dict(model=model, train_data=SHARED / "data/raw/deepscaler/train_aime.json", max_steps=3)
    changes |= dict(max_prompt_len=400, token_budget=2048)
    changes |= dict(prompt_suffix=" Let's think step by step and output the final answer within \\boxed{}.")
    output = train(flags(tmp_path, tmp_path, **changes))
    counts = re.search(r"(\d+) prompts from .*, (\d+) longer than max_prompt_len=400 left out", output)
    kept, left_out = map(int, counts.groups())
    assert kept + left_out == 975 and left_out > 0 and output.count("every group is uniform") == 3
    rows = metrics(tmp_path / "run")
    assert [r["reward_mean"] for r in rows] == [0, 0, 0] and [r["solve_none"] for r in rows] == [1, 1, 1]
    unmoved = hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
    assert weights_hash(tmp_path / "run", 3) == unmoved


def test_three_updates_in_a_row_that_are_not_finite_stop_the_run(world, tmp_path, monkeypatch):
    optimizer_step, losses = train_grpo.optimizer_step, []

    def with_bad_losses(model, optimizer, loss, cfg):
        losses.append(loss)
        bad = len(losses) in (2, 5, 6, 7)
        return optimizer_step(model, optimizer, float("nan") if bad else loss, cfg)

    monkeypatch.setattr(train_grpo, "optimizer_step", with_bad_losses)
    output = train(flags(world, tmp_path, save_every=1), status=1)
    assert "three updates in a row were not finite" in output
    rows = metrics(tmp_path / "run")
    assert rows[0]["updates_skipped"] == 1 and rows[-1]["updates_skipped"] == 3 and len(rows) < 6
    assert checkpoint.find(tmp_path / "run").name == f"step_{len(rows):06d}"


def test_training_and_validation_are_graded_through_one_seam(world, tmp_path, monkeypatch):
    """Whatever RewardPool.rewards says of a problem and a response is what both use."""
    batches = []

    def rewards(pool, problems, texts, progress=""):
        batches.append((problems, texts))
        return [1.0 if "wait" in text else 0.0 for text in texts]

    monkeypatch.setattr(RewardPool, "rewards", rewards)
    train(flags(world, tmp_path, max_steps=2, eval_every=1))
    sizes = [len(problems) for problems, _ in batches]
    assert sizes == [6, 6, 32, 6, 32, 6, 6]  # base at both contexts; step and validation twice; final at the last one
    golds = {f"{a}+{b}=?": str(a + b) for a in range(1, 5) for b in range(1, 5)}
    for problems, texts in batches:
        assert all(problem.answer == golds[problem.problem] for problem in problems)
        assert all(text.startswith("<|assistant|><think>\n") for text in texts)
    for step in (1, 2):
        assert all((row["reward"] == 1) == ("wait" in row["response"]) for row in responses(tmp_path / "run", step))
    shares = [sum("wait" in text for text in texts) / len(texts) for _, texts in batches]
    rows, summary = rows_of(tmp_path / "run"), summary_of(tmp_path / "run")
    assert [r["reward_mean"] for r in rows] == [shares[2], shares[4]]
    assert [r["eval_test"] for r in rows] == pytest.approx([shares[3], shares[5]])
    accuracies = [summary[name]["accuracy"] for name in ("base_first", "base_last", "final_first", "final_last")]
    assert accuracies == pytest.approx([shares[0], shares[1], shares[5], shares[6]])


# ------------------------------------------------------------------------------------------------------------ refusals


def refusal(argv):
    """The one line of a run that is refused."""
    output = train(argv, status=2)
    assert output.startswith("error: ") and output.count("\n") == 1, output
    return output


def test_bad_input_gets_one_line_and_status_2(monkeypatch, world, tmp_path):
    find_spec = importlib.util.find_spec

    def without_wandb(name, *rest):  # which may be installed here
        return None if name == "wandb" else find_spec(name, *rest)

    monkeypatch.setattr("importlib.util.find_spec", without_wandb)

    def refused(**changes):
        return refusal(flags(world, tmp_path / "out", **changes))

    assert "--lr: 'abc' is not a float" in refused(lr="abc")
    assert "--no_such: no such setting" in refused(no_such=1)
    assert "--group_size: 1 is under its minimum 2" in refused(group_size="1,1")
    assert "model: no such folder" in refused(model=tmp_path / "none")
    assert "tokenizer.json: cannot read" in refused(model=tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"problem": "1+1=?", "answer": "2"}\n{"problem": "1+2=?"}\n')
    assert f"{tmp_path}/rows.jsonl:2: a row needs an 'answer'" in refused(train_data=tmp_path / "rows.jsonl")
    assert "max_position_embeddings=512" in refused(max_response_len="24,600", token_budget=1000)
    assert "prompts_per_step is 100" in refused(prompts_per_step=100)
    (tmp_path / "file").write_text("")
    assert "out_dir: cannot write" in refused(out_dir=tmp_path / "file")
    assert "eval_data: the file names" in refused(eval_data="a/test.jsonl,b/test.jsonl")
    assert "wandb: not installed" in refused(wandb="true")
    assert "cannot read the problems" in refused(eval_data=tmp_path / "none.jsonl", eval_every=1)


def test_a_folder_in_use_and_a_changed_run_are_refused(world, six_steps):
    argv = flags(world, six_steps.parent, eval_every=3)
    before = metrics(six_steps)
    assert "is not empty: add --resume=true" in refusal(argv)
    output = refusal([*argv, "--resume=true", "--lr=0.5"])
    assert "resume: lr was 0.001 and is now 0.5; a resumed run may change only" in output and "token_budget" in output
    assert metrics(six_steps) == before
