"""The real vLLM, each engine in a process of its own: sampling, sync, the watch, resume, a lost rank, the smoke run.

Skipped where vLLM is not installed; `make test` installs its CPU build on Linux x86-64.
"""

import importlib.util
import json
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Timer

import pytest
import torch

from model import ModelConfig, Qwen2
from problems import tiny
from test_train import ENV, ROOT, command, flags, metrics, responses, start_ranks, train, weights_hash

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed: its CPU build is for "
                       "Linux x86-64, where make test installs it"),
]  # fmt: skip
SABOTAGE = ("sync_skipped", "layer_left_out", "temperature", "top_p", "prefix_cache", "none_prefix_cache")


@pytest.fixture(scope="session")
def pool():
    with ThreadPoolExecutor(max_workers=2) as pool:
        yield pool


def start(pool, ranks, script, *args):
    def run():
        return subprocess.run(command(ranks, f"tests/{script}.py", *args), cwd=ROOT, env=ENV, capture_output=True,
                              text=True)  # fmt: skip

    return pool.submit(run)


def findings(job):
    done = job.result()
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("FOUND "))[6:])


@pytest.fixture(scope="session")
def padded_dir(tmp_path_factory):
    """A random model with nine rows more than its tokenizer has ids: each would be sampled as often as any other."""
    path = tmp_path_factory.mktemp("padded")
    size = tiny.make_tokenizer(path).get_vocab_size()
    torch.manual_seed(0)
    model = Qwen2(ModelConfig.from_dict({**tiny.MODEL, "vocab_size": size + 9}))
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(0.02)
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def head_dir(tmp_path_factory):
    """A model with heads of 16, which vLLM's attention on CPUs does not know."""
    path = tmp_path_factory.mktemp("head")
    size = tiny.make_tokenizer(path).get_vocab_size()
    shape = {"vocab_size": size, "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    Qwen2(ModelConfig.from_dict({**tiny.MODEL, **shape})).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def long_problems(tmp_path_factory):
    """Eight prompts of more than a cache block of 128 tokens, the same at every step."""
    path = tmp_path_factory.mktemp("long") / "train.jsonl"
    sums = ["+".join(str((7 * i + p) % 9 + 1) for i in range(70)) for p in range(8)]
    path.write_text("".join(json.dumps({"problem": f"{s}=?", "answer": "1"}) + "\n" for s in sums), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def jobs(pool, world, tiny_model_dir, padded_dir, head_dir, long_problems, tmp_path_factory):
    """All runs that need nothing but the engine, two at a time."""
    out = tmp_path_factory.mktemp("vllm")
    common = dict(sampler="vllm", prompts_per_step=32, group_size=8, max_response_len=24, stage_steps=6, save_every=0,
                  save_rollouts_every=0, token_budget=512, max_num_seqs=64)  # fmt: skip
    long = dict(train_data=long_problems, prompts_per_step=8, max_prompt_len=160, stage_steps=4)
    extra = {"temperature": dict(temperature=0.6), "prefix_cache": long, "none_prefix_cache": long}
    jobs = {
        "engine": start(pool, 1, "vllm_engine", tiny_model_dir),
        "padded": start(pool, 1, "vllm_engine", padded_dir, "padded"),
        "fsdp": start(pool, 2, "vllm_fsdp", *flags(world, out, run_name="fsdp", **(common | dict(minibatches=1)))),
    }
    for what in SABOTAGE:
        argv = flags(world, out, run_name=what, **(common | extra.get(what, {})))
        jobs[what] = start(pool, 1, "vllm_sabotage", what, *argv)
    clean = common | dict(dtype="bfloat16", stage_steps=20, prompts_per_step=16)
    head = common | dict(model=head_dir)
    jobs["head"] = start(pool, 1, "../train_grpo", *flags(world, out / "head", **head))
    jobs["bf16"] = start(pool, 1, "vllm_sabotage", "none", *flags(world, out, run_name="bf16", **clean))
    return jobs | {"out": out, "base": world / "base"}


# ------------------------------------------------------------------------------------------------------------ sampling


def test_greedy_tokens_equal_the_torch_samplers(jobs):
    assert findings(jobs["engine"])["greedy_equal"]


def test_logprobs_are_the_trainers_at_each_temperature(jobs):
    assert max(findings(jobs["engine"])["differences"]) < 1e-4


def test_samples_come_in_order_and_say_why_they_ended(jobs):
    found = findings(jobs["engine"])
    assert found["order"] == [[p, s, True] for p in range(12) for s in range(4)]
    assert found["finish_reasons"] == ["length", "stop"] and found["finish_reasons_are_right"]
    assert found["samples_of_a_prompt_differ"]


def test_a_sample_does_not_depend_on_its_batch(jobs):
    assert findings(jobs["engine"])["alone_equals_in_batch"]


def test_an_engine_leaves_generators_threads_and_environment_alone(jobs):
    found = findings(jobs["engine"])
    assert found["engine_keeps_globals"] and found["generate_keeps_globals"]


def test_a_group_shares_its_prompts_cached_blocks(jobs):
    found = findings(jobs["engine"])
    assert found["cached_after_a_sync"] == 0  # one sample each: nothing to share, and nothing kept from before
    assert found["cached_in_groups"] == 3 * 7 * 128  # the whole blocks of 200 tokens, for all but the first of eight


def test_padding_rows_of_the_checkpoint_are_never_sampled(jobs):
    found = findings(jobs["padded"])
    assert found["largest_id"] < found["tokenizer_size"] <= found["largest_id_without_bias"]


def test_a_prompt_beyond_the_positions_is_refused(jobs):
    assert findings(jobs["engine"])["too_long"].startswith("UserError: generate: 200 prompt + 57 response tokens")


def test_a_model_that_the_engine_cannot_run_is_refused_in_one_line_and_nothing_is_begun(jobs):
    done = jobs["head"].result()
    assert done.returncode == 2 and not list((jobs["out"] / "head" / "run").iterdir())
    said = next(line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert "error: sampler: vLLM cannot run" in said and "head_dim=16" in said


# ---------------------------------------------------------------------------------------------------------------- sync


def test_a_sync_changes_the_samples_and_the_logprobs(jobs):
    found = findings(jobs["engine"])
    assert found["tokens_after_a_sync_differ"] and found["difference_after_a_sync"] < 1e-4
    assert found["bytes"] == found["bytes_expected"]


def test_a_sync_holds_about_one_layer_of_the_stream_at_a_time(jobs):
    """vLLM collects what its fused products need, gate and up being the most, and drops it; plus the next tensor."""
    found = findings(jobs["engine"])
    assert found["peak_bytes"] <= 1.5 * found["largest_layer"] < found["bytes"]


@pytest.mark.parametrize("what", ["missing", "twice", "unknown", "larger"])
def test_weights_that_do_not_fit_the_engine_are_refused(jobs, what):
    assert findings(jobs["engine"])["refusals"][what].startswith("ValueError: load_weights: ")


def test_three_fsdp_steps_on_two_ranks_keep_vllm_and_trainer_together(jobs):
    found = findings(jobs["fsdp"])
    assert found["world"] == 2 and found["moved"] > 1e-3 and len(found["max"]) == 4
    assert max(found["max"]) < 1e-4 and found["greedy_equal"] and found["tokens"] > 40


# ----------------------------------------------------------------------------------------------------------- the watch


def stopped(jobs, what):
    """What a sabotaged run said when the watch stopped it, and the steps it had finished."""
    done = jobs[what].result()
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr[-3000:]
    rows = (jobs["out"] / what / "metrics.jsonl").read_text().splitlines()
    return next(line for line in done.stderr.splitlines() if "sampler and trainer disagree" in line), len(rows)


def test_the_watch_stops_a_run_whose_sync_is_skipped(jobs):
    said, steps = stopped(jobs, "sync_skipped")
    assert said.startswith("step 2: ") and "looks like stale weights" in said and steps == 1


def test_the_watch_stops_a_run_whose_sync_leaves_a_layer_out(jobs):
    said, steps = stopped(jobs, "layer_left_out")
    assert "looks like stale weights" in said and 1 <= steps < 6


def test_the_watch_stops_a_run_that_samples_at_another_temperature(jobs):
    said, steps = stopped(jobs, "temperature")
    assert "a wrong temperature: the sampler's log-probabilities fit 1.0, the trainer's is 0.6" in said and steps == 0


def test_the_watch_stops_a_run_that_samples_with_top_p(jobs):
    said, steps = stopped(jobs, "top_p")
    assert "a truncated distribution: the log-probabilities fit top_p=0.9" in said and steps == 0


def test_the_watch_stops_a_run_whose_prefix_cache_is_stale(jobs):
    said, steps = stopped(jobs, "prefix_cache")
    assert said.startswith(("step 2: ", "after the sync of step 1: ")) and "cached prefixes of older weights" in said
    assert jobs["none_prefix_cache"].result().returncode == 0  # the same run with the reset in place


def test_the_watch_lets_twenty_clean_bf16_steps_pass(jobs):
    done = jobs["bf16"].result()
    assert done.returncode == 0, done.stderr[-3000:]
    rows = metrics(jobs["out"] / "bf16")
    assert len(rows) == 20 and all(0 < r["mismatch_k3"] < 0.003 and r["mismatch_ess"] > 0.9 for r in rows)
    assert rows[0]["sync_bytes"] == 2 * sum(p.numel() for p in Qwen2.from_pretrained(jobs["base"]).parameters())


# ----------------------------------------------------------------------------------------------------------- whole runs


@pytest.fixture(scope="session")
def six_vllm_steps(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("six_vllm")
    train(flags(world, out, sampler="vllm", eval_every=3))
    return out / "run"


def test_resume_is_exact(world, tmp_path, six_vllm_steps):
    argv = flags(world, tmp_path, sampler="vllm", eval_every=3)
    (process,) = start_ranks(1, ["train_grpo.py", *argv])
    for line in process.stdout:
        if line.startswith("step 4/"):
            process.send_signal(signal.SIGKILL)
    assert process.wait() == -9
    assert "resuming after step 3" in train([*argv, "--resume=true"])
    assert metrics(tmp_path / "run") == metrics(six_vllm_steps)
    assert weights_hash(tmp_path / "run", 6) == weights_hash(six_vllm_steps, 6)
    assert responses(tmp_path / "run", 6) == responses(six_vllm_steps, 6)


@pytest.mark.parametrize("how, sampler", [(signal.SIGKILL, "vllm"), (signal.SIGSTOP, "torch")])
def test_a_lost_rank_ends_the_other_and_the_run_resumes(world, tmp_path, how, sampler):
    """A killed rank closes its connections; a stopped one only falls silent, until the timeout."""
    timeout = 60 if how == signal.SIGKILL else 20
    argv = flags(world, tmp_path, sampler=sampler, process_group_timeout=timeout)
    survivor, victim = start_ranks(2, ["train_grpo.py", *argv], stderr=subprocess.PIPE)
    guard = Timer(150, survivor.kill)  # a survivor that hangs fails the test instead of hanging it
    guard.start()
    for line in survivor.stdout:
        if line.startswith("step 4/"):
            victim.send_signal(how)
    said, status = survivor.stderr.read(), survivor.wait()
    guard.cancel()
    assert status == 1, said
    assert "[rank 0] error: lost contact with another rank" in said and "--resume=true" in said
    assert "Traceback" not in said
    victim.kill()
    victim.wait()
    assert "resuming after step 3" in train([*argv, "--resume=true"], ranks=2)
    assert [r["step"] for r in metrics(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("sampler, ranks", [("vllm", 1), ("torch", 2)])
def test_the_smoke_run_tries_everything_and_gives_its_verdict(world, tmp_path, sampler, ranks):
    said = train([*flags(world, tmp_path, sampler=sampler), "--smoke=true"], ranks).splitlines()
    phases = [line.split()[0] for line in said if line.startswith(("worst pack", "rollout ", "sync ", "train "))]
    assert phases == ["worst", "rollout", "train", "sync"]  # among others
    (verdict,) = (line for line in said if line.startswith("smoke: "))
    assert verdict.startswith("smoke: PASSED: a pack of 128 tokens trained, 2 steps, sync, save and resume worked")
    assert not list(tmp_path.iterdir())


def test_vllm_where_it_is_not_installed_is_refused_in_one_line(world, tmp_path):
    blind = """
import sys, importlib.util as u
find = u.find_spec
u.find_spec = lambda name, *a: None if name == "vllm" else find(name, *a)
import train_grpo
from configs import run
run(train_grpo.main)
"""
    done = subprocess.run([sys.executable, "-c", blind, *flags(world, tmp_path, sampler="vllm")], cwd=ROOT, env=ENV,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 2 and done.stderr.strip().startswith("error: sampler: vllm is not installed")
