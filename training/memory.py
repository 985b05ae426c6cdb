"""The memory that a stage needs on a GPU: by part and moment, whether it fits, and which settings would make it fit.

Arithmetic alone, for plan.py. It counts the tensors that model.py, FSDP2 and the sampler hold when memory may peak; the
trainer's are held to what its own step takes in torch's fake mode (tests/test_memory.py).

Dimensions: T packed tokens, D hidden, F MLP.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from configs import Config
from model import DTYPES, Qwen2
from training.hardware import PEAK_FLOPS

GIB = 2**30
CONTEXT = 1.5  # GiB of CUDA's context and NCCL's buffers
ASLEEP = 1.5  # GiB that a sleeping vLLM keeps
ENGINE = 2.5  # GiB of vLLM's share that are neither weights nor cache
IN_FLIGHT = 2  # groups in flight by those that a step trains on, with partial rollouts
SPARE = 0.05  # share of the memory that fragmentation may take
# The backward pass of the head; of the last layer, when all activations are still there; of the root (embedding, final
# norm and head), which comes last; the optimizer's step. vLLM sleeps through them. Passes that only score
# take less than the head's backward pass: the same logits, without activations and gradients.
TRAINER_MOMENTS = ("head's bwd", "layer's bwd", "root's bwd", "optimizer")
MOMENTS = (*TRAINER_MOMENTS, "generation")
ASSUMED = f"""\
- {CONTEXT} GiB for CUDA and NCCL; {ASLEEP} left of sleeping vLLM; {ENGINE} of its share for graphs and buffers
- flash or varlen attention, fused RMSNorm, 2 layers gathered; {SPARE:.0%} of the memory spare, for the allocator"""


@dataclass(frozen=True)
class Gpu:
    name: str
    memory: float  # GiB that torch sees
    bandwidth: float  # bytes/s, data sheet
    peak: float  # FLOP/s in 16 bits, data sheet
    dollars: float  # an hour, assumed
    bfloat16: bool = True  # else float16 alone


GPUS = {
    "a100-40": Gpu("a100-40", 39.4, 1.555e12, PEAK_FLOPS["A100"], 1.3),
    "a100-80": Gpu("a100-80", 79.2, 2.039e12, PEAK_FLOPS["A100"], 1.8),
    "h100": Gpu("h100", 79.1, 3.35e12, PEAK_FLOPS["H100"], 3.0),
    "h200": Gpu("h200", 139.7, 4.8e12, PEAK_FLOPS["H200"], 3.8),
    "rtx4090": Gpu("rtx4090", 23.6, 1.008e12, PEAK_FLOPS["RTX 4090"], 0.4),
    "rtx3090": Gpu("rtx3090", 23.6, 0.936e12, PEAK_FLOPS["RTX 3090"], 0.25),
    "a10": Gpu("a10", 22.0, 0.6e12, PEAK_FLOPS["A10"], 0.75),
    "l4": Gpu("l4", 22.0, 0.3e12, PEAK_FLOPS["L4"], 0.7),
    "t4": Gpu("t4", 14.5, 0.32e12, PEAK_FLOPS["T4"], 0.35, bfloat16=False),
}


@dataclass(frozen=True)
class Job:
    """One stage of a run on GPUs of one kind."""

    cfg: Config  # of this stage alone
    model: Qwen2  # on the meta device: shapes, no weights
    reference: Qwen2 | None  # likewise; there if any stage has a KL penalty
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
    def rank_prompts(self) -> int:
        """Prompts of a step of the rank with the most."""
        return math.ceil(self.cfg.prompts_per_step / self.gpus)

    @property
    def rank_samples(self) -> int:
        """Samples of the rank with the most prompts, those that partial rollouts carry over included."""
        in_flight = IN_FLIGHT if self.cfg.partial_rollouts else 1
        return in_flight * self.rank_prompts * self.cfg.group_size[0]

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


def num_params(module: nn.Module | None) -> int:
    return sum(p.numel() for p in module.parameters()) if module else 0


# ------------------------------------------------------------------------------------------- bytes by part and moment


def bytes_by_part(job: Job) -> dict[str, dict[str, float]]:
    """part -> moment -> bytes on a GPU; a part takes nothing at a moment that it does not name."""
    cfg, size = job.cfg, job.size
    rows = min(cfg.logprob_chunk, cfg.token_budget)
    logits = rows * job.model.config.vocab_size  # numbers of a chunk
    head = num_params(job.model.lm_head)
    # Both passes of model._TokenLogprobs hold a chunk's log-softmax and probabilities at once, in float32. The backward
    # pass then holds its gradient in the compute type, beside what the chunk adds to the head's gradient. Compiled it
    # peaks alike: logits and gradient in the compute type, and a float32 gradient between them.
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
    # The root's gradient and its float32 copy, once the gathered weights are free. With a tied head the peak is before,
    # where its gradient, the embedding's and their sum are there, and the last layer's float32 copy.
    tied = job.model.config.tie_word_embeddings
    roots_gradients = size * 4 * root + 4 * layer if tied else (size + 4) * root
    return {
        f"float32 weights / {shards}": dict.fromkeys(MOMENTS, 4 * shard),
        f"Adam moments / {shards}": dict.fromkeys(MOMENTS, 8 * shard),
        # of the micro-batches before; with HSDP what they have not yet summed over the replicas is in their place
        f"float32 gradients / {shards}": dict.fromkeys(TRAINER_MOMENTS, 4 * shard),
        "foreach temporaries of AdamW": {"optimizer": 4 * shard},
        f"reference, {cfg.dtype} / {shards}": dict.fromkeys(MOMENTS, size * num_params(job.reference) / shards),
        # Of layers only in their own passes: the one at work, and the next one.
        "gathered: root, 2 layers": {"head's bwd": size * root, "layer's bwd": size * (root + 2 * layer)},
        "gradients before reduce-scatter": {
            "head's bwd": 4 * head,  # in float32, since it is a sum over chunks
            # the head's and this layer's, and a float32 copy of the last one's, which is under way
            "layer's bwd": size * head + (size + 4) * layer,
            "root's bwd": roots_gradients,
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
    if c.qk_norm:  # q and k before their norms too, and in float32 the norms' scales
        layer += tokens * (c.num_attention_heads + c.num_key_value_heads) * (job.size * c.head_dim + 4)
    # Also, in float32: logsumexp of every head, cosines and sines of the angles, scales of both norms.
    layer += 4 * tokens * (c.num_attention_heads + c.head_dim + 2)
    kept = c.num_hidden_layers * (hidden if checkpointing else layer)
    # A layer's backward pass: what it recomputes, two (T, F) gradients more than it has freed, the residual's gradient.
    work = (layer - hidden if checkpointing else 0) + 2 * mlp + hidden
    # In the head's, the final norm's input and output, and the output's gradient.
    return {"head's bwd": kept + 3 * hidden, "layer's bwd": kept + work}


def sampler_memory(job: Job) -> dict[str, dict[str, float]]:
    """part -> moment -> bytes: vLLM's share of the GPU while it is awake, or what the torch sampler holds."""
    if job.cfg.sampler == "vllm":
        awake = job.cfg.vllm_gpu_memory_utilization * job.gpu.memory * GIB
        return {"vLLM": {**dict.fromkeys(TRAINER_MOMENTS, ASLEEP * GIB), "generation": awake}}
    weights = job.size * num_params(job.model)
    logits = min(job.cfg.max_num_seqs, job.rank_samples) * job.model.config.vocab_size
    # Bytes a logit: rollout.sample_tokens has three float32 and three float64 tensors, in the memory of the CUDA graphs
    # and, in the first step of a shape, once more.
    copies = 2 * (3 * 4 + 3 * 8)
    awake = weights + job.kv_bytes * job.cache_tokens + copies * logits
    return {"sampler: weights; cache, logits": {**dict.fromkeys(TRAINER_MOMENTS, weights), "generation": awake}}


def teacher_peak(job: Job) -> float:
    """GiB while a KL reference of another shape scores a micro-batch: it is then another model that is gathered, and
    its layers and logits may be larger than the policy's. 0 where the reference has the policy's shape, see above."""
    teacher, cfg = job.reference, job.cfg
    if teacher is None or teacher.config == job.model.config:
        return 0.0
    c, layer = teacher.config, num_params(teacher.model.layers[0])
    root = num_params(teacher) - c.num_hidden_layers * layer
    logits = min(cfg.logprob_chunk, cfg.token_budget) * c.vocab_size
    # The residual, its norm; gate, its SiLU and up of the MLP, in one layer at a time.
    work = job.size * cfg.token_budget * (2 * c.hidden_size + 3 * c.intermediate_size)
    shards = cfg.shard_size or job.gpus
    held = (12 * num_params(job.model) + job.size * num_params(teacher)) / shards  # weights and moments; the teacher's
    (sampler,) = sampler_memory(job).values()
    gathered = job.size * (root + 2 * layer)
    return CONTEXT + (held + sampler["optimizer"] + gathered + work + 2 * 4 * logits) / GIB


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
    generation = gib_by_moment(job)["generation"]
    for name, peak in (
        ("the trainer", trainer_peak(job)),
        ("generation", generation),
        ("the teacher's pass", teacher_peak(job)),
    ):
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
    """The first of a setting's values with which the job fits; None if there is none. A stronger value never takes more
    memory, so the values are bisected: of a huge token_budget there are very many."""
    first = bisect_left(values, True, key=lambda value: not misfits(changed(job, {name: value})))
    return values[first] if first < len(values) else None


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


def report(job: Job) -> list[str]:
    """Memory by part and moment, what to change where it does not fit, the cache."""
    cfg, problems = job.cfg, misfits(job)
    rows = {name: {m: x / GIB for m, x in part.items()} for name, part in bytes_by_part(job).items()}
    lines = [f"{'GiB on a GPU (model)':<34}" + "".join(f"{moment:>12}" for moment in MOMENTS)]
    for name, row in {**rows, "together": gib_by_moment(job)}.items():
        cells = [f"{row[moment]:.2f}" if row.get(moment) else "" for moment in MOMENTS]
        lines.append(f"{name:<34}" + "".join(f"{cell:>12}" for cell in cells))
    lines.append(f"{job.gpu.memory} GiB, {SPARE:.0%} spare: {'DOES NOT FIT' if problems else 'fits'} (model)")
    if problems:
        ways = [" ".join(f"--{name}={str(value).lower()}" for name, value in way.items()) for way in remedies(job)]
        lines += [*problems, "it would fit with " + (" or ".join(ways) or "a larger GPU only")]
    if teacher_peak(job):
        lines.append(f"the teacher's pass takes {teacher_peak(job):.1f} GiB (model)")
    other = not cfg.activation_checkpointing
    peak = trainer_peak(changed(job, {"activation_checkpointing": other}))
    lines.append(f"with activation_checkpointing={str(other).lower()} the trainer takes {peak:.1f} GiB (model)")
    held, expected = job.cache_tokens, job.prompt + job.mean
    sequences = f"{held / job.longest:,.1f} sequences of {job.longest:,} (longest)"
    sequences += f" or {held / expected:,.1f} of {expected:,.0f} (expected)"
    samples = f"{job.rank_samples} a rank, max_num_seqs {cfg.max_num_seqs}"
    return [*lines, f"KV cache (model): {held:,.0f} tokens, {sequences}; {samples}"]
