"""The gradient of train_grpo's own step on fixed rollouts, for all of CASES at a number of ranks, in one launch.

A case is a tuple of settings; beside them it may hold "mean_of_means", the usual mistake in place of the aggregation,
or "by_hand", where one process computes the packs of two ranks from the formula.
"""

import random
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist

import train_grpo
from configs import load_config
from kernels import cpu
from losses import kl_penalty, policy_loss
from rollout import Rollout
from training import packing

WHOLE, MIDDLE, SMALL = "token_budget=100000", "token_budget=400", "token_budget=132"
DEEPSCALER = ("token_budget=505", "loss_agg=deepscaler")
DENOMINATORS = ("loss_agg=sequence", "loss_agg=dr_grpo", "mask_truncated=true")
CASES = {
    1: [
        *((WHOLE,), (MIDDLE,), (SMALL,)),
        *((WHOLE, setting) for setting in DENOMINATORS),
        (SMALL, "mean_of_means"),
        (*DEEPSCALER, "by_hand"),
    ],
    2: [
        *((WHOLE,), (MIDDLE,), (SMALL,)),
        *((SMALL, setting) for setting in DENOMINATORS),
        (SMALL, "mean_of_means"),
        DEEPSCALER,
        (DEEPSCALER[0],),
    ],
    4: [
        *((WHOLE,), (MIDDLE,), (SMALL,)),
        *((SMALL, f"shard_size={size}") for size in (1, 2, 4)),
    ],
}


def rollouts(seed: int) -> list[list[Rollout]]:
    """Groups of very unequal lengths, from 2 to 120 tokens, with a fixed advantage each."""
    rng = random.Random(seed)
    groups = []
    for p in range(9):
        prompt = [rng.randrange(50) for _ in range(rng.randint(1, 20))]
        group = []
        for s in range(3):
            n = rng.choice((1, 2, 5, 13, 40, 100))
            ids = [rng.randrange(50) for _ in range(n)]
            finish = "length" if n == 100 else "stop"
            group.append(Rollout(p, s, prompt, ids, [-3.9] * n, finish, advantage=rng.uniform(-1, 1)))
        groups.append(group)
    return groups


def config(model_dir, *settings):
    argv = [f"--model={model_dir}", "--max_prompt_len=20", "--max_response_len=100", "--group_size=3"]
    argv += ["--stage_steps=1", "--minibatches=1", *(f"--{setting}" for setting in settings)]
    return load_config(["configs/tiny.py", *argv])


def with_fixed_logprobs(reference, batches, cfg):
    """The batches with a reference's log-probabilities, and old ones for which ratios are off 1 and some clipped."""
    scored = []
    for b, logprobs in zip(batches, packing.fixed_logprobs(reference, batches, cfg), strict=True):
        old_logprobs = logprobs + 0.3 * b.response_mask * torch.sin(b.targets.float())
        scored.append(replace(b, ref_logprobs=logprobs, old_logprobs=old_logprobs))
    return scored


def backward_by_hand(model, batches, ranks, cfg):
    """The code that DeepScaleR released: each micro-batch's token mean, summed, and the mean over ranks."""
    for b in batches:
        logprobs, entropy = packing.batch_logprobs(model, b, cfg)
        losses = policy_loss(logprobs, b.old_logprobs, b.advantages, cfg.clip_eps_low, cfg.clip_eps_high)
        losses = losses - cfg.entropy_coef * entropy
        losses = losses + cfg.kl_coef * kl_penalty(logprobs, b.ref_logprobs, cfg.kl_estimator)
        counts = b.response_mask > 0
        loss = losses[counts].mean() / ranks if counts.any() else 0 * losses.sum()
        loss.backward()


def gradient(model_dir, case, device):
    """The whole gradient by parameter name, and how the rollouts were packed."""
    cfg = config(model_dir, *(setting for setting in case if "=" in setting))
    by_hand, mean_of_means = "by_hand" in case, "mean_of_means" in case
    model = packing.load_model(cfg, model_dir, device, torch.float32)
    reference = packing.load_model(cfg, model_dir, device, torch.float32)
    with torch.no_grad():
        for p in reference.parameters():
            p.mul_(1.05)  # so that the KL term has a gradient
    ranks = 2 if by_hand else dist.get_world_size()
    (minibatch,) = packing.plan_minibatches(rollouts(11), 100, cfg, ranks)
    if by_hand:
        micro_batches = [m for micro_batches in minibatch.micro_batches for m in micro_batches]
    else:
        micro_batches = minibatch.micro_batches[dist.get_rank()]
    batches = [packing.pack(m.rollouts, cfg.mask_truncated, device) for m in micro_batches]
    batches = with_fixed_logprobs(reference, batches, cfg)
    aggregate = train_grpo.aggregate
    if mean_of_means:
        packs = len(batches) * ranks

        def aggregate(losses, mask, *rest):
            return (losses * mask).sum() / mask.sum().clamp(min=1) / packs

    with mock.patch.object(dist, "all_reduce", wraps=dist.all_reduce) as all_reduce:
        if by_hand:
            backward_by_hand(model, batches, ranks, cfg)
        else:
            with mock.patch.object(train_grpo, "aggregate", aggregate):
                train_grpo.backward(model, batches, minibatch, cfg)
    mesh = next(model.parameters()).device_mesh
    return {
        "gradients": {name: p.grad.full_tensor() for name, p in model.named_parameters()},
        "packs": [len(micro_batches) for micro_batches in minibatch.micro_batches],
        "empty": sum(not m.rollouts for micro_batches in minibatch.micro_batches for m in micro_batches),
        "copies": mesh.size() // mesh["shard"].size(),
        "all_reduces": all_reduce.call_count,
        "units": 1 + len(model.model.layers),  # of FSDP: the layers, and the root with the rest
    }


def main(argv):
    """Arguments: model folder, output file. Rank 0 writes {case: what `gradient` returns}."""
    model_dir, out = map(Path, argv)
    device = packing.init_distributed(config(model_dir))
    cpu.prepare()  # the same products on all numbers of ranks, as in a run
    results = {case: gradient(model_dir, case, device) for case in CASES[dist.get_world_size()]}
    if dist.get_rank() == 0:
        torch.save(results, out)
    dist.barrier()
    dist.destroy_process_group()
