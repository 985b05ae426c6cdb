"""GRPO with a context that grows: sample, grade, compare within the group, update, lengthen. `main` is the loop.

    torchrun --nproc_per_node=8 train_grpo.py configs/8k.py [--key=value ...]     # or plain python for one process

Reads a config, a model folder and problem files; writes the run folder `out/<run_name>/` (config.json, metrics.jsonl,
rollouts/, ckpt/, hf/, ledger.json, summary.json). A process group and FSDP2 always exist, with one process as with
thirty-two.

Dimensions: T packed tokens of a batch.
"""

import importlib.util
import math
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from configs import Config, UserError, load_config, run
from eval import evaluate
from grader.pool import RewardPool
from losses import aggregate, cispo_loss, clipped, kl_penalty, policy_loss, rollout_weights, sequence_logratio
from model import DTYPES, ModelConfig, Qwen2, full_tensors, peak_flops, resolve_model, token_logprobs
from problems.prompts import ChatTokenizer, Prompt, encode_problems, load_problems, load_prompts
from rollout import TorchSampler, VLLMSampler, make_sampler, sample_seed
from training import checkpoint, smoke, stages, watch
from training.groups import sample_groups, to_train_on
from training.metrics import (
    Ledger,
    Timer,
    add_row,
    dump_rollouts,
    progress_line,
    rollout_metrics,
    start_wandb,
    time_columns,
    write_summary,
)
from training.packing import Batch, Counts, count, device_mesh, init_distributed, length, pack, plan_minibatches, print0


def all_sum(values: list[float] | Tensor) -> list[float]:
    """Element-wise sum over ranks, in float64."""
    total = torch.as_tensor(values, dtype=torch.float64).cpu()
    dist.all_reduce(total)
    return total.tolist()


# ----------------------------------------------------------------------------------------------------------- the step


def batch_logprobs(model: Qwen2, b: Batch, cfg: Config) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of each position, at the sampling temperature. (T,), (T,)"""
    hidden = model(b.input_ids, b.position_ids, b.cu_seqlens)
    return token_logprobs(hidden, model.lm_head.weight, b.targets, cfg.temperature, cfg.logprob_chunk)


@torch.no_grad()
def fixed_logprobs(model: Qwen2, batches: list[Batch], cfg: Config) -> list[Tensor]:
    """Log-probabilities under weights that stay as they are: old ones and the reference's."""
    logprobs = [batch_logprobs(model, b, cfg)[0] for b in batches]
    model.reshard()  # without a backward pass FSDP2 leaves the root's parameters whole and plain
    return logprobs


def policy_losses(logprobs: Tensor, old_logprobs: Tensor, b: Batch, cfg: Config) -> tuple[Tensor, Tensor]:
    """The policy loss a token, and 1 where it was clipped. (T,), (T,)"""
    clip = cfg.clip_eps_low, cfg.clip_eps_high
    if cfg.policy_loss == "cispo":
        sign = torch.ones_like(logprobs)
        outside = clipped(logprobs, old_logprobs, sign, *clip) + clipped(logprobs, old_logprobs, -sign, *clip)
        return cispo_loss(logprobs, old_logprobs, b.advantages, *clip), outside
    if cfg.policy_loss == "gspo":
        logprobs = sequence_logratio(logprobs, old_logprobs, b.response_mask, b.cu_seqlens)
        old_logprobs = torch.zeros_like(logprobs)
    losses = policy_loss(logprobs, old_logprobs, b.advantages, *clip, cfg.dual_clip or None)
    return losses, clipped(logprobs, old_logprobs, b.advantages, *clip)


def backward(model: Qwen2, batches: list[Batch], counts: Counts, cfg: Config) -> tuple[Tensor, Tensor]:
    """Add the gradient of one minibatch. Returns sums over this rank's tokens of (loss as aggregated, policy loss, KL,
    entropy, clipped, tokens), and its sampler mismatch where it was on-policy."""
    sums, seen = torch.zeros(6, dtype=torch.float64), watch.nothing(batches[0].targets.device)
    # FSDP averages gradients over ranks and we want their sum; the released DeepScaleR code kept the average.
    scale = 1 if cfg.loss_agg == "deepscaler" else dist.get_world_size()
    for b in batches:
        logprobs, entropy = batch_logprobs(model, b, cfg)  # (T,), (T,)
        old_logprobs = logprobs.detach() if b.old_logprobs is None else b.old_logprobs
        pg, clips = policy_losses(logprobs, old_logprobs, b, cfg)
        weights = rollout_weights(old_logprobs, b.rollout_logprobs, b.response_mask, b.cu_seqlens,
                                  cfg.rollout_correction, cfg.rollout_correction_low,
                                  cfg.rollout_correction_high)  # fmt: skip
        pg = pg * weights
        losses = pg - cfg.entropy_coef * entropy
        kl = torch.zeros_like(pg)
        if b.ref_logprobs is not None:
            # on masked tokens anything may stand: inf there would come back from the backward pass as nan
            ref_logprobs = torch.where(b.response_mask > 0, b.ref_logprobs, logprobs.detach())
            kl = kl_penalty(logprobs, ref_logprobs, cfg.kl_estimator)
            losses = losses + cfg.kl_coef * kl
        loss = aggregate(losses, b.response_mask, b.cu_seqlens, cfg.loss_agg, counts.num_tokens, counts.num_sequences,
                         counts.max_len)  # fmt: skip
        (loss * scale).backward()
        with torch.no_grad():
            per_token = torch.stack([pg, kl, entropy, clips, torch.ones_like(pg)]) @ b.response_mask
            sums = sums.to(loss.device) + torch.cat([loss[None], per_token]).double()
            if b.old_logprobs is None:
                seen = watch.merge(seen, watch.mismatch(logprobs, b))
    return sums, seen


def optimizer_step(model: Qwen2, optimizer: torch.optim.Optimizer, loss: float, cfg: Config) -> float | None:
    """Clip and step. Returns the gradient norm before clipping, or None if it or the loss was not finite: no step."""
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.max_grad_norm)
    norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
    finite = math.isfinite(norm) and math.isfinite(loss)
    if finite:
        optimizer.step()
    optimizer.zero_grad()
    return norm if finite else None


def probe(sampler: TorchSampler | VLLMSampler, model: Qwen2, prompts: list[Prompt], cfg: Config, step: int,
          check: bool = True) -> dict[str, float]:  # fmt: skip
    """The watch right after a sync: a few short samples, scored by the trainer; see watch.check. Returns its figures.

    They answer the longest prompts, the same ones every time: a prefix cache of the old weights would show.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    longest = sorted(prompts, key=lambda p: len(p.ids), reverse=True)[: 2 * world]
    mine = [longest[i % len(longest)].ids for i in (rank, rank + world)]
    seeds = [[sample_seed(cfg.seed, "probe", step, rank, i, s) for s in range(2)] for i in range(2)]
    groups = sampler.generate(mine, seeds, min(32, cfg.max_response_len[0]), cfg.temperature, cfg.top_p)
    device = next(model.parameters()).device
    batches = [pack([r], False, device) for group in groups for r in group]  # one each: as many on every rank
    seen = watch.nothing(device)
    for b, logprobs in zip(batches, fixed_logprobs(model, batches, cfg), strict=True):
        seen = watch.merge(seen, watch.mismatch(logprobs, b))
    if not check:
        return watch.over_ranks(seen)
    # of so few tokens one odd one makes the mean: it must be sure
    return watch.check(seen, f"after the sync of step {step}", model, batches, cfg, sure=3.0)


def learn(model: Qwen2, reference: Qwen2 | None, optimizer: torch.optim.Optimizer, plan: list,
          minibatches: list[list[Batch]], step: int, max_len: int, cfg: Config,
          timer: Timer) -> tuple[dict[str, Any], list[float | None]]:  # fmt: skip
    """One optimizer step a minibatch: `plan` is of all ranks, `minibatches` are this one's. Returns figures over all
    ranks' tokens, and each update's gradient norm, None where it was skipped."""
    device = next(model.parameters()).device
    seen, sums, losses, norms = watch.nothing(device), torch.zeros(6, dtype=torch.float64, device=device), [], []
    figures: dict[str, Any] = {"mismatch_k3": None, "mismatch_max": None, "mismatch_ess": None}
    with timer("logprobs"):  # the first minibatch is on-policy: its own forward gives the old ones
        for batches in minibatches[1:]:
            for b, old_logprobs in zip(batches, fixed_logprobs(model, batches, cfg), strict=True):
                b.old_logprobs = old_logprobs
                seen = watch.merge(seen, watch.mismatch(old_logprobs, b))
        for batches in minibatches if reference else ():
            for b, ref_logprobs in zip(batches, fixed_logprobs(reference, batches, cfg), strict=True):
                b.ref_logprobs = ref_logprobs
    with timer("train"):
        for i, (ranks, batches) in enumerate(zip(plan, minibatches, strict=True)):
            parts, on_policy = backward(model, batches, count(ranks, cfg, max_len), cfg)
            losses.append(all_sum(parts[:1])[0] / (dist.get_world_size() if cfg.loss_agg == "deepscaler" else 1))
            sums = sums + parts
            if i == 0:
                everything = [b for part in minibatches for b in part]
                found = watch.check(watch.merge(seen, on_policy), f"step {step}", model, everything, cfg)
                figures = {f"mismatch_{name}": found[name] for name in ("k3", "max", "ess")}
            norms.append(optimizer_step(model, optimizer, losses[-1], cfg))
    finite = [n for n in norms if n is not None]
    figures |= {"loss": sum(losses) / len(losses) if losses else None}
    _, *totals, tokens = all_sum(sums)
    for name, total in zip(("pg_loss", "kl", "entropy", "pg_clip_frac"), totals, strict=True):
        figures[name] = total / max(1.0, tokens) if plan else None
    figures |= {"grad_norm": sum(finite) / len(finite) if finite else None, "tokens_trained": int(tokens)}
    return figures, norms


def worst_case(model: Qwen2, reference: Qwen2 | None, optimizer: torch.optim.Optimizer, cfg: Config) -> Timer:
    """A step on the fullest pack, as long as nothing is generated yet; with lr 0, so that nothing moves. Returns its
    seconds and memory."""
    device = next(model.parameters()).device
    b, timer = smoke.worst_pack(cfg, model.config, device), Timer(device)
    counts = Counts(int(b.response_mask.sum()), b.cu_seqlens.numel() - 1, cfg.max_response_len[-1])
    with timer("worst pack"):
        (b.old_logprobs,) = fixed_logprobs(model, [b], cfg)
        if reference:
            (b.ref_logprobs,) = fixed_logprobs(reference, [b], cfg)
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        backward(model, [b], counts, cfg)
        if optimizer_step(model, optimizer, 0.0, cfg) is None:
            raise SystemExit("the gradient of the worst pack is not finite")
    for group in optimizer.param_groups:
        group["lr"] = cfg.lr
    optimizer.state.clear()
    return timer


def load_model(cfg: Config, path: Path, device: torch.device, dtype: torch.dtype) -> Qwen2:
    """The model sharded over all ranks, parameters in `dtype`."""
    return Qwen2.from_pretrained(path, dtype, device, device_mesh(cfg, device), DTYPES[cfg.dtype])


# ------------------------------------------------------------------------------------------------------------ the loop


def main(argv: list[str]) -> None:
    cfg = load_config(argv)
    if cfg.wandb and importlib.util.find_spec("wandb") is None:
        raise UserError("wandb: not installed; pip install wandb, or leave --wandb=false")
    if cfg.smoke:
        with smoke.verdict():
            train(smoke.settings(cfg), argv)
    else:
        checkpoint.open_run(cfg)
        train(cfg, argv)


def train(cfg: Config, argv: list[str]) -> None:
    started = time.perf_counter()
    path = resolve_model(cfg.model)
    tokenizer = ChatTokenizer(path)
    prompts, too_long = load_prompts(cfg, tokenizer)
    benchmarks = {Path(f).stem: encode_problems(load_problems(f), tokenizer, cfg.prompt_suffix)
                  for f in (cfg.eval_data if cfg.eval_every else ())}  # fmt: skip
    longest = max([cfg.max_prompt_len, *(len(p.ids) for b in benchmarks.values() for p in b)])
    longest, positions = longest + cfg.max_response_len[-1], ModelConfig.from_folder(path).max_position_embeddings
    if longest > positions:
        raise UserError(f"max_response_len: {longest} tokens with the longest prompt, but the model has only "
                        f"max_position_embeddings={positions}")  # fmt: skip
    found = [checkpoint.find(cfg.run_dir) if cfg.resume and os.environ.get("RANK", "0") == "0" else None]
    device = init_distributed(cfg)
    rank, world = dist.get_rank(), dist.get_world_size()
    dist.broadcast_object_list(found)
    state = checkpoint.read_state(found[0]) if found[0] else stages.new_state()
    stages.check_gpus(state, cfg)
    if cfg.smoke:
        smoke.remove_folder(cfg)
        checkpoint.open_run(cfg)
        benchmarks = {}  # they could be read and fit the model; the smoke run does not answer them
    ledger = Ledger(cfg.run_dir, started)

    # models: the policy in float32 shards, the frozen reference only if the loss asks for it, the sampler's own copy
    sampler = make_sampler(cfg, path, device, longest)  # first: vLLM counts its share of a GPU's free memory
    model = load_model(cfg, path, device, torch.float32)
    model.set_activation_checkpointing(cfg.activation_checkpointing)
    reference = load_model(cfg, path, device, DTYPES[cfg.dtype]).requires_grad_(False) if cfg.kl_coef else None
    optimizer = torch.optim.AdamW(model.parameters(), lr=cfg.lr, betas=(cfg.adam_beta1, cfg.adam_beta2),
                                  eps=cfg.adam_eps, weight_decay=cfg.weight_decay)  # fmt: skip
    peak = peak_flops(device, DTYPES[cfg.dtype])
    worst = worst_case(model, reference, optimizer, cfg) if cfg.smoke else None

    # where to begin
    if found[0]:
        checkpoint.load(found[0], model, optimizer)
        stages.load_reference(cfg, state, reference)
        print0(f"resuming after step {state['step']} from {found[0]}")
    stages.warn(cfg)
    wandb = start_wandb(cfg) if rank == 0 else None
    if rank == 0:
        checkpoint.write_config(cfg)
        (cfg.run_dir / "rollouts").mkdir(exist_ok=True)
        checkpoint.rewind(cfg.run_dir, state["step"])
        limit = f"max_prompt_len={cfg.max_prompt_len}"
        print(f"{len(prompts)} prompts from {cfg.train_data}, {too_long} longer than {limit} left out")
        print(f"{world} x {device.type}, attention: {model.backend}, sampler: {sampler.name}")

    def sync() -> int:
        sampler.wake()
        return sampler.load_weights(full_tensors(model, DTYPES[cfg.dtype]))

    timer = Timer(device)  # of what the ledger has not been charged with yet
    timer.seconds["start"] = time.perf_counter() - started
    with timer("sync"):
        sync()
        probe(sampler, model, prompts, cfg, state["step"])
    begun_at, step_seconds, not_finite_in_a_row, smoke_rows = state["step"], [], 0, []
    timeouts_before, evaluated = state["timeouts"], {}  # evaluated: results of this step's weights by context

    with RewardPool(cfg.reward_workers, cfg.reward_timeout) as pool:

        def evaluate_at(max_len: int) -> dict[str, dict[str, float]]:
            if max_len in evaluated:
                return evaluated[max_len]
            evaluated[max_len] = results = evaluate(sampler, tokenizer, pool, benchmarks, cfg, max_len)
            for name in [*benchmarks, "all"] if len(benchmarks) > 1 else benchmarks:
                r = results[name]
                print0(f"  {name} at {max_len}: {r['accuracy']:.3f} +- {r['stderr']:.3f}, length "
                       f"{r['response_len_mean']:.1f}, clipped {r['response_clip_ratio']:.3f}")  # fmt: skip
            return results

        first_len, last_len = cfg.max_response_len[0], cfg.max_response_len[-1]
        if benchmarks:
            limit = f"{cfg.eval_max_len} tokens" if cfg.eval_max_len else "the stage's own length"
            print0(f"validation: {cfg.eval_k} samples a problem, temperature {cfg.eval_temperature}, top_p "
                   f"{cfg.eval_top_p}, {limit}: not comparable with eval.py's 32,768")  # fmt: skip
        if benchmarks and state["base"] is None:
            print0("evaluating the base model at the first and at the last context")
            with timer("eval"):
                state["base"] = {"first": evaluate_at(first_len), "last": evaluate_at(last_len)}

        ledger.charge(timer)
        timer, waits = Timer(device), False

        while state["step"] < stages.last_step(state, cfg) and state["verdict"] != "collapsed":
            # 0. the first step of a stage: its weights, optimizer state, data order and KL reference
            step, step_start, evaluated = state["step"] + 1, time.perf_counter(), {}
            if stages.is_due(state, cfg):
                with timer("sync"):
                    state = stages.begin_next(cfg, state, model, reference, optimizer)
                    sync()
                    probe(sampler, model, prompts, cfg, state["step"])
            stage = state["stage"]
            max_len = cfg.max_response_len[stage]

            # 1. and 2. sample, grade, tell everyone, compare within the group
            groups, cached_tokens = sample_groups(sampler, tokenizer, pool, prompts, state, cfg, timer)
            with timer("sync"):
                sampler.sleep()

            # 3. choose what to learn from, distribute it
            row = {"step": step, "stage": stage, "max_response_len": max_len, **rollout_metrics(groups),
                   "lr": cfg.lr}  # fmt: skip
            with timer("train"):
                trained = to_train_on(groups, cfg)
                plan = plan_minibatches(trained, cfg, world)
                minibatches = [[pack(p, cfg.mask_truncated, device) for p in ranks[rank]] for ranks in plan]
            row["groups_drawn"], row["groups_trained"] = len(groups), len(trained)
            if not trained:
                print0(f"step {step}: every group is uniform (all right or all wrong): no update")

            # 4. and 5. log-probabilities before anything moves, and the updates
            figures, norms = learn(model, reference, optimizer, plan, minibatches, step, max_len, cfg, timer)
            row |= figures
            for norm in norms:
                not_finite_in_a_row = 0 if norm is not None else not_finite_in_a_row + 1
                state["skipped"] += norm is None
                if not_finite_in_a_row == 3:
                    raise SystemExit(f"step {step}: three updates in a row were not finite; the run stops, its last "
                                     f"checkpoint is intact")  # fmt: skip
            if None in norms:
                print0(f"step {step}: loss or gradient not finite: update skipped, {state['skipped']} so far")

            # 6. the sampler gets the new weights
            with timer("sync"):
                row["sync_bytes"] = sync()
            with timer("probe"):
                row["mismatch_sync_k3"] = probe(sampler, model, prompts, cfg, step)["k3"]

            # 7. say what happened, and what it means for the schedule
            timeouts, row["prompt_tokens_cached"] = map(int, all_sum([pool.timeouts, cached_tokens]))
            state["timeouts"] = timeouts_before + timeouts
            row["updates_skipped"], row["reward_timeouts"] = state["skipped"], state["timeouts"]
            previous, state = state, stages.after_step(state, row, cfg)
            state["tokens"] += row["tokens_generated"]
            stages.say(state, previous, cfg)
            at_end = step == stages.last_step(state, cfg) or state["verdict"] == "collapsed"
            at_end_of_stage = at_end or stages.is_due(state, cfg)
            if benchmarks and (step % cfg.eval_every == 0 or at_end_of_stage):
                with timer("eval"):
                    results = evaluate_at(cfg.eval_max_len or max_len)
                row |= {f"eval_{name}": results[name]["accuracy"] for name in benchmarks}
            if rank == 0 and cfg.save_rollouts_every and step % cfg.save_rollouts_every == 0:
                dump_rollouts(cfg.run_dir / "rollouts" / f"step_{step:06d}.jsonl", groups, prompts, tokenizer)
            seconds = time.perf_counter() - step_start
            step_seconds = [*step_seconds[-19:], seconds]
            row |= time_columns(timer, seconds, row["tokens_generated"])
            row["flops_generated"] = model.flops(length(r) for g in groups for r in g)
            row["flops_trained"] = flops = 3 * model.flops(length(r) for g in trained for r in g)
            row["mfu"] = flops / (row["time_train"] * peak * world) if plan else None
            ledger.charge(timer)
            row, timer = row | ledger.columns(cfg), Timer(device)
            if rank == 0:
                add_row(cfg.run_dir / "metrics.jsonl", row)
                last_step = step if at_end else stages.last_step(state, cfg)
                left = (last_step - step) * sum(step_seconds) / len(step_seconds)
                print(progress_line(row, last_step, left), flush=True)
                if wandb:
                    wandb.log(row, step=step)
            if cfg.save_every and (step % cfg.save_every == 0 or at_end_of_stage):
                with timer("checkpoint"):
                    checkpoint.save_all(cfg, model, optimizer, step, state)
                if cfg.smoke:
                    smoke_rows.append(row)
                    look = partial(probe, sampler, model, prompts, cfg, step)
                    smoke.wipe_and_resume(cfg, model, optimizer, sync, look)

            if waits := stages.wants_other_gpus(state, cfg) and not at_end:
                break

        if waits:
            print0(stages.farewell(state, cfg, argv))
        elif begun_at == state["step"] and checkpoint.is_finished(cfg.run_dir, begun_at):
            print0(f"{cfg.run_dir} was finished already")
        else:
            if state["verdict"] == "collapsed" and cfg.save_every:
                best = stages.best_checkpoint(cfg, state)
                print0(f"the result of this run is its best checkpoint, {cfg.run_dir}/hf/{best}")
                checkpoint.load(cfg.run_dir / "ckpt" / best, model, optimizer)
                with timer("sync"):
                    sync()
                    probe(sampler, model, prompts, cfg, state["step"])
                evaluated = {}
            final = {}
            if benchmarks:
                print0("evaluating the final model at the first and at the last context")
                with timer("eval"):
                    final = {"first": evaluate_at(first_len), "last": evaluate_at(last_len)}
            ledger.charge(timer)
            timer = Timer(device)
            if final:
                write_summary(cfg, state, final, ledger.wall_clock, ledger.columns(cfg))
        ledger.charge(timer)
        if worst:
            smoke.report(cfg, worst, smoke_rows, device)
            smoke.remove_folder(cfg)
        else:
            print0(ledger.table(cfg))
    if wandb:
        wandb.finish()
    dist.barrier()  # no rank leaves while another may still need it
    sampler.close()
    if dist.is_initialized():  # vLLM ends the process group with its engine
        dist.destroy_process_group()


if __name__ == "__main__":
    run(main)
