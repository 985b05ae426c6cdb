"""How fast a config runs here: `python bench.py configs/tiny.py [--key=value ...]`, or the same under torchrun; and what
one would need elsewhere: `python bench.py configs/16k.py --plan --gpu=a100-80 --gpus=32 [--mean_len=4500]`.

The first runs a few real steps of train_grpo in a temporary run folder (nothing is saved or evaluated), and prints tokens/s of
generation and of training, the share of each phase, peak memory, and the FLOP rate against this machine's own matrix
product, measured in the same run. The first step warms up and is left out.

`--plan` computes, for every stage: the memory of a GPU, part by part, and which setting to change where it does not
fit; seconds a step; GPU-hours and dollars. It needs no GPU, loads no weights and no vLLM, and runs nothing.

Dimensions: T packed tokens, D hidden, H query heads, K key/value heads, E head size, F MLP, V vocabulary.
"""

import heapq
import json
import math
import os
import random
import resource
import shutil
import sys
import tempfile
from collections import namedtuple
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist, fmean

import torch

import train_grpo
from configs import Config, UserError, load_config, parse_flag, run
from model import DTYPES, PEAK_FLOPS, ModelConfig, Qwen2, matmul_flops

STEPS = 4  # the first one is not counted
PHASES = ("rollout", "tail", "reward", "logprobs", "train", "sync", "probe")


def peak_memory(device: torch.device) -> str:
    """The most this process ever held, in GiB: on its GPU, or resident on the CPU."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB on the GPU"
    unit = 1 if sys.platform == "darwin" else 1024
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.2f} GiB resident"


def table(rows: list[dict], cfg: Config, world: int, peak: float) -> str:
    """The report on the steps in `rows`; rates are those of all ranks together, `peak` is one rank's FLOP/s."""
    total = {key: sum(row[key] or 0 for row in rows) for key in rows[0] if key not in ("step", "stage")}
    forward = total["flops_trained"] / 3  # generation computes the tokens once, training as much three times
    passes = (cfg.minibatches - 1) / cfg.minibatches + bool(cfg.kl_coef)  # old and reference log-probabilities
    flops = {"rollout": forward, "logprobs": passes * forward, "train": total["flops_trained"]}
    tokens = {"rollout": total["tokens_generated"], "train": total["tokens_trained"]}
    lines = [f"{'phase':<10}{'s/step':>9}{'share':>8}{'tokens/s':>12}{'GFLOP/s':>10}{'of peak':>9}"]
    for phase in PHASES:
        seconds = max(total[f"time_{phase}"], 1e-9)
        line = f"{phase:<10}{seconds / len(rows):>9.3f}{seconds / total['time_step']:>8.1%}"
        line += f"{tokens[phase] / seconds:>12,.0f}" if phase in tokens else " " * 12
        if phase in flops:
            line += f"{flops[phase] / seconds / 1e9:>10,.1f}{flops[phase] / seconds / peak / world:>9.1%}"
        lines.append(line)
    rest = total["time_step"] - sum(total[f"time_{phase}"] for phase in PHASES)
    lines.append(f"{'rest':<10}{rest / len(rows):>9.3f}{rest / total['time_step']:>8.1%}")
    lines.append(f"{'step':<10}{total['time_step'] / len(rows):>9.3f}{1:>8.1%}"
                 f"{total['tokens_generated'] / total['time_step']:>12,.0f}")  # fmt: skip
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------------------ the plan

Gpu = namedtuple("Gpu", "memory bandwidth peak dollars")  # GiB torch sees, bytes/s, bf16 FLOP/s; an hour, assumed
GPUS = {"a100-40": Gpu(39.4, 1.555e12, PEAK_FLOPS["A100"], 1.3), "a100-80": Gpu(79.2, 2.039e12, PEAK_FLOPS["A100"], 1.8),
        "h100": Gpu(79.1, 3.35e12, PEAK_FLOPS["H100"], 3.0), "h200": Gpu(139.7, 4.8e12, PEAK_FLOPS["H200"], 3.8)}  # fmt: skip
Stack = namedtuple("Stack", "overhead share reward sync")  # how good the software is: seconds, and a share of the peak
STACKS = {"good": Stack(0.0025, 0.50, 2, 5), "poor": Stack(0.014, 0.33, 15, 20)}
R1_DISTILL = dict(model_type="qwen2", vocab_size=151936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28,
                  num_attention_heads=12, num_key_value_heads=2, tie_word_embeddings=False)  # fmt: skip
MOMENTS = ("head's bwd", "layer's bwd", "root's bwd", "optimizer", "generation")  # vLLM sleeps through the first four
GIB = 2**30
CONTEXT, ASLEEP, ENGINE, SPARE = 1.5, 1.5, 2.5, 0.05  # GiB, GiB, GiB, share of the memory
PROMPT, SIGMA, MEANS, MEAN_SHARE = 150, 0.7, {8192: 4500, 16384: 4500, 24576: 5500}, 0.45  # tokens but for the shares
BANDWIDTH_SHARE, DECODE_SHARE, TORCH_STEP, DISK = 0.9, 0.6, 0.025, 1e9  # of the peaks; seconds, bytes/s
DEEPSCALER_HOURS = 3800  # A100-hours, as reported
ASSUMED = f"""assumed, none of it measured (good | poor software):
- {CONTEXT} GiB for CUDA and NCCL; {ASLEEP} left of sleeping vLLM; {ENGINE} of its share for graphs and buffers
- flash or varlen attention, fused RMSNorm, 3 layers gathered; {SPARE:.0%} of the memory free for the allocator's fragments
- response lengths log-normal, sigma {SIGMA}, cut at the limit; means: middle of DeepScaleR's curves, else {MEAN_SHARE:.0%} of the limit
- prompts of {PROMPT} tokens, cached; all samples start at once, or wait until their whole length fits into the cache
- an engine step: the longer of weights and products ({DECODE_SHARE:.0%} of peak), KV ({BANDWIDTH_SHARE:.0%} of bandwidth), 2.5 | 14 ms (torch: 25)
- all ranks wait for the step's longest response; every sample is trained on; packs are balanced
- training and log-probabilities at 50% | 33% of the bf16 peak, recomputation counted; float32 has a sixteenth of it
- reward 2 | 15 s; sync with sleep, wake and probe 5 | 20 s; checkpoint and export written at {DISK / 1e9:.0f} GB/s
- evaluation: 30 problems where the file is not here, responses 1.5 times as long; base and final ones not counted"""


@dataclass(frozen=True)
class Job:
    cfg: Config  # of one stage
    model: Qwen2  # on the meta device: shapes, no weights
    gpus: int
    gpu: Gpu
    mean: float  # expected tokens of a response

    def weights(self) -> tuple[int, int, int]:
        """Parameters of the model, of a layer, of the head (the embedding itself where they are tied)."""
        layer = sum(p.numel() for p in self.model.model.layers[0].parameters())
        return sum(p.numel() for p in self.model.parameters()), layer, self.model.lm_head.weight.numel()

    def cache(self) -> tuple[int, int, float]:
        """Bytes of a token in the KV cache, tokens of the longest sequence, tokens that a rank's cache holds: vLLM's
        share without weights and buffers, or the torch sampler's slots, each as long as the longest sequence."""
        cfg, c, size = self.cfg, self.model.config, DTYPES[self.cfg.dtype].itemsize
        token, longest = 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim * size, cfg.max_prompt_len
        longest += cfg.max_response_len[0]
        if cfg.sampler == "torch":
            return token, longest, longest * min(cfg.sampler_slots, self.samples())
        free = (cfg.sampler_memory_share * self.gpu.memory - ENGINE) * GIB - size * self.weights()[0]
        return token, longest, max(0.0, free / token)

    def peak(self) -> float:
        """FLOP/s in the compute type; of float32 a sixteenth."""
        return self.gpu.peak / (16 if self.cfg.dtype == "float32" else 1)

    def samples(self) -> int:
        """What the fullest rank generates: whole groups."""
        return -(-self.cfg.prompts_per_step // self.gpus) * self.cfg.group_size[0]


def layer_bytes(c: ModelConfig, size: int) -> int:
    """Bytes a token that autograd keeps of a layer: inputs and outputs of both norms; q, k, v, attention's output; gate,
    its SiLU, up, their product. In float32: a head's logsumexp, the angles' cos and sin, a norm's scale."""
    heads = 2 * (c.num_attention_heads + c.num_key_value_heads) * c.head_dim
    return size * (4 * c.hidden_size + heads + 4 * c.intermediate_size) + 4 * (c.num_attention_heads + c.head_dim + 2)


def memory(job: Job) -> dict[str, tuple[float, ...]]:
    """Bytes of each part at each of MOMENTS."""
    cfg, c, size, tokens = job.cfg, job.model.config, DTYPES[job.cfg.dtype].itemsize, job.cfg.token_budget
    (total, layer, head), shards = job.weights(), cfg.shard_size or job.gpus
    root, rows = total - c.num_hidden_layers * layer, min(cfg.logprob_chunk, tokens)
    stream, whole = size * tokens * c.hidden_size, layer_bytes(c, size) * tokens  # a (T, D) tensor; all of a layer
    kept = 2 * stream + c.num_hidden_layers * (stream if cfg.activation_checkpointing else whole)
    # the layer in work: what it computes again, two (T, F) gradients more than it has freed, the residual's gradient
    work = (whole - stream) * cfg.activation_checkpointing + 2 * size * tokens * c.intermediate_size + stream
    gathered = size * (root + 3 * layer)  # in use, prefetched, the buffer they come in
    # Of a chunk's logits _TokenLogprobs.backward holds log-softmax and probabilities, and in bf16 the gradient. They
    # keep their names while the next chunk's logits are computed and cast; or the head's bf16 gradient is beside them.
    chunk, held, new = 4 * rows * c.vocab_size, *((2.0, 1.0) if size == 4 else (2.5, 1.5))
    logits = held * chunk + max(new * chunk * (rows < tokens), size * head)
    parts = {
        f"float32 weights / {shards}": (4 * total / shards,) * 5,
        f"Adam moments / {shards}": (8 * total / shards,) * 5,
        f"float32 gradients / {shards}": (4 * total / shards,) * 4 + (0,),
        "foreach temporaries of AdamW": (0, 0, 0, 4 * total / shards, 0),
        f"reference, {cfg.dtype} / {shards}": (size * total / shards * bool(cfg.kl_coef),) * 5,
        "gathered: root, 3 layers": (gathered, gathered, size * root, 0, 0),
        "gradients before reduce-scatter": (4 * head, size * head + (size + 8) * layer, (size + 4) * root, 0, 0),
        f"activations of {tokens:,} tokens": (kept + stream, kept + work, stream, 0, 0),
        f"logits of {rows:,} tokens": (logits, 0, 0, 0, 0),
        "CUDA, NCCL": (CONTEXT * GIB,) * 5,
    }
    if cfg.sampler == "vllm":
        return parts | {"vLLM": (ASLEEP * GIB,) * 4 + (cfg.sampler_memory_share * job.gpu.memory * GIB,)}
    token, _, held = job.cache()  # and 36 bytes a logit: float32, their log-softmax, float64 probabilities and sums
    awake = token * held + 36 * c.vocab_size * min(cfg.sampler_slots, job.samples())
    return parts | {"sampler: weights, cache, logits": (size * total,) * 4 + (size * total + awake,)}


def peaks(job: Job) -> tuple[float, float]:
    """GiB while the trainer works, and while the sampler does."""
    *trainer, generation = (sum(parts) / GIB for parts in zip(*memory(job).values(), strict=True))
    return max(trainer), generation


def misfits(job: Job) -> list[str]:
    """What does not fit into the GPU."""
    usable, (_, longest, held) = job.gpu.memory * (1 - SPARE), job.cache()
    found = [f"{who} takes {peak:.1f} GiB of {usable:.1f}"
             for who, peak in zip(("the trainer", "generation"), peaks(job), strict=True) if peak > usable]  # fmt: skip
    short = f"vLLM's cache of {held:,.0f} tokens holds no sequence of {longest:,}"
    return found + [short] * (held < longest)


def remedies(job: Job, least: int) -> list[str]:
    """Flags that make it fit, each alone at its mildest; else the first ones that do so together. `least`: tokens of the
    longest sequence of all stages, which a token budget must hold."""
    cfg, halves = job.cfg, [2**n for n in range(14, -1, -1)]
    choices: dict[str, list] = {
        "activation_checkpointing": [True],
        "logprob_chunk": [n for n in halves if 128 <= n < cfg.logprob_chunk],
        "token_budget": [*range((cfg.token_budget - 1) // 1024 * 1024, least, -1024), least],
        "sampler_memory_share": [x / 100 for x in range(90, 4, -5)] * (cfg.sampler == "vllm"),
        "sampler_slots": [n for n in halves if n < cfg.sampler_slots] * (cfg.sampler == "torch"),
        "shard_size": [0],
        "gpus": [job.gpus * n for n in (2, 4, 8, 16, 32, 64)],
    }

    def fits(change: dict) -> bool:
        settings = {k: v for k, v in change.items() if k != "gpus"}
        return not misfits(replace(job, cfg=replace(cfg, **settings), gpus=change.get("gpus", job.gpus)))

    found = [next(({k: v} for v in values if fits({k: v})), None) for k, values in choices.items()]
    if not any(found):
        extremes = [(k, values[-1]) for k, values in choices.items() if values]
        together = (dict(extremes[: n + 1]) for n in range(len(extremes)))
        found = [next((change for change in together if fits(change)), None)]
    return [" ".join(f"--{k}={str(v).lower()}" for k, v in change.items()) for change in found if change]


def response_lengths(mean: float, limit: int, count: int) -> list[int]:
    """Quantiles, the longest first, of the log-normal distribution that, cut at `limit`, has this mean (tokens)."""
    factors = [math.exp(SIGMA * NormalDist().inv_cdf((i + 0.5) / count)) for i in reversed(range(count))]
    low, high = 0.0, limit / factors[-1]  # the median is between them
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if fmean(min(limit, middle * f) for f in factors) < mean else (low, middle)
    return [min(limit, max(1, round(high * f))) for f in factors]


def engine_seconds(lengths: list[int], prompt: int, slots: int, capacity: float, product: float, token: float,
                   read: float, overhead: float) -> float:  # fmt: skip
    """Seconds of one engine for responses of these lengths, a token of every live one a step of max(product, token *
    live) + read * tokens cached for the live ones + overhead. In order, one starts as soon as a slot is free and all of
    it fits beside the others into `capacity` tokens. Between two ends the sum has a closed form."""
    waiting, live, used, now, seconds = lengths[::-1], [], 0, 0, 0.0  # live: heap of (end, start), in steps
    while waiting or live:
        while waiting and len(live) < slots and (not live or used + prompt + waiting[-1] <= capacity):
            used += prompt + waiting[-1]
            heapq.heappush(live, (now + waiting.pop(), now))
        steps, n, cached = live[0][0] - now, len(live), sum(prompt + now - start for _, start in live)
        seconds += steps * (max(product, token * n) + overhead)
        seconds += read * (steps * cached + n * steps * (steps + 1) / 2)
        now += steps
        while live and live[0][0] == now:
            used -= prompt + now - heapq.heappop(live)[1]
    return seconds


def generate(job: Job, mean: float, limit: int, prompts: int, group: int, overhead: float) -> float:
    """Seconds of the rank with the longest response for its share of `prompts`, `group` responses each."""
    cfg, (total, layer, head), (token, _, held) = job.cfg, job.weights(), job.cache()
    everyone, mine = response_lengths(mean, limit, prompts * group), -(-prompts // job.gpus) * group
    lengths = [everyone[i * len(everyone) // mine] for i in range(mine)]
    random.Random(0).shuffle(lengths)
    bandwidth, read = BANDWIDTH_SHARE * job.gpu.bandwidth, len(job.model.model.layers) * layer + head  # no embedding
    return engine_seconds(lengths, min(PROMPT, cfg.max_prompt_len), cfg.sampler_slots, held,
                          DTYPES[cfg.dtype].itemsize * read / bandwidth,
                          job.model.flops([1]) / (DECODE_SHARE * job.peak()), token / bandwidth,
                          overhead if cfg.sampler == "vllm" else TORCH_STEP)  # fmt: skip


def step_seconds(job: Job, stack: Stack) -> dict[str, float]:
    """Seconds of a step by phase."""
    cfg, limit, group = job.cfg, job.cfg.max_response_len[0], job.cfg.group_size[0]
    responses = response_lengths(job.mean, limit, cfg.prompts_per_step * group)
    tokens = [min(PROMPT, cfg.max_prompt_len) + n - 1 for n in responses]
    forward, head = job.model.flops(tokens), 2 * job.model.lm_head.weight.numel() * sum(tokens)
    rate, passes = job.gpus * stack.share * job.peak(), 1 - 1 / cfg.minibatches + bool(cfg.kl_coef)
    again = forward if cfg.activation_checkpointing else head  # logits are computed twice in any case
    files, evaluated = [Path(f) for f in cfg.eval_data], cfg.eval_max_len or limit
    problems = sum(len(f.read_bytes().splitlines()) if f.is_file() else 30 for f in files)
    evaluation = min(1.5 * job.mean, 0.8 * evaluated), evaluated, problems, cfg.eval_k, stack.overhead
    saved = (12 + DTYPES[cfg.export_dtype].itemsize) * job.weights()[0]  # bytes: weights, moments, export
    return {
        "generate, tail": generate(job, job.mean, limit, cfg.prompts_per_step, group, stack.overhead),
        "reward": stack.reward,
        "logprobs": passes * forward / rate,
        "train": (3 * forward + again) / rate,
        "sync": stack.sync,
        "checkpoint": saved / DISK / cfg.save_every if cfg.save_every else 0.0,
        "evaluation": generate(job, *evaluation) / cfg.eval_every if cfg.eval_every else 0.0,
    }


def report(job: Job, least: int) -> tuple[list[str], list[float]]:
    """The lines on one stage, and its GPU-hours for each of STACKS."""
    cfg, parts, problems, (_, longest, held) = job.cfg, memory(job), misfits(job), job.cache()
    lines = [f"{'GiB on a GPU':<34}" + "".join(f"{m:>12}" for m in MOMENTS)]
    for name, row in (*parts.items(), ("together", tuple(map(sum, zip(*parts.values(), strict=True))))):
        lines.append(f"{name:<34}" + "".join(f"{x / GIB:>12.2f}" if x else " " * 12 for x in row))
    lines.append(
        f"{job.gpu.memory} GiB, {SPARE:.0%} spare: " + ("; ".join(["DOES NOT FIT", *problems]) if problems else "fits")
    )
    if problems:
        lines.append("would fit: " + (" or ".join(remedies(job, least)) or "on a larger GPU only"))
    other = replace(cfg, activation_checkpointing=not cfg.activation_checkpointing)
    lines += [f"with activation_checkpointing={str(other.activation_checkpointing).lower()} the trainer takes "
              f"{peaks(replace(job, cfg=other))[0]:.1f} GiB",
              f"KV cache: {held:,.0f} tokens = {held / longest:,.1f} sequences of {longest:,} (the longest), "
              f"{held / (job.mean + PROMPT):,.1f} of {job.mean + PROMPT:,.0f} (expected); slots {cfg.sampler_slots}, "
              f"samples of a rank {job.samples()}", "",
              f"{'seconds a step':<16}" + "".join(f"{name:>10}{'share':>8}" for name in STACKS)]  # fmt: skip
    columns = [step_seconds(job, stack) for stack in STACKS.values()]
    totals = [sum(phases.values()) for phases in columns]
    for phase in columns[0]:
        lines.append(
            f"{phase:<16}" + "".join(f"{p[phase]:>10.1f}{p[phase] / t:>8.1%}" for p, t in zip(columns, totals))
        )
    lines.append(f"{'step':<16}" + "".join(f"{t:>10.1f}{1:>8.1%}" for t in totals))
    return lines, [cfg.stage_steps[0] * t * job.gpus / 3600 for t in totals]


def stages(argv: list[str]) -> tuple[list[Job], str]:
    """A job for every stage, and the name of the GPU. Raises UserError."""
    flags = [a[2:].partition("=") for a in argv]
    mine = {name: value for name, _, value in flags if name in ("gpu", "gpus", "mean_len")}
    cfg = load_config([a for a, (name, _, _) in zip(argv, flags, strict=True) if name not in mine])
    kind, contexts = mine.get("gpu", "a100-80"), cfg.max_response_len
    if kind not in GPUS:
        raise UserError(f"--gpu: {kind!r} is not one of {', '.join(GPUS)}")
    gpus = cfg.stage_gpus or (8,) * len(contexts)
    if "gpus" in mine:
        gpus = (parse_flag("--gpus", int, mine["gpus"]),) * len(contexts)
    means = tuple(MEANS.get(n, MEAN_SHARE * n) for n in contexts)
    if "mean_len" in mine:
        means = parse_flag("--mean_len", tuple[int, ...], mine["mean_len"])
    if len(means) != len(contexts) or not all(1 <= m <= n for m, n in zip(means, contexts, strict=True)):
        raise UserError(f"--mean_len: {mine['mean_len']!r}: one number a stage, between 1 and its limit, of {contexts}")
    shape = ModelConfig.from_folder(cfg.model) if Path(cfg.model).is_dir() else ModelConfig.from_dict(R1_DISTILL)
    with torch.device("meta"):
        model = Qwen2(shape)
    jobs, left = [], cfg.total_steps
    for n, context, group, steps, mean in zip(gpus, contexts, cfg.group_size, cfg.stage_steps, means, strict=True):
        if n < 1 or n % (cfg.shard_size or n):
            raise UserError(f"--gpus: {n} is not 1 or more, and a multiple of shard_size={cfg.shard_size}")
        if left > 0:
            one = replace(cfg, max_response_len=context, group_size=group, stage_steps=min(steps, left), stage_gpus=())
            jobs.append(Job(one, model, n, GPUS[kind], mean))
        left -= steps
    return jobs, kind


def plan(argv: list[str]) -> None:
    """Print memory, time and cost of every stage. Raises UserError."""
    jobs, kind = stages(argv)
    cfg, least = jobs[0].cfg, max(job.cache()[1] for job in jobs)
    price, hours = cfg.gpu_dollars_per_hour or GPUS[kind].dollars, [0.0] * len(STACKS)
    known = "" if Path(cfg.model).is_dir() else " is not here: sizes of DeepSeek-R1-Distill-Qwen-1.5B"
    print(f"model: {cfg.model}{known}, {jobs[0].weights()[0] / 1e9:.4g} B weights, {cfg.dtype}")
    if cfg.dtype == "float32":
        print("float32 runs on the CPU only: this is what a GPU would take; --dtype=bfloat16 runs on it")
    for job in jobs:
        steps, n, c = job.cfg.stage_steps[0], job.gpus, job.cfg
        lines, costs = report(job, least)
        print(f"\ncontext {c.max_response_len[0]}: {steps} steps of {c.prompts_per_step} prompts x {c.group_size[0]} "
              f"samples of {job.mean:,.0f} tokens on {n} x {kind}", *lines, sep="\n")  # fmt: skip
        for name, cost in zip(STACKS, costs, strict=True):
            print(f"{name}: {cost:,.0f} GPU-hours = {cost / n:,.1f} hours on {n} GPUs, ${cost * price:,.0f}")
        hours = [a + b for a, b in zip(hours, costs, strict=True)]
    every = ", ".join(f"{name} {h:,.0f} GPU-hours ${h * price:,.0f}" for name, h in zip(STACKS, hours, strict=True))
    print(f"\nall stages: {every}; at ${price:.2f} a GPU-hour{'' if cfg.gpu_dollars_per_hour else ' (assumed)'}. "
          f"DeepScaleR: {DEEPSCALER_HOURS:,} A100-hours (8K on 8 GPUs, 16K and 24K on 32)", ASSUMED, sep="\n")  # fmt: skip


def main(argv: list[str]) -> None:
    if "--plan" in argv:
        return plan([a for a in argv if a != "--plan"])
    cfg = load_config(argv)
    folder = Path(tempfile.gettempdir()) / f"nanoscaler-bench-{os.getppid()}"  # the same for all ranks of a node
    overrides = dict(out_dir=folder, run_name="bench", max_steps=STEPS, resume="false", smoke="false")
    overrides |= dict.fromkeys(("eval_every", "save_every", "save_rollouts_every"), 0)
    try:
        train_grpo.main([*argv, *(f"--{key}={value}" for key, value in overrides.items())])
        if os.environ.get("RANK", "0") != "0":
            return
        rows = [json.loads(line) for line in (folder / "bench" / "metrics.jsonl").read_text().splitlines()][1:]
    finally:
        if os.environ.get("RANK", "0") == "0":
            shutil.rmtree(folder, ignore_errors=True)
    if not rows:
        raise UserError(f"stage_steps: the bench needs at least 2 steps, {cfg.total_steps} asked for")
    world = int(os.environ.get("WORLD_SIZE", "1"))
    device = torch.device("cuda" if torch.cuda.is_available() and cfg.device == "auto" else "cpu")
    peak = matmul_flops(device, DTYPES[cfg.dtype])
    samples = f"{cfg.prompts_per_step} prompts x {cfg.group_size[0]} samples, context {cfg.max_response_len[0]}"
    print(f"\n{len(rows)} steps of {samples}, {world} x {device.type}, {cfg.dtype}, {torch.get_num_threads()} threads")
    print(table(rows, cfg, world, peak))
    print(f"peak: {peak / 1e9:,.0f} GFLOP/s a rank, the best {cfg.dtype} matrix product here, just now")
    print(f"peak memory of rank 0: {peak_memory(device)}")


if __name__ == "__main__":
    run(main)
