"""What a config needs on GPUs one has not rented yet, from arithmetic alone: nothing is loaded, no GPU is asked.

    python bench.py configs/16k.py --plan --gpu=a100-80 --gpus=32 [--mean_len=4500] [--key=value ...]

For every stage: memory by part and moment, what to change where it does not fit, seconds a step by phase for good and
for poor software, GPU-hours and dollars, and what all of it assumes. Memory counts the tensors that model.py, FSDP2 and
the sampler hold when it may peak. Training time is FLOPs over a share of the GPU's peak; generation is a simulation of
one engine.

Dimensions: T packed tokens, D hidden, F MLP.
"""

import math
import random
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist, fmean
from typing import Any

import torch

from configs import Config, UserError, load_config, parse_flags
from model import DTYPES, PEAK_FLOPS, ModelConfig, Qwen2


@dataclass(frozen=True)
class Gpu:
    name: str
    memory: float  # GiB that torch sees
    bandwidth: float  # bytes/s, data sheet
    peak: float  # bfloat16 FLOP/s, data sheet
    dollars: float  # an hour, assumed


GPUS = {
    "a100-40": Gpu("a100-40", 39.4, 1.555e12, PEAK_FLOPS["A100"], 1.3),
    "a100-80": Gpu("a100-80", 79.2, 2.039e12, PEAK_FLOPS["A100"], 1.8),
    "h100": Gpu("h100", 79.1, 3.35e12, PEAK_FLOPS["H100"], 3.0),
    "h200": Gpu("h200", 139.7, 4.8e12, PEAK_FLOPS["H200"], 3.8),
}


@dataclass(frozen=True)
class Stack:
    """How fast the software around the model is."""

    overhead: float  # seconds of an engine step beyond reading and computing
    share: float  # of the GPU's peak, in training
    reward: float  # seconds a step
    sync: float  # seconds a step


GOOD = Stack(overhead=0.0025, share=0.50, reward=2, sync=5)
POOR = Stack(overhead=0.014, share=0.33, reward=15, sync=20)
STACKS = {"good": GOOD, "poor": POOR}
R1_DISTILL = dict(model_type="qwen2", vocab_size=151936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28,
                  num_attention_heads=12, num_key_value_heads=2, tie_word_embeddings=False)  # fmt: skip
GIB = 2**30
CONTEXT = 1.5  # GiB of CUDA's context and NCCL's buffers
ASLEEP = 1.5  # GiB that a sleeping vLLM keeps
ENGINE = 2.5  # GiB of vLLM's share that are neither weights nor cache
SPARE = 0.05  # share of the memory that fragmentation may take
# The backward pass of the head; of the last layer, when all activations are still there; of the root (embedding, final
# norm and head), which comes last; the optimizer's step. vLLM sleeps through them.
TRAINER_MOMENTS = ("head's bwd", "layer's bwd", "root's bwd", "optimizer")
MOMENTS = (*TRAINER_MOMENTS, "generation")
PROMPT = 150  # tokens
SIGMA = 0.7  # of the logarithm of response lengths
MEANS = {8192: 4500, 16384: 4500, 24576: 5500}  # tokens of a response by context: the middle of DeepScaleR's curves
MEAN_SHARE = 0.45  # of any other context
BANDWIDTH_SHARE = 0.9  # of the GPU's bandwidth, while decoding
DECODE_SHARE = 0.6  # of the GPU's FLOP/s, while decoding
TORCH_STEP = 0.025  # seconds of an engine step of the torch sampler beyond reading and computing
DISK = 1e9  # bytes/s of a checkpoint
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
    """One stage of a run on GPUs of one kind."""

    cfg: Config  # of this stage alone
    model: Qwen2  # on the meta device: shapes, no weights
    gpus: int
    gpu: Gpu
    prompt: int  # expected tokens of a prompt
    mean: float  # expected tokens of a response
    eval_len: int  # tokens that an evaluated response may have
    least_budget: int  # the least token_budget that the config accepts: tokens of the longest sequence of its stages

    @property
    def size(self) -> int:
        """Bytes of a number in the compute type."""
        return DTYPES[self.cfg.dtype].itemsize

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return self.cfg.max_prompt_len + self.cfg.max_response_len[0]

    @property
    def rank_samples(self) -> int:
        """Samples of the rank with the most prompts."""
        return math.ceil(self.cfg.prompts_per_step / self.gpus) * self.cfg.group_size[0]

    @property
    def kv_bytes(self) -> int:
        """Bytes of a token in the KV cache: its keys and values in all layers."""
        c = self.model.config
        return 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim * self.size

    @property
    def cache_tokens(self) -> float:
        """Tokens that a rank's KV cache holds: in the torch sampler's slots, or in vLLM's share of the GPU."""
        if self.cfg.sampler == "torch":
            return self.longest * min(self.cfg.max_num_seqs, self.rank_samples)
        share = self.cfg.vllm_gpu_memory_utilization * self.gpu.memory - ENGINE  # GiB
        return max(0.0, (share * GIB - self.size * num_params(self.model)) / self.kv_bytes)


def num_params(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# ------------------------------------------------------------------------------------------- bytes by part and moment


def bytes_by_part(job: Job) -> dict[str, dict[str, float]]:
    """part -> moment -> bytes on a GPU; a part takes nothing at a moment that it does not name."""
    cfg, size = job.cfg, job.size
    rows = min(cfg.logprob_chunk, cfg.token_budget)
    logits = rows * job.model.config.vocab_size  # numbers of a chunk
    head = num_params(job.model.lm_head)
    # Both passes of model._TokenLogprobs hold a chunk's log-softmax and probabilities at once, in float32. The backward
    # pass then holds its gradient in the compute type, beside what the chunk adds to the head's gradient.
    chunk = max(2 * 4 * logits, size * (logits + head))
    return {
        **sharded_memory(job),
        f"activations of {cfg.token_budget:,} tokens": activation_memory(job),
        f"logits of {rows:,} tokens": {"head's bwd": chunk},
        "CUDA, NCCL": dict.fromkeys(MOMENTS, CONTEXT * GIB),
        **sampler_memory(job),
    }


def sharded_memory(job: Job) -> dict[str, dict[str, float]]:
    """part -> moment -> bytes of what FSDP2 shards, and of what is whole for a while."""
    cfg, size, total = job.cfg, job.size, num_params(job.model)
    layer, head = num_params(job.model.model.layers[0]), num_params(job.model.lm_head)
    root = total - job.model.config.num_hidden_layers * layer
    shards = cfg.shard_size or job.gpus
    shard = total / shards
    gathered = size * (root + 3 * layer)  # the layer at work, the next one and a buffer
    return {
        f"float32 weights / {shards}": dict.fromkeys(MOMENTS, 4 * shard),
        f"Adam moments / {shards}": dict.fromkeys(MOMENTS, 8 * shard),
        f"float32 gradients / {shards}": dict.fromkeys(TRAINER_MOMENTS, 4 * shard),
        "foreach temporaries of AdamW": {"optimizer": 4 * shard},
        f"reference, {cfg.dtype} / {shards}": dict.fromkeys(MOMENTS, size * shard if cfg.kl_coef else 0),
        "gathered: root, 3 layers": {"head's bwd": gathered, "layer's bwd": gathered, "root's bwd": size * root},
        "gradients before reduce-scatter": {
            "head's bwd": 4 * head,  # in float32, since it is a sum over chunks
            # the head's and this layer's, and float32 copies of this layer's and of the last one's, which is under way
            "layer's bwd": size * head + (size + 8) * layer,
            "root's bwd": (size + 4) * root,  # and its float32 copy
        },
    }


def activation_memory(job: Job) -> dict[str, float]:
    """moment -> bytes of what autograd keeps of a micro-batch, and of the work on one layer."""
    c, tokens, checkpointing = job.model.config, job.cfg.token_budget, job.cfg.activation_checkpointing
    hidden = job.size * tokens * c.hidden_size  # of one (T, D) tensor
    mlp = job.size * tokens * c.intermediate_size  # of one (T, F) tensor
    # Of a layer: inputs and outputs of both norms; gate, its SiLU, up, their product; q, k, v and attention's output.
    heads = 2 * (c.num_attention_heads + c.num_key_value_heads)
    layer = 4 * hidden + 4 * mlp + job.size * tokens * heads * c.head_dim
    # Also, in float32: logsumexp of every head, cosines and sines of the angles, scales of both norms.
    layer += 4 * tokens * (c.num_attention_heads + c.head_dim + 2)
    kept = 2 * hidden + c.num_hidden_layers * (hidden if checkpointing else layer)
    # A layer's backward pass: what it recomputes, two (T, F) gradients more than it has freed, the residual's gradient.
    work = (layer - hidden if checkpointing else 0) + 2 * mlp + hidden
    return {"head's bwd": kept + hidden, "layer's bwd": kept + work, "root's bwd": hidden}


def sampler_memory(job: Job) -> dict[str, dict[str, float]]:
    """part -> moment -> bytes: vLLM's share of the GPU while it is awake, or what the torch sampler holds."""
    if job.cfg.sampler == "vllm":
        awake = job.cfg.vllm_gpu_memory_utilization * job.gpu.memory * GIB
        return {"vLLM": {**dict.fromkeys(TRAINER_MOMENTS, ASLEEP * GIB), "generation": awake}}
    weights = job.size * num_params(job.model)
    logits = min(job.cfg.max_num_seqs, job.rank_samples) * job.model.config.vocab_size
    copies = 3 * 4 + 3 * 8  # bytes a logit: rollout.sample_tokens has three float32 and three float64 tensors
    awake = weights + job.kv_bytes * job.cache_tokens + copies * logits
    return {"sampler: weights; cache, logits": {**dict.fromkeys(TRAINER_MOMENTS, weights), "generation": awake}}


def gib_by_moment(job: Job) -> dict[str, float]:
    """moment -> GiB of all parts together."""
    parts = bytes_by_part(job).values()
    return {moment: sum(part.get(moment, 0) for part in parts) / GIB for moment in MOMENTS}


def trainer_peak(job: Job) -> float:
    """GiB at the trainer's worst moment."""
    total = gib_by_moment(job)
    return max(total[moment] for moment in TRAINER_MOMENTS)


# ------------------------------------------------------------------------------------- whether it fits, what would help


def misfits(job: Job) -> list[str]:
    """What does not fit into the GPU, in words."""
    usable, lines = job.gpu.memory * (1 - SPARE), []
    for name, peak in (("the trainer", trainer_peak(job)), ("generation", gib_by_moment(job)["generation"])):
        if peak > usable:
            lines.append(f"{name} takes {peak:.1f} GiB of {usable:.1f}")
    if job.cache_tokens < job.longest:
        lines.append(f"vLLM's cache ({job.cache_tokens:,.0f} tokens) holds no sequence")
    return lines


def changed(job: Job, settings: dict[str, Any]) -> Job:
    """The job with other settings of its config, or on another number of `gpus`."""
    in_config = {name: value for name, value in settings.items() if name != "gpus"}
    return replace(job, gpus=settings.get("gpus", job.gpus), cfg=replace(job.cfg, **in_config))


def settings_to_try(job: Job) -> dict[str, list]:
    """Settings that save memory, the mildest first, each with its values from mild to strong."""
    cfg, share = job.cfg, "vllm_gpu_memory_utilization"
    powers, shares = [2**n for n in range(14, -1, -1)], [percent / 100 for percent in range(90, 0, -5)]
    settings = {
        "activation_checkpointing": [True],
        "logprob_chunk": [n for n in powers if 128 <= n < cfg.logprob_chunk],
        "token_budget": [*range((cfg.token_budget - 1) // 2048 * 2048, job.least_budget, -2048), job.least_budget],
        share: [x for x in shares if changed(job, {share: x}).cache_tokens >= job.longest],
        "max_num_seqs": [n for n in powers if n < cfg.max_num_seqs],
        "shard_size": [0],
        "gpus": [job.gpus * n for n in (2, 4, 8, 16, 32, 64)],
    }
    del settings["max_num_seqs" if cfg.sampler == "vllm" else share]  # the other sampler's
    return {name: values for name, values in settings.items() if values}


def mildest(job: Job, name: str, values: list) -> Any:
    """The first of a setting's values with which the job fits; None if there is none."""
    for value in values:
        if not misfits(changed(job, {name: value})):
            return value
    return None


def remedies(job: Job) -> list[dict[str, Any]]:
    """What makes it fit: each setting that does so alone, at its mildest value; else one combination; else nothing."""
    settings = settings_to_try(job)
    alone = {name: mildest(job, name, values) for name, values in settings.items()}
    ways = [{name: value} for name, value in alone.items() if value is not None]
    together = {name: values[-1] for name, values in settings.items()}  # each at its strongest
    if ways or misfits(changed(job, together)):
        return ways
    for name in reversed(settings):  # from the costliest on, each as mild as the others allow
        del together[name]
        if misfits(changed(job, together)):
            together[name] = mildest(changed(job, together), name, settings[name])
    return [{name: together[name] for name in settings if name in together}]


# --------------------------------------------------------------------------------------------------------------- time


def response_lengths(mean: float, limit: int, count: int) -> list[int]:
    """Tokens of `count` responses, the longest first: quantiles of the log-normal distribution that has this mean after
    it is cut at `limit`."""
    quantiles = [(i + 0.5) / count for i in reversed(range(count))]
    factors = [math.exp(SIGMA * NormalDist().inv_cdf(q)) for q in quantiles]  # of the median
    medians = range(1, math.ceil(limit / factors[-1]) + 1)
    index = bisect_left(medians, mean, key=lambda median: fmean(min(limit, median * f) for f in factors))
    median = medians[min(index, len(medians) - 1)]
    return [min(limit, max(1, round(median * f))) for f in factors]


def engine_seconds(
    lengths: list[int], prompt: int, slots: int, capacity: float, seconds_of_step: Callable[[int, float], float]
) -> float:
    """Seconds in which an engine generates responses of these lengths, in order, a token of every live one a step.

    A response starts as soon as one of the `slots` is free and it fits, whole and with its prompt, into a cache of
    `capacity` tokens beside the live ones (one always fits). seconds_of_step(live, cached) is the time of a step with
    so many live responses and cached tokens; it must be linear in `cached`.
    """
    waiting, live = deque(lengths), []  # live: (start, end) of each, in steps
    now, seconds = 0, 0.0
    while waiting or live:
        while waiting and len(live) < slots:
            reserved = sum(prompt + end - start for start, end in live)
            if live and reserved + prompt + waiting[0] > capacity:
                break
            live.append((now, now + waiting.popleft()))
        # Until the next one ends, every step adds a token of each: the average step stands for all of them.
        steps = min(end for _, end in live) - now
        cached = sum(prompt + now - start for start, _ in live) + len(live) * (steps + 1) / 2
        seconds += steps * seconds_of_step(len(live), cached)
        now += steps
        live = [(start, end) for start, end in live if end > now]
    return seconds


def generate(job: Job, mean: float, limit: int, prompts: int, group: int, overhead: float) -> float:
    """Seconds of the rank with the longest response for its share of `prompts`, `group` responses each."""
    model = job.model
    of_all_ranks = response_lengths(mean, limit, prompts * group)
    count = math.ceil(prompts / job.gpus) * group
    lengths = [of_all_ranks[i * len(of_all_ranks) // count] for i in range(count)]
    random.Random(0).shuffle(lengths)

    bandwidth = BANDWIDTH_SHARE * job.gpu.bandwidth
    layers = model.config.num_hidden_layers * num_params(model.model.layers[0])
    read_weights = job.size * (layers + num_params(model.lm_head)) / bandwidth  # seconds; of the embedding, a few rows
    read_token = job.kv_bytes / bandwidth
    products = model.flops([1]) / (DECODE_SHARE * job.gpu.peak)  # seconds a token
    overhead = overhead if job.cfg.sampler == "vllm" else TORCH_STEP

    def seconds_of_step(live: int, cached: float) -> float:
        return max(read_weights, products * live) + overhead + read_token * cached

    return engine_seconds(lengths, job.prompt, job.cfg.max_num_seqs, job.cache_tokens, seconds_of_step)


def evaluation_seconds(job: Job, stack: Stack) -> float:
    """Seconds of one validation."""
    problems = 0
    for path in map(Path, job.cfg.eval_data):
        problems += len(path.read_bytes().splitlines()) if path.is_file() else 30
    mean = min(1.5 * job.mean, 0.8 * job.eval_len)
    return generate(job, mean, job.eval_len, max(1, problems), job.cfg.eval_k, stack.overhead)


def step_seconds(job: Job, stack: Stack) -> dict[str, float]:
    """phase -> seconds of a step."""
    cfg, limit, group = job.cfg, job.cfg.max_response_len[0], job.cfg.group_size[0]
    lengths = [job.prompt + n - 1 for n in response_lengths(job.mean, limit, cfg.prompts_per_step * group)]
    forward = job.model.flops(lengths)
    head = 2 * num_params(job.model.lm_head) * sum(lengths)
    recomputed = forward if cfg.activation_checkpointing else head  # logits are computed twice in any case
    passes = (
        1 - 1 / cfg.minibatches + bool(cfg.kl_coef)
    )  # old log-probabilities, but for the first minibatch; reference
    rate = job.gpus * stack.share * job.gpu.peak
    saved = (4 + 8 + DTYPES[cfg.export_dtype].itemsize) * num_params(job.model)  # bytes: weights, Adam, export
    return {
        "generate, tail": generate(job, job.mean, limit, cfg.prompts_per_step, group, stack.overhead),
        "reward": stack.reward,
        "logprobs": passes * forward / rate,
        "train": (3 * forward + recomputed) / rate,
        "sync": stack.sync,
        "checkpoint": saved / DISK / cfg.save_every if cfg.save_every else 0.0,
        "evaluation": evaluation_seconds(job, stack) / cfg.eval_every if cfg.eval_every else 0.0,
    }


# ------------------------------------------------------------------------------------------------------------- report


def memory_report(job: Job) -> list[str]:
    """Memory by part and moment, what to change where it does not fit, the cache."""
    cfg, problems = job.cfg, misfits(job)
    rows = {name: {m: x / GIB for m, x in part.items()} for name, part in bytes_by_part(job).items()}
    lines = [f"{'GiB on a GPU':<34}" + "".join(f"{moment:>12}" for moment in MOMENTS)]
    for name, row in {**rows, "together": gib_by_moment(job)}.items():
        cells = [f"{row[moment]:.2f}" if row.get(moment) else "" for moment in MOMENTS]
        lines.append(f"{name:<34}" + "".join(f"{cell:>12}" for cell in cells))
    lines.append(f"{job.gpu.memory} GiB, {SPARE:.0%} spare: {'DOES NOT FIT' if problems else 'fits'}")
    if problems:
        ways = [" ".join(f"--{name}={str(value).lower()}" for name, value in way.items()) for way in remedies(job)]
        lines += [*problems, "it would fit with " + (" or ".join(ways) or "a larger GPU only")]
    other = not cfg.activation_checkpointing
    peak = trainer_peak(changed(job, {"activation_checkpointing": other}))
    lines.append(f"with activation_checkpointing={str(other).lower()} the trainer takes {peak:.1f} GiB")
    held, expected = job.cache_tokens, job.prompt + job.mean
    sequences = f"{held / job.longest:,.1f} sequences of {job.longest:,} (longest)"
    sequences += f" or {held / expected:,.1f} of {expected:,.0f} (expected)"
    samples = f"a rank gets {job.rank_samples}, max_num_seqs {cfg.max_num_seqs}"
    return [*lines, f"KV cache: {held:,.0f} tokens, {sequences}; {samples}"]


def print_stage(job: Job, price: float) -> dict[str, float]:
    """Print memory, time and cost of a stage; returns its GPU-hours by stack."""
    cfg = job.cfg
    steps = f"{'up to ' if cfg.stage_policy == 'auto' else ''}{cfg.stage_steps[0]} steps"
    samples = f"{cfg.prompts_per_step} prompts x {cfg.group_size[0]} samples of {job.mean:,.0f} tokens"
    print(f"\ncontext {cfg.max_response_len[0]}: {steps} of {samples}, {job.gpus} x {job.gpu.name}")
    print("\n".join(memory_report(job)))
    print(f"\n{'seconds a step':<16}" + "".join(f"{name:>10}" for name in STACKS))
    seconds = {name: step_seconds(job, stack) for name, stack in STACKS.items()}
    for phase in seconds["good"]:
        print(f"{phase:<16}" + "".join(f"{phases[phase]:>10.1f}" for phases in seconds.values()))
    gpu_hours = {}
    for name, phases in seconds.items():
        step = sum(phases.values())
        cost = cfg.stage_steps[0] * step * job.gpus / 3600
        gpu_hours[name] = cost
        print(f"{name}: {step:.0f} s a step, {cost / job.gpus:,.1f} hours, {cost:,.0f} GPU-hours, ${cost * price:,.0f}")
    return gpu_hours


# ------------------------------------------------------------------------------------------------------- command line


@dataclass(frozen=True)
class Flags:
    """The plan's own flags, beside the config's settings."""

    gpu: str = "a100-80"
    gpus: int = 8  # on every stage; if not given, stage_gpus comes first
    mean_len: tuple[int, ...] = ()  # expected tokens of a response, one entry a stage; if not given, see MEANS


def stages(argv: list[str]) -> list[Job]:
    """A job for every stage. Raises UserError."""
    values, others = parse_flags(argv, Flags)
    flags, cfg = Flags(**values), load_config(others)
    if flags.gpu not in GPUS:
        raise UserError(f"--gpu: {flags.gpu!r} is not one of {', '.join(GPUS)}")
    contexts, gpus, means = cfg.max_response_len, cfg.stage_gpus, flags.mean_len
    if "gpus" in values or not gpus:
        gpus = (flags.gpus,) * len(contexts)
    if "mean_len" not in values:
        means = [MEANS.get(context, max(1, MEAN_SHARE * context)) for context in contexts]
    if len(means) != len(contexts) or not all(1 <= mean <= n for mean, n in zip(means, contexts, strict=True)):
        given = ",".join(map(str, means))
        raise UserError(f"--mean_len: {given!r}: one number a stage, between 1 and its limit, of {contexts}")
    shape = ModelConfig.from_folder(cfg.model) if Path(cfg.model).is_dir() else ModelConfig.from_dict(R1_DISTILL)
    with torch.device("meta"):
        model = Qwen2(shape)
    gpu = GPUS[flags.gpu]
    if cfg.dtype == "float32":
        gpu = replace(gpu, peak=gpu.peak / 16)
    prompt, longest = min(PROMPT, cfg.max_prompt_len), cfg.max_prompt_len + contexts[-1]
    jobs, steps_left = [], cfg.total_steps
    for i, context in enumerate(contexts):
        if gpus[i] < 1 or gpus[i] % (cfg.shard_size or gpus[i]):
            raise UserError(f"--gpus: {gpus[i]} is not 1 or more, and a multiple of shard_size={cfg.shard_size}")
        steps = min(cfg.stage_steps[i], steps_left)
        steps_left -= steps
        if steps:
            entries = dict(max_response_len=context, group_size=cfg.group_size[i], stage_steps=steps, stage_gpus=())
            stage_cfg = replace(cfg, **entries, eval_max_len=0)
            jobs.append(Job(stage_cfg, model, gpus[i], gpu, prompt, means[i], cfg.eval_max_len or context, longest))
    return jobs


def main(argv: list[str]) -> None:
    """Print memory, time and cost of every stage. Raises UserError."""
    jobs = stages(argv)
    cfg = jobs[0].cfg
    known = "" if Path(cfg.model).is_dir() else " is not here: sizes of DeepSeek-R1-Distill-Qwen-1.5B"
    only = " (runs on the CPU only; bfloat16 runs on a GPU)" if cfg.dtype == "float32" else ""
    print(f"model: {cfg.model}{known}, {num_params(jobs[0].model) / 1e9:.4g} B weights, {cfg.dtype}{only}")
    price = cfg.gpu_dollars_per_hour or jobs[0].gpu.dollars
    total = dict.fromkeys(STACKS, 0.0)  # GPU-hours
    for job in jobs:
        for name, hours in print_stage(job, price).items():
            total[name] += hours
    if cfg.refill_attempts:
        print(f"\nrefills are not counted: generation may take up to {cfg.refill_attempts} more rounds a step")
    limit = " at most, if the controller ends no stage earlier" if cfg.stage_policy == "auto" else ""
    costs = ", ".join(f"{name} {hours:,.0f} GPU-hours, ${hours * price:,.0f}" for name, hours in total.items())
    assumed = "" if cfg.gpu_dollars_per_hour else " (assumed)"
    print(f"\nall stages{limit}: {costs}; at ${price:.2f} a GPU-hour{assumed}")
    print("DeepScaleR reported 3,800 A100-hours: 8K on 8 GPUs, 16K and 24K on 32")
    print(ASSUMED)
