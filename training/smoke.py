"""`train_grpo.py CONFIG --smoke=true`: what would break at step 300 breaks in the first minutes.

For someone who has just rented GPUs. Before anything is generated, one forward, backward and optimizer step on the
fullest pack the config allows; then two real steps of the run, with sleep, wake, sync and save. After each, the weights
are disturbed and must reach the sampler, and are wiped, with the optimizer, and must come back from the checkpoint.
Works in `out/<run_name>-smoke/`, which it removes. The line that begins with `smoke:` is the verdict.

The loop knows none of this: it calls a hook at five moments, `NoHook` in a real run and `SmokeTest` here.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from configs import PER_STAGE, Config, UserError, lost_rank, read_json
from model import DTYPES, Qwen2
from problems.prompts import Prompt, unread_golds
from rollout import Rollout
from training import checkpoint, run_folder, watch
from training.begin import Run
from training.checkpoint import RunState
from training.loss_scale import loss_scale
from training.metrics import Timer, check_wandb, is_hopeless
from training.packing import Batch, Minibatch, fixed_logprobs, from_rank0, pack, print0, reset_moments, sync_weights


class NoHook:
    """What a real run does at the moments where a smoke run does more."""

    def prepare(self, cfg: Config) -> Config:
        """The settings to run with. Nothing is loaded yet: a real run checks its folder here. Raises UserError."""
        check_wandb(cfg)
        run_folder.open_run(cfg)
        return cfg

    def before_loading(self, cfg: Config) -> None:
        """Data and process group are there, models are not."""

    def before_training(self, run: Run, backward: Callable, optimizer_step: Callable) -> None:
        """Models and sampler are there; the two functions are train_grpo's."""

    def after_checkpoint(self, run: Run, row: dict[str, Any]) -> None:
        """The checkpoint of the step that `row` reports is written."""

    def at_end(self, run: Run) -> None:
        print0(run.ledger.table(run.cfg))


NO_HOOK = NoHook()


class SmokeTest:
    """The hook of a smoke run."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []  # of its steps

    def prepare(self, cfg: Config) -> Config:
        check_wandb(cfg)
        return settings(cfg)

    def before_loading(self, cfg: Config) -> None:
        remove_folder(cfg)
        from_rank0(run_folder.open_run, cfg)

    def before_training(self, run: Run, backward: Callable, optimizer_step: Callable) -> None:
        self.worst_case = worst_case(run, backward, optimizer_step)

    def after_checkpoint(self, run: Run, row: dict[str, Any]) -> None:
        self.rows.append(row)
        wipe_and_resume(run, row["step"])

    def at_end(self, run: Run) -> None:
        if run.cfg.reward != "none" and not any(row["reward_mean"] > 0 for row in self.rows):
            from_rank0(check_that_something_can_be_earned, self.rows, run.prompts, run.cfg.reward)
        report(run.cfg, self.worst_case, self.rows, run.device)
        remove_folder(run.cfg)


def smoke_run(main: Callable[..., None], argv: list[str]) -> None:
    """`main(argv, hook)` with the smoke test as its hook; whatever goes wrong, a line on standard output says FAILED
    and why."""
    try:
        main(argv, SmokeTest())
    except BaseException as e:
        if not lost_rank(e):  # else the rank that was lost has said why
            reason = (str(e) or type(e).__name__).strip().splitlines()[0]
            print(f"smoke: FAILED on rank {os.environ.get('RANK', '0')}: {reason}", flush=True)
        raise


def settings(cfg: Config) -> Config:
    """Two steps of the same run, in a folder of their own: of the first stage and of the one with the longest
    context."""
    longest = cfg.max_response_len.index(cfg.longest_response)
    of_stages = {name: (cfg.entries(name)[0], cfg.entries(name)[longest]) for name in PER_STAGE}
    return replace(
        cfg,
        **of_stages,
        reference=cfg.reference if any(of_stages["kl_coef"]) else "",
        run_name=f"{cfg.run_name}-smoke",
        max_response_len=(cfg.max_response_len[0], cfg.longest_response),
        group_size=(cfg.group_size[0], cfg.group_size[longest]),
        stage_steps=(1, 1),
        stage_policy="fixed",
        stage_gpus=(),
        stage_from="last",
        max_steps=0,
        save_every=1,
        save_rollouts_every=0,
        resume=False,
        wandb=False,
    )


def remove_folder(cfg: Config) -> None:
    """Remove an earlier smoke run, and nothing else. Rank 0 does it, all call it. Raises UserError."""
    from_rank0(_remove_folder, cfg)


def _remove_folder(cfg: Config) -> None:
    if not cfg.run_dir.exists():
        return
    try:
        is_smoke_run = read_json(cfg.run_dir / "config.json")["config"]["smoke"]
    except (OSError, ValueError, KeyError, TypeError):
        is_smoke_run = not any(cfg.run_dir.iterdir())  # it was stopped before it wrote anything
    if not is_smoke_run:
        raise UserError(f"{cfg.run_dir} is not a smoke run: move it away, or choose another --run_name")
    shutil.rmtree(cfg.run_dir)


# -------------------------------------------------------------------------------------------------------------- trials


def worst_pack(cfg: Config, vocab_size: int, device: torch.device) -> Batch:
    """As many sequences of the greatest length as fit into `token_budget`, and one that fills it up."""
    longest = cfg.max_prompt_len + cfg.longest_response
    lengths = [longest] * (cfg.token_budget // longest)
    if cfg.token_budget % longest > 1:
        lengths.append(cfg.token_budget % longest)
    generator = torch.Generator().manual_seed(cfg.seed)
    rollouts = []
    for i, n in enumerate(lengths):
        ids = torch.randint(vocab_size, (n + 1,), generator=generator).tolist()
        rollouts.append(Rollout(i, 0, ids[:1], ids[1:], [-1.0] * n, "length", advantage=(-1.0) ** i))
    return pack(rollouts, False, device)


def worst_case(run: Run, backward: Callable, optimizer_step: Callable) -> Timer:
    """A step on the fullest pack, as long as nothing is generated yet; with lr 0, so that nothing moves. Returns its
    seconds and memory."""
    cfg, optimizer, timer = run.cfg, run.optimizer, Timer(run.device)
    b = worst_pack(cfg, run.model.vocab_size, run.device)
    minibatch = Minibatch([], int(b.response_mask.sum()), b.cu_seqlens.numel() - 1, cfg.longest_response)
    with timer("worst pack"):
        b = replace(b, old_logprobs=fixed_logprobs(run.model, [b], cfg)[0])
        if run.reference:
            b = replace(b, ref_logprobs=fixed_logprobs(run.reference, [b], cfg)[0])
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        scale = loss_scale(RunState(), cfg)
        backward(run.model, [b], minibatch, cfg, scale)
        while optimizer_step(run.model, optimizer, 0.0, cfg, scale) is None:
            if scale == 1:
                raise SystemExit("the gradient of the worst pack is not finite")
            scale /= 2
            backward(run.model, [b], minibatch, cfg, scale)
    for group in optimizer.param_groups:
        group["lr"] = cfg.lr
    reset_moments(optimizer)
    return timer


def fingerprint(model: Qwen2, optimizer: torch.optim.Optimizer) -> list[int]:
    """A sum of every tensor's bits on this rank, weights and optimizer: exact, where a sum of floats would round."""
    shards = [getattr(t, "_local_tensor", t) for t in checkpoint.tensors(model, optimizer).values()]
    return [int(shard.float().view(torch.int32).long().sum()) for shard in shards]


@torch.no_grad()
def wipe_and_resume(run: Run, step: int) -> None:
    """Other weights must reach the sampler, and the checkpoint must give the old ones back. Ends the run if not.

    Two steps move the weights too little for a lost sync to be seen. So they are disturbed until the sampler, which
    still has the old ones, disagrees; then a sync must make it agree. Then everything is wiped and loaded from the
    newest checkpoint: the same bits, and the sampler agrees again.
    """
    cfg, model, optimizer = run.cfg, run.model, run.optimizer
    shard = next(model.parameters()).device_mesh.get_local_rank("shard")  # all copies of a shard change alike
    before, generator = fingerprint(model, optimizer), torch.Generator().manual_seed(shard)
    for size in (0.01, 0.03, 0.1, 0.3, 1.0, 3.0):  # relative
        for p in model.parameters():
            local = p._local_tensor
            local.mul_(1 + size * torch.randn(local.shape, generator=generator).to(local))
        sums, _ = watch.probe_sums(run.sampler, model, run.prompts, cfg, step)
        if watch.over_ranks(sums).divergence(standard_errors=3.0) > 10 * cfg.mismatch_limit:
            break
    else:
        raise SystemExit("the trainer's weights were scrambled and the sampler's were not, and still they agree")
    sync_weights(run.sampler, model, DTYPES[cfg.dtype])
    watch.probe(run.sampler, model, run.prompts, cfg, step)
    for tensor in checkpoint.tensors(model, optimizer).values():
        tensor.zero_()
    checkpoint.load(from_rank0(checkpoint.find, cfg.run_dir), model, optimizer)
    if fingerprint(model, optimizer) != before:
        raise SystemExit("the checkpoint gave back other weights or another optimizer state than were saved")
    sync_weights(run.sampler, model, DTYPES[cfg.dtype])
    watch.probe(run.sampler, model, run.prompts, cfg, step)


# ------------------------------------------------------------------------------------------------------------- verdict


def check_that_something_can_be_earned(rows: list[dict[str, Any]], prompts: list[Prompt], rule: str) -> None:
    """After two steps that earned nothing by this rule. Raises UserError."""
    if all(map(is_hopeless, rows)):
        raise UserError("two steps earned nothing, and no response had an answer that could be graded: see above")
    if rule == "exact" and len(unread_golds(prompts)) == len(prompts):
        raise UserError("train_data: two steps earned nothing, and the grader cannot read one of its answers")


def report(cfg: Config, worst_case: Timer, rows: list[dict[str, Any]], device: torch.device) -> None:
    """Seconds and memory by phase, and the verdict. All ranks call it; rank 0 prints."""
    peaks = worst_case.peak_memory(("worst pack",))
    seconds, last = dict(worst_case.seconds), rows[-1]
    for name in [n for n in last if n.startswith("memory_")]:
        phase = name.removeprefix("memory_")
        peaks[phase] = max(row[name] for row in rows)
        seconds[phase] = max(row[f"time_{phase}"] for row in rows)
    print0(f"{'phase':<12}{'seconds':>10}{'peak GiB a rank':>18}")
    for phase, peak in peaks.items():
        print0(f"{phase:<12}{seconds[phase]:>10.1f}{peak:>18.2f}")
    fullest = max(peaks, key=lambda phase: peaks[phase])
    total = f" of {torch.cuda.mem_get_info(device)[1] / 2**30:.1f}" if device.type == "cuda" else ""
    updates = sum(row["loss"] is not None for row in rows)
    lesson = "" if updates == 2 else f" ({updates} with an update: elsewhere all groups were all right or all wrong)"
    k3 = max(row["mismatch_sync_k3"] for row in rows)
    memory = f"at most {peaks[fullest]:.2f}{total} GiB a rank, in {fullest}"
    speed = f"{last['time_step']:.0f} s a step at context {last['max_response_len']}"
    print0(
        f"smoke: PASSED: a pack of {cfg.token_budget} tokens trained, 2 steps{lesson}, sync, save and resume worked; "
        f"{memory}; {speed}; k3 after the syncs at most {k3:.1e}"
    )
