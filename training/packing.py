"""Who computes what: the process group, and from a step's rollouts to packed batches without padding.

`plan_minibatches` splits a step's groups into minibatches, ranks and micro-batches; `pack` turns one micro-batch into
tensors, a `Batch`; `batch_logprobs` scores it.

Dimensions: T packed tokens, S sequences of a batch.
"""

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from configs import Config, UserError
from kernels import cpu
from model import DTYPES, ModelConfig, Qwen2, attention_backend, full_tensors, token_logprobs
from problems.prompts import ChatTokenizer, Prompt
from rollout import Rollout, Sampler
from training.hardware import peak_flops

Value = TypeVar("Value")

# --------------------------------------------------------------------------------------- the process group, the model


def init_distributed(cfg: Config, store: dist.Store | None = None) -> torch.device:
    """A process group and this rank's device, which `preflight` has found to be there; without torchrun, a group of
    one. store: where ranks find each other, instead of torchrun's. Raises UserError."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size % (cfg.shard_size or 1):
        raise UserError(f"shard_size: {world_size} ranks are no multiple of {cfg.shard_size}")
    cuda = cfg.device == "auto"
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    members: dict[str, Any] = {}  # torchrun's, by the environment
    if store is not None or "RANK" not in os.environ:
        rank = int(os.environ.get("RANK", "0"))
        members = {"store": store or dist.HashStore(), "rank": rank, "world_size": world_size}
    with contextlib.nullcontext() if cuda else cpu.gloo_without_teams():
        dist.init_process_group(backend, timeout=timedelta(seconds=cfg.process_group_timeout), **members)
    return device


def device_mesh(cfg: Config, device: torch.device) -> DeviceMesh:
    """The ranks as FSDP2 sees them: one row that shards the model, or with `shard_size` several such rows, each with a
    copy of it (HSDP: gradients are reduced within a row to shards, then across rows; averaged over all ranks)."""
    world_size = dist.get_world_size()
    shard_size = cfg.shard_size or world_size
    if shard_size == world_size:
        return init_device_mesh(device.type, (world_size,), mesh_dim_names=("shard",))
    shape = (world_size // shard_size, shard_size)
    return init_device_mesh(device.type, shape, mesh_dim_names=("replicate", "shard"))


def load_model(cfg: Config, path: Path, device: torch.device, dtype: torch.dtype) -> Qwen2:
    """The model of a folder, sharded over all ranks, parameters in `dtype`."""
    model = Qwen2.from_pretrained(path, dtype, device, device_mesh(cfg, device), DTYPES[cfg.dtype])
    model.vocab_size = min(model.vocab_size, ChatTokenizer(path).size)
    model.backend = attention_backend(device, cfg.attention)
    if cfg.compile == "layers":
        model.compile_layers()
    peak_flops(device, DTYPES[cfg.dtype])  # for mfu: measured here, while vLLM sleeps
    return model


def load_models(
    cfg: Config, path: Path, reference_path: Path | None, device: torch.device
) -> tuple[Qwen2, Qwen2 | None]:
    """The policy, and the KL reference if there is one."""
    model = load_model(cfg, path, device, torch.float32)
    model.set_activation_checkpointing(cfg.activation_checkpointing)
    if reference_path is None:
        return model, None
    reference = load_model(cfg, reference_path, device, DTYPES[cfg.dtype]).requires_grad_(False)
    not_finite = sum(int((~p.to_local().isfinite()).sum()) for p in reference.parameters())
    if all_sum([not_finite])[0]:
        setting = "reference" if cfg.reference else "model"
        raise UserError(f"{setting}: {reference_path} has weights that are not finite")
    return model, reference


def create_moments(model: Qwen2, optimizer: torch.optim.Optimizer) -> None:
    """Adam's moments, all zero, where there are none yet. The optimizer would create them at its first step, in the
    memory that activations have left: on a GPU the larger ones then no longer fit in there."""
    for p in model.parameters():
        state = optimizer.state[p]
        if not state:
            state.update(step=torch.tensor(0.0), exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))


def reset_moments(optimizer: torch.optim.Optimizer) -> None:
    """As of a new optimizer, in place."""
    for state in optimizer.state.values():
        for tensor in state.values():
            tensor.zero_()


def longest_sequence(cfg: Config, path: Path, benchmarks: dict[str, list[Prompt]]) -> int:
    """Tokens of the longest prompt with its response. Raises UserError where the model has fewer positions."""
    eval_max_len = cfg.eval_max_len if cfg.eval_every else 0
    longest_prompt = max([cfg.max_prompt_len, *(len(p.ids) for prompts in benchmarks.values() for p in prompts)])
    longest = longest_prompt + max(cfg.longest_response, eval_max_len)
    positions = ModelConfig.from_folder(path).max_position_embeddings
    if longest > positions:
        limit = f"the model has only max_position_embeddings={positions}"
        name = "eval_max_len" if eval_max_len > cfg.longest_response else "max_response_len"
        raise UserError(f"{name}: {longest} tokens with the longest prompt, but {limit}")
    return longest


def sync_weights(sampler: Sampler, model: Qwen2, dtype: torch.dtype) -> int:
    """Give the sampler the trainer's weights, in `dtype`; all ranks together. Returns their bytes."""
    sampler.wake()
    return sampler.load_weights(full_tensors(model, dtype))


def print0(*args: Any, sep: str = " ") -> None:
    """Print on rank 0 alone."""
    if dist.get_rank() == 0:
        print(*args, sep=sep, flush=True)


def from_rank0(function: Callable[..., Value], *args: Any) -> Value:
    """Call `function(*args)` on rank 0 and return its value on every rank. If it raises UserError there, every rank
    raises it, so that none waits for a value that never comes."""
    value, refusal = None, None
    if dist.get_rank() == 0:
        try:
            value = function(*args)
        except UserError as e:
            refusal = str(e)
    box = [value, refusal]
    dist.broadcast_object_list(box)
    value, refusal = box
    if refusal is not None:
        raise UserError(refusal)
    return value


def all_sum(values: list[float] | Tensor) -> list[float]:
    """Element-wise sum over ranks, in float64."""
    total = torch.as_tensor(values, dtype=torch.float64).cpu()
    dist.all_reduce(total)
    return total.tolist()


def gather_rollouts(rollouts: list[Rollout]) -> list[Rollout]:
    """All ranks' rollouts on every rank, ordered by prompt and sample. Tokens travel as arrays, not as lists."""
    kinds = {"prompt_ids": np.int32, "response_ids": np.int32, "logprobs": np.float32}
    sent = []
    for r in rollouts:
        sent.append(replace(r, **{name: np.asarray(getattr(r, name), kind) for name, kind in kinds.items()}))
    received: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(received, sent)
    gathered = []
    for r in (r for rollouts_of_rank in received for r in rollouts_of_rank):
        gathered.append(replace(r, **{name: getattr(r, name).tolist() for name in kinds}))
    return sorted(gathered, key=lambda r: (r.prompt_id, r.draw, r.sample_id))


# ---------------------------------------------------------------------------------------------- who trains on what


@dataclass(frozen=True)
class MicroBatch:
    """Whole sequences that one forward and backward pass takes together, end to end. Empty: a dummy, see `pack`."""

    rollouts: list[Rollout]

    @property
    def num_tokens(self) -> int:
        return sum(map(packed_length, self.rollouts))


@dataclass(frozen=True)
class Minibatch:
    """What one optimizer step learns from, on all ranks. num_tokens and num_sequences count what enters the loss on all
    ranks, at least 1: its denominators, so that world size and packing do not change the gradient."""

    micro_batches: list[list[MicroBatch]]  # [rank][i]; the same number on every rank, or FSDP hangs
    num_tokens: int
    num_sequences: int
    max_len: int  # tokens a response may have


def packed_length(r: Rollout) -> int:
    """Tokens of a sequence in a pack: one less than it has, since its last one is only a target."""
    return len(r.prompt_ids) + len(r.response_ids) - 1


def counts_in_loss(r: Rollout, mask_truncated: bool) -> bool:
    return not (mask_truncated and r.finish_reason == "length")


def plan_minibatches(groups: list[list[Rollout]], max_len: int, cfg: Config, world_size: int) -> list[Minibatch]:
    """The minibatches of a step: the same on every rank, a function of the rollouts alone.

    Groups are cut into `cfg.minibatches` near-equal parts in the order given; fewer if there are fewer groups. A part
    of which no token counts is left out: even a zero gradient would move the weights, by Adam's moments.
    """
    minibatches = []
    for indices in np.array_split(np.arange(len(groups)), cfg.minibatches):
        rollouts = [r for i in indices for r in groups[i]]
        counted = [r for r in rollouts if counts_in_loss(r, cfg.mask_truncated)]
        num_tokens = sum(len(r.response_ids) for r in counted)
        if num_tokens:
            micro_batches = distribute(rollouts, cfg.token_budget, world_size)
            minibatches.append(Minibatch(micro_batches, num_tokens, len(counted), max_len))
    return minibatches


def distribute(rollouts: list[Rollout], token_budget: int, world_size: int) -> list[list[MicroBatch]]:
    """[rank][i]: each sequence once, longest first, to the rank with the least work so far, and there into the first
    micro-batch of at most `token_budget` tokens that has room. Ranks with fewer get empty ones at the end."""
    work = [0.0] * world_size
    ranks: list[list[MicroBatch]] = [[] for _ in range(world_size)]
    for r in sorted(rollouts, key=packed_length, reverse=True):
        length = packed_length(r)
        rank = work.index(min(work))
        work[rank] += length * (1 + length / 50_000)  # attention outweighs the rest beyond some 50K tokens (1.5B model)
        for micro_batch in ranks[rank]:
            if micro_batch.num_tokens + length <= token_budget:
                micro_batch.rollouts.append(r)
                break
        else:
            ranks[rank].append(MicroBatch([r]))
    most = max(map(len, ranks))
    for micro_batches in ranks:
        micro_batches.extend(MicroBatch([]) for _ in range(most - len(micro_batches)))
    return ranks


# ------------------------------------------------------------------------------------------------------- packed tensors


@dataclass(frozen=True)
class Batch:
    """S whole sequences end to end, no padding; everything is aligned with `targets`."""

    input_ids: Tensor  # (T,)
    targets: Tensor  # (T,)
    position_ids: Tensor  # (T,) restarting at 0
    cu_seqlens: Tensor  # (S+1,) int32
    response_mask: Tensor  # (T,) 1 where the target is a response token that counts
    advantages: Tensor  # (T,)
    rollout_logprobs: Tensor  # (T,) the sampler's
    old_logprobs: Tensor | None = None  # (T,); None = on-policy: the training forward's own
    ref_logprobs: Tensor | None = None  # (T,); None without a KL penalty
    stale_mask: Tensor | None = None  # (T,) 1 where the target was sampled by older weights; None: nowhere
    longest: int | None = None  # tokens of the longest sequence, for attention; None: it asks the GPU, and waits


def pack(rollouts: list[Rollout], mask_truncated: bool, device: torch.device, step: int = 0) -> Batch:
    """One micro-batch as tensors; the only place that shifts targets against inputs. step: the one that trains on it,
    for which tokens that earlier steps have sampled are stale. Without rollouts: a dummy of two masked tokens, for a
    rank that has fewer micro-batches than others. (torch.compile has one graph for all lengths but 1: of one token it
    would have graphs of its own, compiled while the other ranks wait.)"""
    dummy = not rollouts
    if dummy:
        rollouts = [Rollout(0, 0, [0, 0], [0], [0.0], "length")]
    ids = [r.prompt_ids + r.response_ids for r in rollouts]

    def joined(parts: list) -> Tensor:
        return torch.from_numpy(np.concatenate([np.asarray(part, np.int64) for part in parts])).to(device)

    def per_token(values: list) -> Tensor:
        """One value a response token, with zeros in front for the prompt's."""
        parts = []
        for r, response_values in zip(rollouts, values, strict=True):
            parts += [np.zeros(len(r.prompt_ids) - 1), response_values]
        return torch.from_numpy(np.concatenate(parts)).to(device, torch.float32)

    masks = [[float(not dummy and counts_in_loss(r, mask_truncated))] * len(r.response_ids) for r in rollouts]
    stale = [sum(tokens for sampled, tokens in r.segments if sampled < step) for r in rollouts]  # first tokens of each
    stale_masks = [np.arange(len(r.response_ids)) < n for r, n in zip(rollouts, stale, strict=True)]
    return Batch(
        input_ids=joined([i[:-1] for i in ids]),
        targets=joined([i[1:] for i in ids]),
        position_ids=joined([range(len(i) - 1) for i in ids]),
        cu_seqlens=torch.tensor([0, *np.cumsum([len(i) - 1 for i in ids])], dtype=torch.int32, device=device),
        longest=max(len(i) - 1 for i in ids),
        response_mask=per_token(masks),
        advantages=per_token([[r.advantage] * len(r.response_ids) for r in rollouts]),
        rollout_logprobs=per_token([r.logprobs for r in rollouts]),
        stale_mask=per_token(stale_masks) if any(stale) else None,
    )


def pack_share(minibatch: Minibatch, cfg: Config, device: torch.device, step: int = 0) -> list[Batch]:
    """This rank's micro-batches, for this step."""
    return [pack(m.rollouts, cfg.mask_truncated, device, step) for m in minibatch.micro_batches[dist.get_rank()]]


def batch_logprobs(model: Qwen2, b: Batch, cfg: Config, with_entropy: bool = True) -> tuple[Tensor, Tensor | None]:
    """Log-probability of each target and entropy of each position, at the sampling temperature. (T,), (T,)"""
    hidden = model(b.input_ids, b.position_ids, b.cu_seqlens, b.longest)
    options = cfg.temperature, cfg.logprob_chunk, model.vocab_size, with_entropy, cfg.compile != "none"
    return token_logprobs(hidden, model.lm_head.weight, b.targets, *options)


@torch.no_grad()
def fixed_logprobs(model: Qwen2, batches: list[Batch], cfg: Config) -> list[Tensor]:
    """Log-probabilities (T,) of each batch without a gradient: old ones and the reference's."""
    logprobs = [batch_logprobs(model, b, cfg, with_entropy=False)[0] for b in batches]
    model.reshard()  # without a backward pass FSDP2 leaves the root's parameters unsharded
    return logprobs
