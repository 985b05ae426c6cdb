"""GRPO with a context that grows: sample, grade, compare within the group, update, lengthen. `main` is the loop.

    torchrun --nproc_per_node=8 train_grpo.py configs/8k.py [--key=value ...]     # or plain python for one process

Reads a config, a model folder and problem files; writes the run folder `out/<run_name>/` (config.json, metrics.jsonl,
rollouts/, ckpt/, hf/, summary.json). A process group and FSDP2 always exist, with one process as with thirty-two.

Dimensions: T packed tokens of a batch.
"""

import importlib.util
import json
import math
import os
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import checkpoint
import smoke
import stages
import watch
from configs import Config, UserError, load_config, run
from eval import evaluate
from groups import refill_prompts, step_prompts, to_train_on, with_advantages
from ledger import charge, ledger_columns, ledger_lines
from losses import aggregate, cispo_loss, clipped, kl_penalty, policy_loss, rollout_weights, sequence_logratio
from metrics import Timer, dump_rollouts, json_row, progress_line, rollout_metrics, start_wandb, write_summary
from model import DTYPES, ModelConfig, Qwen2, full_tensors, peak_flops, resolve_model, token_logprobs
from packing import Batch, Counts, count, device_mesh, init_distributed, length, pack, plan_minibatches, print0
from prompts import ChatTokenizer, Prompt, encode_problems, load_problems, load_prompts
from reward import RewardPool
from rollout import TorchSampler, VLLMSampler, gather_rollouts, make_sampler, response_text, sample_seed


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
    if cfg.smoke:
        smoke.remove_folder(cfg)
        checkpoint.open_run(cfg)
        benchmarks = {}  # they could be read and fit the model; the smoke run does not answer them

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
    state: dict[str, Any] = stages.new_state()
    dist.broadcast_object_list(found)
    if found[0]:
        state = checkpoint.load(found[0], model, optimizer)
        stages.load_reference(cfg, state, reference)
        print0(f"resuming after step {state['step']} from {found[0]}")
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
    before, evaluated = dict(state), {}  # evaluated: results of this step's weights by context

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
            print0(f"validation: {cfg.eval_k} samples a problem, temperature {cfg.eval_temperature}, top_p "
                   f"{cfg.eval_top_p}, the stage's own length: not comparable with eval.py's 32,768")  # fmt: skip
        if benchmarks and state["base"] is None:
            print0("evaluating the base model at the first and at the last context")
            with timer("eval"):
                state["base"] = {"first": evaluate_at(first_len), "last": evaluate_at(last_len)}

        charged_at = time.perf_counter()
        state["ledger"] = charge(state["ledger"], timer, charged_at - started, world)
        timer = Timer(device)

        while state["step"] < stages.last_step(state, cfg) and state["verdict"] != "collapsed":
            # 0. the first step of a stage: its weights, optimizer state, data order and KL reference
            step, step_start, evaluated = state["step"] + 1, time.perf_counter(), {}
            if stages.is_due(state, cfg):
                with timer("sync"):
                    state = stages.begin_next(cfg, state, model, reference, optimizer)
                    sync()
            stage = state["stage"]
            max_len, group_size = cfg.max_response_len[stage], cfg.group_size[stage]

            # 1. sample: each rank its share of the prompts; again, where uniform groups are refilled
            groups, cached_tokens, attempt = [], 0, 0
            drawn = step_prompts(step - state["order_began"], len(prompts), cfg)
            while drawn:
                with timer("rollout"):
                    mine = drawn[rank::world]
                    seeds = [[sample_seed(cfg.seed, stage, step, attempt, p, s) for s in range(group_size)]
                             for p in mine]  # fmt: skip
                    sampled = sampler.generate([prompts[p].ids for p in mine], seeds, max_len, cfg.temperature,
                                               cfg.top_p)  # fmt: skip
                    rollouts = [replace(r, prompt_id=mine[r.prompt_id]) for group in sampled for r in group]
                    cached_tokens += sampler.cached_tokens if mine else 0
                with timer("tail"):
                    all_sum([0.0])  # wait for the rank whose answers are the longest

                # 2. grade, tell everyone, compare within the group
                with timer("reward"):
                    texts = [response_text(prompts[r.prompt_id], r, tokenizer) for r in rollouts]
                    rewards = pool.rewards(texts, [prompts[r.prompt_id].problem.answer for r in rollouts])
                    rollouts = gather_rollouts([replace(r, reward=x) for r, x in zip(rollouts, rewards, strict=True)])
                    groups += sorted(with_advantages(rollouts, max_len, cfg), key=lambda g: drawn.index(g[0].prompt_id))
                attempt += 1
                drawn = refill_prompts(groups, step, attempt, len(prompts), cfg)
            with timer("sync"):
                sampler.sleep()

            # 3. choose what to learn from, distribute it
            row = {"step": step, "stage": stage, "max_response_len": max_len, **rollout_metrics(groups), "lr": cfg.lr,
                   "mismatch_k3": None, "mismatch_max": None, "mismatch_ess": None}  # fmt: skip
            with timer("train"):
                trained = to_train_on(groups, cfg)
                plan = plan_minibatches(trained, cfg, world)
                minibatches = [[pack(p, cfg.mask_truncated, device) for p in ranks[rank]] for ranks in plan]
            row["groups_drawn"], row["groups_trained"] = len(groups), len(trained)
            if not trained:
                print0(f"step {step}: every group is uniform (all right or all wrong): no update")

            # 4. log-probabilities before anything moves; the first minibatch is on-policy and its forward gives them
            seen = watch.nothing(device)
            with timer("logprobs"):
                for batches in minibatches[1:]:
                    for b, old_logprobs in zip(batches, fixed_logprobs(model, batches, cfg), strict=True):
                        b.old_logprobs = old_logprobs
                        seen = watch.merge(seen, watch.mismatch(old_logprobs, b))
                for batches in minibatches if reference else ():
                    for b, ref_logprobs in zip(batches, fixed_logprobs(reference, batches, cfg), strict=True):
                        b.ref_logprobs = ref_logprobs

            # 5. update
            sums, losses, norms = torch.zeros(6, dtype=torch.float64, device=device), [], []
            with timer("train"):
                for i, (ranks, batches) in enumerate(zip(plan, minibatches, strict=True)):
                    parts, on_policy = backward(model, batches, count(ranks, cfg, max_len), cfg)
                    losses.append(all_sum(parts[:1])[0] / (world if cfg.loss_agg == "deepscaler" else 1))
                    sums = sums + parts
                    if i == 0:
                        all_batches = [b for part in minibatches for b in part]
                        figures = watch.check(watch.merge(seen, on_policy), f"step {step}", model, all_batches, cfg)
                        row |= {f"mismatch_{name}": figures[name] for name in ("k3", "max", "ess")}
                    norm = optimizer_step(model, optimizer, losses[-1], cfg)
                    norms += [norm] if norm is not None else []
                    not_finite_in_a_row = 0 if norm is not None else not_finite_in_a_row + 1
                    if norm is None:
                        state["skipped"] += 1
                        print0(f"step {step}: loss or gradient not finite: update skipped, {state['skipped']} so far")
                    if not_finite_in_a_row == 3:
                        raise SystemExit(f"step {step}: three updates in a row were not finite; the run stops, its "
                                         f"last checkpoint is intact")  # fmt: skip

            # 6. the sampler gets the new weights
            with timer("sync"):
                row["sync_bytes"] = sync()
            with timer("probe"):
                row["mismatch_sync_k3"] = probe(sampler, model, prompts, cfg, step)["k3"]

            # 7. say what happened, and what it means for the schedule
            _, pg_loss, kl, entropy, clips, tokens = all_sum(sums)
            per_token = max(1.0, tokens)
            row |= {"loss": sum(losses) / len(losses) if losses else None, "tokens_trained": int(tokens)}
            for name, total in (("pg_loss", pg_loss), ("kl", kl), ("entropy", entropy), ("pg_clip_frac", clips)):
                row[name] = total / per_token if plan else None
            row["grad_norm"] = sum(norms) / len(norms) if norms else None
            timeouts, row["prompt_tokens_cached"] = map(int, all_sum([pool.timeouts, cached_tokens]))
            state["timeouts"] = before["timeouts"] + timeouts
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
            state["seconds"] = before["seconds"] + time.perf_counter() - started
            step_seconds = [*step_seconds[-19:], seconds]
            flops = 3 * model.flops(length(r) for g in trained for r in g) if plan else 0.0
            row |= {f"time_{phase}": timer.seconds.get(phase, 0.0)
                    for phase in ("reward", "logprobs", "train", "sync", "probe", "eval")}  # fmt: skip
            for phase, total in zip(("rollout", "tail"), all_sum([timer.seconds["rollout"], timer.seconds["tail"]]),
                                    strict=True):  # fmt: skip
                timer.seconds[phase] = row[f"time_{phase}"] = total / world
            row |= {"time_step": seconds, "tokens_per_second": row["tokens_generated"] / (seconds - row["time_eval"])}
            row |= {"flops_trained": flops, "mfu": flops / (row["time_train"] * peak * world) if plan else None}
            memory = timer.over_ranks(("rollout", "logprobs", "train", "sync", "probe"))
            row |= {f"memory_{phase}": gib for phase, gib in memory.items()}
            now = time.perf_counter()
            state["ledger"] = charge(state["ledger"], timer, now - charged_at, world)
            row, timer, charged_at = row | ledger_columns(state["ledger"], cfg), Timer(device), now
            if rank == 0:
                with open(cfg.run_dir / "metrics.jsonl", "a", encoding="utf-8") as f:
                    f.write(json.dumps(json_row(row), allow_nan=False) + "\n")
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

            if stages.wants_other_gpus(state, cfg):
                break

        if stages.wants_other_gpus(state, cfg) and state["step"] < stages.last_step(state, cfg):
            print0(
                f"{cfg.run_dir}/hf/step_{state['step']:06d} is exported; the next stage wants "
                f"{cfg.stage_gpus[state['stage'] + 1]} GPUs. Go on with\n  {stages.next_command(state, cfg, argv)}"
            )
        elif begun_at == state["step"] and (cfg.run_dir / "summary.json").is_file():
            print0(f"{cfg.run_dir} was finished already")
        else:
            if state["verdict"] == "collapsed" and cfg.save_every:
                best = stages.best_checkpoint(cfg, state)
                print0(f"the result of this run is its best checkpoint, {cfg.run_dir}/hf/{best}")
                checkpoint.load(cfg.run_dir / "ckpt" / best, model, optimizer)
                sync()
                evaluated = {}
            final = {}
            if benchmarks:
                print0("evaluating the final model at the first and at the last context")
                with timer("eval"):
                    final = {"first": evaluate_at(first_len), "last": evaluate_at(last_len)}
            now = time.perf_counter()
            state["ledger"] = charge(state["ledger"], timer, now - charged_at, world)
            if final:
                cost = ledger_columns(state["ledger"], cfg)
                write_summary(cfg, state, final, before["seconds"] + now - started, cost)
        print0(*ledger_lines(state["ledger"], cfg), sep="\n")
        if worst:
            smoke.report(cfg, worst, smoke_rows, device)
            smoke.remove_folder(cfg)
    if wandb:
        wandb.finish()
    dist.barrier()  # no rank leaves while another may still need it
    sampler.close()
    if dist.is_initialized():  # vLLM ends the process group with its engine
        dist.destroy_process_group()


if __name__ == "__main__":
    run(main)
