"""The loop: what a run writes, one seam for rewards, what ends a run, clear refusals."""

import hashlib
import importlib.machinery
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import types
from dataclasses import replace

import pytest
import torch

import train_grpo
from configs import load_config
from conftest import SHARED
from grader.pool import RewardPool
from model import Qwen2, stream_weights
from problems import tiny
from runs import (
    ENV,
    ROOT,
    assert_same_run,
    flags,
    make_world,
    metrics,
    responses,
    rows_of,
    run_here,
    summary_of,
    train,
    weights_hash,
)
from training import checkpoint
from training.checkpoint import RunState
from training.groups import draw_prompts

# ---------------------------------------------------------------------------------------------------------- whole runs


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


def test_a_qwen3_trains_resumes_and_is_exported(tmp_path, monkeypatch):
    for key, value in dict(model_type="qwen3", head_dim=64).items():
        monkeypatch.setitem(tiny.MODEL, key, value)
    world, changes = make_world(tmp_path), dict(max_steps=2, save_every=1)
    train(flags(world, tmp_path / "whole", **changes))
    train(flags(world, tmp_path / "parts", **changes | {"max_steps": 1}))
    train(flags(world, tmp_path / "parts", **changes, resume="true"))
    whole, parts = tmp_path / "whole" / "run", tmp_path / "parts" / "run"
    assert metrics(parts) == metrics(whole) and weights_hash(parts, 2) == weights_hash(whole, 2)
    assert max(row["mismatch_k3"] for row in metrics(parts)) < 1e-9
    export = parts / "hf" / "step_000002"
    base, trained = dict(stream_weights(world / "base")), dict(stream_weights(export))
    for name in ("q_norm", "k_norm"):
        name = f"model.layers.0.self_attn.{name}.weight"
        assert not torch.equal(trained[name], base[name])
    transformers = pytest.importorskip("transformers")
    hf = transformers.AutoModelForCausalLM.from_pretrained(export)
    assert isinstance(hf, transformers.Qwen3ForCausalLM)
    assert all(torch.equal(p, trained[name]) for name, p in hf.named_parameters())


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


def test_an_epoch_gives_every_prompt_at_most_once_in_an_order_of_its_own(world, tmp_path):
    cfg = load_config(flags(world, tmp_path))
    state, draws = RunState(), []
    for _ in range(6):
        indices, state = draw_prompts(state, 26, cfg)
        draws.append(indices)
    first, second = sum(draws[:3], []), sum(draws[3:], [])
    assert len(set(first)) == len(first) == 24 and first != second and set(first + second) <= set(range(26))
    assert (state.epoch, state.position) == (1, 24) and draw_prompts(RunState(step=7), 26, cfg)[0] == first[:8]
    larger = draw_prompts(draw_prompts(RunState(), 26, cfg)[1], 26, replace(cfg, prompts_per_step=16))[0]
    assert larger == first[8:]  # a stage with more prompts a step goes on where the one before was


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

    def with_bad_losses(model, optimizer, loss, cfg, loss_scale):
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


def test_a_run_validated_on_one_problem_has_no_error_bars(world, tmp_path):
    (tmp_path / "one.jsonl").write_text((world / "test.jsonl").read_text().splitlines()[0] + "\n")
    output = train(flags(world, tmp_path, eval_data=tmp_path / "one.jsonl", eval_every=9, max_steps=1))
    assert "accuracy at context 24: " in output and output.count("+- -") >= 4 and "+- 0.000" not in output
    assert json.loads((tmp_path / "run/summary.json").read_text())["final_last"]["stderr"] is None


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
    assert f"{tmp_path}/rows.jsonl:2: no 'answer' among the columns problem" in refused(
        train_data=tmp_path / "rows.jsonl"
    )
    assert "max_position_embeddings=512" in refused(max_response_len="24,600", token_budget=1000)
    assert "prompts_per_step is 100" in refused(prompts_per_step=100)
    (tmp_path / "file").write_text("")
    assert "out_dir: cannot write" in refused(out_dir=tmp_path / "file")
    assert "eval_data: the file names" in refused(eval_data="a/test.jsonl,b/test.jsonl")
    assert "wandb: not installed" in refused(wandb="true")
    assert "eval_data: no file " in refused(eval_data=tmp_path / "none.jsonl", eval_every=1)


def test_wandb_that_cannot_start_is_refused_before_a_model_loads_and_a_run_has_its_own_id(monkeypatch, world, tmp_path):
    started = []

    def init(**options):
        started.append(options)
        if len(started) == 1:
            raise RuntimeError("no API key\nlog in")
        return types.SimpleNamespace(log=lambda row, step: None, finish=lambda: None)

    module = types.ModuleType("wandb")
    module.init, module.__spec__ = init, importlib.machinery.ModuleSpec("wandb", None)
    monkeypatch.setitem(sys.modules, "wandb", module)
    argv = flags(world, tmp_path, wandb="true", max_steps=3)
    output = train(argv, status=2)
    assert output == "error: wandb: no API key\n" and not (tmp_path / "run/config.json").exists()
    train(argv)
    train([*argv, "--resume=true", "--max_steps=4"])
    train([*argv, "--run_name=again"])
    _, first, resumed, again = [options["id"] for options in started]
    assert first == resumed and first.startswith("run-") and again.startswith("again-")
    shutil.rmtree(tmp_path / "run")
    train(argv)
    assert started[-1]["id"] not in (first, again)  # a fresh run of the same name is another one


def test_what_is_reported_is_on_the_disk(monkeypatch, world, tmp_path):
    synced, fsync = [], os.fsync

    def counted(descriptor):
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("no /proc on this system")
    monkeypatch.setattr(os, "fsync", counted)
    train(flags(world, tmp_path, max_steps=1))
    names = {os.path.relpath(path, tmp_path / "run") for path in synced}
    assert {
        "metrics.jsonl",
        "ledger.json.tmp",
        "config.json.tmp",
        "ckpt",
        "hf",
        "ckpt/step_000001.tmp/state.json",
    } <= names


def test_a_folder_in_use_and_a_changed_run_are_refused(world, six_steps):
    argv = flags(world, six_steps.parent, eval_every=3)
    before = metrics(six_steps)
    assert "is not empty: add --resume=true" in refusal(argv)
    output = refusal([*argv, "--resume=true", "--lr=0.5"])
    assert "resume: lr was 0.001 and is now 0.5; a resumed run may change only" in output and "token_budget" in output
    output = refusal([*argv, "--resume=true", "--reward=strict"])
    assert "resume: reward was exact and is now strict" in output
    assert metrics(six_steps) == before


def test_a_model_folder_that_lacks_a_tensor_is_refused_before_an_engine_starts(world, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(world / "base", tmp_path / "model")
    tensors = load_file(tmp_path / "model/model.safetensors")
    name = "model.layers.1.self_attn.q_proj.weight"
    del tensors[name]
    save_file(tensors, tmp_path / "model/model.safetensors")
    output = train(flags(world, tmp_path, model=tmp_path / "model"), status=2)
    assert f"error: {tmp_path}/model: 1 tensors are missing, the first is {name}" in output
