"""Run on several ranks by test_vllm_runs.py: three optimizer steps under FSDP2, a sync after each, vLLM against the
trainer."""

import json
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

import train_grpo
from configs import load_config
from model import DTYPES, full_tensors
from rollout import TorchSampler, make_sampler, sample_seed
from training import packing, watch


def sample_and_compare(sampler, model, prompts, step, cfg, device):
    """The batch and minibatch of this rank's samples, and how far sampler and trainer differ on all ranks' tokens."""
    rank = dist.get_rank()
    seeds = [[sample_seed(step, rank, p, s) for s in range(4)] for p in range(len(prompts))]
    groups = sampler.generate(prompts, seeds, cfg.max_response_len[-1], cfg.temperature, 1.0)
    sampler.sleep()
    rollouts = [replace(r, advantage=1.0 if r.sample_id % 2 else -1.0) for group in groups for r in group]
    (minibatch,) = packing.plan_minibatches([rollouts], cfg.max_response_len[-1], cfg, 1)
    first = minibatch.micro_batches[0][0]  # one pack on each rank: as many everywhere
    b = packing.pack(first.rollouts, False, device)
    sums = watch.mismatch(packing.fixed_logprobs(model, [b], cfg)[0], b)
    return b, minibatch, watch.over_ranks(sums)


def main(argv):
    """Arguments: output file, then train_grpo's own. Rank 0 writes a JSON object of figures."""
    cfg = load_config(argv[1:])
    path, dtype = Path(cfg.model), DTYPES[cfg.dtype]
    device = packing.init_distributed(cfg)
    sampler = make_sampler(cfg, path, device, cfg.max_prompt_len + cfg.max_response_len[-1])
    model = packing.load_model(cfg, path, device, torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=cfg.lr)
    prompts = [[0, 2, 7 + p, 16, 7 + dist.get_rank(), 17, 18, 3, 4, 5, 6] for p in range(6)]  # "1+1=?" and so on
    before = {n: p.full_tensor().clone() for n, p in model.named_parameters()}
    largest = []
    for step in range(4):  # the last one only samples and compares
        packing.sync_weights(sampler, model, dtype)
        b, minibatch, mismatch = sample_and_compare(sampler, model, prompts, step, cfg, device)
        largest.append(mismatch.largest)
        if step < 3:
            train_grpo.backward(model, [b], minibatch, cfg)
            assert train_grpo.optimizer_step(model, optimizer, 0.0, cfg) is not None
    moved = max(float((p.detach().full_tensor() - before[n]).abs().max()) for n, p in model.named_parameters())
    torch_sampler = TorchSampler(path, dtype, device, 16)
    torch_sampler.load_weights(full_tensors(model, dtype))
    greedy = []
    for engine in (sampler, torch_sampler):
        groups = engine.generate(prompts, [[0]] * 6, 24, 0.0, 1.0)
        greedy.append([r.response_ids for group in groups for r in group])
    ranks_that_differ, _ = packing.all_sum([float(greedy[0] != greedy[1]), 0.0])
    if dist.get_rank() == 0:
        figures = {"world_size": dist.get_world_size(), "largest": largest, "moved": moved}
        figures |= {"ranks_that_differ": ranks_that_differ, "tokens": sum(map(len, greedy[0]))}
        Path(argv[0]).write_text(json.dumps(figures), encoding="utf-8")
    dist.barrier()
    sampler.close()
