"""`train_grpo.py CONFIG --smoke=true`: what would break at step 300 breaks in the first minutes.

For someone who has just rented GPUs. Before anything is generated, one forward, backward and optimizer step on the
fullest pack the config allows; then two real steps of the run, with sleep, wake, sync and save. After each, the weights
are disturbed and must reach the sampler, and are wiped, with the optimizer, and must come back from the checkpoint.
Works in `out/<run_name>-smoke/`, which it removes. The line that begins with `smoke:` is the verdict.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from configs import Config, UserError, lost_rank
from model import ModelConfig, Qwen2
from rollout import Rollout
from training import checkpoint, watch
from training.metrics import Timer
from training.packing import Batch, pack


def settings(cfg: Config) -> Config:
    """Two steps of the same run, in a folder of their own; the second at the longest context."""
    lengths = (cfg.max_response_len[0], cfg.max_response_len[-1])
    groups = (cfg.group_size[0], cfg.group_size[-1])
    return replace(cfg, run_name=f"{cfg.run_name}-smoke", max_response_len=lengths, group_size=groups,
                   stage_steps=(1, 1), stage_policy="fixed", stage_gpus=(), stage_from="last", max_steps=0,
                   save_every=1, save_rollouts_every=0, resume=False, wandb=False)  # fmt: skip


def remove_folder(cfg: Config) -> None:
    """Remove an earlier smoke run, and nothing else. Rank 0 does it, all call it. Raises UserError."""
    problem = [None]
    if dist.get_rank() == 0 and cfg.run_dir.exists():
        try:
            ours = json.loads((cfg.run_dir / "config.json").read_text(encoding="utf-8"))["config"]["smoke"]
        except (OSError, ValueError, KeyError, TypeError):
            ours = not any(cfg.run_dir.iterdir())
        if ours:
            shutil.rmtree(cfg.run_dir)
        else:
            problem = [f"{cfg.run_dir} is not a smoke run: move it away, or choose another --run_name"]
    dist.broadcast_object_list(problem)
    if problem[0]:
        raise UserError(problem[0])


def worst_pack(cfg: Config, model_config: ModelConfig, device: torch.device) -> Batch:
    """As many sequences of the greatest length as fit into `token_budget`, and one that fills it up."""
    longest = cfg.max_prompt_len + cfg.max_response_len[-1]
    lengths = [longest] * (cfg.token_budget // longest)
    if cfg.token_budget % longest > 1:
        lengths.append(cfg.token_budget % longest)
    generator = torch.Generator().manual_seed(cfg.seed)
    rollouts = []
    for i, n in enumerate(lengths):
        ids = torch.randint(model_config.vocab_size, (n + 1,), generator=generator).tolist()
        rollouts.append(Rollout(i, 0, ids[:1], ids[1:], [-1.0] * n, "length", advantage=(-1.0) ** i))
    return pack(rollouts, False, device)


def fingerprint(model: Qwen2, optimizer: torch.optim.Optimizer) -> list[int]:
    """A sum of every tensor's bits on this rank, weights and optimizer."""
    parts = [getattr(t, "_local_tensor", t) for t in checkpoint.tensors(model, optimizer).values()]
    return [int(p.float().view(torch.int32).long().sum()) for p in parts]


@torch.no_grad()
def wipe_and_resume(cfg: Config, model: Qwen2, optimizer: torch.optim.Optimizer, sync: Callable[[], int],
                    look: Callable[..., dict[str, float]]) -> None:  # fmt: skip
    """Other weights must reach the sampler, and the checkpoint must give the old ones back. Ends the run if not.

    Two steps move the weights too little for a lost sync to be seen. So they are disturbed until the sampler, which
    still has the old ones, disagrees (`look` measures it); then a sync must make it agree. Then everything is wiped
    and loaded from the newest checkpoint: the same bits, and the sampler agrees again.
    """
    part = next(model.parameters()).device_mesh.get_local_rank("shard")  # all copies of a shard change alike
    before, generator = fingerprint(model, optimizer), torch.Generator().manual_seed(part)
    for size in (0.01, 0.03, 0.1, 0.3, 1.0, 3.0):  # relative
        for p in model.parameters():
            local = p._local_tensor
            local.mul_(1 + size * torch.randn(local.shape, generator=generator).to(local))
        if watch.divergence(look(check=False), sure=3.0) > 10 * cfg.mismatch_limit:
            break
    else:
        raise SystemExit("the trainer's weights were scrambled and the sampler's were not, and still they agree")
    sync()
    look()
    for tensor in checkpoint.tensors(model, optimizer).values():
        tensor.zero_()
    found = [checkpoint.find(cfg.run_dir) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(found)
    checkpoint.load(found[0], model, optimizer)
    if fingerprint(model, optimizer) != before:
        raise SystemExit("the checkpoint gave back other weights or another optimizer state than were saved")
    sync()
    look()


@contextmanager
def verdict() -> Iterator[None]:
    """Whatever goes wrong, a line on standard output says FAILED and why."""
    try:
        yield
    except BaseException as e:
        if lost_rank(e):
            raise  # the rank that was lost has said why
        reason = (str(e) or type(e).__name__).strip().splitlines()[0]
        print(f"smoke: FAILED on rank {os.environ.get('RANK', '0')}: {reason}", flush=True)
        raise


def report(cfg: Config, worst: Timer, rows: list[dict[str, Any]], device: torch.device) -> None:
    """Seconds and memory by phase, and the verdict. All ranks call it; rank 0 prints."""
    peaks = worst.over_ranks(("worst pack",))
    seconds, row = dict(worst.seconds), rows[-1]
    for name in (n for n in row if n.startswith("memory_")):
        phase = name.removeprefix("memory_")
        peaks[phase] = max(r[name] for r in rows)
        seconds[phase] = max(r[f"time_{phase}"] for r in rows)
    if dist.get_rank():
        return
    print(f"{'phase':<12}{'seconds':>10}{'peak GiB a rank':>18}")
    for phase, peak in peaks.items():
        print(f"{phase:<12}{seconds[phase]:>10.1f}{peak:>18.2f}")
    phase = max(peaks, key=lambda p: peaks[p])
    room = f" of {torch.cuda.mem_get_info(device)[1] / 2**30:.1f}" if device.type == "cuda" else ""
    updates = sum(r["loss"] is not None for r in rows)
    lesson = "" if updates == 2 else f" ({updates} with an update: elsewhere all groups were all right or all wrong)"
    print(f"smoke: PASSED: a pack of {cfg.token_budget} tokens trained, 2 steps{lesson}, sync, save and resume worked; "
          f"at most {peaks[phase]:.2f}{room} GiB a rank, in {phase}; {row['time_step']:.0f} s a step at context "
          f"{row['max_response_len']}; k3 after the syncs at most {max(r['mismatch_sync_k3'] for r in rows):.1e}",
          flush=True)  # fmt: skip
