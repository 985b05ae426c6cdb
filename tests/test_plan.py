"""`bench.py --plan`: its formulas against the real model, autograd's own memory and a slow simulation; its refusals."""

import math
import re
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

import bench
from configs import UserError
from model import ModelConfig, Qwen2, token_logprobs
from test_train import ENV, ROOT
from training import plan


def report(*flags: str, capsys) -> str:
    bench.main([*flags, "--plan"])
    return capsys.readouterr().out


def small_job(flags: list[str], **shape: int) -> plan.Job:
    """A job of a small model, one GPU, no sampler's or CUDA's share in what is compared below."""
    (job,), _ = plan.stages(["configs/24k.py", "--gpus=1", "--max_prompt_len=1", "--max_response_len=1", *flags])
    raw = plan.R1_DISTILL | dict(num_attention_heads=4, num_key_value_heads=2, hidden_size=64) | shape
    model = Qwen2(ModelConfig.from_dict(raw))
    modules = (model, model.model.layers[0], model.lm_head)
    return replace(job, model=model, weights=tuple(sum(p.numel() for p in m.parameters()) for m in modules))


def row(job: plan.Job, name: str) -> tuple[float, ...]:
    (found,) = [v for k, v in plan.memory(job).items() if k.startswith(name)]
    return found


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
    (job,), _ = plan.stages(["configs/16k.py"])
    h, f, v, kv = 1536, 8960, 151_936, 256
    layer = 2 * (h * h) + h + 2 * (h * kv + kv) + 3 * h * f + 2 * h
    assert job.weights == (2 * v * h + 28 * layer + h, layer, v * h) and job.weights[0] == 1_777_088_000
    assert all(p.is_meta for p in job.model.parameters())
    assert job.cache()[0] == 28_672  # bytes of a token in the KV cache, notes/performance.md


def test_sharding_divides_what_is_sharded_and_hsdp_divides_by_its_row():
    (wide,), _ = plan.stages(["configs/16k.py", "--gpus=32"])
    (rows,), _ = plan.stages(["configs/16k.py", "--gpus=32", "--shard_size=8"])
    (eight,), _ = plan.stages(["configs/16k.py", "--gpus=8"])
    for name, size in (("float32 weights", 4), ("Adam moments", 8), ("float32 gradients", 4), ("reference", 2)):
        assert row(wide, name)[0] == size * 1_777_088_000 / 32
        assert row(rows, name)[0] == row(eight, name)[0] == size * 1_777_088_000 / 8
    assert sum(row(eight, n)[0] for n in ("float32 w", "Adam", "float32 g")) / 2**30 == pytest.approx(3.3, abs=0.02)
    (free,), _ = plan.stages(["configs/16k.py", "--kl_coef=0"])
    assert row(free, "reference") == (0, 0, 0, 0, 0)


# ----------------------------------------------------------------------------------------------------- memory, measured


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_what_autograd_saves(checkpointing):
    """In float32, where CPU and GPU differ least. What the CPU keeps beside a GPU is taken off: its RMSNorm is made of
    parts and keeps the normalized input too, its attention keeps the output once more and indices of rows."""
    tokens, d, layers = 512, 64, 4
    job = small_job(["--dtype=float32", f"--token_budget={tokens}", f"--activation_checkpointing={checkpointing}"],
                    vocab_size=50, intermediate_size=256, num_hidden_layers=layers)  # fmt: skip
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
    cpu_only = stream + (0 if checkpointing else layers * 3 * stream)  # norms: one, two a layer; attention: one a layer
    ours = row(job, "activations")[0] - stream  # less the gradient that enters the last layer
    assert measured - cpu_only == pytest.approx(ours, rel=0.03)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("chunk", [128, 512])
def test_logits_take_what_they_are_said_to(dtype, chunk):
    tokens, vocab, d = 512, 4096, 64
    job = small_job([f"--dtype={dtype}", f"--token_budget={tokens}", f"--logprob_chunk={chunk}"],
                    vocab_size=vocab, intermediate_size=64, num_hidden_layers=1)  # fmt: skip
    hidden, weight = (torch.randn(n, d).to(getattr(torch, dtype)).requires_grad_() for n in (tokens, vocab))
    targets = torch.randint(vocab, (tokens,))
    with PeakBytes() as seen:
        logprobs, entropy = token_logprobs(hidden, weight, targets, 0.6, chunk)
        (logprobs.sum() + entropy.sum()).backward()
    others = hidden.nbytes * 2 + weight.nbytes + 4 * weight.numel()  # hidden and its gradient, the head and its own
    assert seen.peak - others == pytest.approx(row(job, "logits")[0], rel=0.06)


@pytest.mark.parametrize("shape", [(64, 256, 512), (2048, 512, 64)])  # the layer's backward is the peak, the head's is
def test_a_whole_step_peaks_where_the_plan_says(shape):
    """Forward and backward with checkpointing, without FSDP: activations, logits and gradients at the worst moment."""
    vocab, chunk, width = shape
    tokens = 1024
    job = small_job(["--dtype=float32", f"--token_budget={tokens}", f"--logprob_chunk={chunk}"],
                    vocab_size=vocab, intermediate_size=width, num_hidden_layers=6)  # fmt: skip
    model = job.model
    model.set_activation_checkpointing(True)
    ids = torch.randint(vocab, (tokens,))
    with PeakBytes() as seen:
        hidden = model(ids, torch.arange(tokens), torch.tensor([0, tokens]).int())
        logprobs, entropy = token_logprobs(hidden, model.lm_head.weight, ids, 1.0, chunk)
        del hidden
        (logprobs.sum() + entropy.sum()).backward()
    ours = [a + b for a, b in zip(row(job, "activations"), row(job, "logits"), strict=True)]
    weights = 4 * job.weights[0] + 4 * job.weights[2]  # and the head's gradient; a layer's is small here
    assert (ours[0] > ours[1]) == (vocab == 2048)
    assert seen.peak - weights == pytest.approx(max(ours), rel=0.15)


def test_the_memory_of_the_published_8k_run_is_near_the_notes():
    """notes/performance.md, a model of 8 A100s at 32,768 tokens: 84 GiB of activations eager, 5.4 with checkpointing of
    whole layers, 14.6 together where attention's outputs are kept too and vLLM is not counted."""
    (job,), _ = plan.stages(["configs/8k.py", "--gpus=8"])
    eager = replace(job, cfg=replace(job.cfg, activation_checkpointing=False))
    assert row(eager, "activations")[0] / 2**30 == pytest.approx(84, rel=0.08)
    assert row(job, "activations")[1] / 2**30 == pytest.approx(5.4 + 1.2, rel=0.05)  # and the gradients of one MLP
    assert plan.misfits(job)[1] == pytest.approx(14.6 + plan.ASLEEP, rel=0.08)


# ------------------------------------------------------------------------------------------------------- fits or not


@pytest.mark.parametrize("flags", [
    ["--gpu=a100-40", "--gpus=32", "--activation_checkpointing=false"],
    ["--gpu=a100-40", "--gpus=32", "--token_budget=262144", "--logprob_chunk=8192"],
    ["--gpu=a100-40", "--gpus=8", "--logprob_chunk=32768"],
    ["--gpu=h100", "--gpus=32", "--shard_size=1", "--vllm_gpu_memory_utilization=0.9"],
    ["--gpu=a100-80", "--gpus=32", "--vllm_gpu_memory_utilization=0.07"],
    ["--gpu=a100-80", "--gpus=8", "--sampler=torch", "--token_budget=200000"],
    ["--gpu=a100-40", "--gpus=1", "--vllm_gpu_memory_utilization=0.93", "--activation_checkpointing=false"],
])  # fmt: skip
def test_what_does_not_fit_is_said_with_settings_that_really_help(flags, capsys):
    said = report("configs/24k.py", *flags, capsys=capsys)
    assert "DOES NOT FIT" in said
    advice = re.search(r"^it would fit with (.*)$", said, re.MULTILINE)[1]
    assert advice.startswith("--")
    for change in advice.split(" or "):
        names = {f.split("=")[0] for f in change.split()}
        fixed = [f for f in flags if f.split("=")[0] not in names] + change.split()
        (job,), _ = plan.stages(["configs/24k.py", *fixed])
        assert plan.misfits(job)[0] == [], change
        said = report("configs/24k.py", *fixed, capsys=capsys)
        assert "DOES NOT FIT" not in said and " spare: fits" in said


def test_the_advice_is_the_mildest():
    """One step less of it does not fit."""
    (job,), _ = plan.stages(["configs/24k.py", "--gpu=a100-40", "--gpus=32", "--token_budget=262144"])
    (change,) = [c for c in plan.remedies(job, 25_600) if "token_budget" in c]
    budget = int(change.split("=")[1])
    assert plan.misfits(replace(job, cfg=replace(job.cfg, token_budget=budget)))[0] == []
    assert plan.misfits(replace(job, cfg=replace(job.cfg, token_budget=budget + 2048)))[0]


def test_a_dense_cache_is_counted_slot_by_slot():
    (job,), _ = plan.stages(["configs/24k.py", "--gpus=32", "--sampler=torch", "--max_num_seqs=48"])
    cache = 48 * (1024 + 24_576) * 28_672
    _, *trainer, awake = row(job, "sampler")
    assert job.cache()[2] * 28_672 == cache
    assert awake == pytest.approx(cache + 2 * 1_777_088_000 + 36 * 48 * 151_936)
    assert set(trainer) == {2 * 1_777_088_000}


# ------------------------------------------------------------------------------------------------------------- time


def test_flops_are_the_models():
    (job,), _ = plan.stages(["configs/16k.py", "--gpus=32", "--kl_coef=0", "--minibatches=1"])
    responses = plan.response_lengths(4500, 16_384, 2048)
    forward = Qwen2.flops(job.model, [n + plan.PROMPT - 1 for n in responses])
    rate = 32 * plan.STACKS["good"].share * 312e12
    seconds = plan.step_seconds(job, plan.STACKS["good"])
    assert (seconds["train"], seconds["logprobs"]) == (pytest.approx(4 * forward / rate), 0)
    assert seconds["checkpoint"] == pytest.approx(16 * 1_777_088_000 / plan.DISK / 10)  # weights, moments, export
    other = replace(job, cfg=replace(job.cfg, activation_checkpointing=False, minibatches=4, kl_coef=0.1))
    seconds = plan.step_seconds(other, plan.STACKS["good"])
    head = 2 * 1536 * 151_936 * sum(n + plan.PROMPT - 1 for n in responses)
    assert seconds["train"] == pytest.approx((3 * forward + head) / rate)
    assert seconds["logprobs"] == pytest.approx(1.75 * forward / rate)


@pytest.mark.parametrize("mean, limit, count", [(4500, 16_384, 2048), (5500, 8192, 128), (30, 64, 7), (10, 10, 4)])
def test_lengths_have_the_mean_they_should(mean, limit, count):
    lengths = plan.response_lengths(mean, limit, count)
    assert len(lengths) == count and fmean(lengths) == pytest.approx(mean, rel=0.02)
    assert lengths == sorted(lengths, reverse=True) and 1 <= lengths[-1] and lengths[0] <= limit
    if count > 1000:  # the published share of cut responses at 16K: up to 2%
        assert 0.005 < sum(n == limit for n in lengths) / count < 0.03


def token_by_token(lengths, prompt, slots, capacity, product, token, read, overhead):
    """The engine as one would write it down: every step, every sequence."""
    waiting, live, seconds = list(lengths), [], 0.0  # live: [made, wanted]
    while waiting or live:
        while waiting and len(live) < slots:
            reserved = sum(prompt + wanted for _, wanted in live)
            if live and reserved + prompt + waiting[0] > capacity:
                break
            live.append([0, waiting.pop(0)])
        seconds += max(product, token * len(live)) + overhead
        for sequence in live:
            sequence[0] += 1
            seconds += read * (prompt + sequence[0])
        live = [s for s in live if s[0] < s[1]]
    return seconds


@pytest.mark.parametrize("slots, capacity", [(100, math.inf), (3, math.inf), (100, 95), (4, 120), (1, 1)])
def test_the_engine_equals_one_that_goes_token_by_token(slots, capacity):
    lengths = [5, 17, 1, 30, 30, 2, 9, 11, 30, 4, 8, 23]
    for product, token in ((0.3, 0.05), (0.01, 0.2)):
        args = (lengths, 7, slots, capacity, product, token, 0.001, 0.02)
        assert plan.engine_seconds(*args) == pytest.approx(token_by_token(*args), rel=1e-12)


def test_generation_lasts_as_long_as_the_longest_response():
    (job,), _ = plan.stages(["configs/24k.py", "--gpus=32"])
    seconds = plan.generate(job, 5500, 24_576, 128, 16, 0.014)
    assert seconds > 24_576 * (0.014 + 2 * (1_777_088_000 - 151_936 * 1536) / 2.039e12)
    (slotted,), _ = plan.stages(["configs/24k.py", "--gpus=32", "--max_num_seqs=16"])
    assert plan.generate(slotted, 5500, 24_576, 128, 16, 0.014) > 1.2 * seconds


def test_the_three_published_stages_cost_what_the_notes_say():
    """notes/performance.md: 1,303 to 1,447 A100-hours for a good stack, 3,791 for a poor one; reported: 3,800."""
    hours = dict.fromkeys(plan.STACKS, 0.0)
    for name, gpus in (("8k", 8), ("16k", 32), ("24k", 32)):
        (job,), _ = plan.stages([f"configs/{name}.py", f"--gpus={gpus}"])
        for kind, stack in plan.STACKS.items():
            hours[kind] += sum(plan.step_seconds(job, stack).values()) * job.cfg.stage_steps[0] * gpus / 3600
    assert hours["good"] == pytest.approx(1375, rel=0.1)
    assert hours["poor"] == pytest.approx(3791, rel=0.15)


# ----------------------------------------------------------------------------------------------------- command line


def test_every_stage_is_planned_on_its_own_gpus_and_max_steps_cuts(capsys):
    flags = ["configs/24k.py", "--max_response_len=8192,16384", "--group_size=8,16", "--stage_steps=10,20",
             "--stage_gpus=8,32", "--mean_len=4000,3000", "--gpu_dollars_per_hour=2.5"]  # fmt: skip
    jobs, kind = plan.stages(flags)
    assert [(j.gpus, j.mean, j.cfg.max_response_len, j.cfg.stage_steps) for j in jobs] == [
        (8, 4000, (8192,), (10,)), (32, 3000, (16_384,), (20,))]  # fmt: skip
    said = report(*flags, capsys=capsys)
    assert "at $2.50 a GPU-hour\n" in said and "3,800 A100-hours" in said
    costs = [float(x.replace(",", "")) for x in re.findall(r"^good: .* ([\d,]+) GPU-hours", said, re.MULTILINE)]
    total = re.search(r"^all stages: good ([\d,]+) GPU-hours, \$([\d,]+)", said, re.MULTILINE)
    assert len(costs) == 2 and float(total[1]) == pytest.approx(sum(costs), abs=1.1)
    assert float(total[2].replace(",", "")) == pytest.approx(2.5 * sum(costs), abs=4)
    assert [j.cfg.stage_steps for j in plan.stages([*flags, "--max_steps=15"])[0]] == [(10,), (5,)]
    assert len(plan.stages([*flags, "--max_steps=10"])[0]) == 1
    assert [j.gpus for j in plan.stages([*flags, "--gpus=16"])[0]] == [16, 16]


def test_the_printed_parts_add_up(capsys):
    said = report("configs/8k.py", "--gpus=8", capsys=capsys)
    assert "is not here: sizes of DeepSeek-R1-Distill-Qwen-1.5B, 1.777 B weights" in said and "(assumed)" in said
    assert len(said.splitlines()) <= 45 and max(map(len, said.splitlines())) <= 132
    table = said[said.index("GiB on a GPU") : said.index("\n79.2 GiB")].splitlines()[1:]
    columns = [[float(line[34 + 12 * i :][:12].strip() or 0) for line in table] for i in range(5)]
    for *parts, together in columns:
        assert sum(parts) == pytest.approx(together, abs=0.06)
    phases = [[float(x) for x in m] for m in re.findall(r"^[a-z, ]+ +([\d.]+) +([\d.]+)$", said, re.MULTILINE)]
    good = re.search(r"^good: (\d+) s a step", said, re.MULTILINE)
    assert sum(p[0] for p in phases) == pytest.approx(float(good[1]), abs=1)


def test_the_shape_of_a_model_folder_is_read(tiny_model_dir, capsys):
    flags = ["configs/tiny.py", f"--model={tiny_model_dir}", "--gpus=2"]
    jobs, _ = plan.stages(flags)
    model = Qwen2(ModelConfig.from_folder(tiny_model_dir))
    assert len(jobs) == 3 and jobs[0].weights[0] == sum(p.numel() for p in model.parameters())
    said = report(*flags, capsys=capsys)
    assert "is not here: sizes" not in said and "runs on the CPU only" in said and "nan" not in said


@pytest.mark.parametrize("flags, message", [
    (["--gpu=b200"], "--gpu: 'b200' is not one of a100-40, a100-80, h100, h200"), (["--gpu="], "--gpu: ''"),
    (["--gpus=0"], "--gpus: 0 is not 1 or more"), (["--gpus=-8"], "--gpus: -8"), (["--gpus=x"], "'x' is not an int"),
    (["--gpus=8.0"], "not an int"), (["--gpus=12", "--shard_size=8"], "a multiple of shard_size=8"),
    (["--gpus=4", "--shard_size=8"], "a multiple of shard_size=8"), (["--mean_len=1,2"], "--mean_len: '1,2'"),
    (["--mean_len=99999"], "--mean_len"), (["--mean_len=0"], "--mean_len"), (["--mean_len="], "--mean_len"),
    (["--gpu"], "--gpu"), (["--gpus"], "--gpus"), (["--nothing=1"], "--nothing: no such setting"),
    (["--token_budget=100"], "token_budget"),
])  # fmt: skip
def test_what_cannot_be_planned_is_refused(flags, message):
    with pytest.raises(UserError) as e:
        bench.main(["configs/16k.py", "--plan", *flags])
    assert message in str(e.value) and "\n" not in str(e.value)


def test_the_command_ends_with_status_2_and_one_line_and_loads_no_vllm():
    done = subprocess.run([sys.executable, "bench.py", "configs/16k.py", "--plan", "--gpu=tpu"], cwd=ROOT, env=ENV,
                          capture_output=True, text=True)  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    code = "import sys, bench; bench.main(['configs/16k.py', '--plan']); assert 'vllm' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=ENV, capture_output=True).returncode == 0


def test_every_config_can_be_planned():
    """Also those whose stages have other contexts, GPUs and evaluations; the published three as one."""
    for path in sorted(Path(plan.__file__).parent.glob("configs/[!_]*.py")):
        jobs, _ = plan.stages([str(path)])
        assert len(jobs) >= 1 and all(
            step > 0 for job in jobs for step in plan.step_seconds(job, plan.STACKS["good"]).values()
        ), path
    jobs, _ = plan.stages(["configs/faithful.py"])
    assert [job.gpus for job in jobs] == [8, 32, 32] and [job.eval_len for job in jobs] == [8192, 16384, 24576]
    jobs, _ = plan.stages(["configs/deepscaler.py"])
    assert [job.eval_len for job in jobs] == [24576] * 3
