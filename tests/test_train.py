"""The loop: gradients that do not know the world, exact resume, checkpoints a crash cannot spoil, clear refusals."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import train_grpo
from configs import UserError, load_config, run
from rollout import Rollout
from training import checkpoint, groups, packing

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def flags(world, folder, **changes):
    values = dict(model=world / "base", train_data=world / "train.jsonl", eval_data=world / "test.jsonl")
    values |= dict(out_dir=folder, run_name="run", prompts_per_step=8, group_size="4,4", max_prompt_len=16, lr=1e-3)
    values |= dict(max_response_len="24,32", stage_steps="4,2", token_budget=128, save_every=3, save_rollouts_every=1)
    values |= dict(eval_every=0, eval_k=1, max_num_seqs=16)
    return ["configs/tiny.py", *(f"--{k}={v}" for k, v in (values | changes).items())]


def command(ranks, *args):
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    return [sys.executable, *launch, *map(str, args)]


def start_ranks(ranks, argv, **options):
    """What torchrun does, without its parent process: each rank can be killed for good."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = {**ENV, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    options |= dict(cwd=ROOT, stdout=subprocess.PIPE, text=True)
    return [subprocess.Popen([sys.executable, *argv], env={**env, "RANK": str(r), "LOCAL_RANK": str(r)}, **options)
            for r in range(ranks)]  # fmt: skip


def train(argv, ranks=1, status=0):
    done = subprocess.run(command(ranks, "train_grpo.py", *argv), cwd=ROOT, env=ENV, capture_output=True, text=True)
    assert done.returncode == status, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def metrics(run_dir):
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    unsteady = ("time_", "memory_", "tokens_per_second", "mfu", "gpu_hours")  # they measure the machine
    return [{k: v for k, v in row.items() if not k.startswith(unsteady)} for row in rows]


def weights_hash(run_dir, step):
    return hashlib.sha256((run_dir / "hf" / f"step_{step:06d}" / "model.safetensors").read_bytes()).hexdigest()


def responses(run_dir, step):
    lines = (run_dir / "rollouts" / f"step_{step:06d}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


# ------------------------------------------------------------------------------------------------- gradients and packs


def gradients(model_dir, out, ranks, *options):
    done = subprocess.run(command(ranks, "tests/gradients.py", model_dir, out, *options), cwd=ROOT, env=ENV,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out)


def largest_difference(a, b):
    """Of each tensor's difference, relative to its norm: the largest."""
    return max(float((a["gradients"][n] - g).norm() / g.norm()) for n, g in b["gradients"].items())


@pytest.mark.slow
def test_world_size_and_token_budget_do_not_change_gradients(tiny_model_dir, tmp_path):
    whole = gradients(tiny_model_dir, tmp_path / "1", 1, "token_budget=100000")
    assert whole["packs"] == [1]
    empty = 0
    for ranks, budgets in ((1, (132, 400)), (2, (132, 400, 100_000)), (4, (132, 400, 100_000))):
        for budget in budgets:
            other = gradients(tiny_model_dir, tmp_path / "2", ranks, f"token_budget={budget}")
            assert largest_difference(other, whole) < 1e-6, (ranks, budget)
            empty += other["empty"]
    assert empty > 0, "no dummy pack was ever needed"


@pytest.mark.slow
@pytest.mark.parametrize("option", ["loss_agg=sequence", "loss_agg=dr_grpo", "mask_truncated=true"])
def test_other_denominators_do_not_know_the_world_either(tiny_model_dir, tmp_path, option):
    whole = gradients(tiny_model_dir, tmp_path / "1", 1, "token_budget=100000", option)
    split = gradients(tiny_model_dir, tmp_path / "2", 2, "token_budget=132", option)
    assert largest_difference(split, whole) < 1e-6
    assert largest_difference(whole, gradients(tiny_model_dir, tmp_path / "3", 1, "token_budget=100000")) > 1e-2


@pytest.mark.slow
def test_deepscaler_aggregation_sums_means_of_micro_batches_and_averages_ranks(tiny_model_dir, tmp_path):
    """On two ranks, one with a dummy pack: as if each micro-batch's mean were added by hand, over the ranks."""
    options = "loss_agg=deepscaler", "token_budget=505"
    two = gradients(tiny_model_dir, tmp_path / "2", 2, *options)
    assert two["empty"] > 0 and max(two["packs"]) > 1
    by_hand = gradients(tiny_model_dir, tmp_path / "1", 1, *options, "ranks_here=2")
    assert by_hand["packs"] == two["packs"] and largest_difference(two, by_hand) < 1e-6
    token_mean = gradients(tiny_model_dir, tmp_path / "3", 2, "token_budget=505")
    assert largest_difference(two, token_mean) > 1


@pytest.mark.slow
def test_shards_within_a_node_and_copies_across_nodes_do_not_change_gradients(tiny_model_dir, tmp_path):
    """HSDP: four ranks as two copies of the model, each in two shards."""
    whole = gradients(tiny_model_dir, tmp_path / "1", 1, "token_budget=100000")
    for shard_size in (1, 2, 4):
        split = gradients(tiny_model_dir, tmp_path / "4", 4, "token_budget=132", f"shard_size={shard_size}")
        assert split["copies"] == 4 // shard_size
        assert largest_difference(split, whole) < 1e-6, shard_size


@pytest.mark.slow
def test_a_mean_of_means_would_be_noticed(tiny_model_dir, tmp_path):
    whole = gradients(tiny_model_dir, tmp_path / "1", 1, "token_budget=100000")
    for ranks in (1, 2):
        wrong = gradients(tiny_model_dir, tmp_path / "2", ranks, "token_budget=132", "mean_of_means=1")
        assert largest_difference(wrong, whole) > 1e-2


def make_groups(lengths):
    return [[Rollout(p, s, [1, 2], [3] * n, [-1.0] * n, "stop", advantage=1.0) for s, n in enumerate(group)]
            for p, group in enumerate(lengths)]  # fmt: skip


def test_plan_keeps_every_sequence_once_within_the_budget(world, tmp_path):
    cfg = load_config(flags(world, tmp_path, token_budget=64))
    groups = make_groups([[5, 30, 1, 9], [2, 2, 2, 2], [32, 31, 7, 8], [20, 21, 22, 23], [1, 1, 1, 1]])
    for ranks in (1, 2, 3, 4, 7):
        plan = packing.plan_minibatches(groups, cfg, ranks)
        assert [sorted({r.prompt_id for packs in part for p in packs for r in p}) for part in plan] == [
            [0, 1, 2],
            [3, 4],
        ]
        seen = sorted((r.prompt_id, r.sample_id) for part in plan for packs in part for p in packs for r in p)
        assert seen == sorted((r.prompt_id, r.sample_id) for g in groups for r in g)
        for part in plan:
            assert len(part) == ranks and len({len(packs) for packs in part}) == 1
            assert all(sum(map(packing.length, p)) <= 64 for packs in part for p in packs)


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
    parts = [[groups.step_prompts(s, 26, cfg) for s in steps] for steps in ((1, 2, 3), (4, 5, 6))]
    first, second = (sum(p, []) for p in parts)
    assert len(set(first)) == len(first) == 24 and first != second and set(first + second) <= set(range(26))


# ------------------------------------------------------------------------------------------ old log-probabilities, FSDP


def one_minibatch(cfg, device):
    groups = make_groups([[5, 30, 1, 9], [32, 31, 7, 8]])
    for r in (r for g in groups for r in g):
        r.response_ids = [(7 * i + r.sample_id) % 40 for i in range(len(r.response_ids))]
        r.advantage = 1.0 - 0.7 * r.sample_id
    plan = packing.plan_minibatches(groups, cfg, 1)
    return [([packing.pack(p, False, device) for p in ranks[0]], packing.count(ranks, cfg, 32)) for ranks in plan]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_recomputed_old_logprobs_are_bitwise_equal(world, tmp_path, group_of_one, checkpointing):
    cfg = load_config(flags(world, tmp_path))
    model = train_grpo.load_model(cfg, world / "base", group_of_one, torch.float32)
    model.set_activation_checkpointing(checkpointing)
    batches = [b for part, _ in one_minibatch(cfg, group_of_one) for b in part]
    separate = train_grpo.fixed_logprobs(model, batches, cfg)
    for b, old_logprobs in zip(batches, separate, strict=True):
        logprobs, _ = train_grpo.batch_logprobs(model, b, cfg)
        assert torch.equal(logprobs, old_logprobs)
        logprobs.sum().backward()


def test_skipping_the_first_minibatchs_pass_ends_in_equal_weights(world, tmp_path, group_of_one):
    cfg, ends = load_config(flags(world, tmp_path)), []
    for skip in (True, False):
        model = train_grpo.load_model(cfg, world / "base", group_of_one, torch.float32)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        minibatches = one_minibatch(cfg, group_of_one)
        for batches, _ in minibatches[1:] if skip else minibatches:
            for b, old_logprobs in zip(batches, train_grpo.fixed_logprobs(model, batches, cfg), strict=True):
                b.old_logprobs = old_logprobs
        for batches, counts in minibatches:
            train_grpo.backward(model, batches, counts, cfg)
            assert train_grpo.optimizer_step(model, optimizer, 0.0, cfg) is not None
        ends.append({n: p.full_tensor() for n, p in model.named_parameters()})
    assert all(torch.equal(ends[0][n], ends[1][n]) for n in ends[0])


def test_a_gradient_that_is_not_finite_moves_nothing(world, tmp_path, group_of_one):
    cfg = load_config(flags(world, tmp_path))
    model = train_grpo.load_model(cfg, world / "base", group_of_one, torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    before = {n: p.full_tensor().clone() for n, p in model.named_parameters()}
    ((batches, counts), *_) = one_minibatch(cfg, group_of_one)
    batches[0].advantages[-1] = float("inf")
    train_grpo.backward(model, batches, counts, cfg)
    assert train_grpo.optimizer_step(model, optimizer, 0.0, cfg) is None
    assert all(torch.equal(before[n], p.full_tensor()) for n, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters()) and not optimizer.state


# ----------------------------------------------------------------------------------------------- whole runs and resume


def test_a_run_writes_what_the_design_lists(six_steps):
    assert {p.name for p in six_steps.iterdir()} == {
        "config.json",
        "metrics.jsonl",
        "ledger.json",
        "rollouts",
        "ckpt",
        "hf",
        "summary.json",
    }
    rows = [json.loads(line) for line in (six_steps / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [1, 2, 3, 4, 5, 6] and [r["stage"] for r in rows] == [0, 0, 0, 0, 1, 1]
    names = """step stage max_response_len reward_mean response_len_mean response_len_correct response_len_incorrect
        response_clip_ratio solve_none solve_all loss pg_loss kl entropy pg_clip_frac grad_norm lr
        mismatch_k3 mismatch_max tokens_generated tokens_trained time_rollout time_reward time_logprobs time_train
        time_sync time_step tokens_per_second mfu gpu_hours""".split()
    assert all(set(names) <= set(r) for r in rows)
    assert 0 < rows[0]["reward_mean"] < 1 and rows[0]["mismatch_k3"] < 1e-6 and rows[0]["kl"] != rows[5]["kl"]
    assert [r["step"] for r in rows if "eval_test" in r] == [3, 4, 6]  # every third, and at a stage's end
    summary = json.loads((six_steps / "summary.json").read_text())
    assert all(
        set(summary[k]) == {"accuracy", "stderr"} for k in ("base_first", "base_last", "final_first", "final_last")
    )
    row = responses(six_steps, 1)[0]
    assert {"prompt", "response", "answer", "gold", "reward", "advantage", "length", "finish_reason"} <= set(row)
    assert row["response"].startswith("<|assistant|><think>\n")


def test_the_export_loads_in_transformers_with_equal_logits(six_steps):
    transformers = pytest.importorskip("transformers")
    path = six_steps / "hf" / "step_000006"
    ids = torch.tensor([0, 2, 11, 18, 12, 3, 4])
    ours = train_grpo.Qwen2.from_pretrained(path)
    hidden = ours(ids, torch.arange(7), torch.tensor([0, 7], dtype=torch.int32))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path)(ids[None]).logits[0]
    assert torch.allclose(hidden @ ours.lm_head.weight.T, theirs, atol=1e-4)
    assert transformers.AutoTokenizer.from_pretrained(path)("3+8").input_ids == [11, 18, 16]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_resume_is_exact(world, tmp_path, six_steps, ranks):
    whole = six_steps
    if ranks == 2:
        train(flags(world, tmp_path, run_name="whole", eval_every=3), ranks)
        whole = tmp_path / "whole"
    processes = start_ranks(ranks, ["train_grpo.py", *flags(world, tmp_path, eval_every=3)])
    for line in processes[0].stdout:
        if line.startswith("step 4/"):
            for process in processes:
                process.send_signal(signal.SIGKILL)  # after step 3's checkpoint, in the middle of things
    assert [p.wait() for p in processes] == [-9] * ranks
    assert not (tmp_path / "run" / "summary.json").exists()
    with open(tmp_path / "run" / "metrics.jsonl", "a") as f:
        f.write('{"step": 5, "rewa')  # torn by the crash
    said = train([*flags(world, tmp_path, eval_every=3), "--resume=true"], ranks)
    assert "resuming after step 3" in said
    assert metrics(tmp_path / "run") == metrics(whole)
    assert weights_hash(tmp_path / "run", 6) == weights_hash(whole, 6)
    for step in range(1, 7):
        assert responses(tmp_path / "run", step) == responses(whole, step)
    ours, theirs = (json.loads((r / "summary.json").read_text()) for r in (tmp_path / "run", whole))
    for summary in (ours, theirs):
        for name in [n for n in summary if n.startswith(("wall_time", "gpu_hours"))]:
            assert summary.pop(name) >= 0
    assert ours == theirs


@pytest.mark.slow
def test_two_ranks_sample_the_same_tokens_and_learn_the_same(world, tmp_path, six_steps):
    train(flags(world, tmp_path, max_steps=1), ranks=2)
    assert responses(tmp_path / "run", 1) == responses(six_steps, 1)
    one, two = metrics(six_steps)[0], metrics(tmp_path / "run")[0]
    for key in ("reward_mean", "response_len_mean", "loss", "grad_norm", "entropy", "pg_clip_frac", "tokens_trained"):
        assert two[key] == pytest.approx(one[key], rel=1e-4, abs=1e-6), key


@pytest.mark.slow
def test_a_kill_while_a_checkpoint_is_written_leaves_the_earlier_one_in_use(world, tmp_path, six_steps):
    killer = (
        "import os, sys, train_grpo\n"
        "from training import checkpoint\n"
        "publish = checkpoint.publish\n"
        "def dying(aside, folder):\n"
        "    if folder.parent.name == 'ckpt' and folder.name == 'step_000006': os.kill(os.getpid(), 9)\n"
        "    publish(aside, folder)\n"
        "checkpoint.publish = dying\n"
        "train_grpo.main(sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", killer, *flags(world, tmp_path)], cwd=ROOT, env=ENV, capture_output=True
    )
    assert done.returncode == -9 and (tmp_path / "run/ckpt/step_000006.tmp").is_dir()
    assert checkpoint.find(tmp_path / "run").name == "step_000004"
    train([*flags(world, tmp_path), "--resume=true"])
    assert weights_hash(tmp_path / "run", 6) == weights_hash(six_steps, 6)
    assert not list((tmp_path / "run/ckpt").glob("*.tmp"))


@pytest.mark.slow
def test_a_truncated_checkpoint_is_named_and_skipped(world, tmp_path, six_steps):
    train(flags(world, tmp_path))
    (file,) = (tmp_path / "run/ckpt/step_000006").glob("*.distcp")
    file.write_bytes(file.read_bytes()[:-100])
    said = train([*flags(world, tmp_path), "--resume=true"])
    assert f"skipping damaged checkpoint {tmp_path}/run/ckpt/step_000006: {file.name} has" in said
    assert "resuming after step 4" in said and weights_hash(tmp_path / "run", 6) == weights_hash(six_steps, 6)


@pytest.mark.slow
def test_a_checkpoint_of_two_ranks_loads_on_one(world, tmp_path, six_steps):
    train(flags(world, tmp_path, max_steps=3), ranks=2)
    said = train([*flags(world, tmp_path), "--resume=true"])
    assert "resuming after step 3" in said
    rows, expected = metrics(tmp_path / "run"), metrics(six_steps)
    assert [r["step"] for r in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[3]["grad_norm"] == pytest.approx(expected[3]["grad_norm"], rel=1e-3)
    assert rows[3]["kl"] == pytest.approx(expected[3]["kl"], rel=1e-3)


def test_a_checkpoint_of_another_model_is_refused_in_one_line(world, tmp_path, six_steps, group_of_one):
    from problems import tiny

    small = dict(tiny.MODEL, num_hidden_layers=2, hidden_size=64, num_attention_heads=2, vocab_size=51)
    model = train_grpo.Qwen2(train_grpo.ModelConfig.from_dict(small))
    with pytest.raises(UserError, match="does not fit this model") as e:
        checkpoint.load(six_steps / "ckpt" / "step_000006", model, torch.optim.AdamW(model.parameters()))
    assert "\n" not in str(e.value)


def test_a_run_without_a_whole_checkpoint_is_not_begun_again_silently(tmp_path):
    (tmp_path / "ckpt" / "step_000003.tmp").mkdir(parents=True)
    assert checkpoint.find(tmp_path) is None  # none was ever finished
    (tmp_path / "ckpt" / "step_000003").mkdir()
    with pytest.raises(UserError, match="no checkpoint is whole"):
        checkpoint.find(tmp_path)


def test_rewinding_removes_later_checkpoints_exports_and_metrics(tmp_path):
    for step in (10, 20, 30):
        (tmp_path / "ckpt" / f"step_{step:06d}").mkdir(parents=True)
        (tmp_path / "hf" / f"step_{step:06d}").mkdir(parents=True)
    (tmp_path / "metrics.jsonl").write_text('{"step": 20}\n{"step": 21}\n')
    checkpoint.rewind(tmp_path, 20)
    for kind in ("ckpt", "hf"):
        assert sorted(p.name for p in (tmp_path / kind).iterdir()) == ["step_000010", "step_000020"]
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 20}\n'


def test_every_kind_of_damage_is_noticed(six_steps, tmp_path):
    import shutil

    source = six_steps / "ckpt" / "step_000006"
    assert checkpoint.damage(source) is None

    def damaged(change):
        folder = tmp_path / "copy"
        shutil.copytree(source, folder)
        change(folder)
        found = checkpoint.damage(folder)
        shutil.rmtree(folder)
        return found

    def flip(folder):
        file = next(folder.glob("*.distcp"))
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)

    assert "does not match its hash" in damaged(flip)
    assert "FileNotFoundError" in damaged(lambda f: (f / ".metadata").unlink())
    assert "FileNotFoundError" in damaged(lambda f: (f / "manifest.json").unlink())
    assert "JSONDecodeError" in damaged(lambda f: (f / "manifest.json").write_text("{"))
    assert damaged(lambda f: (f / "manifest.json").write_text("{}")) is not None


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


def test_metrics_lose_later_rows_and_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": s}) + "\n" for s in range(1, 6)) + '{"st')
    checkpoint.truncate_metrics(path, 3)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


@pytest.mark.slow
def test_real_problems_with_a_random_model_break_nothing(tiny_model_dir, tmp_path):
    if not SHARED.is_dir():
        pytest.skip("the AIME problems in ../shared are not here")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from problems.tiny import TEMPLATE, new_model

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {t: i for i, t in enumerate(["<|bos|>", "<|eos|>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|bos|>", "<|eos|>"])
    model = new_model(tokenizer, 0)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save(str(tmp_path / "model/tokenizer.json"))
    config = {"bos_token": "<|bos|>", "eos_token": "<|eos|>", "chat_template": TEMPLATE}
    (tmp_path / "model/tokenizer_config.json").write_text(json.dumps(config))
    argv = flags(tmp_path, tmp_path, model=tmp_path / "model", eval_every=0, max_steps=3, max_prompt_len=400,
                 token_budget=2048, train_data=SHARED / "data/raw/deepscaler/train_aime.json",
                 prompt_suffix=" Let's think step by step and output the final answer within \\boxed{}.")  # fmt: skip
    said = train(argv)
    import re

    kept, left_out = map(
        int, re.search(r"(\d+) prompts from .*, (\d+) longer than max_prompt_len=400 left out", said).groups()
    )
    assert kept + left_out == 975 and left_out > 0 and said.count("every group is uniform") == 3
    rows = metrics(tmp_path / "run")
    assert [r["reward_mean"] for r in rows] == [0, 0, 0] and [r["solve_none"] for r in rows] == [1, 1, 1]
    assert (
        weights_hash(tmp_path / "run", 3)
        == hashlib.sha256((tmp_path / "model/model.safetensors").read_bytes()).hexdigest()
    )


@pytest.mark.slow
def test_three_updates_in_a_row_that_are_not_finite_stop_the_run(world, tmp_path):
    broken = (
        "import sys, train_grpo\n"
        "good, calls = train_grpo.optimizer_step, []\n"
        "def bad(model, optimizer, loss, cfg):\n"
        "    calls.append(1)\n"
        "    return good(model, optimizer, float('nan') if len(calls) in (2, 5, 6, 7) else loss, cfg)\n"
        "train_grpo.optimizer_step = bad\n"
        "train_grpo.main(sys.argv[1:])"
    )
    argv = [sys.executable, "-c", broken, *flags(world, tmp_path, save_every=1)]
    done = subprocess.run(argv, cwd=ROOT, env=ENV, capture_output=True, text=True)
    assert done.returncode == 1 and "three updates in a row were not finite" in done.stderr
    rows = metrics(tmp_path / "run")
    assert rows[0]["updates_skipped"] == 1 and rows[-1]["updates_skipped"] == 3 and len(rows) < 6
    assert checkpoint.find(tmp_path / "run").name == f"step_{len(rows):06d}"


# ------------------------------------------------------------------------------------------------------------ refusals


def refusal(monkeypatch, capsys, argv):
    """The one line and the status of a run that is refused."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["train_grpo.py", *argv])
    with pytest.raises(SystemExit) as e:
        run(train_grpo.main)
    said = capsys.readouterr().err
    assert e.value.code == 2 and said.count("\n") == 1 and not dist.is_initialized(), said
    return said


def test_bad_input_gets_one_line_and_status_2(monkeypatch, capsys, world, tmp_path):
    monkeypatch.setattr(train_grpo.importlib.util, "find_spec", lambda name: None)  # wandb may be installed here

    def refused(**changes):
        return refusal(monkeypatch, capsys, flags(world, tmp_path / "out", **changes))

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


def test_a_folder_in_use_and_a_changed_run_are_refused(monkeypatch, capsys, world, six_steps):
    argv = flags(world, six_steps.parent, eval_every=3)
    before = metrics(six_steps)
    assert "is not empty: add --resume=true" in refusal(monkeypatch, capsys, argv)
    said = refusal(monkeypatch, capsys, [*argv, "--resume=true", "--lr=0.5"])
    assert "resume: lr was 0.001 and is now 0.5; a resumed run may change only" in said and "token_budget" in said
    assert metrics(six_steps) == before
