"""`bench.py --plan`: its formulas against the real model, autograd's own memory and a slow simulation; its refusals."""

import json
import math
import re
import subprocess
import sys
import weakref
from dataclasses import replace
from statistics import fmean

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

import bench
from configs import UserError
from model import ModelConfig, Qwen2, token_logprobs
from runs import ENV, ROOT
from training import generation, memory, plan


def report(*flags: str, capsys) -> str:
    bench.main([*flags, "--plan"])
    return capsys.readouterr().out


def only_job(*argv: str) -> memory.Job:
    (job,) = plan.stages(list(argv))
    return job


def small_job(flags: list[str], **shape: int | str) -> memory.Job:
    """A job of a small model on one GPU."""
    job = only_job("configs/24k.py", "--gpus=1", "--max_prompt_len=1", "--max_response_len=1", *flags)
    raw = plan.R1_DISTILL | dict(num_attention_heads=4, num_key_value_heads=2, hidden_size=64) | shape
    return replace(job, model=Qwen2(ModelConfig.from_dict(raw)))


def part(job: memory.Job, name: str) -> list[float]:
    """Bytes of the part whose name begins so, at each of MOMENTS."""
    (bytes_of_part,) = [moments for key, moments in memory.bytes_by_part(job).items() if key.startswith(name)]
    return [bytes_of_part.get(moment, 0) for moment in memory.MOMENTS]


class PeakBytes(TorchDispatchMode):
    """The most bytes of tensors made under it that are alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in tree_flatten((args, out))[0]:
            if isinstance(t, torch.Tensor) and t.untyped_storage()._cdata not in self.alive:
                storage, key = t.untyped_storage(), t.untyped_storage()._cdata
                self.alive[key] = storage.nbytes()
                weakref.finalize(storage, self.alive.pop, key, None)
        self.peak = max(self.peak, sum(self.alive.values()))
        return out


# -------------------------------------------------------------------------------------------------------------- sizes


def test_the_known_shape_is_the_published_model():
    job = only_job("configs/16k.py")
    h, f, v, kv = 1536, 8960, 151_936, 256
    layer = 2 * (h * h) + h + 2 * (h * kv + kv) + 3 * h * f + 2 * h
    assert memory.num_params(job.model) == 2 * v * h + 28 * layer + h == 1_777_088_000
    assert memory.num_params(job.model.model.layers[0]) == layer and memory.num_params(job.model.lm_head) == v * h
    assert all(p.is_meta for p in job.model.parameters())
    assert job.kv_bytes == 28_672  # bytes of a token in the KV cache, notes/performance.md


def test_sharding_divides_what_is_sharded_and_hsdp_divides_by_its_part():
    wide = only_job("configs/16k.py", "--gpus=32")
    rows = only_job("configs/16k.py", "--gpus=32", "--shard_size=8")
    eight = only_job("configs/16k.py", "--gpus=8")
    for name, size in (("float32 weights", 4), ("Adam moments", 8), ("float32 gradients", 4), ("reference", 2)):
        assert part(wide, name)[0] == size * 1_777_088_000 / 32
        assert part(rows, name)[0] == part(eight, name)[0] == size * 1_777_088_000 / 8
    assert sum(part(eight, n)[0] for n in ("float32 w", "Adam", "float32 g")) / 2**30 == pytest.approx(3.3, abs=0.02)
    free = only_job("configs/16k.py", "--kl_coef=0")
    assert part(free, "reference") == [0, 0, 0, 0, 0]


# ----------------------------------------------------------------------------------------------------- memory, measured


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_what_autograd_saves(checkpointing, model_type):
    """In float32, where CPU and GPU differ least. What the CPU keeps beside a GPU is taken off: its attention keeps the
    output once more."""
    tokens, d, layers = 512, 64, 4
    flags = ["--dtype=float32", f"--token_budget={tokens}", f"--activation_checkpointing={checkpointing}"]
    shape = dict(vocab_size=50, intermediate_size=256, num_hidden_layers=layers, head_dim=32)
    job = small_job(flags, model_type=model_type, **shape)
    job.model.set_activation_checkpointing(checkpointing)
    weights, saved = {p.untyped_storage()._cdata for p in job.model.parameters()}, {}

    def keep(t):
        saved[t.untyped_storage()._cdata] = t.untyped_storage()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        hidden = job.model(torch.randint(50, (tokens,)), torch.arange(tokens), torch.tensor([0, tokens]).int())
        keep(hidden)  # token_logprobs does
    measured = sum(s.nbytes() for key, s in saved.items() if key not in weights)
    stream = 4 * tokens * d
    heads = 4 * tokens * 32  # a head of q, k or v; there are 4 + 2 + 2
    cpu_only = 0 if checkpointing else layers * 4 * heads
    ours = part(job, "activations")[0] - stream  # less the gradient that enters the last layer
    assert measured - cpu_only == pytest.approx(ours, rel=0.03)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("chunk", [128, 512])
def test_logits_take_what_they_are_said_to(dtype, chunk):
    tokens, vocab, d = 512, 4096, 64
    flags = [f"--dtype={dtype}", f"--token_budget={tokens}", f"--logprob_chunk={chunk}"]
    job = small_job(flags, vocab_size=vocab, intermediate_size=64, num_hidden_layers=1)
    hidden, weight = (torch.randn(n, d).to(getattr(torch, dtype)).requires_grad_() for n in (tokens, vocab))
    targets = torch.randint(vocab, (tokens,))
    with PeakBytes() as counted:
        logprobs, entropy = token_logprobs(hidden, weight, targets, 0.6, chunk)
        (logprobs.sum() + entropy.sum()).backward()
    others = hidden.nbytes * 2 + weight.nbytes + 4 * weight.numel()  # hidden and its gradient, the head and its own
    assert counted.peak - others == pytest.approx(part(job, "logits")[0], rel=0.06)


@pytest.mark.parametrize("shape", [(64, 256, 512), (2048, 512, 64)])  # the layer's backward is the peak, the head's is
def test_a_whole_step_peaks_where_the_plan_says(shape):
    """Forward and backward with checkpointing, without FSDP: activations, logits and gradients at the worst moment."""
    vocab, chunk, width = shape
    tokens = 1024
    flags = ["--dtype=float32", f"--token_budget={tokens}", f"--logprob_chunk={chunk}"]
    job = small_job(flags, vocab_size=vocab, intermediate_size=width, num_hidden_layers=6)
    model = job.model
    model.set_activation_checkpointing(True)
    ids = torch.randint(vocab, (tokens,))
    with PeakBytes() as counted:
        # Of short sequences, since a CPU's attention, unlike a GPU's, has its scores in memory for a moment.
        hidden = model(ids, torch.arange(tokens) % 32, torch.arange(0, tokens + 1, 32).int())
        logprobs, entropy = token_logprobs(hidden, model.lm_head.weight, ids, 1.0, chunk)
        del hidden
        (logprobs.sum() + entropy.sum()).backward()
    ours = [a + b for a, b in zip(part(job, "activations"), part(job, "logits"), strict=True)]
    # A layer's gradient is small here.
    weights_and_head_gradient = 4 * memory.num_params(model) + 4 * memory.num_params(model.lm_head)
    assert (ours[0] > ours[1]) == (vocab == 2048)
    assert counted.peak - weights_and_head_gradient == pytest.approx(max(ours), rel=0.15)


def test_the_memory_of_the_published_8k_run_is_near_the_notes():
    """notes/performance.md, a model of 8 A100s at 32,768 tokens: 84 GiB of activations eager, 5.4 with checkpointing of
    whole layers, 14.6 together where attention's outputs are kept too and vLLM is not counted."""
    job = only_job("configs/8k.py", "--gpus=8")
    eager = replace(job, cfg=replace(job.cfg, activation_checkpointing=False))
    assert part(eager, "activations")[0] / 2**30 == pytest.approx(84, rel=0.08)
    assert part(job, "activations")[1] / 2**30 == pytest.approx(5.4 + 1.2, rel=0.05)  # and the gradients of one MLP
    assert memory.trainer_peak(job) == pytest.approx(14.6 + memory.ASLEEP, rel=0.08)


# ------------------------------------------------------------------------------------------------------- fits or not


DOES_NOT_FIT = [
    "--gpu=a100-40 --gpus=32 --activation_checkpointing=false",
    "--gpu=a100-40 --gpus=32 --token_budget=262144 --logprob_chunk=8192",
    "--gpu=a100-40 --gpus=8 --logprob_chunk=32768",
    "--gpu=h100 --gpus=32 --shard_size=1 --vllm_gpu_memory_utilization=0.9",
    "--gpu=a100-80 --gpus=32 --vllm_gpu_memory_utilization=0.07",
    "--gpu=a100-80 --gpus=8 --sampler=torch --token_budget=200000",
    "--gpu=a100-40 --gpus=1 --vllm_gpu_memory_utilization=0.93 --activation_checkpointing=false",
    "--gpu=a100-40 --gpus=4 --sampler=torch --max_num_seqs=512 --token_budget=500000 --logprob_chunk=16384",
]


def with_changes(flags: list[str], changes: list[str]) -> list[str]:
    names = {change.split("=")[0] for change in changes}
    return ["configs/24k.py", *(flag for flag in flags if flag.split("=")[0] not in names), *changes]


@pytest.mark.parametrize("flags", DOES_NOT_FIT)
def test_what_does_not_fit_is_said_with_settings_that_really_help(flags, capsys):
    flags = flags.split()
    printed = report("configs/24k.py", *flags, capsys=capsys)
    assert "DOES NOT FIT" in printed
    advice = re.search(r"^it would fit with (.*)$", printed, re.MULTILINE)[1]
    assert advice.startswith("--")
    for way in advice.split(" or "):
        changes = way.split()
        fixed = with_changes(flags, changes)
        assert memory.misfits(only_job(*fixed)) == [], way
        printed = report(*fixed, capsys=capsys)
        assert "DOES NOT FIT" not in printed and " spare: fits" in printed
        for change in changes:  # none of them is there for nothing
            others = [other for other in changes if other != change]
            assert memory.misfits(only_job(*with_changes(flags, others))), (way, change)


def test_the_advice_is_the_mildest():
    """One step less of it does not fit."""
    job = only_job("configs/24k.py", "--gpu=a100-40", "--gpus=32", "--token_budget=262144")
    (budget,) = [way["token_budget"] for way in memory.remedies(job) if "token_budget" in way]
    assert memory.misfits(memory.changed(job, {"token_budget": budget})) == []
    assert memory.misfits(memory.changed(job, {"token_budget": budget + 2048}))


def test_advice_for_a_huge_pack_takes_few_tries(monkeypatch):
    job, tries = only_job("configs/8k.py", "--token_budget=4000000"), []
    misfits = memory.misfits
    monkeypatch.setattr(memory, "misfits", lambda job: tries.append(job) or misfits(job))
    (way,) = memory.remedies(job)
    assert way["token_budget"] < 400_000 and len(tries) < 100  # of some 2,000 values


def test_no_advice_goes_below_what_the_config_accepts_or_where_nothing_helps(capsys):
    job = only_job("configs/24k.py", "--gpu=a100-40", "--gpus=32", "--token_budget=30000")
    assert memory.settings_to_try(job)["token_budget"] == [28_672, 26_624, 25_600]
    huge = replace(job, gpu=replace(job.gpu, memory=2.0))
    assert memory.remedies(huge) == [] and "it would fit with a larger GPU only" in memory.report(huge)


def test_a_dense_cache_is_counted_slot_by_slot():
    job = only_job("configs/24k.py", "--gpus=32", "--sampler=torch", "--max_num_seqs=48")
    cache = 48 * (1024 + 24_576) * 28_672
    *trainer, awake = part(job, "sampler")
    assert job.cache_tokens * 28_672 == cache
    assert awake == pytest.approx(cache + 2 * 1_777_088_000 + 2 * 36 * 48 * 151_936)
    assert set(trainer) == {2 * 1_777_088_000}


# ------------------------------------------------------------------------------------------------------------- time


PACK = [9216, 9216, 9216, 5120]  # tokens of the sequences in a full pack


@pytest.mark.parametrize("gpu, seconds", [("a100-80", 2.83), ("h100", 1.32), ("h200", 1.15)])
def test_a_pack_takes_as_long_as_its_parts_were_counted_to(gpu, seconds):
    """notes/cuda.md, a model: head 61 TFLOP and 829 GB, body 318 TFLOP and about 650 GB, attention 109 TFLOP, each at
    the rates that others have measured on these cards."""
    job = only_job("configs/8k.py", f"--gpu={gpu}")
    assert plan.kernel_seconds(job, PACK, training=True) == pytest.approx(seconds, rel=0.05)


def kernel_parts(*flags: str, training: bool = True) -> tuple[float, float]:
    """FLOPs at the peak, attention's too, and bytes of a full pack: its seconds where the other costs nothing."""
    job = only_job("configs/8k.py", "--attention=fa4", *flags)
    fast_memory = replace(job, gpu=replace(job.gpu, peak=1.0, bandwidth=math.inf))
    fast_products = replace(job, gpu=replace(job.gpu, peak=math.inf, bandwidth=1 / plan.BANDWIDTH_SHARE))
    return tuple(plan.kernel_seconds(other, PACK, training) for other in (fast_memory, fast_products))


def test_a_pack_s_products_and_traffic_are_those_counted():
    """notes/cuda.md: recomputation leaves out each layer's last product; attention's backward pass is 2.5 forward."""
    flops, traffic = kernel_parts()
    assert flops == pytest.approx((61e12 + 318e12) / plan.PRODUCT_SHARE + 109e12 / plan.ATTENTION_SHARE, rel=0.005)
    assert traffic == pytest.approx(829e9 + 650e9, rel=0.03)
    kept, less_traffic = kernel_parts("--activation_checkpointing=false")
    forward = sum(PACK) * 28 * 2 * (1536 * (2 * 1536 + 2 * 256) + 3 * 1536 * 8960)
    attention, head = 28 * 2 * 1536 * sum(n * n for n in PACK), sum(PACK) * 2 * 1536 * 151_936
    products = (3 * forward + 4 * head) / plan.PRODUCT_SHARE
    assert kept == pytest.approx(products + 3.5 * attention / plan.ATTENTION_SHARE, rel=1e-9)
    of_layers = less_traffic - 166 * sum(PACK) * 151_936
    assert traffic - less_traffic == pytest.approx(of_layers / 2.5)  # a forward pass more
    assert kernel_parts("--compile=head")[1] == pytest.approx(traffic - 150 * sum(PACK) * 151_936)
    assert kernel_parts("--compile=layers")[1] < 0.6 * kernel_parts("--compile=head")[1]
    assert kernel_parts("--compile=layers")[0] == flops
    scored, read = kernel_parts(training=False)
    assert scored == pytest.approx((forward + head) / plan.PRODUCT_SHARE + attention / plan.ATTENTION_SHARE, rel=1e-9)
    assert read == pytest.approx(46 * sum(PACK) * 151_936 + of_layers / 2.5)


def test_flash_attention_2_is_slow_on_hopper_alone():
    for gpu, gain in (("a100-80", 0), ("h100", 0.13), ("h200", 0.13)):  # notes/cuda.md: 0.32 -> 0.19 s with version 4
        fa2, fa4 = (only_job("configs/8k.py", f"--gpu={gpu}", *flag) for flag in ([], ["--attention=fa4"]))
        less = plan.kernel_seconds(fa2, PACK, training=True) - plan.kernel_seconds(fa4, PACK, training=True)
        assert less == pytest.approx(gain, abs=0.01)


def test_a_step_s_passes_are_shared_by_the_gpus():
    job = only_job("configs/16k.py", "--gpus=32", "--kl_coef=0", "--minibatches=1")
    lengths = [n + plan.PROMPT - 1 for n in plan.response_lengths(4500, 16_384, 2048)]
    scoring, training = (plan.kernel_seconds(job, lengths, training) / 32 for training in (False, True))
    seconds = plan.step_seconds(job, plan.GOOD)
    assert (seconds["train"], seconds["logprobs"]) == (training, 0)
    assert seconds["checkpoint"] == pytest.approx(16 * 1_777_088_000 / plan.DISK / 10)  # weights, moments, export
    other = replace(job, cfg=replace(job.cfg, minibatches=4, kl_coef=0.1), reference=job.model)
    assert plan.step_seconds(other, plan.GOOD)["logprobs"] == pytest.approx(1.75 * scoring)
    poor = plan.step_seconds(other, plan.POOR)
    assert poor["train"] == pytest.approx(1.5 * training) and poor["logprobs"] == pytest.approx(1.5 * 1.75 * scoring)


@pytest.mark.parametrize("mean, limit, count", [(4500, 16_384, 2048), (5500, 8192, 128), (30, 64, 7), (10, 10, 4)])
def test_lengths_have_the_mean_they_should(mean, limit, count):
    lengths = plan.response_lengths(mean, limit, count)
    assert len(lengths) == count and fmean(lengths) == pytest.approx(mean, rel=0.02)
    assert lengths == sorted(lengths, reverse=True) and 1 <= lengths[-1] and lengths[0] <= limit
    if count > 1000:  # the published share of cut responses at 16K: up to 2%
        assert 0.005 < sum(n == limit for n in lengths) / count < 0.03


def token_by_token(lengths, prompt, slots, capacity, seconds_of_step):
    """The engine as one would write it down: every step, every sequence."""
    waiting, live, seconds = list(lengths), [], 0.0  # live: [made, wanted]
    while waiting or live:
        while waiting and len(live) < slots:
            reserved = sum(prompt + wanted for _, wanted in live)
            if live and reserved + prompt + waiting[0] > capacity:
                break
            live.append([0, waiting.pop(0)])
        for sequence in live:
            sequence[0] += 1
        seconds += seconds_of_step(len(live), sum(prompt + made for made, _ in live))
        live = [s for s in live if s[0] < s[1]]
    return seconds


@pytest.mark.parametrize("slots, capacity", [(100, math.inf), (3, math.inf), (100, 95), (4, 120), (1, 1)])
@pytest.mark.parametrize("read, product", [(0.3, 0.05), (0.01, 0.2)])
def test_the_engine_equals_one_that_goes_token_by_token(slots, capacity, read, product):
    def seconds_of_step(live, cached):
        return max(read, product * live) + 0.02 + 0.001 * cached

    lengths = [5, 17, 1, 30, 30, 2, 9, 11, 30, 4, 8, 23]
    engine = generation.Engine(7, slots, capacity, seconds_of_step, lambda tokens: math.nan)
    decoding = generation.SimulatedDecoding(engine, [generation.Sample(n) for n in lengths])
    while decoding.live:
        decoding.advance()
    assert decoding.seconds == pytest.approx(token_by_token(lengths, 7, slots, capacity, seconds_of_step), rel=1e-12)


def test_generation_lasts_as_long_as_the_longest_response():
    job = only_job("configs/24k.py", "--gpus=32")
    seconds = plan.generate(job, 5500, 24_576, 128, 16, 0.014)
    assert seconds > 24_576 * (0.014 + 2 * (1_777_088_000 - 151_936 * 1536) / 2.039e12)
    few_slots = only_job("configs/24k.py", "--gpus=32", "--max_num_seqs=16")
    assert plan.generate(few_slots, 5500, 24_576, 128, 16, 0.014) > 1.2 * seconds


def test_the_three_published_stages_cost_what_the_notes_say():
    """notes/performance.md: 1,303 to 1,447 A100-hours for a good stack, 3,791 for a poor one; reported: 3,800."""
    hours = dict.fromkeys(plan.STACKS, 0.0)
    for name, gpus in (("8k", 8), ("16k", 32), ("24k", 32)):
        job = only_job(f"configs/{name}.py", f"--gpus={gpus}")
        for kind, stack in plan.STACKS.items():
            hours[kind] += sum(plan.step_seconds(job, stack).values()) * job.cfg.stage_steps[0] * gpus / 3600
    assert hours["good"] == pytest.approx(1375, rel=0.1)
    assert hours["poor"] == pytest.approx(3791, rel=0.15)


# ----------------------------------------------------------------------------------------------------- command line


def test_every_stage_is_planned_on_its_own_gpus_and_max_steps_cuts(capsys):
    flags = "configs/24k.py --max_response_len=8192,16384 --group_size=8,16 --stage_steps=10,20 --stage_gpus=8,32"
    flags = [*flags.split(), "--mean_len=4000,3000", "--gpu_dollars_per_hour=2.5"]
    first, second = plan.stages(flags)
    assert (first.gpus, first.mean, first.cfg.max_response_len, first.cfg.stage_steps) == (8, 4000, (8192,), (10,))
    assert (second.gpus, second.mean, second.cfg.max_response_len) == (32, 3000, (16_384,))
    assert (first.cfg.group_size, second.cfg.group_size, second.cfg.stage_steps) == ((8,), (16,), (20,))
    printed = report(*flags, capsys=capsys)
    assert "at $2.50 a GPU-hour\n" in printed and "3,800 A100-hours" in printed
    costs = [float(x.replace(",", "")) for x in re.findall(r"^good: .* ([\d,]+) GPU-hours", printed, re.MULTILINE)]
    total = re.search(r"^all stages: good ([\d,]+) GPU-hours, \$([\d,]+)", printed, re.MULTILINE)
    assert len(costs) == 2 and float(total[1]) == pytest.approx(sum(costs), abs=1.1)
    assert float(total[2].replace(",", "")) == pytest.approx(2.5 * sum(costs), abs=4)
    assert [j.cfg.stage_steps for j in plan.stages([*flags, "--max_steps=15"])] == [(10,), (5,)]
    assert len(plan.stages([*flags, "--max_steps=10"])) == 1
    assert [j.gpus for j in plan.stages([*flags, "--gpus=16"])] == [16, 16]


def test_the_printed_parts_add_up(capsys):
    printed = report("configs/8k.py", "--gpus=8", capsys=capsys)
    assert "is not here: sizes of DeepSeek-R1-Distill-Qwen-1.5B, 1.777 B weights" in printed and "(assumed)" in printed
    assert len(printed.splitlines()) <= 45 and max(map(len, printed.splitlines())) <= 132
    table = printed[printed.index("GiB on a GPU") : printed.index("\n79.2 GiB")].splitlines()[1:]
    columns = [[float(line[34 + 12 * i :][:12].strip() or 0) for line in table] for i in range(5)]
    for *parts, together in columns:
        assert sum(parts) == pytest.approx(together, abs=0.06)
    for line in printed[: printed.index("\nDeepScaleR reported")].splitlines():
        assert "model" in line or not re.search("GiB|hours|s a step|a save", line)
    phases = [[float(x) for x in m] for m in re.findall(r"^[a-z, ]+ +([\d.]+) +([\d.]+)$", printed, re.MULTILINE)]
    good = re.search(r"^good: (\d+) s a step", printed, re.MULTILINE)
    assert sum(p[0] for p in phases) == pytest.approx(float(good[1]), abs=1)


def test_the_shape_of_a_model_folder_is_read(tiny_model_dir, capsys):
    flags = ["configs/tiny.py", f"--model={tiny_model_dir}", "--gpus=2"]
    jobs = plan.stages(flags)
    model = Qwen2(ModelConfig.from_folder(tiny_model_dir))
    assert len(jobs) == 3 and memory.num_params(jobs[0].model) == sum(p.numel() for p in model.parameters())
    printed = report(*flags, capsys=capsys)
    assert "is not here: sizes" not in printed and "runs on the CPU only" in printed and "nan" not in printed


def test_a_qwen3_folder_is_planned(tmp_path, capsys):
    """The sizes of Qwen3-0.6B: 596 M weights, the head being the embedding; eight kv heads of 128 in 28 layers."""
    raw = dict(model_type="qwen3", hidden_size=1024, num_hidden_layers=28, num_attention_heads=16, head_dim=128,
               num_key_value_heads=8, intermediate_size=3072, vocab_size=151_936, tie_word_embeddings=True)  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(raw))
    flags = ["configs/8k.py", f"--model={tmp_path}"]
    job = only_job(*flags)
    assert memory.num_params(job.model) == 596_049_920 and job.kv_bytes == 2 * 28 * 8 * 128 * 2
    assert f"{tmp_path}, 0.596 B weights, bfloat16\n" in report(*flags, capsys=capsys)


@pytest.mark.parametrize(
    "name, weights, kv_bytes",
    [
        ("Qwen/Qwen2.5-0.5B-Instruct", 494_032_768, 12_288),  # as their safetensors have it
        ("Qwen/Qwen2.5-1.5B-Instruct", 1_543_714_304, 28_672),
        ("Qwen/Qwen3-0.6B", 596_049_920, 114_688),
        ("Qwen/Qwen3-1.7B-Base", 1_720_574_976, 114_688),
    ],
)
def test_a_hub_model_is_planned_from_its_published_shape(name, weights, kv_bytes, capsys):
    job = only_job("configs/24k.py", f"--model={name}")
    assert memory.num_params(job.model) == weights and job.kv_bytes == kv_bytes
    printed = report("configs/24k.py", f"--model={name}", capsys=capsys)
    assert f"{name} is not here: sizes of {name.removeprefix('Qwen/')}, " in printed


@pytest.mark.parametrize("gpu", ["rtx4090", "rtx3090", "a10", "l4"])
def test_one_card_of_24_gb_trains_the_small_model_and_not_the_larger_one(gpu):
    card = ["configs/one_gpu.py", f"--gpu={gpu}", "--gpus=1"]
    job = only_job(*card)
    assert memory.misfits(job) == [] and 21 < job.gpu.memory < 24
    assert memory.misfits(only_job(*card, "--dtype=float16")) == []
    larger = only_job(*card, "--model=Qwen/Qwen2.5-1.5B-Instruct")
    without_reference = memory.changed(larger, {"kl_coef": 0.0})
    half_of_the_moments = part(larger, "Adam moments")[0] / 2 / 2**30
    assert memory.trainer_peak(without_reference) - half_of_the_moments > job.gpu.memory  # not even with both


REFUSED = {
    "--gpu=b200": "--gpu: 'b200' is not one of a100-40, a100-80, h100, h200",
    "--gpu=": "--gpu: ''",
    "--gpu=t4": "--gpu: t4 has no bfloat16: --dtype=float16",
    "--model=Qwen/Qwen9-900B": "--model: the shape of Qwen/Qwen9-900B is not known here",
    "--gpus=0": "--gpus: 0 is not 1 or more",
    "--gpus=-8": "--gpus: -8",
    "--gpus=x": "'x' is not an int",
    "--gpus=8.0": "not an int",
    "--gpus=12 --shard_size=8": "a multiple of shard_size=8",
    "--gpus=4 --shard_size=8": "a multiple of shard_size=8",
    "--mean_len=1,2": "--mean_len: '1,2'",
    "--mean_len=99999": "--mean_len",
    "--mean_len=0": "--mean_len",
    "--mean_len=": "--mean_len",
    "--gpu": "--gpu",
    "--gpus": "--gpus",
    "--nothing=1": "--nothing: no such setting",
    "--token_budget=100": "token_budget",
}


@pytest.mark.parametrize("flags, message", REFUSED.items())
def test_what_cannot_be_planned_is_refused(flags, message):
    with pytest.raises(UserError) as e:
        bench.main(["configs/16k.py", "--plan", *flags.split()])
    assert message in str(e.value) and "\n" not in str(e.value)


def test_the_command_ends_with_status_2_and_one_line_and_loads_no_vllm():
    argv = [sys.executable, "bench.py", "configs/16k.py", "--plan", "--gpu=tpu"]
    done = subprocess.run(argv, cwd=ROOT, env=ENV, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    code = "import sys, bench; bench.main(['configs/16k.py', '--plan']); assert 'vllm' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=ENV, capture_output=True).returncode == 0


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("[!_]*.py")), ids=lambda path: path.stem)
def test_every_config_can_be_planned(path):
    for job in plan.stages([str(path)]):
        seconds = plan.step_seconds(job, plan.GOOD)
        nothing_to_score = job.cfg.minibatches == 1 and not job.cfg.kl_coef
        assert (seconds.pop("logprobs") == 0) == nothing_to_score and min(seconds.values()) > 0


def test_stages_have_their_own_gpus_and_evaluations():
    jobs = plan.stages(["configs/faithful.py"])
    assert [job.gpus for job in jobs] == [8, 32, 32] and [job.eval_len for job in jobs] == [8192, 16384, 24576]
    assert [job.eval_len for job in plan.stages(["configs/deepscaler.py"])] == [24576] * 3
