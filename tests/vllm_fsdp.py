"""Run by torchrun from test_vllm.py: three optimizer steps under FSDP2, a sync after each, vLLM against the trainer.

Arguments: train_grpo's own. Rank 0 prints one JSON object of findings.
"""

import json
from pathlib import Path

import torch
import torch.distributed as dist

import train_grpo
from configs import load_config, run
from model import DTYPES, full_tensors
from rollout import TorchSampler, make_sampler, sample_seed
from training import watch
from training.packing import count, pack, plan_minibatches


def main(argv):
    cfg = load_config(argv)
    path = Path(cfg.model)
    device = train_grpo.init_distributed(cfg)
    rank, world = dist.get_rank(), dist.get_world_size()
    sampler = make_sampler(cfg, path, device, cfg.max_prompt_len + cfg.max_response_len[-1])
    model = train_grpo.load_model(cfg, path, device, torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=cfg.lr)
    prompts = [[0, 2, 7 + p, 16, 7 + rank, 17, 18, 3, 4, 5, 6] for p in range(6)]  # "1+1=?" and so on
    before = {n: p.full_tensor().clone() for n, p in model.named_parameters()}
    figures = []
    for step in range(4):  # the last one only samples and compares
        sampler.wake()
        size = sampler.load_weights(full_tensors(model, DTYPES[cfg.dtype]))
        seeds = [[sample_seed(step, rank, p, s) for s in range(4)] for p in range(6)]
        groups = sampler.generate(prompts, seeds, cfg.max_response_len[-1], cfg.temperature, 1.0)
        sampler.sleep()
        rollouts = [r for g in groups for r in g]
        for r in rollouts:
            r.advantage = 1.0 if r.sample_id % 2 else -1.0
        plan = plan_minibatches([rollouts], cfg, 1)  # as many packs on both ranks: same shapes
        batches = [pack(r, False, device) for r in plan[0][0]][:1]
        seen = watch.nothing(device)
        for b, logprobs in zip(batches, train_grpo.fixed_logprobs(model, batches, cfg), strict=True):
            seen = watch.merge(seen, watch.mismatch(logprobs, b))
        figures.append(watch.over_ranks(seen))
        if step < 3:
            train_grpo.backward(model, batches, count([[rollouts]], cfg, cfg.max_response_len[-1]), cfg)
            assert train_grpo.optimizer_step(model, optimizer, 0.0, cfg) is not None
    moved = max(float((p.detach().full_tensor() - before[n]).abs().max()) for n, p in model.named_parameters())
    ours = TorchSampler(path, DTYPES[cfg.dtype], device, 16)
    ours.load_weights(full_tensors(model, DTYPES[cfg.dtype]))
    greedy = [
        [r.response_ids for g in s.generate(prompts, [[0]] * 6, 24, 0.0, 1.0) for r in g] for s in (sampler, ours)
    ]
    same = torch.tensor(float(greedy[0] == greedy[1]))
    dist.all_reduce(same, dist.ReduceOp.MIN)
    if rank == 0:
        found = {"max": [f["max"] for f in figures], "k3": [f["k3"] for f in figures], "moved": moved}
        found |= {"greedy_equal": bool(same), "tokens": sum(map(len, greedy[0])), "world": world, "bytes": size}
        print("FOUND " + json.dumps(found), flush=True)
    dist.barrier()
    sampler.close()


run(main)
