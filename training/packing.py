"""Who computes what: the process group, and from a step's rollouts to packed batches without a token of padding.

`plan_minibatches` splits a step into minibatches, ranks and micro-batches; `pack` makes one micro-batch of tensors.

Dimensions: T packed tokens, S sequences of a batch.
"""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from configs import Config, UserError
from rollout import Rollout


def init_distributed(cfg: Config) -> torch.device:
    """A process group and this rank's device; without torchrun, a group of one. Raises UserError."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world % (cfg.shard_size or 1):
        raise UserError(f"shard_size: {world} ranks are no multiple of {cfg.shard_size}")
    cuda = torch.cuda.is_available() and cfg.device == "auto"
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda and cfg.dtype == "float32":
        raise UserError("dtype: float32 does not run through FlashAttention on a GPU; use bfloat16, or --device=cpu")
    if cuda:
        torch.cuda.set_device(device)
    alone = {} if "RANK" in os.environ else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", **alone,
                            timeout=timedelta(seconds=cfg.process_group_timeout))  # fmt: skip
    return device


def device_mesh(cfg: Config, device: torch.device) -> DeviceMesh:
    """The ranks as FSDP2 sees them: one row that shards the model, or with `shard_size` several such rows, each with a
    copy of it (HSDP: gradients are summed within a row by shards, then across rows)."""
    world, size = dist.get_world_size(), cfg.shard_size or dist.get_world_size()
    if size == world:
        return init_device_mesh(device.type, (world,), mesh_dim_names=("shard",))
    return init_device_mesh(device.type, (world // size, size), mesh_dim_names=("replicate", "shard"))


def print0(*args: Any) -> None:
    if dist.get_rank() == 0:
        print(*args, flush=True)


@dataclass
class Batch:
    """S whole sequences end to end, no padding; everything is aligned with `targets`."""

    input_ids: Tensor  # (T,)
    targets: Tensor  # (T,)
    position_ids: Tensor  # (T,) restarting at 0
    cu_seqlens: Tensor  # (S+1,) int32
    response_mask: Tensor  # (T,) 1 where the target is a response token that counts
    advantages: Tensor  # (T,)
    rollout_logprobs: Tensor  # (T,)
    old_logprobs: Tensor | None = None  # (T,); None = on-policy: the training forward's own
    ref_logprobs: Tensor | None = None  # (T,); None without a KL penalty


@dataclass(frozen=True)
class Counts:
    """The denominators of a minibatch: over all ranks, after filtering, at least 1."""

    num_tokens: int
    num_sequences: int
    max_len: int


def length(r: Rollout) -> int:
    """Tokens it takes in a pack: one less than it has, since the last one is only a target."""
    return len(r.prompt_ids) + len(r.response_ids) - 1


def plan_minibatches(groups: list[list[Rollout]], cfg: Config, world: int) -> list[list[list[list[Rollout]]]]:
    """plan[minibatch][rank] = micro-batches: the same on every rank, a function of the rollouts alone.

    Groups are cut into `cfg.minibatches` near-equal parts in prompt order; the sequences of a part go to the ranks by
    cost, longest first to the least loaded, and there into packs of at most `token_budget` tokens. Every rank gets the
    same number of packs (empty ones at the end), because FSDP hangs otherwise.
    """
    plan = []
    for part in np.array_split(np.arange(len(groups)), cfg.minibatches):
        sequences = sorted((r for g in part for r in groups[g]), key=length, reverse=True)
        if not sequences:
            continue  # fewer groups than minibatches, after filtering
        load, ranks = [0.0] * world, [[] for _ in range(world)]
        for r in sequences:
            rank = load.index(min(load))
            load[rank] += length(r) * (1 + length(r) / 50_000)  # attention is half of the work at some 50K tokens
            packs = ranks[rank]
            fits = (p for p in packs if sum(map(length, p)) + length(r) <= cfg.token_budget)
            pack = next(fits, None)
            if pack is None:
                packs.append(pack := [])
            pack.append(r)
        most = max(map(len, ranks))
        plan.append([packs + [[] for _ in range(most - len(packs))] for packs in ranks])
    return plan


def pack(rollouts: list[Rollout], mask_truncated: bool, device: torch.device) -> Batch:
    """One micro-batch. This shifts targets against inputs, and nobody else ever does. No rollouts: a masked dummy."""
    live = bool(rollouts)
    rollouts = rollouts or [Rollout(0, 0, [0], [0], [0.0], "length")]
    ids = [r.prompt_ids + r.response_ids for r in rollouts]

    def per_token(values: list[list[float]]) -> Tensor:  # response values, behind zeros for the prompt
        parts = [x for r, v in zip(rollouts, values, strict=True) for x in (np.zeros(len(r.prompt_ids) - 1), v)]
        return torch.from_numpy(np.concatenate(parts)).to(device, torch.float32)

    def joined(parts: list) -> Tensor:
        return torch.from_numpy(np.concatenate([np.asarray(p, np.int64) for p in parts])).to(device)

    counted = [float(live and counts_in_loss(r, mask_truncated)) for r in rollouts]
    return Batch(
        input_ids=joined([i[:-1] for i in ids]),
        targets=joined([i[1:] for i in ids]),
        position_ids=joined([range(len(i) - 1) for i in ids]),
        cu_seqlens=torch.tensor([0, *np.cumsum([len(i) - 1 for i in ids])], dtype=torch.int32, device=device),
        response_mask=per_token([[c] * len(r.response_ids) for c, r in zip(counted, rollouts, strict=True)]),
        advantages=per_token([[r.advantage] * len(r.response_ids) for r in rollouts]),
        rollout_logprobs=per_token([r.logprobs for r in rollouts]),
    )


def counts_in_loss(r: Rollout, mask_truncated: bool) -> bool:
    return not (mask_truncated and r.finish_reason == "length")


def count(ranks: list[list[list[Rollout]]], cfg: Config, max_len: int) -> Counts:
    """The denominators of one minibatch of the plan."""
    kept = [r for packs in ranks for p in packs for r in p if counts_in_loss(r, cfg.mask_truncated)]
    return Counts(max(1, sum(len(r.response_ids) for r in kept)), max(1, len(kept)), max_len)
