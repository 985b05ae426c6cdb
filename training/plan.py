"""What a config needs on GPUs one has not rented yet, from arithmetic alone: nothing is loaded, no GPU is asked.

    python bench.py configs/16k.py --plan --gpu=a100-80 --gpus=32 [--mean_len=4500] [--key=value ...]

For every stage: memory by part and moment and what to change where it does not fit (see memory.py), seconds a step by
phase for good and for poor software, GPU-hours and dollars, and what all of it assumes. Training time is that of
products, attention and memory traffic, one after the other; generation is a simulation of one engine, step by step.

Dimensions: T packed tokens, D hidden, F MLP, V vocabulary.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from configs import Config, UserError, load_config, parse_flags
from configs._model import is_hub_id
from model import ModelConfig, Qwen2
from problems.files import data_files, objects
from training import memory
from training.checkpoint import in_bytes, most_saves, save_bytes
from training.generation import (
    BANDWIDTH_SHARE,
    CORRELATION,
    DECODE_SHARE,
    PRODUCT_SHARE,
    SIGMA,
    TORCH_STEP,
    generate,
    response_lengths,
    simulate,
)
from training.memory import GPUS, IN_FLIGHT, Job, num_params


@dataclass(frozen=True)
class Stack:
    """How fast the software around the model is."""

    overhead: float  # seconds of an engine step beyond reading and computing
    training: float  # seconds of training by those that its kernels take
    reward: float  # seconds a step
    sync: float  # seconds a step


GOOD = Stack(overhead=0.0025, training=1.0, reward=2, sync=5)
POOR = Stack(overhead=0.014, training=1.5, reward=15, sync=20)
GENERATION = "generate, tail"  # the phase
STACKS = {"good": GOOD, "poor": POOR}
R1_DISTILL = dict(model_type="qwen2", vocab_size=151936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28,
                  num_attention_heads=12, num_key_value_heads=2, tie_word_embeddings=False)  # fmt: skip
QWEN_1_5B = R1_DISTILL | dict(tie_word_embeddings=True)
QWEN_0_5B = QWEN_1_5B | dict(hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14)
QWEN3_0_6B = QWEN_1_5B | dict(model_type="qwen3", hidden_size=1024, intermediate_size=3072, num_attention_heads=16,
                              num_key_value_heads=8, head_dim=128)  # fmt: skip
QWEN3_1_7B = QWEN3_0_6B | dict(hidden_size=2048, intermediate_size=6144)
SHAPES = {  # of hub repositories, as published
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": R1_DISTILL,
    "hbx/JustRL-DeepSeek-1.5B": R1_DISTILL,
    "Qwen/Qwen2.5-1.5B": QWEN_1_5B,
    "Qwen/Qwen2.5-1.5B-Instruct": QWEN_1_5B,
    "Qwen/Qwen2.5-0.5B": QWEN_0_5B,
    "Qwen/Qwen2.5-0.5B-Instruct": QWEN_0_5B,
    "Qwen/Qwen3-0.6B": QWEN3_0_6B,
    "Qwen/Qwen3-0.6B-Base": QWEN3_0_6B,
    "Qwen/Qwen3-1.7B": QWEN3_1_7B,
    "Qwen/Qwen3-1.7B-Base": QWEN3_1_7B,
}
PROMPT = 150  # tokens
MEANS = {8192: 4500, 16384: 4500, 24576: 5500}  # tokens of a response by context: the middle of DeepScaleR's curves
MEAN_SHARE = 0.45  # of any other context
# FlashAttention 2, published: about 190 of 312 TFLOP/s on an A100; on Hopper, for which it was not written, 320 to 370.
# Versions 3 and 4 were. Its backward pass computes five products where the forward pass computes two.
ATTENTION_SHARE = 0.6
FA2_MOST = 340e12  # FLOP/s
ATTENTION_BACKWARD = 2.5  # times its forward pass
# Memory traffic of elementwise operations, counted in torch's fake mode over those that model.py calls: each reads its
# inputs and writes its output, unless torch.compile fuses them.
LOGIT_TRAFFIC = {"eager": (46, 166), "fused": (4, 16)}  # bytes a logit: log-probabilities alone, training
LAYER_TRAFFIC = (10, 20, 48)  # bytes a number of an MLP's (T, F), of a residual (T, D), of rotated q and k
LAYER_BACKWARD = 1.5  # times the forward pass's traffic
FUSED_LAYERS = 0.5  # of the layers' traffic is left where they are compiled
DISK = 1e9  # bytes/s of a checkpoint
ASSUMED = f"""all of this is a model, arithmetic from assumptions (good | poor software):
{memory.ASSUMED}
- lengths log-normal, sigma {SIGMA}, cut at the limit; mean: of DeepScaleR's curve, else {MEAN_SHARE:.0%} of the limit
- prompts of {PROMPT} tokens, cached; a sample starts at once, or when all of it fits; ranks wait for the longest one
- engine step: weights at {BANDWIDTH_SHARE:.0%} of bandwidth or products at {DECODE_SHARE:.0%} of peak, + KV, + \
{1000 * GOOD.overhead:g} | {1000 * POOR.overhead:g} ms (torch sampler {1000 * TORCH_STEP:g})
- training: products at {PRODUCT_SHARE:.0%} of the peak + attention at {ATTENTION_SHARE:.0%} (FA2 up to \
{FA2_MOST / 1e12:.0f} TFLOP/s) + elementwise traffic at {BANDWIDTH_SHARE:.0%} of bandwidth,
  times {GOOD.training:g} | {POOR.training:g}, recomputation counted; all samples train, packs are full and balanced, \
no refills, gradients travel meanwhile
- reward {GOOD.reward} | {POOR.reward} s; sync with sleep, wake and probe {GOOD.sync} | {POOR.sync} s; checkpoints \
written at {DISK / 1e9:g} GB/s
- evaluation: 30 problems where the file is not here, responses 1.5 times as long; base and final ones not counted"""


# --------------------------------------------------------------------------------------------------------- the model


def known_shape(name: str) -> ModelConfig | None:
    """Of a model folder that is here, or of a hub repository in the table. Raises UserError for a bad config.json."""
    if (Path(name) / "config.json").is_file():
        return ModelConfig.from_folder(name)
    return ModelConfig.from_dict(SHAPES[name]) if name in SHAPES else None


def shape_to_plan(name: str) -> tuple[ModelConfig, str]:
    """A model's shape, and whose it is where the model is not here. A folder that is not here is taken for the export
    of a stage before, of DeepScaleR's model. Raises UserError for a hub repository that is not in the table."""
    shape = known_shape(name)
    if shape is None and is_hub_id(name):
        known = ", ".join(SHAPES)
        raise UserError(f"--model: the shape of {name} is not known here: a folder with its config.json, or {known}")
    published = "DeepSeek-R1-Distill-Qwen-1.5B" if shape is None else name.partition("/")[2]
    return shape or ModelConfig.from_dict(R1_DISTILL), "" if Path(name).is_dir() else published


def without_weights(shape: ModelConfig) -> Qwen2:
    """The model on the meta device."""
    with torch.device("meta"):
        return Qwen2(shape)


# --------------------------------------------------------------------------------------------------------------- time


def count_rows(path: str) -> int:
    """The problems of a benchmark, 30 where its files are not here."""
    try:
        return sum(1 for file in data_files(path) for _ in objects(file))
    except UserError:
        return 30


def evaluation_seconds(job: Job, stack: Stack) -> float:
    """Seconds of one validation."""
    problems = sum(map(count_rows, job.cfg.eval_data))
    mean = min(1.5 * job.mean, 0.8 * job.eval_len)
    return generate(job, mean, job.eval_len, max(1, problems), job.cfg.eval_k, stack.overhead)


@dataclass(frozen=True)
class Work:
    """What passes over sequences take of a machine."""

    products: float  # FLOPs
    attention: float  # FLOPs
    layer_traffic: float  # bytes of elementwise operations in the layers
    logit_traffic: float  # bytes of those on logits


def kernel_work(model: Qwen2, cfg: Config, lengths: list[int], training: bool) -> Work:
    """Of sequences of these lengths, in full packs: forward and backward in `training`, else the forward pass of
    log-probabilities alone. Traffic is that of a 16-bit compute type."""
    c, tokens = model.config, sum(lengths)
    layers, heads = c.num_hidden_layers, c.num_attention_heads
    attention = 2 * layers * heads * c.head_dim * sum(n * n for n in lengths)  # of the causal half
    products = model.flops(lengths) - attention
    sizes = c.intermediate_size, c.hidden_size, (heads + c.num_key_value_heads) * c.head_dim
    layer_bytes = tokens * layers * sum(n * size for n, size in zip(LAYER_TRAFFIC, sizes, strict=True))
    layer_bytes *= FUSED_LAYERS if cfg.compile == "layers" else 1
    logit_bytes = tokens * c.vocab_size * LOGIT_TRAFFIC["eager" if cfg.compile == "none" else "fused"][training]
    if training:
        recomputed = int(cfg.activation_checkpointing)
        head = 2 * tokens * num_params(model.lm_head)
        down = 2 * tokens * layers * num_params(model.model.layers[0].mlp.down_proj)
        # The head is computed again in any case; a layer but for its last product, which the backward pass can spare.
        products = 3 * products + head + recomputed * (products - head - down)
        attention *= 1 + ATTENTION_BACKWARD + recomputed
        layer_bytes *= 1 + LAYER_BACKWARD + recomputed
    return Work(products, attention, layer_bytes, logit_bytes)


def kernel_seconds(job: Job, lengths: list[int], training: bool) -> float:
    """Seconds that one GPU computes on `kernel_work`."""
    work = kernel_work(job.model, job.cfg, lengths, training)
    rate = ATTENTION_SHARE * job.gpu.peak
    rate = rate if job.cfg.attention in ("fa3", "fa4") else min(rate, FA2_MOST)
    traffic = (work.layer_traffic + work.logit_traffic) / (BANDWIDTH_SHARE * job.gpu.bandwidth)
    return work.products / (PRODUCT_SHARE * job.gpu.peak) + work.attention / rate + traffic


def generation_seconds(job: Job, stack: Stack) -> float:
    """Of a step, until the last rank has its share."""
    if job.cfg.partial_rollouts:
        return simulate(job, stack.overhead, IN_FLIGHT, job.cfg.max_staleness).seconds
    limit, group = job.cfg.max_response_len[0], job.cfg.group_size[0]
    return generate(job, job.mean, limit, job.cfg.prompts_per_step, group, stack.overhead)


def step_seconds(job: Job, stack: Stack) -> dict[str, float]:
    """phase -> seconds of a step."""
    cfg, limit, group = job.cfg, job.cfg.max_response_len[0], job.cfg.group_size[0]
    lengths = [job.prompt + n - 1 for n in response_lengths(job.mean, limit, cfg.prompts_per_step * group)]
    scoring = (1 - 1 / cfg.minibatches) * kernel_seconds(job, lengths, training=False)  # but for the first minibatch
    if cfg.kl_coef:
        scoring += kernel_seconds(replace(job, model=job.reference), lengths, training=False)
    saved = save_bytes(num_params(job.model), cfg)
    return {
        GENERATION: generation_seconds(job, stack),
        "reward": stack.reward,
        "logprobs": stack.training * scoring / job.gpus,
        "train": stack.training * kernel_seconds(job, lengths, training=True) / job.gpus,
        "sync": stack.sync,
        "checkpoint": saved / DISK / cfg.save_every if cfg.save_every else 0.0,
        "evaluation": evaluation_seconds(job, stack) / cfg.eval_every if cfg.eval_every else 0.0,
    }


# ------------------------------------------------------------------------------------------------------------- report


def print_partial_rollouts(job: Job) -> None:
    """What the line of generation comes from, beside the synchronous one."""
    carried = round((IN_FLIGHT - 1) * job.cfg.prompts_per_step)
    groups = f"{job.cfg.prompts_per_step + carried} groups in flight, {carried} carried over"
    print(f"partial rollouts (model): {groups}; a prompt's lengths correlate by {CORRELATION} (assumed)")
    for name, stack in STACKS.items():
        synchronous = simulate(job, stack.overhead)
        partial = simulate(job, stack.overhead, IN_FLIGHT, job.cfg.max_staleness)
        print(
            f"{name}: generation {synchronous.seconds:.1f} s a step synchronous, {partial.seconds:.1f} partial; of it "
            f"{partial.prefill:.1f} prefills what was carried, {partial.waiting:.0%} waits for other ranks;\n"
            f"  tokens {partial.staleness:.2f} steps stale on average and {partial.oldest} at most, "
            f"{partial.stale_tokens:.0%} of them stale (model)"
        )


def print_stage(job: Job, price: float) -> dict[str, float]:
    """Print memory, time and cost of a stage; returns its GPU-hours by stack."""
    cfg = job.cfg
    steps = f"{'up to ' if cfg.stage_policy == 'auto' else ''}{cfg.stage_steps[0]} steps"
    samples = f"{cfg.prompts_per_step} prompts x {cfg.group_size[0]} samples of {job.mean:,.0f} tokens"
    print(f"\ncontext {cfg.max_response_len[0]}: {steps} of {samples}, {job.gpus} x {job.gpu.name}")
    print("\n".join(memory.report(job)))
    print(f"\n{'model, s a step':<16}" + "".join(f"{name:>10}" for name in STACKS))
    seconds = {name: step_seconds(job, stack) for name, stack in STACKS.items()}
    for phase in seconds["good"]:
        print(f"{phase:<16}" + "".join(f"{phases[phase]:>10.1f}" for phases in seconds.values()))
    if cfg.partial_rollouts:
        print_partial_rollouts(job)
    gpu_hours = {}
    for name, phases in seconds.items():
        step = sum(phases.values())
        cost = cfg.stage_steps[0] * step * job.gpus / 3600
        gpu_hours[name] = cost
        spent = f"{cost / job.gpus:,.1f} hours, {cost:,.0f} GPU-hours, ${cost * price:,.0f}"
        print(f"{name}: {step:.0f} s a step, {spent} (model)")
    return gpu_hours


# ------------------------------------------------------------------------------------------------------- command line


@dataclass(frozen=True)
class Flags:
    """The plan's own flags, beside the config's settings."""

    # of the plan
    gpu: str = "a100-80"  # one of GPUS in training/memory.py
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
    model, gpu = without_weights(shape_to_plan(cfg.model)[0]), GPUS[flags.gpu]
    teacher = without_weights(shape_to_plan(cfg.reference)[0]) if cfg.reference else model
    reference = teacher if cfg.uses_reference else None
    if cfg.dtype == "bfloat16" and not gpu.bfloat16:
        raise UserError(f"--gpu: {gpu.name} has no bfloat16: --dtype=float16")
    if cfg.dtype == "float32":
        gpu = replace(gpu, peak=gpu.peak / 16)
    prompt, longest = min(PROMPT, cfg.max_prompt_len), cfg.max_prompt_len + cfg.longest_response
    jobs, steps_left = [], cfg.total_steps
    for i, context in enumerate(contexts):
        if gpus[i] < 1 or gpus[i] % (cfg.shard_size or gpus[i]):
            raise UserError(f"--gpus: {gpus[i]} is not 1 or more, and a multiple of shard_size={cfg.shard_size}")
        steps = min(cfg.stage_steps[i], steps_left)
        steps_left -= steps
        if steps:
            entries = dict(max_response_len=context, group_size=cfg.group_size[i], stage_steps=steps, stage_gpus=())
            stage_cfg = replace(cfg.of_stage(i), **entries, eval_max_len=0)
            jobs.append(
                Job(stage_cfg, model, reference, gpus[i], gpu, prompt, means[i], cfg.eval_max_len or context, longest)
            )
    return jobs


def main(argv: list[str]) -> None:
    """Print memory, time and cost of every stage. Raises UserError."""
    jobs, cfg = stages(argv), load_config(parse_flags(argv, Flags)[1])
    published = shape_to_plan(cfg.model)[1]
    known = f" is not here: sizes of {published}" if published else ""
    if cfg.reference and shape_to_plan(cfg.reference)[1]:
        print(f"reference: {cfg.reference} is not here: sizes of {shape_to_plan(cfg.reference)[1]}")
    only = " (runs on the CPU only; bfloat16 runs on a GPU)" if cfg.dtype == "float32" else ""
    print(f"model: {cfg.model}{known}, {num_params(jobs[0].model) / 1e9:.4g} B weights, {cfg.dtype}{only}")
    price = cfg.gpu_dollars_per_hour or jobs[0].gpu.dollars
    total = dict.fromkeys(STACKS, 0.0)  # GPU-hours
    for job in jobs:
        for name, hours in print_stage(job, price).items():
            total[name] += hours
    if cfg.save_every:
        save = save_bytes(num_params(jobs[0].model), cfg)
        print(f"\ndisk: {in_bytes(save)} a save, {in_bytes(save * most_saves(cfg))} for all that are kept (model)")
    if cfg.refill_attempts:
        print(f"\nrefills are not counted: generation may take up to {cfg.refill_attempts} more rounds a step")
    limit = " at most, if the controller ends no stage earlier" if cfg.stage_policy == "auto" else ""
    costs = ", ".join(f"{name} {hours:,.0f} GPU-hours, ${hours * price:,.0f}" for name, hours in total.items())
    assumed = "" if cfg.gpu_dollars_per_hour else " (assumed)"
    print(f"\nall stages{limit}: {costs}; model, at ${price:.2f} a GPU-hour{assumed}")
    print("DeepScaleR reported 3,800 A100-hours: 8K on 8 GPUs, 16K and 24K on 32")
    print(ASSUMED)
