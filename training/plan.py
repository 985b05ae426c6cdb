"""What a config needs on GPUs one has not rented yet, from arithmetic alone: nothing is loaded, no GPU is asked.

    python bench.py configs/16k.py --plan --gpu=a100-80 --gpus=32 [--mean_len=4500] [--key=value ...]

For every stage: memory by part and moment, what to change where it does not fit, seconds a step by phase for good and
for poor software, GPU-hours and dollars, and what all of it assumes. Memory counts what model.py and FSDP2 hold; time
is a roofline of each phase, generation a simulation of one engine.

Dimensions: T packed tokens, D hidden, F MLP.
"""

import math
import random
from bisect import bisect_left
from collections import namedtuple
from dataclasses import dataclass, replace
from itertools import combinations, product
from pathlib import Path
from statistics import NormalDist, fmean

import torch

from configs import Config, UserError, load_config, parse_flag
from model import DTYPES, PEAK_FLOPS, ModelConfig, Qwen2

# memory: GiB that torch sees; bandwidth: bytes/s; peak: bf16 FLOP/s (data sheets); dollars an hour: assumed
Gpu = namedtuple("Gpu", "memory bandwidth peak dollars")
GPUS = {
    "a100-40": Gpu(39.4, 1.555e12, PEAK_FLOPS["A100"], 1.3),
    "a100-80": Gpu(79.2, 2.039e12, PEAK_FLOPS["A100"], 1.8),
    "h100": Gpu(79.1, 3.35e12, PEAK_FLOPS["H100"], 3.0),
    "h200": Gpu(139.7, 4.8e12, PEAK_FLOPS["H200"], 3.8),
}
# overhead: seconds of an engine step beyond the roofline; share: of the peak in training; reward, sync: seconds a step
Stack = namedtuple("Stack", "overhead share reward sync")
STACKS = {"good": Stack(0.0025, 0.50, 2, 5), "poor": Stack(0.014, 0.33, 15, 20)}
R1_DISTILL = dict(model_type="qwen2", vocab_size=151936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28,
                  num_attention_heads=12, num_key_value_heads=2, tie_word_embeddings=False)  # fmt: skip
MOMENTS = ("head's bwd", "layer's bwd", "root's bwd", "optimizer", "generation")  # vLLM sleeps through the first four
GIB = 2**30
CONTEXT = 1.5  # GiB of CUDA's context and NCCL's buffers
ASLEEP = 1.5  # GiB that a sleeping vLLM keeps
ENGINE = 2.5  # GiB of vLLM's share that are neither weights nor cache
SPARE = 0.05  # share of the memory that fragmentation may take
PROMPT = 150  # tokens
SIGMA = 0.7  # of the logarithm of response lengths
MEANS = {8192: 4500, 16384: 4500, 24576: 5500}  # tokens of a response: the middle of DeepScaleR's curves
MEAN_SHARE = 0.45  # of other contexts
BANDWIDTH_SHARE, DECODE_SHARE = 0.9, 0.6  # of the peaks, while decoding
TORCH_STEP = 0.025  # seconds of an engine step of the torch sampler beyond the roofline
DISK = 1e9  # bytes/s of a checkpoint
GOOD, POOR = STACKS["good"], STACKS["poor"]
ASSUMED = f"""assumed, none of it measured (good | poor software):
- {CONTEXT} GiB for CUDA and NCCL; {ASLEEP} left of sleeping vLLM; {ENGINE} of its share for graphs and buffers
- flash or varlen attention, fused RMSNorm, 3 layers gathered; {SPARE:.0%} of the memory spare, for the allocator
- lengths log-normal, sigma {SIGMA}, cut at the limit; mean: of DeepScaleR's curve, else {MEAN_SHARE:.0%} of the limit
- prompts of {PROMPT} tokens, cached; a sample starts at once, or when all of it fits; ranks wait for the longest one
- engine step: weights at {BANDWIDTH_SHARE:.0%} of bandwidth or products at {DECODE_SHARE:.0%} of peak, + KV, + \
{1000 * GOOD.overhead:g} | {1000 * POOR.overhead:g} ms (torch sampler {1000 * TORCH_STEP:g})
- training, log-probabilities: {GOOD.share:.0%} | {POOR.share:.0%} of the bf16 peak, recomputation counted; \
all samples train, packs are balanced, no refills
- reward {GOOD.reward} | {POOR.reward} s; sync with sleep, wake and probe {GOOD.sync} | {POOR.sync} s; checkpoints \
written at {DISK / 1e9:g} GB/s
- evaluation: 30 problems where the file is not here, responses 1.5 times as long; base and final ones not counted"""


@dataclass(frozen=True)
class Job:
    cfg: Config  # of one stage
    model: Qwen2  # on the meta device: shapes, no weights
    gpus: int
    gpu: Gpu
    mean: float  # expected tokens of a response
    eval_len: int  # tokens that an evaluated response may have
    weights: tuple[int, ...]  # parameters of the model, of a layer, of the head (where tied, the embedding)

    def cache(self) -> tuple[int, int, float, int]:
        """Bytes of a token in the KV cache, tokens of the longest sequence, tokens that a rank's cache holds (vLLM's
        share less weights and buffers, or the torch sampler's dense slots), samples of the fullest rank (groups)."""
        cfg, c, size = self.cfg, self.model.config, DTYPES[self.cfg.dtype].itemsize
        token = 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim * size
        longest, groups = cfg.max_prompt_len + cfg.max_response_len[0], math.ceil(cfg.prompts_per_step / self.gpus)
        held = ((cfg.vllm_gpu_memory_utilization * self.gpu.memory - ENGINE) * GIB - size * self.weights[0]) / token
        if cfg.sampler == "torch":
            held = longest * min(cfg.max_num_seqs, groups * cfg.group_size[0])
        return token, longest, max(0.0, held), groups * cfg.group_size[0]


def memory(job: Job) -> dict[str, tuple[float, ...]]:
    """Bytes of each part at each of MOMENTS."""
    cfg, c, size, tokens = job.cfg, job.model.config, DTYPES[job.cfg.dtype].itemsize, job.cfg.token_budget
    (total, layer, head), shards, (token, _, held, samples) = job.weights, cfg.shard_size or job.gpus, job.cache()
    root, rows = total - c.num_hidden_layers * layer, min(cfg.logprob_chunk, tokens)
    # Autograd keeps of a layer: inputs and outputs of both norms; q, k, v, attention's output; gate, its SiLU, up,
    # their product. In float32: a head's logsumexp, cos and sin of the angles, the scales of the norms.
    heads, stream = c.num_attention_heads + c.num_key_value_heads, size * tokens * c.hidden_size  # stream: (T, D)
    others = size * (2 * heads * c.head_dim + 4 * c.intermediate_size) + 4 * (c.num_attention_heads + c.head_dim + 2)
    whole = 4 * stream + tokens * others
    kept = 2 * stream + c.num_hidden_layers * (stream if cfg.activation_checkpointing else whole)
    # the layer in work: what it computes again, two (T, F) gradients more than it has freed, the residual's gradient
    work = (whole - stream) * cfg.activation_checkpointing + 2 * size * tokens * c.intermediate_size + stream
    # Of a chunk's logits both passes of _TokenLogprobs hold log-softmax and probabilities, in float32; then the
    # gradient in the compute type, beside the chunk's part of the head's gradient.
    chunk = 4 * rows * c.vocab_size
    parts = {
        f"float32 weights / {shards}": (4 * total / shards,) * 5,
        f"Adam moments / {shards}": (8 * total / shards,) * 5,
        f"float32 gradients / {shards}": (4 * total / shards,) * 4 + (0,),
        "foreach temporaries of AdamW": (0, 0, 0, 4 * total / shards, 0),
        f"reference, {cfg.dtype} / {shards}": (size * total / shards * bool(cfg.kl_coef),) * 5,
        "gathered: root, 3 layers": (size * (root + 3 * layer),) * 2 + (size * root, 0, 0),  # prefetched, and a buffer
        "gradients before reduce-scatter": (4 * head, size * head + (size + 8) * layer, (size + 4) * root, 0, 0),
        f"activations of {tokens:,} tokens": (kept + stream, kept + work, stream, 0, 0),
        f"logits of {rows:,} tokens": (max(2 * chunk, size / 4 * chunk + size * head), 0, 0, 0, 0),
        "CUDA, NCCL": (CONTEXT * GIB,) * 5,
    }
    if cfg.sampler == "vllm":
        return parts | {"vLLM": (ASLEEP * GIB,) * 4 + (cfg.vllm_gpu_memory_utilization * job.gpu.memory * GIB,)}
    logits = 36 * c.vocab_size * min(cfg.max_num_seqs, samples)  # bytes: float32 twice, float64 for the rest
    return parts | {"sampler: weights; cache, logits": (size * total,) * 4 + (size * total + token * held + logits,)}


def misfits(job: Job) -> tuple[list[str], float]:
    """What does not fit into the GPU, and the trainer's peak in GiB."""
    usable, (_, longest, held, _) = job.gpu.memory * (1 - SPARE), job.cache()
    *trainer, awake = (sum(parts) / GIB for parts in zip(*memory(job).values(), strict=True))
    peaks = (("the trainer", max(trainer)), ("generation", awake))
    found = [f"{who} takes {peak:.1f} GiB of {usable:.1f}" for who, peak in peaks if peak > usable]
    return found + [f"vLLM's cache ({held:,.0f} tokens) holds no sequence"] * (held < longest), max(trainer)


def remedies(job: Job, least: int) -> list[str]:
    """The fewest flags that make it fit, each at its mildest, in all ways. `least`: what a token budget must hold."""
    cfg, halves = job.cfg, [2**n for n in range(14, -1, -1)]
    choices: dict[str, list] = {
        "activation_checkpointing": [True], "logprob_chunk": [n for n in halves if 128 <= n < cfg.logprob_chunk],
        "token_budget": [*range((cfg.token_budget - 1) // 2048 * 2048, least, -2048), least],
        "vllm_gpu_memory_utilization": [x / 100 for x in range(90, 0, -5)] * (cfg.sampler == "vllm"),
        "max_num_seqs": [n for n in halves if n < cfg.max_num_seqs] * (cfg.sampler == "torch"),
        "shard_size": [0], "gpus": [job.gpus * n for n in (2, 4, 8, 16, 32, 64)]}  # fmt: skip

    def fits(change: tuple[tuple, ...]) -> bool:
        settings = {"gpus": job.gpus, **dict(change)}
        return not misfits(replace(job, gpus=settings.pop("gpus"), cfg=replace(cfg, **settings)))[0]

    for size in (1, 2, 3):
        ways = (product(*([(k, v) for v in choices[k]] for k in names)) for names in combinations(choices, size))
        found = [change for way in ways if (change := next(filter(fits, way), None))]
        if found:
            break
    return [" ".join(f"--{k}={str(v).lower()}" for k, v in change) for change in found]


def response_lengths(mean: float, limit: int, count: int) -> list[int]:
    """Quantiles, the longest first, of the log-normal distribution that, cut at `limit`, has this mean (tokens)."""
    factors = [math.exp(SIGMA * NormalDist().inv_cdf((i + 0.5) / count)) for i in reversed(range(count))]
    medians = range(1, math.ceil(limit / factors[-1]) + 1)
    at = bisect_left(medians, mean, key=lambda median: fmean(min(limit, median * f) for f in factors))
    return [min(limit, max(1, round(medians[min(at, len(medians) - 1)] * f))) for f in factors]


def engine_seconds(lengths: list[int], prompt: int, slots: int, capacity: float, product: float, token: float,
                   read: float, overhead: float) -> float:  # fmt: skip
    """Seconds of one engine for responses of these lengths, a token of every live one a step of max(product, token *
    live) + read * tokens cached for the live ones + overhead. In order, one starts as soon as a slot is free and all of
    it fits beside the others into `capacity` tokens. Between two ends the sum has a closed form."""
    waiting, live, now, seconds = lengths[::-1], [], 0, 0.0  # live: (end, start), in steps
    while waiting or live:
        while waiting and len(live) < slots:
            if live and sum(prompt + end - start for end, start in live) + prompt + waiting[-1] > capacity:
                break
            live.append((now + waiting.pop(), now))
        steps, n, cached = min(live)[0] - now, len(live), sum(prompt + now - start for _, start in live)
        seconds += steps * (max(product, token * n) + overhead + read * (cached + n * (steps + 1) / 2))
        now += steps
        live = [(end, start) for end, start in live if end > now]
    return seconds


def generate(job: Job, mean: float, limit: int, prompts: int, group: int, overhead: float) -> float:
    """Seconds of the rank with the longest response for its share of `prompts`, `group` responses each."""
    cfg, (_, layer, head), (token, _, held, _), gpu = job.cfg, job.weights, job.cache(), job.gpu
    everyone, mine = response_lengths(mean, limit, prompts * group), math.ceil(prompts / job.gpus) * group
    lengths = [everyone[i * len(everyone) // mine] for i in range(mine)]
    random.Random(0).shuffle(lengths)
    read = DTYPES[cfg.dtype].itemsize * (job.model.config.num_hidden_layers * layer + head)  # bytes; no embedding
    bandwidth, product = BANDWIDTH_SHARE * gpu.bandwidth, job.model.flops([1]) / (DECODE_SHARE * gpu.peak)
    return engine_seconds(lengths, min(PROMPT, cfg.max_prompt_len), cfg.max_num_seqs, held, read / bandwidth, product,
                          token / bandwidth, overhead if cfg.sampler == "vllm" else TORCH_STEP)  # fmt: skip


def step_seconds(job: Job, stack: Stack) -> dict[str, float]:
    """Seconds of a step by phase."""
    cfg, limit, group, step = job.cfg, job.cfg.max_response_len[0], job.cfg.group_size[0], stack.overhead
    responses = response_lengths(job.mean, limit, cfg.prompts_per_step * group)
    tokens = [min(PROMPT, cfg.max_prompt_len) + n - 1 for n in responses]
    forward, head = job.model.flops(tokens), 2 * job.weights[2] * sum(tokens)
    again = forward if cfg.activation_checkpointing else head  # logits are computed twice in any case
    rate, passes = job.gpus * stack.share * job.gpu.peak, 1 - 1 / cfg.minibatches + bool(cfg.kl_coef)
    saved, most = (12 + DTYPES[cfg.export_dtype].itemsize) * job.weights[0], job.eval_len  # bytes, tokens
    problems = sum(len(Path(f).read_bytes().splitlines()) if Path(f).is_file() else 30 for f in cfg.eval_data) or 1
    evaluation = generate(job, min(1.5 * job.mean, 0.8 * most), most, problems, cfg.eval_k, step)
    return {"generate, tail": generate(job, job.mean, limit, cfg.prompts_per_step, group, step), "reward": stack.reward,
            "logprobs": passes * forward / rate, "train": (3 * forward + again) / rate, "sync": stack.sync,
            "checkpoint": saved / DISK / cfg.save_every if cfg.save_every else 0.0,
            "evaluation": evaluation / cfg.eval_every if cfg.eval_every else 0.0}  # fmt: skip


def report(job: Job, least: int) -> list[str]:
    """Memory by part and moment, what to change where it does not fit, the cache."""
    cfg, parts, problems, (_, longest, held, samples) = job.cfg, memory(job), misfits(job)[0], job.cache()
    rows = (*parts.items(), ("together", tuple(map(sum, zip(*parts.values(), strict=True)))))
    lines = [f"{'GiB on a GPU':<34}" + "".join(f"{m:>12}" for m in MOMENTS)]
    lines += [f"{name:<34}" + "".join(f"{x / GIB:>12.2f}" if x else " " * 12 for x in row) for name, row in rows]
    lines.append(f"{job.gpu.memory} GiB, {SPARE:.0%} spare: {'DOES NOT FIT' if problems else 'fits'}")
    if problems:
        lines += [*problems, "it would fit with " + (" or ".join(remedies(job, least)) or "a larger GPU only")]
    on, expected = not cfg.activation_checkpointing, job.mean + min(PROMPT, cfg.max_prompt_len)
    peak = misfits(replace(job, cfg=replace(cfg, activation_checkpointing=on)))[1]
    return [*lines, f"with activation_checkpointing={str(on).lower()} the trainer takes {peak:.1f} GiB",
            f"KV cache: {held:,.0f} tokens, {held / longest:,.1f} sequences of {longest:,} (longest) or "
            f"{held / expected:,.1f} of {expected:,.0f} (expected); a rank gets {samples}, "
            f"max_num_seqs {cfg.max_num_seqs}"]  # fmt: skip


def stages(argv: list[str]) -> tuple[list[Job], str]:
    """A job for every stage, and the name of the GPU. Raises UserError."""
    flags = [a[2:].partition("=") for a in argv]
    mine = {name: value for name, _, value in flags if name in ("gpu", "gpus", "mean_len")}
    cfg = load_config([a for a, (name, _, _) in zip(argv, flags, strict=True) if name not in mine])
    kind, contexts, jobs, left = mine.get("gpu", "a100-80"), cfg.max_response_len, [], cfg.total_steps
    if kind not in GPUS:
        raise UserError(f"--gpu: {kind!r} is not one of {', '.join(GPUS)}")
    gpus, means = cfg.stage_gpus or (8,) * len(contexts), [MEANS.get(n, max(1, MEAN_SHARE * n)) for n in contexts]
    gpus = [parse_flag("--gpus", int, mine["gpus"])] * len(contexts) if "gpus" in mine else gpus
    means = parse_flag("--mean_len", tuple[int, ...], mine["mean_len"]) if "mean_len" in mine else means
    if len(means) != len(contexts) or not all(1 <= m <= n for m, n in zip(means, contexts, strict=True)):
        raise UserError(f"--mean_len: {mine['mean_len']!r}: one number a stage, between 1 and its limit, of {contexts}")
    shape = ModelConfig.from_folder(cfg.model) if Path(cfg.model).is_dir() else ModelConfig.from_dict(R1_DISTILL)
    with torch.device("meta"):
        model = Qwen2(shape)
    weights = tuple(sum(p.numel() for p in m.parameters()) for m in (model, model.model.layers[0], model.lm_head))
    gpu = GPUS[kind]._replace(peak=GPUS[kind].peak / (16 if cfg.dtype == "float32" else 1))
    for n, context, group, steps, mean in zip(gpus, contexts, cfg.group_size, cfg.stage_steps, means, strict=True):
        if n < 1 or n % (cfg.shard_size or n):
            raise UserError(f"--gpus: {n} is not 1 or more, and a multiple of shard_size={cfg.shard_size}")
        if left > 0:
            one = replace(cfg, max_response_len=context, group_size=group, stage_steps=min(steps, left), stage_gpus=(),
                          eval_max_len=0)  # fmt: skip
            jobs.append(Job(one, model, n, gpu, mean, cfg.eval_max_len or context, weights))
        left -= steps
    return jobs, kind


def main(argv: list[str]) -> None:
    """Print memory, time and cost of every stage. Raises UserError."""
    jobs, kind = stages(argv)
    cfg, least, hours = jobs[0].cfg, max(job.cache()[1] for job in jobs), dict.fromkeys(STACKS, 0.0)
    known = "" if Path(cfg.model).is_dir() else " is not here: sizes of DeepSeek-R1-Distill-Qwen-1.5B"
    only = " (runs on the CPU only; bfloat16 runs on a GPU)" if cfg.dtype == "float32" else ""
    print(f"model: {cfg.model}{known}, {jobs[0].weights[0] / 1e9:.4g} B weights, {cfg.dtype}{only}")
    price = cfg.gpu_dollars_per_hour or GPUS[kind].dollars
    for job in jobs:
        c, n, columns = job.cfg, job.gpus, {name: step_seconds(job, stack) for name, stack in STACKS.items()}
        steps = f"{'up to ' if c.stage_policy == 'auto' else ''}{c.stage_steps[0]}"
        print(f"\ncontext {c.max_response_len[0]}: {steps} steps of {c.prompts_per_step} prompts x "
              f"{c.group_size[0]} samples of {job.mean:,.0f} tokens, {n} x {kind}")  # fmt: skip
        print(*report(job, least), "", f"{'seconds a step':<16}" + "".join(f"{name:>10}" for name in STACKS), sep="\n")
        for phase in columns["good"]:
            print(f"{phase:<16}" + "".join(f"{column[phase]:>10.1f}" for column in columns.values()))
        for name, column in columns.items():
            step, cost = sum(column.values()), c.stage_steps[0] * sum(column.values()) * n / 3600
            print(f"{name}: {step:.0f} s a step, {cost / n:,.1f} hours, {cost:,.0f} GPU-hours, ${cost * price:,.0f}")
            hours[name] += cost
    every = ", ".join(f"{name} {h:,.0f} GPU-hours, ${h * price:,.0f}" for name, h in hours.items())
    limit = " at most, if the controller ends no stage earlier" if cfg.stage_policy == "auto" else ""
    if cfg.refill_attempts:
        print(f"\nrefills are not counted: generation may take up to {cfg.refill_attempts} more rounds a step")
    print(f"\nall stages{limit}: {every}; at ${price:.2f} a GPU-hour{'' if cfg.gpu_dollars_per_hour else ' (assumed)'}",
          "DeepScaleR reported 3,800 A100-hours: 8K on 8 GPUs, 16K and 24K on 32", ASSUMED, sep="\n")  # fmt: skip
