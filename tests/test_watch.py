"""The watch: its figures against their formulas, and what it makes of each way to be another policy."""

import builtins
import io
import math
import mmap
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist

from configs import load_config, run
from rollout import Rollout, TorchSampler
from runs import flags, responses, rows_of, train
from training import watch
from training.metrics import Timer
from training.packing import Batch, batch_logprobs, fixed_logprobs, load_model, pack

PROMPT = [0, 2, 7, 16, 7, 17, 18, 3, 4, 5, 6]  # "1+1=?" in the tiny chat template


def config(model_dir, **changes):
    flags = dict(model=model_dir, max_response_len=40, group_size=4, stage_steps=1, token_budget=4096) | changes
    return load_config(["configs/tiny.py", *(f"--{k}={v}" for k, v in flags.items())])


def sampled(model_dir, temperature=1.0, top_p=1.0, dtype=torch.float32, model=None):
    """A batch that TorchSampler sampled, from the folder's weights or from `model`'s."""
    sampler = TorchSampler(model_dir, dtype, "cpu", 64)
    if model is not None:
        sampler.load_weights((n, p.full_tensor().detach()) for n, p in model.named_parameters())
    prompts, seeds = [], []
    for i in range(8):
        prompts.append([*PROMPT, 7 + i])
        seeds.append([8 * i + s for s in range(8)])
    groups = sampler.generate(prompts, seeds, 40, temperature, top_p)
    return pack([r for g in groups for r in g], False, torch.device("cpu"))


def mismatch(model, b, cfg):
    return watch.mismatch(fixed_logprobs(model, [b], cfg)[0], b)


def batch(d, mask):
    """A batch whose sampler said 0 where the trainer says d."""
    n = len(d)
    zeros = torch.zeros(n)
    return Batch(zeros.long(), zeros.long(), torch.arange(n), torch.tensor([0, n]), torch.tensor(mask), zeros, zeros)


def test_figures_equal_their_float64_formulas(group_of_one):
    rng = np.random.default_rng(0)
    d = rng.normal(0.02, 0.3, 1000).astype(np.float32)
    mask = (rng.random(1000) < 0.7).astype(np.float32)
    b = batch(d, mask)
    other = rng.normal(0, 0.1, 50).astype(np.float32)
    sums = watch.zero_sums(group_of_one) + watch.mismatch(torch.tensor(d), b)
    sums = sums + watch.mismatch(torch.tensor(other), batch(other, np.ones(50, "f")))
    figures = watch.over_ranks(sums)
    x = np.concatenate([d[mask > 0], other]).astype(np.float64)
    k3, w = np.exp(x) - 1 - x, np.exp(x)
    assert figures.k3 == pytest.approx(k3.mean(), rel=1e-12)
    assert figures.k1 == pytest.approx(-x.mean(), rel=1e-12)
    assert figures.k3_error == pytest.approx(k3.std() / math.sqrt(len(x)), rel=1e-9)
    assert figures.k1_error == pytest.approx(x.std() / math.sqrt(len(x)), rel=1e-9)
    assert figures.ess == pytest.approx(w.sum() ** 2 / (len(x) * (w**2).sum()), rel=1e-12)
    assert figures.largest == np.abs(x).max()


def test_masked_tokens_do_not_count_whatever_they_hold(group_of_one):
    d = torch.tensor([0.1, math.inf, math.nan, -0.2])
    figures = watch.over_ranks(watch.mismatch(d, batch(d, [1.0, 0.0, 0.0, 1.0])))
    assert figures.largest == pytest.approx(0.2) and figures.k1 == pytest.approx(0.05)


@pytest.mark.slow
def test_dumps_have_each_tokens_mismatch_where_that_is_asked_for(world, tmp_path):
    """Of all ranks' samples, from before the weights moved: it adds up to the step's."""
    settings = dict(save_rollouts_tokens=True, dtype="bfloat16", mismatch_limit=1, max_steps=2, minibatches=2)
    train(flags(world, tmp_path, **settings), ranks=2)
    for step, row in enumerate(rows_of(tmp_path / "run"), 1):
        samples = responses(tmp_path / "run", step)
        assert len(samples) == 32 and all(len(s["tokens"]) == s["length"] for s in samples)
        assert all(s["response"].endswith("".join(text for text, _ in s["tokens"])) for s in samples)
        total = sum(s["mismatch"] * s["length"] for s in samples)
        assert total / sum(s["length"] for s in samples) == pytest.approx(row["mismatch_k3"], rel=0.02)
        d = [x for s in samples for _, x in s["tokens"]]
        assert max(map(abs, d)) == pytest.approx(row["mismatch_max"], rel=0.02) and row["mismatch_max"] > 0
    resumed = flags(world, tmp_path, **settings | dict(save_rollouts_tokens=False, max_steps=3, resume=True))
    train(resumed, ranks=2)  # a resumed run may choose anew
    assert not any("tokens" in s or "mismatch" in s for s in responses(tmp_path / "run", 3))


def test_k3_hides_what_a_truncated_sampler_drops_and_k1_shows_it():
    figures = watch.Mismatch(k3=0.0, k3_error=0.0, k1=-math.log(0.99), k1_error=0.0, largest=0.0, ess=1.0)
    assert figures.divergence() == pytest.approx(0.01005, abs=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_stops_the_run(tiny_model_dir, group_of_one, bad):
    cfg = config(tiny_model_dir)
    model = load_model(cfg, tiny_model_dir, group_of_one, torch.float32)
    sums = replace(watch.zero_sums(group_of_one), k3=torch.tensor(bad), tokens=torch.tensor(10.0))
    with pytest.raises(SystemExit, match="step 3: sampler and trainer disagree.*not finite"):
        watch.check(sums, "step 3", model, [], cfg)


def test_one_policy_passes(tiny_model_dir, group_of_one):
    cfg = config(tiny_model_dir)
    model = load_model(cfg, tiny_model_dir, group_of_one, torch.float32)
    b = sampled(tiny_model_dir)
    figures = watch.check(mismatch(model, b, cfg), "step 1", model, [b], cfg)
    assert figures.k3 < 1e-10 and figures.ess > 0.9999


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "broken, expected",
    [
        (dict(temperature=0.6), "a wrong temperature: the sampler's log-probabilities fit 0.6, the trainer's is 1.0"),
        (dict(temperature=1.5), "a wrong temperature: the sampler's log-probabilities fit 1.5"),
        (dict(top_p=0.9), "a truncated distribution: the log-probabilities fit top_p=0.9"),
    ],
)
def test_each_suspicion_is_named(world, group_of_one, dtype, broken, expected):
    cfg = config(world / "base", dtype=dtype)
    model = load_model(cfg, world / "base", group_of_one, torch.float32)
    b = sampled(world / "base", dtype=getattr(torch, dtype), **broken)
    with pytest.raises(SystemExit) as stop:
        watch.check(mismatch(model, b, cfg), "step 1", model, [b], cfg)
    assert expected in str(stop.value)


def test_rows_that_pad_the_vocabulary_have_no_probability_in_sampler_and_trainer(padded_dir, group_of_one):
    cfg = config(padded_dir)
    model = load_model(cfg, padded_dir, group_of_one, torch.float32)
    b = sampled(padded_dir)
    is_response = b.response_mask > 0
    logprobs, entropy = batch_logprobs(model, b, cfg)
    assert (logprobs - b.rollout_logprobs)[is_response].abs().max() < 1e-4
    assert watch.check(mismatch(model, b, cfg), "step 1", model, [b], cfg).k3 < 1e-9
    assert entropy.max() < math.log(model.vocab_size)
    short = pack([Rollout(0, 0, PROMPT, [7, 8], [0.0, 0.0], "length")], False, group_of_one)
    total = torch.zeros(short.targets.numel())
    for token in range(model.vocab_size):
        total += batch_logprobs(model, replace(short, targets=torch.full_like(short.targets, token)), cfg)[0].exp()
    assert torch.allclose(total, torch.ones_like(total), atol=1e-5)
    model.vocab_size = None  # as if the rows were tokens: about half of the probability is theirs
    logprobs, _ = batch_logprobs(model, b, cfg)
    assert (b.rollout_logprobs - logprobs)[is_response].min() > 0.5
    with pytest.raises(SystemExit, match="sampler and trainer disagree"):
        watch.check(mismatch(model, b, cfg), "step 1", model, [b], cfg)


def test_a_suspicion_is_named_where_rows_pad_the_vocabulary(padded_dir, group_of_one):
    cfg = config(padded_dir)
    model = load_model(cfg, padded_dir, group_of_one, torch.float32)
    b = sampled(padded_dir, top_p=0.9)
    with pytest.raises(SystemExit, match="a truncated distribution: the log-probabilities fit top_p=0.9"):
        watch.check(mismatch(model, b, cfg), "step 1", model, [b], cfg)


def test_old_weights_are_called_stale(world, group_of_one):
    cfg = config(world / "base")
    model = load_model(cfg, world / "base", group_of_one, torch.float32)
    b = sampled(world / "base", model=model)
    with torch.no_grad():
        for p in model.parameters():
            local = p._local_tensor
            local.add_(0.02 * torch.randn(local.shape, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(SystemExit, match="looks like stale weights"):
        watch.check(mismatch(model, b, cfg), "step 2", model, [b], cfg)


def test_a_fault_in_a_few_sequences_is_not_called_rounding(world, group_of_one):
    """A few sequences of many, in a pack that is not the first."""
    cfg = config(world / "base")
    model = load_model(cfg, world / "base", group_of_one, torch.float32)
    first, second = sampled(world / "base"), sampled(world / "base")
    second.rollout_logprobs[:100] -= 1.5 * second.response_mask[:100]
    sums = mismatch(model, first, cfg) + mismatch(model, second, cfg)
    with pytest.raises(SystemExit, match="looks like stale weights"):
        watch.check(sums, "step 2", model, [first, second], cfg)


def test_weights_a_little_stale_in_bfloat16_are_not_called_rounding_alone(world, group_of_one):
    cfg = config(world / "base", dtype="bfloat16", mismatch_limit=1e-7)
    model = load_model(cfg, world / "base", group_of_one, torch.float32)
    b = sampled(world / "base", dtype=torch.bfloat16, model=model)
    with torch.no_grad():
        for p in model.parameters():
            local = p._local_tensor
            local.mul_(1 + 0.006 * torch.randn(local.shape, generator=torch.Generator().manual_seed(0)))
    expected = "looks like (low precision, or weights that are a little stale|stale weights)"
    with pytest.raises(SystemExit, match=expected):
        watch.check(mismatch(model, b, cfg), "step 2", model, [b], cfg)


def test_rounding_is_called_rounding(world, group_of_one):
    """bfloat16 against float32, at a limit that even this is beyond."""
    cfg = config(world / "base", dtype="bfloat16", mismatch_limit=1e-7)
    model = load_model(cfg, world / "base", group_of_one, torch.float32)
    b = sampled(world / "base")
    with pytest.raises(SystemExit, match="looks like low precision and nothing else"):
        watch.check(mismatch(model, b, cfg), "step 1", model, [b], cfg)


def test_the_probe_needs_more_than_one_odd_token(group_of_one):
    d = torch.zeros(128)
    d[5] = 1.5  # its k3 is 1.98: a mean of 0.015 over 128 tokens
    figures = watch.over_ranks(watch.mismatch(d, batch(d, [1.0] * 128)))
    assert figures.divergence() > 0.003 > figures.divergence(standard_errors=3.0)
    everywhere = torch.linspace(-1, 1, 128)
    figures = watch.over_ranks(watch.mismatch(everywhere, batch(everywhere, [1.0] * 128)))
    assert figures.divergence(standard_errors=3.0) > 0.003


def test_kept_mass_equals_the_masses_of_sample_tokens(tiny_model_dir):
    torch.manual_seed(0)
    hidden, head = torch.randn(300, 16), torch.randn(40, 16)
    cfg = config(tiny_model_dir, logprob_chunk=7, temperature=0.8)
    masses = watch.kept_mass(hidden, head, cfg)
    probs = (hidden @ head.T / 0.8).softmax(-1).numpy().astype(np.float64)
    for row, mass in zip(probs, masses, strict=True):
        for top_p, kept in zip(watch.TOP_PS, mass.tolist(), strict=True):
            ordered = np.sort(row)[::-1]
            expected = ordered[: np.searchsorted(np.cumsum(ordered), top_p - 1e-9) + 1].sum()
            assert kept == pytest.approx(expected, abs=1e-5)


# -------------------------------------------------------------------------------------------- what else ends a run well


GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] "


def test_a_lost_rank_is_one_line_and_other_errors_keep_their_traceback(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["x"])

    def failing(text):
        def main(argv):
            raise RuntimeError(text)

        return main

    def waiting(argv):  # for a rank that was killed before all have met
        dist.TCPStore("127.0.0.1", 0, 2, is_master=True, timeout=timedelta(seconds=1))

    for main in (failing(GLOO + "Read error [127.0.0.1]:46210: Connection reset by peer\nmore"), waiting):
        with pytest.raises(SystemExit) as stop:
            run(main)
        assert stop.value.code == 1
        output = capsys.readouterr().err
        assert output.count("\n") == 1 and output.startswith("error: lost contact with another rank")
    for other in ("shapes differ", GLOO.replace("pair", "device") + "Unable to find address for: nope0"):
        with pytest.raises(RuntimeError):
            run(failing(other))
    assert not capsys.readouterr().err


def test_out_of_memory_names_the_phase_and_the_settings_to_lower():
    timer = Timer(torch.device("cpu"))
    with pytest.raises(
        SystemExit, match=r"(?s)phase 'train': CUDA out of memory.*token_budget.*vllm_gpu_memory_utilization"
    ):
        with timer("train"):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")
    with pytest.raises(SystemExit, match=r"phase 'rollout': .*can't allocate memory"):
        with timer("rollout"):
            torch.empty(1 << 50)
    with pytest.raises(SystemExit, match="phase 'load': MemoryError"), timer("load"):
        raise MemoryError
    with pytest.raises(SystemExit, match="phase 'load': unable to mmap 5 bytes"), timer("load"):
        raise RuntimeError("unable to mmap 5 bytes from file <x>: Cannot allocate memory (12)")


def test_other_errors_pass_through_the_timer():
    with pytest.raises(RuntimeError, match="shapes differ"):
        with Timer(torch.device("cpu"))("train"):
            raise RuntimeError("shapes differ")


def test_a_system_that_hides_peak_memory_stops_nothing(monkeypatch):
    def hidden(path, *args, real=builtins.open, **kwargs):
        return io.StringIO("Name: x\n") if str(path).startswith("/proc/self") else real(path, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", hidden)
    timer = Timer(torch.device("cpu"))
    with timer("train"):
        pass
    assert math.isnan(timer.memory["train"]) and timer.seconds["train"] >= 0


def test_the_timer_takes_each_phases_own_peak(group_of_one):
    timer = Timer(group_of_one)
    with timer("small"):
        pass
    with timer("large"):
        with mmap.mmap(-1, 256 << 20) as block:  # not by malloc, which may keep what it has, see kernels/cpu.py
            for page in range(0, len(block), mmap.PAGESIZE):
                block[page] = 1
    with timer("after"):
        pass
    peaks = timer.peak_memory(("small", "large", "after", "never"))
    if math.isnan(peaks["small"]):
        pytest.skip("this system does not tell a process its peak memory")
    assert peaks["large"] > peaks["small"] + 0.2 and peaks["large"] > peaks["after"] + 0.2 and peaks["never"] == 0
