"""How a run ends: saved, preempted, or done. All ranks call these functions together."""

import contextlib

import torch.distributed as dist

from training import checkpoint
from training.begin import Run
from training.checkpoint import RunState, step_name
from training.metrics import Timer
from training.packing import from_rank0, print0


def tear_down(run: Run) -> None:
    dist.barrier()  # no rank leaves while another may still need it
    run.log.close()
    run.pool.close()
    run.lock.release()
    run.sampler.close()
    if dist.is_initialized():  # vLLM ends the process group with its engine
        dist.destroy_process_group()


def save(run: Run, state: RunState) -> None:
    """A checkpoint and an export of these weights. What cannot be written ends the run with one line."""
    timer = Timer(run.device)
    with timer("checkpoint"):
        checkpoint.save_all(run.cfg, run.model, run.optimizer, state)
    run.ledger.charge(timer)


def leave(run: Run, state: RunState) -> None:
    """A preempted run: save what the last checkpoint does not have, and let the folder go."""
    checkpoint_dir = run.cfg.run_dir / "ckpt" / step_name(state.step)
    if run.cfg.save_every and state.step and not from_rank0(checkpoint_dir.is_dir):
        save(run, state)
    run.log.close()
    run.pool.close()
    run.lock.release()
    with contextlib.suppress(OSError):  # nobody reads it any more
        print0(f"preempted: --resume=true goes on after step {state.step}")
    dist.barrier()  # launchers may end all ranks when one has left
    if not run.cfg.save_every:
        raise SystemExit("preempted, and save_every=0 keeps no checkpoint")
