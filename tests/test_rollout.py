"""TorchSampler against transformers, and against the slow obvious loop: a whole forward pass for every token."""

import math
import random
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from configs import UserError
from model import Qwen2, stream_weights
from problems.prompts import ChatTokenizer
from rollout import Decoding, Quota, Rollout, TorchSampler, sample_seed, sample_tokens, uniforms
from training import packing
from training.preemption import GivenUp

PROMPTS = [[0, 2, 11, 18], [0, 2, 12], [0, 2, 9, 18, 15, 19, 50, 3], [0, 5], [0, 2, 11, 12, 13, 14, 15]]


@pytest.fixture(scope="module", params=["tiny_model_dir", "qwen3_dir"], ids=["qwen2", "qwen3"])
def folder(request):
    """A random model of each architecture."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def model(folder):
    return Qwen2.from_pretrained(folder, torch.float32)


@pytest.fixture(scope="module")
def stop_often(folder):
    """Several ids end a sequence, so that a random model's lengths are ragged."""
    sampler = TorchSampler(folder, torch.float32, max_num_seqs=3)
    sampler.eos_ids = torch.tensor([1, 20, 21, 22])
    return sampler


@torch.no_grad()
def naive(model, eos_ids, prompt, seed, max_tokens, temperature, top_p, vocab_size):
    """One sequence, no cache, no batch; its distribution in float64 from the plain formula."""
    ids, logprobs = list(prompt), []
    while len(ids) - len(prompt) < max_tokens:
        x = torch.tensor(ids)
        hidden = model(x, torch.arange(len(ids)), torch.tensor([0, len(ids)], dtype=torch.int32))
        logits = (hidden[-1] @ model.lm_head.weight[:vocab_size].T).double()
        if temperature == 0:
            token = int(logits.argmax())
            logprobs.append(float(logits.log_softmax(-1)[token]))
        else:
            probs = (logits / temperature).softmax(-1)
            if top_p < 1:
                kept, mass = set(), 0.0
                for i in sorted(range(vocab_size), key=lambda i: -probs[i]):
                    if mass < top_p:
                        kept.add(i)
                    mass += float(probs[i])
                probs = torch.tensor([float(p) if i in kept else 0.0 for i, p in enumerate(probs)], dtype=torch.float64)
                probs /= probs.sum()
            u = float(uniforms(torch.tensor([seed]), torch.tensor([len(logprobs)])))
            mass, token = 0.0, 0
            for i, p in enumerate(probs.tolist()):
                mass += p
                if p > 0:
                    token = i
                if mass > u:
                    break
            logprobs.append(math.log(float(probs[token])))
        ids.append(token)
        if token in eos_ids:
            break
    return ids[len(prompt) :], logprobs


@pytest.mark.parametrize("temperature,top_p", [(0.0, 1.0), (1.0, 1.0), (0.6, 1.0), (1.3, 0.7)])
def test_tokens_equal_a_naive_loop_with_slots_refilled(model, stop_often, temperature, top_p):
    seeds = [[sample_seed(p, s) for s in range(4)] for p in range(len(PROMPTS))]  # 20 samples through 3 slots
    groups = stop_often.generate(PROMPTS, seeds, 12, temperature, top_p)
    eos, lengths = stop_often.eos_ids.tolist(), set()
    for p, group in enumerate(groups):
        for s, r in enumerate(group):
            ids, logprobs = naive(model, eos, PROMPTS[p], seeds[p][s], 12, temperature, top_p, stop_often.vocab_size)
            assert (r.prompt_id, r.sample_id, r.prompt_ids) == (p, s, PROMPTS[p])
            assert r.response_ids == ids
            assert r.logprobs == pytest.approx(logprobs, abs=2e-5)
            assert r.finish_reason == ("stop" if ids[-1] in eos else "length")
            lengths.add(len(ids))
    assert temperature == 0 or len(lengths) > 3, "the lengths are not ragged, so nothing was refilled"


def test_greedy_tokens_and_logprobs_are_those_of_transformers(folder, stop_often):
    hf = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    options = dict(do_sample=False, max_new_tokens=12, eos_token_id=stop_often.eos_ids.tolist(), pad_token_id=1)
    for prompt, (rollout,) in zip(PROMPTS, stop_often.generate(PROMPTS, [[0]] * 5, 12, 0.0, 1.0), strict=True):
        assert rollout.response_ids == hf.generate(torch.tensor([prompt]), **options)[0, len(prompt) :].tolist()
    for temperature in (1.0, 0.6):
        for group in stop_often.generate(PROMPTS, [[1, 2]] * 5, 12, temperature, 1.0):
            for r in group:
                with torch.no_grad():
                    logits = hf(torch.tensor([r.prompt_ids + r.response_ids])).logits[0, len(r.prompt_ids) - 1 : -1]
                logprobs = (logits.double() / temperature).log_softmax(-1)
                expected = logprobs.gather(-1, torch.tensor(r.response_ids)[:, None]).squeeze(-1)
                assert r.logprobs == pytest.approx(expected.tolist(), abs=2e-5)


def test_a_sample_does_not_depend_on_its_batch(folder, stop_often):
    seeds = [[sample_seed("batch", p, s) for s in range(3)] for p in range(len(PROMPTS))]
    together = stop_often.generate(PROMPTS, seeds, 20, 1.0, 1.0)
    wide = TorchSampler(folder, torch.float32, max_num_seqs=64)
    wide.eos_ids = stop_often.eos_ids
    at_once = wide.generate(PROMPTS, seeds, 20, 1.0, 1.0)
    for p, prompt in enumerate(PROMPTS):
        for s in range(3):
            alone = stop_often.generate([prompt], [[seeds[p][s]]], 20, 1.0, 1.0)[0][0]
            assert alone.response_ids == together[p][s].response_ids == at_once[p][s].response_ids


def test_max_tokens_one_and_uneven_groups(stop_often):
    groups = stop_often.generate(PROMPTS[:3], [[1], [2, 3, 4], []], 1, 1.0, 1.0)
    assert [len(g) for g in groups] == [1, 3, 0]
    assert all(len(r.response_ids) == len(r.logprobs) == 1 for g in groups for r in g)


def test_no_prompts_give_no_rollouts(stop_often):
    assert stop_often.generate([], [], 5, 1.0, 1.0) == []
    assert stop_often.generate(PROMPTS[:1], [[]], 5, 1.0, 1.0) == [[]]


def test_a_prompt_beyond_the_positions_is_refused(stop_often):
    with pytest.raises(UserError, match="max_position_embeddings"):
        stop_often.generate([[0] * 500], [[1]], 100, 1.0, 1.0)


def test_logprobs_are_those_of_the_tempered_distribution(stop_often, model):
    r = stop_often.generate(PROMPTS[:1], [[5]], 6, 0.6, 1.0)[0][0]
    ids = torch.tensor(r.prompt_ids + r.response_ids)
    hidden = model(ids[:-1], torch.arange(len(ids) - 1), torch.tensor([0, len(ids) - 1], dtype=torch.int32))
    logprobs = ((hidden @ model.lm_head.weight.T).double() / 0.6).log_softmax(-1)
    expected = logprobs[torch.arange(len(ids) - 1), ids[1:]][len(r.prompt_ids) - 1 :]
    assert r.logprobs == pytest.approx(expected.tolist(), abs=1e-5)


def test_the_largest_uniform_never_leaves_the_vocabulary():
    largest = torch.tensor([1 - 2.0**-53], dtype=torch.float64)
    for size, real in ((152_064, 151_665), (40, 40), (3, 2)):
        for logits in (torch.zeros(1, size), torch.randn(1, size) * 10, torch.full((1, size), -1e4)):
            token, logprob = sample_tokens(logits, largest, 0.6, 1.0, real)
            assert 0 <= token.item() < real and math.isfinite(logprob.item())
    peaked = torch.full((1, 152_064), -100.0)
    peaked[0, 7] = 100.0  # everything after it has no mass at all in float32
    assert sample_tokens(peaked, largest, 1.0, 1.0, 151_665)[0].item() == 7
    assert sample_tokens(peaked, torch.zeros(1, dtype=torch.float64), 1.0, 0.5, 151_665)[0].item() == 7


@pytest.mark.parametrize("temperature, top_p", [(1.0, 1.0), (0.6, 1.0), (1.0, 0.9), (0.0, 1.0)])
def test_rows_that_pad_the_vocabulary_are_never_sampled_and_have_no_probability(temperature, top_p):
    logits = torch.zeros(1000, 10)
    logits[:, 6:] = 50.0
    uniform = torch.linspace(0, 0.999, 1000, dtype=torch.float64)
    tokens, logprobs = sample_tokens(logits, uniform, temperature, top_p, 6)
    assert tokens.max() == (5 if temperature else 0) and tokens.min() == 0
    assert torch.allclose(logprobs, torch.tensor(-math.log(6)))


def test_sampling_frequencies_match_the_distribution():
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(0))
    n = 40_000
    u = uniforms(torch.full((n,), sample_seed("frequencies")), torch.arange(n))
    counts = sample_tokens(logits.expand(n, -1), u, 0.8, 1.0, 12)[0].bincount(minlength=12)
    expected = (logits[0].double() / 0.8).softmax(-1)
    chi2 = float(((counts - n * expected) ** 2 / (n * expected)).sum())
    assert chi2 < 31.3  # the 0.1% point at 11 degrees of freedom; the seed is fixed


def splitmix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return z ^ (z >> 31)


def test_uniforms_equal_splitmix64_in_exact_integers():
    rng = random.Random(0)
    seeds = [0, 1, 2**63 - 1] + [rng.getrandbits(63) for _ in range(200)]
    positions = [0, 1, 24_575] + [rng.randrange(32_768) for _ in range(200)]
    expected = []
    for seed, position in zip(seeds, positions, strict=True):
        bits = splitmix((splitmix(seed) + (position + 1) * 0x9E3779B97F4A7C15) % 2**64)
        expected.append((bits >> 11) * 2.0**-53)
    assert uniforms(torch.tensor(seeds), torch.tensor(positions)).tolist() == expected
    assert splitmix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF  # SplitMix64's published first output for seed 0


def test_seeds_fit_63_bits_and_differ():
    seeds = {
        sample_seed(0, stage, step, 0, p, s)
        for stage in range(2)
        for step in range(9)
        for p in range(9)
        for s in range(9)
    }
    assert len(seeds) == 2 * 9**3 and max(seeds) < 2**63 and min(seeds) >= 0
    assert torch.tensor(max(seeds)).tolist() == max(seeds)


def test_load_weights_changes_the_samples_and_refuses_another_shape(folder, model):
    sampler = TorchSampler(folder, torch.float32)
    before = sampler.generate(PROMPTS[:1], [[1]], 8, 0.0, 1.0)[0][0]
    changed = {n: p.detach() * (-1 if "norm" in n else 1) for n, p in model.named_parameters()}
    sampler.load_weights(changed.items())
    assert sampler.generate(PROMPTS[:1], [[1]], 8, 0.0, 1.0)[0][0].logprobs != before.logprobs
    sampler.load_weights((n, p.detach()) for n, p in model.named_parameters())
    assert sampler.generate(PROMPTS[:1], [[1]], 8, 0.0, 1.0)[0][0] == before
    with pytest.raises(ValueError, match="shapes"):
        sampler.load_weights({**changed, "model.norm.weight": torch.ones(3)}.items())


def test_load_weights_brings_what_only_one_architecture_has(folder):
    """Qwen2's biases, which are 0 in a new model, and Qwen3's norms of q and k."""
    sampler, model = TorchSampler(folder, torch.float32), Qwen2.from_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(("proj.bias", "q_norm.weight", "k_norm.weight")):
                p.copy_(1 + torch.randn(p.shape, generator=generator))
    sampler.load_weights((n, p.detach()) for n, p in model.named_parameters())
    for prompt, (r,) in zip(PROMPTS, sampler.generate(PROMPTS, [[1]] * 5, 12, 1.0, 1.0), strict=True):
        ids, logprobs = naive(model, [1], prompt, 1, 12, 1.0, 1.0, sampler.vocab_size)
        assert r.response_ids == ids and r.logprobs == pytest.approx(logprobs, abs=2e-5)


def test_gathered_rollouts_equal_the_originals(monkeypatch, stop_often):
    groups = stop_often.generate(PROMPTS, [[p, p + 9] for p in range(5)], 6, 1.0, 1.0)
    originals = [r for g in groups for r in g]
    sent = []  # what each of two ranks sends; the second call sees both, as all_gather_object gives them

    def all_gather_object(received, rollouts):
        sent.append(rollouts)
        received[:] = [sent[0], sent[-1]]

    monkeypatch.setattr(packing.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(packing.dist, "all_gather_object", all_gather_object)
    packing.gather_rollouts(originals[1::2])
    for a, b in zip(packing.gather_rollouts(originals[0::2]), originals, strict=True):
        assert (a.prompt_ids, a.response_ids, a.finish_reason) == (b.prompt_ids, b.response_ids, b.finish_reason)
        assert a.logprobs == pytest.approx(b.logprobs, rel=1e-7)


def test_the_tokenizer_of_the_folder_stops_at_its_eos(tiny_model_dir):
    tokenizer = ChatTokenizer(tiny_model_dir)
    assert tokenizer.eos_ids == [1]
    assert tokenizer.decode([5, 11, 1]) == "</think>" + tokenizer.tokenizer.id_to_token(11)


def test_weights_that_are_nan_end_the_run_in_one_line(tiny_model_dir):
    sampler = TorchSampler(tiny_model_dir, torch.float32)
    weights = dict(stream_weights(tiny_model_dir))
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], float("nan"))
    sampler.load_weights(weights.items())
    for temperature, top_p in ((1.0, 1.0), (1.0, 0.9), (0.0, 1.0)):
        with pytest.raises(SystemExit, match="log-probabilities are not finite"):
            sampler.generate(PROMPTS[:2], [[1, 2], [3, 4]], 5, temperature, top_p)


class Recording(TorchDispatchMode):
    """Stands for torch.cuda.CUDAGraph where there is no GPU: within it operations are recorded, and nothing is
    written; `replay` runs them on the same tensors."""

    made: list["Recording"] = []

    def __init__(self) -> None:
        super().__init__()
        self.operations, self.shape, self.replays = [], None, 0
        self.made.append(self)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = args[0] if func._schema.is_mutable else func(*args, **kwargs)
        self.operations.append((func, args, kwargs, out))
        if "scaled_dot_product" in func.name():  # by cuDNN at no time
            assert torch.backends.cuda.flash_sdp_enabled() and not torch.backends.cuda.cudnn_sdp_enabled()
            self.shape = args[1].shape[0], args[1].shape[2]  # rows, length
        return out

    def replay(self) -> None:
        self.replays += 1
        new = {}  # what stands for a recorded result now
        for func, args, kwargs, out in self.operations:
            args, kwargs = tree_map_only(torch.Tensor, lambda x: new.get(id(x), x), (args, kwargs))
            for old, result in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                new[id(old)] = result

    def pool(self) -> "Recording":
        return self.made[0]


def capture(recording, pool, stream, capture_error_mode):
    """Stands for torch.cuda.graph."""
    assert pool in (None, Recording.made[0]) and (pool is None) == (len(Recording.made) == 1)
    return recording


@pytest.fixture
def rounding(folder, stop_often, monkeypatch):
    """A sampler that rounds its shapes up as on CUDA, only less."""
    sampler = TorchSampler(folder, torch.float32, max_num_seqs=7)
    sampler.eos_ids, sampler.row_bucket, sampler.length_bucket = stop_often.eos_ids, 3, 8
    sampler.static_cache = True
    monkeypatch.setattr(Recording, "made", [])
    return sampler


@pytest.mark.parametrize("temperature,top_p", [(0.0, 1.0), (1.3, 0.7)])
def test_rounded_shapes_and_replayed_steps_change_nothing(
    folder, stop_often, rounding, monkeypatch, temperature, top_p
):
    seeds = [[sample_seed("rounded", p, s) for s in range(4)] for p in range(len(PROMPTS))]
    exact = stop_often.generate(PROMPTS, seeds, 12, temperature, top_p)
    eager = rounding.generate(PROMPTS, seeds, 12, temperature, top_p)
    for one, other in zip([r for g in exact for r in g], [r for g in eager for r in g], strict=True):
        assert one.response_ids == other.response_ids
        assert one.logprobs == pytest.approx(other.logprobs, abs=2e-5)
    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recording)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    rounding.capture_stream = stream
    assert rounding.generate(PROMPTS, seeds, 12, temperature, top_p) == eager  # the same bits
    rows, lengths = zip(*(recording.shape for recording in Recording.made), strict=True)
    assert len(set(rows)) > 1 and len(set(lengths)) > 1, "no edge was crossed"
    assert len({*zip(rows, lengths, strict=True)}) == len(rows) < sum(recording.replays for recording in Recording.made)
    assert torch.backends.cuda.cudnn_sdp_enabled()


def test_a_step_that_is_given_up_is_waited_for_before_its_memory_is_used_again(rounding, monkeypatch):
    @contextmanager
    def stream_left_by_an_alarm(stream):
        yield
        raise GivenUp

    waited, ours, current = [], SimpleNamespace(), SimpleNamespace()
    ours.wait_stream, current.wait_stream = (lambda other: None), waited.append
    monkeypatch.setattr(torch.cuda, "stream", stream_left_by_an_alarm)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: current)
    rounding.capture_stream = ours
    with pytest.raises(GivenUp):
        rounding.generate(PROMPTS, [[0]] * len(PROMPTS), 12, 1.0, 1.0)
    assert waited == [ours]


def test_prompts_that_are_computed_in_parts_have_the_same_keys_and_values(folder):
    sampler = TorchSampler(folder, torch.float32)
    whole, parts = sampler._prefill(PROMPTS), sampler._prefill(PROMPTS, budget=9)
    assert parts.shape == whole.shape and (parts - whole).abs().max() < 1e-5


def test_few_rows_are_few_on_a_cpu(folder, monkeypatch):
    sampler, shapes = TorchSampler(folder, torch.float32, max_num_seqs=64), []
    step = sampler._step
    monkeypatch.setattr(
        sampler, "_step", lambda d, rows, *rest: shapes.append((len(d.live), rows)) or step(d, rows, *rest)
    )
    sampler.generate(PROMPTS, [[8 * p + s for s in range(8)] for p in range(len(PROMPTS))], 12, 1.0, 1.0)
    assert all(
        live <= rows < max(2 * live, live + 16) and rows in (1, 2, 4, 8, 16, 32, 40, 48) for live, rows in shapes
    )


def test_only_one_line_asks_the_device_for_values(folder):
    """Tensors on "meta" have none, so that asking for one raises; on CUDA the host would wait for it."""
    sampler = TorchSampler(folder, torch.float32, "meta")
    c, tokens = sampler.config, sum(len(p) for p in PROMPTS)
    store = torch.empty(c.num_hidden_layers, 2, tokens, c.num_key_value_heads, c.head_dim, device="meta")
    groups = [[Rollout(0, 0, [], [], [], None)] * 2] * len(PROMPTS)
    d = Decoding(store, PROMPTS, [[0, 1]] * len(PROMPTS), 6, 12, [0] * len(PROMPTS), Quota(groups, 5, set()))
    d.resize(6, d.longest)
    d._reseat([])
    sampler._step(d, 6, 16, 1.0, 0.9)
    d._reseat([True, False] * 3)  # three of ten enter
    d._reseat([True, False] * 3)  # one enters, two rows are left empty, and the last moves
    assert d.live == [9, 1, 5, 3] and next(d.waiting, None) is None
    with pytest.raises(NotImplementedError, match="meta"):
        d.turn_over()
