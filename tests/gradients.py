"""Run by torchrun from test_train.py: the gradient of train_grpo's own step on fixed rollouts, written by rank 0.

Arguments: model folder, output file, then key=value: `mean_of_means=1` replaces the aggregation by the usual mistake,
`ranks_here=2` has one process compute both ranks' packs, plainly, and average.
"""

import random

import torch
import torch.distributed as dist

import train_grpo
from configs import load_config, run
from losses import kl_penalty, policy_loss
from rollout import Rollout
from training import packing


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


def main(model_dir: str, out: str, *options: str) -> None:
    flags = [f"--model={model_dir}", "--max_response_len=100", "--group_size=3", "--stage_steps=1", "--minibatches=1"]
    flags += ["--max_prompt_len=20"]
    cfg = load_config(
        ["configs/tiny.py", *flags, *(f"--{o}" for o in options if not o.startswith(("mean_of_means", "ranks_here")))]
    )
    device = train_grpo.init_distributed(cfg)
    model = train_grpo.load_model(cfg, model_dir, device, torch.float32)
    reference = train_grpo.load_model(cfg, model_dir, device, torch.float32)
    with torch.no_grad():
        for p in reference.parameters():
            p.mul_(1.05)  # so that the KL term has a gradient
    if "mean_of_means=1" in options:
        train_grpo.aggregate = lambda losses, mask, *rest: (losses * mask).sum() / mask.sum().clamp(min=1) / len(packs)
        packs = []
    ranks_here = 2 if "ranks_here=2" in options else 1
    (plan,) = packing.plan_minibatches(rollouts(11), cfg, dist.get_world_size() * ranks_here)
    mine = plan[dist.get_rank()] if ranks_here == 1 else [p for packs in plan for p in packs]
    batches = [packing.pack(p, cfg.mask_truncated, device) for p in mine]
    if "mean_of_means=1" in options:
        packs += batches * dist.get_world_size()
    for b, ref_logprobs in zip(batches, train_grpo.fixed_logprobs(reference, batches, cfg), strict=True):
        b.ref_logprobs = ref_logprobs
        b.old_logprobs = ref_logprobs + 0.3 * b.response_mask * torch.sin(
            b.targets.float()
        )  # ratios off 1, some clipped
    if ranks_here == 1:
        train_grpo.backward(model, batches, packing.count(plan, cfg, 100), cfg)
    for b in batches if ranks_here > 1 else ():  # the released code: each micro-batch's token mean, ranks averaged
        logprobs, entropy = train_grpo.batch_logprobs(model, b, cfg)
        losses = policy_loss(logprobs, b.old_logprobs, b.advantages, cfg.clip_eps_low, cfg.clip_eps_high)
        losses = losses - cfg.entropy_coef * entropy
        losses = losses + cfg.kl_coef * kl_penalty(logprobs, b.ref_logprobs, cfg.kl_estimator)
        real = b.response_mask > 0
        (losses[real].mean() / ranks_here if real.any() else 0 * losses.sum()).backward()
    mesh = next(model.parameters()).device_mesh
    gradients = {name: p.grad.full_tensor() for name, p in model.named_parameters()}
    if dist.get_rank() == 0:
        torch.save(
            {
                "gradients": gradients,
                "packs": [len(r) for r in plan],
                "empty": sum(not p for r in plan for p in r),
                "copies": mesh.size() // mesh["shard"].size(),
            },
            out,
        )
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    run(lambda argv: main(*argv))
