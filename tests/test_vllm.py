"""The real vLLM, one engine in this process: what it samples, its caches, and how weights reach it.

Skipped where vLLM is not installed; `make test` installs its CPU build on Linux x86-64. Whole runs with it are in
test_vllm_runs.py. An engine takes ten seconds to start, two if it is not the process's first: all these tests are one
group for pytest-xdist.
"""

import importlib.util
import json
import os
import random
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist

from configs import UserError
from model import Qwen2, token_logprobs
from rollout import Rollout, TorchSampler, VLLMSampler

WITHOUT_VLLM = "vllm is not installed: its CPU build is for Linux x86-64, where make test installs it"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("vllm"),
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated"),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason=WITHOUT_VLLM),
]
BLOCK = 128  # tokens of a block of the prefix cache
RNG = random.Random(0)
SHORT = [[0, 2, *(RNG.randrange(6, 50) for _ in range(RNG.randrange(1, 30))), 3, 4] for _ in range(12)]
LONG = [[RNG.randrange(6, 50) for _ in range(200)] for _ in range(3)]
SEEDS = [[1000 * p + s for s in range(4)] for p in range(12)]


def surroundings():
    """What an engine must leave as it was."""
    environment = {k: os.environ.get(k) for k in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LD_PRELOAD")}
    generators = [hash(random.getstate()), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]
    return json.dumps([environment, generators, torch.get_num_threads(), torch.set_num_threads.__name__])


@pytest.fixture(scope="module", params=["tiny_model_dir", "qwen3_dir"], ids=["qwen2", "qwen3"])
def folder(request):
    """A random model of each architecture, as we export it."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def started(folder):
    """(the engine, what surrounded it before it started and after)."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    before = surroundings()
    engine = VLLMSampler(folder, torch.float32, "cpu", max_num_seqs=64, max_model_len=256)
    yield engine, before, surroundings()
    engine.close()


@pytest.fixture
def model(folder):
    return Qwen2.from_pretrained(folder)


@pytest.fixture
def engine(started, model):
    """The engine with the model's weights and nothing in its cache."""
    started[0].load_weights(weights_of(model))
    return started[0]


def weights_of(model):
    return ((name, p.detach()) for name, p in model.named_parameters())


def flat(groups):
    return [rollout for group in groups for rollout in group]


def response_ids(groups):
    return [rollout.response_ids for rollout in flat(groups)]


@torch.no_grad()
def largest_difference(model, groups, temperature):
    """Between the sampler's log-probabilities and those of a plain forward, over all response tokens."""
    largest = 0.0
    for r in flat(groups):
        ids = torch.tensor(r.prompt_ids + r.response_ids)
        n = len(ids) - 1
        hidden = model(ids[:-1], torch.arange(n), torch.tensor([0, n], dtype=torch.int32))
        logprobs, _ = token_logprobs(hidden, model.lm_head.weight, ids[1:], temperature, 4096, model.vocab_size)
        difference = logprobs[len(r.prompt_ids) - 1 :] - torch.tensor(r.logprobs)
        largest = max(largest, float(difference.abs().max()))
    return largest


# ------------------------------------------------------------------------------------------------------------ sampling


def test_an_engine_leaves_generators_threads_and_environment_alone(started):
    engine, before, after = started
    assert after == before
    engine.generate(SHORT, SEEDS, 50, 1.0, 1.0)
    assert surroundings() == before


def test_greedy_tokens_equal_the_torch_samplers_and_logprobs_the_trainers(engine, model, folder):
    prompts, seeds = SHORT + LONG, [[0]] * 15
    groups = engine.generate(prompts, seeds, 50, 0.0, 1.0)
    torch_sampler = TorchSampler(folder, torch.float32, "cpu", 64)
    assert response_ids(groups) == response_ids(torch_sampler.generate(prompts, seeds, 50, 0.0, 1.0))
    assert largest_difference(model, groups, 1.0) < 1e-4


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_are_the_trainers_at_each_temperature(engine, model, temperature):
    groups = engine.generate(SHORT, SEEDS, 50, temperature, 1.0)
    assert largest_difference(model, groups, temperature) < 1e-4


def test_samples_come_in_order_say_why_they_ended_and_differ(engine):
    groups = engine.generate(SHORT, SEEDS, 50, 1.0, 1.0)
    for p, group in enumerate(groups):
        for s, r in enumerate(group):
            assert (r.prompt_id, r.sample_id, r.prompt_ids) == (p, s, SHORT[p])
            assert r.finish_reason == ("stop" if r.response_ids[-1] == 1 else "length")
            assert r.finish_reason == "stop" or len(r.response_ids) == 50
            assert 1 not in r.response_ids[:-1] and len(r.logprobs) == len(r.response_ids)
    assert [len(group) for group in groups] == [4] * 12
    assert {r.finish_reason for r in flat(groups)} == {"length", "stop"}
    assert len({tuple(r.response_ids) for r in groups[0]}) > 1


def test_a_sample_does_not_depend_on_its_batch(engine):
    together = engine.generate(SHORT, SEEDS, 50, 1.0, 1.0)
    ((alone,),) = engine.generate(SHORT[5:6], [SEEDS[5][2:3]], 50, 1.0, 1.0)
    assert alone.response_ids == together[5][2].response_ids


def test_samples_that_were_cut_go_on_with_the_tokens_they_had(engine, model):
    """Each round ends with one more group; in the last all must finish. Logprobs are the trainer's across all cuts."""
    groups = [[Rollout(10 + p, s, SHORT[p], [], [], None) for s in range(2)] for p in range(12)]
    seeds, cuts = [group[:2] for group in SEEDS], 0
    for rounds in (1, 2, 3):
        finished = sum(all(r.finish_reason for r in group) for group in groups)
        before, must_finish = groups, set(range(12)) if rounds == 3 else set()
        groups = engine.generate_until(groups, seeds, finished + 1, must_finish, 50, 1.0, 1.0)
        assert sum(all(r.finish_reason for r in group) for group in groups) > finished
        for old, new in zip(flat(before), flat(groups), strict=True):
            assert new.response_ids[: len(old.response_ids)] == old.response_ids
            assert (new.prompt_id, new.sample_id) == (old.prompt_id, old.sample_id)
            assert new == old or old.finish_reason is None
            cuts += new.finish_reason is None and len(new.response_ids) > 0
        groups = [[replace(r, segments=((rounds, len(r.response_ids)),)) for r in group] for group in groups]
    assert cuts > 12 and largest_difference(model, groups, 1.0) < 1e-4
    assert all(r.response_ids[-1] == 1 or len(r.response_ids) == 50 for r in flat(groups))
    assert not engine.llm.llm_engine.has_unfinished_requests()


def test_a_group_shares_its_prompts_cached_blocks(engine, model):
    engine.generate(LONG, [[1]] * 3, 4, 1.0, 1.0)
    assert engine.cached_tokens == 0  # one sample each: nothing to share, and nothing kept from before the sync
    engine.load_weights(weights_of(model))
    engine.generate(LONG, [list(range(8))] * 3, 4, 1.0, 1.0)
    assert engine.cached_tokens == 3 * 7 * BLOCK  # the whole blocks of 200 tokens, for all but the first of eight


def test_a_prompt_beyond_the_positions_is_refused(engine):
    with pytest.raises(UserError, match="generate: 200 prompt . 57 response tokens exceed max_model_len=256"):
        engine.generate(LONG, [[1]] * 3, 57, 1.0, 1.0)


@pytest.mark.parametrize("options, reason", [
    ({"max_model_len": 10**6}, "User-specified max_model_len (1000000) is greater than the derived max_model_len"),
    ({"max_num_seqs": 0}, "max_num_seqs: Input should be greater than or equal to 1"),
])  # fmt: skip
def test_a_refusal_keeps_its_reason_in_one_line(started, folder, options, reason):
    """Of vLLM's configs, whose text begins with "1 validation error for ModelConfig"; no engine is built. (`started` is
    there for the process group.)"""
    with pytest.raises(UserError) as refused:
        VLLMSampler(folder, torch.float32, "cpu", **{"max_num_seqs": 64, "max_model_len": 256, **options})
    assert str(refused.value).startswith(f"sampler: vLLM cannot run {folder} here: {reason}")
    assert "\n" not in str(refused.value) and "pydantic" not in str(refused.value)


# ---------------------------------------------------------------------------------------------------------------- sync


def test_a_sync_changes_the_samples_and_the_logprobs(engine, model):
    before = engine.generate(SHORT, SEEDS, 50, 1.0, 1.0)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.1)
    assert engine.load_weights(weights_of(model)) == sum(p.nbytes for p in model.parameters())
    after = engine.generate(SHORT, SEEDS, 50, 1.0, 1.0)
    assert response_ids(after) != response_ids(before) and largest_difference(model, after, 1.0) < 1e-4


def test_a_sync_brings_what_only_one_architecture_has(engine, model):
    """Qwen2's biases, Qwen3's norms of q and k: alone, so that nothing else could explain the new log-probabilities."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(("proj.bias", "q_norm.weight", "k_norm.weight")):
                p.copy_(1 + torch.randn(p.shape, generator=generator))
    assert largest_difference(model, engine.generate(SHORT, SEEDS, 50, 1.0, 1.0), 1.0) > 0.1
    engine.load_weights(weights_of(model))
    assert largest_difference(model, engine.generate(SHORT, SEEDS, 50, 1.0, 1.0), 1.0) < 1e-4


def test_a_sync_holds_about_one_layer_of_the_stream_at_a_time(engine, model):
    """vLLM collects what its fused products need, gate and up being the most, and drops it; plus the next tensor."""
    alive, totals = {}, []  # bytes of the stream's tensors by place; their sums as each one comes

    def stream():
        for i, (name, p) in enumerate(model.named_parameters()):
            tensor = p.detach() * 1.1
            alive[i] = tensor.nbytes
            weakref.finalize(tensor, alive.pop, i)
            totals.append(sum(alive.values()))
            yield name, tensor
            del tensor

    size = engine.load_weights(stream())
    largest_layer = 2 * model.model.layers[0].mlp.gate_proj.weight.nbytes
    assert max(totals) <= 1.5 * largest_layer < size


@pytest.mark.parametrize("change", ["missing", "twice", "unknown", "larger"])
def test_weights_that_do_not_fit_the_engine_are_refused(engine, model, change):
    named = list(weights_of(model))
    name, tensor = named[0]
    changed = {
        "missing": named[:-1],
        "twice": [named[0], *named],
        "unknown": [("model.extra.weight", tensor)],
        "larger": [(name, torch.zeros(99, 96)), *named[1:]],
    }
    with pytest.raises(ValueError, match="^load_weights: "):
        engine.load_weights(iter(changed[change]))
