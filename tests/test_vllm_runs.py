"""Whole runs with the real vLLM: the watch over a sabotaged one, exact resume, a lost rank, the smoke run.

Skipped where vLLM is not installed; see test_vllm.py.
"""

import importlib.util
import json
import signal
from unittest import mock

import pytest
import torch
import torch.distributed as dist

import train_grpo
import vllm_fsdp
from configs import PREEMPTED_STATUS
from grader.pool import RewardPool
from model import ModelConfig, Qwen2
from problems import tiny
from rollout import TorchSampler, VLLMSampler, make_sampler
from runs import (
    flags,
    metrics,
    responses,
    rows_of,
    run_here,
    run_ranks,
    train,
    weights_hash,
)
from test_checkpoint import lose_a_rank
from test_preemption import signal_at_call
from test_smoke import assert_passed
from test_vllm import WITHOUT_VLLM, largest_difference, response_ids
from training import begin

without_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason=WITHOUT_VLLM)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("vllm"),
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated"),
]


def vllm_flags(world, folder, **changes):
    """The arguments of a run that only trains and is watched."""
    values = dict(sampler="vllm", prompts_per_step=32, group_size=8, max_response_len=24, stage_steps=6, save_every=0)
    values |= dict(save_rollouts_every=0, token_budget=512, max_num_seqs=64)
    return flags(world, folder, **(values | changes))


# ----------------------------------------------------------------------------------------------------------- the watch


def main_that_closes(argv):
    """train_grpo.main, which leaves its engine to the end of the process where it is stopped: here more follow."""
    engines = []

    def remembered(*args):
        engines.append(make_sampler(*args))
        return engines[0]

    with mock.patch.object(begin, "make_sampler", remembered):
        try:
            train_grpo.main(argv)
        except SystemExit:
            engines[0].close()
            raise


def stopped(argv, run_dir):
    """What the watch said when it stopped a run, and the steps that were finished."""
    status, output = run_here(main_that_closes, argv)
    assert status == 1, output
    return next(line for line in output.splitlines() if "sampler and trainer disagree" in line), len(rows_of(run_dir))


@without_vllm
def test_the_watch_stops_a_run_whose_sync_is_skipped(world, tmp_path, monkeypatch):
    load_weights, syncs = VLLMSampler.load_weights, []

    def only_once(engine, named_tensors):
        tensors = list(named_tensors)  # the collectives happen all the same
        syncs.append(tensors)
        return load_weights(engine, iter(tensors)) if len(syncs) == 1 else 0

    monkeypatch.setattr(VLLMSampler, "load_weights", only_once)
    message, steps = stopped(vllm_flags(world, tmp_path), tmp_path / "run")
    assert message.startswith("step 2: ") and "looks like stale weights" in message and steps == 1


@without_vllm
def test_the_watch_stops_a_run_whose_sync_leaves_a_layer_out(world, tmp_path, monkeypatch):
    load_weights, first = VLLMSampler.load_weights, {}

    def without_a_layer(engine, named_tensors):
        tensors = dict(named_tensors)
        if not first:
            first.update({name: tensor.clone() for name, tensor in tensors.items()})
        old = {name: tensor for name, tensor in first.items() if ".layers.1." in name}
        return load_weights(engine, iter((tensors | old).items()))

    monkeypatch.setattr(VLLMSampler, "load_weights", without_a_layer)
    message, steps = stopped(vllm_flags(world, tmp_path), tmp_path / "run")
    assert "looks like stale weights" in message and 1 <= steps < 6


@without_vllm
def test_the_watch_stops_a_run_that_samples_at_another_temperature(world, tmp_path, monkeypatch):
    generate = VLLMSampler.generate

    def hotter(engine, prompts, seeds, max_tokens, temperature, top_p):
        return generate(engine, prompts, seeds, max_tokens, 1.0, top_p)

    monkeypatch.setattr(VLLMSampler, "generate", hotter)
    message, steps = stopped(vllm_flags(world, tmp_path, temperature=0.6), tmp_path / "run")
    expected = "a wrong temperature: the sampler's log-probabilities fit 1.0, the trainer's is 0.6"
    assert expected in message and steps == 0


@without_vllm
def test_the_watch_stops_a_run_that_samples_with_top_p(world, tmp_path, monkeypatch):
    generate = VLLMSampler.generate

    def truncated(engine, prompts, seeds, max_tokens, temperature, top_p):
        return generate(engine, prompts, seeds, max_tokens, temperature, 0.9)

    monkeypatch.setattr(VLLMSampler, "generate", truncated)
    message, steps = stopped(vllm_flags(world, tmp_path), tmp_path / "run")
    assert "a truncated distribution: the log-probabilities fit top_p=0.9" in message and steps == 0


@without_vllm
def test_the_watch_stops_a_run_whose_prefix_cache_is_stale(world, tmp_path, monkeypatch):
    """Eight prompts of more than a cache block of 128 tokens, the same at every step. No such problem is solved in this
    world, so every other response is rewarded: the weights must move."""
    long_problems = tmp_path / "long.jsonl"
    sums = ["+".join(str((7 * i + p) % 9 + 1) for i in range(70)) for p in range(8)]
    long_problems.write_text("".join(json.dumps({"problem": f"{s}=?", "answer": "1"}) + "\n" for s in sums))
    changes = dict(train_data=long_problems, prompts_per_step=8, max_prompt_len=160, stage_steps=3)

    def every_other(pool, problems, texts):
        return [float(i % 2) for i in range(len(texts))]

    monkeypatch.setattr(RewardPool, "rewards", every_other)
    train(vllm_flags(world, tmp_path, run_name="sound", **changes))
    start = VLLMSampler.__init__

    def without_reset(engine, *args, **kwargs):
        start(engine, *args, **kwargs)
        engine.llm.reset_prefix_cache = lambda: True

    monkeypatch.setattr(VLLMSampler, "__init__", without_reset)
    message, _ = stopped(vllm_flags(world, tmp_path, **changes), tmp_path / "run")
    assert message.startswith(("step 2: ", "after the sync of step 1: "))
    assert "cached prefixes of older weights" in message


@without_vllm
def test_the_watch_lets_twenty_clean_bf16_steps_pass(world, tmp_path):
    train(vllm_flags(world, tmp_path, dtype="bfloat16", stage_steps=20, prompts_per_step=8))
    rows = rows_of(tmp_path / "run")
    assert len(rows) == 20 and all(0 < r["mismatch_k3"] < 0.003 and r["mismatch_ess"] > 0.9 for r in rows)
    assert rows[0]["sync_bytes"] == 2 * sum(p.numel() for p in Qwen2.from_pretrained(world / "base").parameters())


# -------------------------------------------------------------------------------------------------- models and refusals


@pytest.fixture
def padded_engine(padded_dir):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    engine = VLLMSampler(padded_dir, torch.float32, "cpu", max_num_seqs=64, max_model_len=256)
    yield engine
    engine.close()


@without_vllm
def test_rows_that_pad_the_vocabulary_have_no_probability_in_vllm_either(padded_dir, padded_engine):
    """They are never sampled, and vLLM's log-probabilities are the TorchSampler's and the trainer's."""
    torch_sampler = TorchSampler(padded_dir, torch.float32, "cpu", 64)
    model = Qwen2.from_pretrained(padded_dir)
    prompts, seeds = [[0, 2, 7 + p, 3, 4] for p in range(12)], [[1000 * p + s for s in range(4)] for p in range(12)]
    groups = padded_engine.generate(prompts, seeds, 50, 1.0, 1.0)
    assert max(map(max, response_ids(groups))) < torch_sampler.vocab_size < model.vocab_size
    model.vocab_size = torch_sampler.vocab_size
    assert largest_difference(model, groups, 1.0) < 1e-4
    assert largest_difference(model, torch_sampler.generate(prompts, seeds, 50, 1.0, 1.0), 1.0) < 1e-4
    greedy = [sampler.generate(prompts, [[0]] * 12, 50, 0.0, 1.0) for sampler in (padded_engine, torch_sampler)]
    assert response_ids(greedy[0]) == response_ids(greedy[1])
    model.vocab_size = None  # as if the rows were tokens
    assert largest_difference(model, groups, 1.0) > 0.5
    padded_engine.logit_bias = None  # without it they are sampled
    groups = padded_engine.generate(prompts, seeds, 50, 1.0, 1.0)
    assert max(map(max, response_ids(groups))) >= torch_sampler.vocab_size
    assert largest_difference(model, groups, 1.0) < 1e-4


@without_vllm
def test_a_model_that_the_engine_cannot_run_is_refused_in_one_line_and_nothing_is_begun(world, tmp_path):
    """One with heads of 16, which vLLM's attention on CPUs does not know. In a process of its own: an engine that fails
    to start ends its process group whenever Python collects it, which may be another's by then."""
    size = tiny.make_tokenizer(tmp_path / "model").get_vocab_size()
    shape = {"vocab_size": size, "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    Qwen2(ModelConfig.from_dict({**tiny.MODEL, **shape})).save_pretrained(tmp_path / "model")
    output = run_ranks(1, vllm_flags(world, tmp_path, model=tmp_path / "model"), status=2)
    (line,) = (line for line in output.splitlines() if line.startswith("error: "))
    assert "error: sampler: vLLM cannot run" in line and "head_dim=16" in line
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["lock"]  # which nobody holds any more


def test_vllm_where_it_is_not_installed_is_refused_in_one_line(world, tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec

    def blind(name, *rest):
        return None if name == "vllm" else find_spec(name, *rest)

    monkeypatch.setattr("importlib.util.find_spec", blind)
    output = train(flags(world, tmp_path, sampler="vllm"), status=2)
    assert output.startswith("error: sampler: vllm is not installed") and output.count("\n") == 1


# ----------------------------------------------------------------------------------------------------------- whole runs


@without_vllm
def test_three_fsdp_steps_on_two_ranks_keep_vllm_and_trainer_together(world, tmp_path):
    argv = [tmp_path / "figures.json", *vllm_flags(world, tmp_path, minibatches=1)]
    run_ranks(2, argv, main=vllm_fsdp.main)
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["world_size"] == 2 and figures["moved"] > 1e-3 and len(figures["largest"]) == 4
    assert max(figures["largest"]) < 1e-4 and figures["ranks_that_differ"] == 0 and figures["tokens"] > 40


def given_up_within_the_engine(argv):
    """train_grpo.main, with a signal at the third token of the fourth step's generation."""
    from vllm.v1.engine.llm_engine import LLMEngine

    sample, calls = train_grpo.sample, []

    def armed(*args):
        calls.append(args)
        if len(calls) == 4:
            signal_at_call(LLMEngine, "step", 3)
        return sample(*args)

    train_grpo.sample = armed
    train_grpo.main(argv)


@without_vllm
def test_resume_is_exact(world, tmp_path):
    whole = flags(world, tmp_path, sampler="vllm", eval_every=3, run_name="whole")
    train(whole)
    argv = flags(world, tmp_path, sampler="vllm", eval_every=3, preempt_seconds=0)
    output = run_ranks(1, argv, PREEMPTED_STATUS, given_up_within_the_engine)
    assert "preempted: the step under way was given up" in output and "step 4/" not in output
    assert "resuming after step 3" in train([*argv, "--resume=true"])
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    assert weights_hash(tmp_path / "run", 6) == weights_hash(tmp_path / "whole", 6)
    assert responses(tmp_path / "run", 6) == responses(tmp_path / "whole", 6)


@without_vllm
def test_a_killed_rank_ends_the_other_and_the_run_resumes(world, tmp_path):
    """It closes its connections. On one rank, since test_checkpoint.py resumes a lost rank's run on two."""
    argv = flags(world, tmp_path, sampler="vllm", process_group_timeout=60)
    lose_a_rank(argv, signal.SIGKILL)
    assert "resuming after step 3" in train([*argv, "--resume=true"])
    assert [r["step"] for r in metrics(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


@without_vllm
def test_the_smoke_run_tries_everything_and_gives_its_verdict(world, tmp_path):
    assert_passed(train(flags(world, tmp_path, sampler="vllm", smoke="true")))
    assert not list(tmp_path.iterdir())
