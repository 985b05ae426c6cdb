"""GRPO with a context that grows: sample, grade, compare within the group, update, lengthen. `main` is the loop.

    torchrun --nproc_per_node=8 train_grpo.py configs/8k.py [--key=value ...]     # or plain python for one process

Reads a config, a model folder and problem files; writes the run folder `out/<run_name>/` (config.json, metrics.jsonl,
rollouts/, ckpt/, hf/, ledger.json, summary.json). `--help` lists all settings with their defaults, or behind a config
file with its values. A process group and FSDP2 always exist, with one process as with thirty-two. Every rank runs all
of this file; functions whose result is the same on every rank say so.

Dimensions: T packed tokens of a batch.
"""

import math
import time
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from configs import HELP, Config, Preempted, load_config, show_help
from configs import run as run_command
from eval import evaluate
from evaluation.report import validation_lines
from losses import (
    aggregate,
    cispo_loss,
    clipped,
    group_advantages,
    is_high_entropy,
    kl_penalty,
    overlong_penalty,
    policy_loss,
    rollout_weights,
    sequence_logratio,
)
from model import DTYPES, Qwen2
from reward import after_thinking, extract_answer, graded_text
from rollout import Rollout, sample_seed
from training import begin, checkpoint, metrics, packing, partial, preflight, run_folder, smoke, stages, watch
from training import entropy as entropy_bonus
from training import loss_scale as scaling
from training.begin import Run
from training.checkpoint import RunState, step_name
from training.end import leave, save, tear_down
from training.groups import after_visits, curriculum_columns, draw_prompts, groups_to_train_on, refill_prompts
from training.metrics import LossSums, Timer
from training.packing import Batch, Minibatch, all_sum, from_rank0, print0
from training.preemption import Preemption

# ---------------------------------------------------------------------------------------------- sample, grade, compare


def sample(run: Run, state: RunState, prompt_indices: list[int], attempt: int, timer: Timer) -> list[Rollout]:
    """This rank's share of the samples: `group_size` responses to every world-size-th prompt. Raises Preempted."""
    cfg, stage, rank_indices = run.cfg, state.stage, prompt_indices[dist.get_rank() :: dist.get_world_size()]
    with timer("rollout"):
        seeds = []
        for index in rank_indices:
            draw = (cfg.seed, stage, state.step + 1, attempt, index)
            seeds.append([sample_seed(*draw, sample_id) for sample_id in range(cfg.group_size[stage])])
        prompts = [run.prompts[index].ids for index in rank_indices]
        arguments = prompts, seeds, cfg.max_response_len[stage], cfg.temperature, cfg.top_p
        groups = run.preemption.interruptible(run.sampler.generate, *arguments)
    with timer("tail"):
        run.preemption.check()  # waits for the rank whose answers are the longest
    # the sampler numbers the prompts of its argument; from here on they have their places among all
    return [replace(rollout, prompt_id=rank_indices[rollout.prompt_id]) for group in groups for rollout in group]


def grade(run: Run, rollouts: list[Rollout], timer: Timer) -> list[Rollout]:
    """This rank's rollouts in, those of all ranks out, with answers and rewards, ordered by prompt and sample."""
    with timer("reward"):
        problems, texts, thought = [], [], []
        for rollout in rollouts:
            prompt, response = run.prompts[rollout.prompt_id], run.tokenizer.decode(rollout.response_ids)
            problems.append(prompt.problem)
            texts.append(graded_text(prompt.opened, response, rollout.finish_reason, run.cfg.think))
            thought.append(bool(after_thinking(prompt.opened + response)))
        graded = []
        for values in zip(rollouts, texts, thought, run.pool.rewards(problems, texts), strict=True):
            rollout, text, has_tags, reward = values
            graded.append(replace(rollout, reward=reward, thought=has_tags, answer=extract_answer(text)))
        return packing.gather_rollouts(graded)


def with_advantages(rollouts: list[Rollout], order: list[int], max_len: int, cfg: Config) -> list[list[Rollout]]:
    """The groups, by prompt in the given order of prompt indices, each sample with its advantage."""
    place, unordered = {index: i for i, index in enumerate(order)}, {}
    for rollout in rollouts:  # two draws that are in flight may have a prompt in common
        unordered.setdefault((rollout.draw, place[rollout.prompt_id]), []).append(rollout)
    groups = {key: unordered[key] for key in sorted(unordered)}
    rewards = torch.tensor([[r.reward for r in group] for group in groups.values()], dtype=torch.float64)  # (P, G)
    if cfg.overlong_buffer:
        lengths = [[len(r.response_ids) for r in group] for group in groups.values()]
        lengths = torch.tensor(lengths, dtype=torch.float64)  # (P, G)
        rewards = rewards + overlong_penalty(lengths, max_len, cfg.overlong_buffer)
    if cfg.reward == "none":
        rewards = torch.zeros_like(rewards)
    advantages = group_advantages(rewards, cfg.normalize_advantage_std).tolist()
    with_them = []
    for group, values in zip(groups.values(), advantages, strict=True):
        with_them.append([replace(r, advantage=value) for r, value in zip(group, values, strict=True)])
    return with_them


def collect_groups(run: Run, state: RunState, timer: Timer) -> tuple[list[list[Rollout]], RunState, int]:
    """The groups of the step after `state`, with advantages: sampled, graded and compared, again for uniform ones; the
    state after these draws; and the prompt tokens that this rank did not compute again."""
    cfg, groups, drawn, attempt, cached_tokens = run.cfg, [], state, 0, 0
    if cfg.partial_rollouts:  # those of the groups in flight that are finished first
        rollouts, prompt_indices, drawn = partial.sample(run, state, timer)
    else:
        prompt_indices, drawn = draw_prompts(state, len(run.prompts), cfg)
    while prompt_indices:
        if not cfg.partial_rollouts:
            rollouts = sample(run, state, prompt_indices, attempt, timer)
        cached_tokens += run.sampler.cached_tokens
        graded = grade(run, rollouts, timer)
        groups += with_advantages(graded, prompt_indices, cfg.max_response_len[state.stage], cfg)
        attempt += 1
        prompt_indices = refill_prompts(groups, state, attempt, len(run.prompts), cfg)
    return groups, after_visits(drawn, groups, cfg), cached_tokens


# ---------------------------------------------------------------------------------------------------- loss and update


Clip = tuple[float | Tensor, float | Tensor]  # below and above, for all tokens or (T,)


def clip_and_kl_coef(entropy: Tensor, b: Batch, cfg: Config) -> tuple[Clip, float | Tensor]:
    """The settings, but for tokens of high entropy where `high_entropy_quantile` gives them others (Archer)."""
    clip = cfg.clip_eps_low, cfg.clip_eps_high
    if not cfg.high_entropy_quantile:
        return clip, cfg.kl_coef
    is_high = is_high_entropy(entropy, b.response_mask, b.cu_seqlens, cfg.high_entropy_quantile)
    clip = tuple(torch.where(is_high, cfg.high_entropy_clip_eps, eps) for eps in clip)
    return clip, torch.where(is_high, 0.0, cfg.kl_coef)


def policy_losses(logprobs: Tensor, old_logprobs: Tensor, b: Batch, clip: Clip, cfg: Config) -> tuple[Tensor, Tensor]:
    """The policy loss per token, and 1 where clipping took its gradient. (T,), (T,)"""
    if cfg.policy_loss == "cispo":
        sign = torch.ones_like(logprobs)
        outside = clipped(logprobs, old_logprobs, sign, *clip) + clipped(logprobs, old_logprobs, -sign, *clip)
        return cispo_loss(logprobs, old_logprobs, b.advantages, *clip), outside
    if cfg.policy_loss == "gspo":
        logprobs = sequence_logratio(logprobs, old_logprobs, b.response_mask, b.cu_seqlens)
        old_logprobs = torch.zeros_like(logprobs)
    losses = policy_loss(logprobs, old_logprobs, b.advantages, *clip, cfg.dual_clip or None)
    return losses, clipped(logprobs, old_logprobs, b.advantages, *clip)


def backward(
    model: Qwen2, batches: list[Batch], minibatch: Minibatch, cfg: Config, loss_scale: float = 1.0
) -> tuple[LossSums, watch.MismatchSums]:
    """Forward and backward of this rank's micro-batches of a minibatch; gradients are times `loss_scale`. Returns
    sums over their tokens, and the sampler mismatch of batches without old log-probabilities, which are on-policy."""
    device = batches[0].targets.device
    sums, mismatch = LossSums.zero(device), watch.zero_sums(device)
    # FSDP averages gradients over ranks, and we want their sum, since each rank's loss is divided by the counts of all
    # ranks. The released DeepScaleR code kept the average.
    scale = loss_scale * (1 if cfg.loss_agg == "deepscaler" else dist.get_world_size())
    counts = minibatch.num_tokens, minibatch.num_sequences, minibatch.max_len  # of all ranks
    correction = cfg.rollout_correction, cfg.rollout_correction_low, cfg.rollout_correction_high
    for i, b in enumerate(batches):
        model.set_requires_all_reduce(i + 1 == len(batches))  # HSDP: the copies' gradients are summed once, at the end
        logprobs, entropy = packing.batch_logprobs(model, b, cfg)  # (T,), (T,)
        old_logprobs = logprobs.detach() if b.old_logprobs is None else b.old_logprobs
        clip, kl_coef = clip_and_kl_coef(entropy, b, cfg)
        pg, clips = policy_losses(logprobs, old_logprobs, b, clip, cfg)
        pg = pg * rollout_weights(old_logprobs, b.rollout_logprobs, b.response_mask, b.cu_seqlens, *correction)
        losses = pg - cfg.entropy_coef * entropy
        kl = torch.zeros_like(pg)
        if b.ref_logprobs is not None:
            # a masked token may hold any value, even inf, which would come back from the backward pass as nan
            ref_logprobs = torch.where(b.response_mask > 0, b.ref_logprobs, logprobs.detach())
            kl = kl_penalty(logprobs, ref_logprobs, cfg.kl_estimator)
            losses = losses + kl_coef * kl
        loss = aggregate(losses, b.response_mask, b.cu_seqlens, cfg.loss_agg, *counts)
        (loss * scale).backward()
        with torch.no_grad():
            per_token = torch.stack([pg, kl, entropy, clips, torch.ones_like(pg)]) @ b.response_mask
            sums = sums + LossSums(loss.detach().double(), *per_token.double())
            if b.old_logprobs is None:
                mismatch = mismatch + watch.mismatch(logprobs, b)
    return sums, mismatch


def optimizer_step(
    model: Qwen2, optimizer: torch.optim.Optimizer, loss: float, cfg: Config, loss_scale: float = 1.0
) -> float | None:
    """Take the loss scale out of the gradient, clip and step. Returns the gradient norm before clipping, or None if it
    or `loss` was not finite and the step was skipped."""
    scaling.divide_gradients(model, loss_scale)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.max_grad_norm)
    norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
    is_finite = math.isfinite(norm) and math.isfinite(loss)
    if is_finite:
        optimizer.step()
    optimizer.zero_grad()
    return norm if is_finite else None


def add_fixed_logprobs(run: Run, packed: list[list[Batch]]) -> tuple[list[list[Batch]], watch.MismatchSums]:
    """Score the micro-batches of each minibatch before any weight moves: old and reference log-probabilities, and the
    sampler's mismatch. But the first minibatch is on-policy: its own training forward gives old ones and mismatch."""
    mismatch, scored = watch.zero_sums(run.device), []
    for i, batches in enumerate(packed):
        if i > 0:
            old = packing.fixed_logprobs(run.model, batches, run.cfg)
            batches = [replace(b, old_logprobs=logprobs) for b, logprobs in zip(batches, old, strict=True)]
            for b in batches:
                mismatch = mismatch + watch.mismatch(b.old_logprobs, b)
        if run.cfg.kl_coef:
            ref = packing.fixed_logprobs(run.reference, batches, run.cfg)
            batches = [replace(b, ref_logprobs=logprobs) for b, logprobs in zip(batches, ref, strict=True)]
        scored.append(batches)
    return scored, mismatch


def learn(
    run: Run, state: RunState, minibatches: list[Minibatch], packed: list[list[Batch]], mismatch: watch.MismatchSums
) -> tuple[dict[str, Any], list[float | None], RunState]:
    """One optimizer step per minibatch, of which this rank has the micro-batches `packed[i]`. Returns figures over all
    ranks' tokens; for each update its gradient norm, None if it was skipped (but for a too large loss scale, which is
    no fault); and the state with float16's loss scale and the entropy bonus of the next step."""
    cfg, step = entropy_bonus.with_bonus(run.cfg, state), state.step + 1
    sums, losses, norms = LossSums.zero(run.device), [], []
    figures: dict[str, Any] = watch.columns(None, cfg)
    if not minibatches:
        print0(f"step {step}: every group is uniform (all right or all wrong), or no token counts: no update")
    for i, (minibatch, batches) in enumerate(zip(minibatches, packed, strict=True)):
        scale = scaling.loss_scale(state, cfg)
        minibatch_sums, on_policy_mismatch = backward(run.model, batches, minibatch, cfg, scale)
        if i == 0:  # all tokens are scored and no weight has moved: stop here if sampler and trainer disagree
            all_batches = [b for batches in packed for b in batches]
            result = watch.check(mismatch + on_policy_mismatch, f"step {step}", run.model, all_batches, cfg)
            figures = watch.columns(result, cfg)
        loss = all_sum([float(minibatch_sums.loss)])[0]
        losses.append(loss / (dist.get_world_size() if cfg.loss_agg == "deepscaler" else 1))
        norm = optimizer_step(run.model, run.optimizer, losses[-1], cfg, scale)
        if not scaling.is_overflow(norm, losses[-1], scale):
            norms.append(norm)
        state = scaling.after_update(state, norm, losses[-1], cfg)
        sums = sums + minibatch_sums
    figures |= {"loss_scale": state.loss_scale} if cfg.dtype == "float16" else {}
    figures |= {"entropy_coef": cfg.entropy_coef} if cfg.entropy_target else {}
    figures |= metrics.loss_columns(sums, losses, norms)
    state = entropy_bonus.after_step(state, figures["entropy"], run.cfg)  # not cfg, which has this step's bonus
    return figures, norms, state


# ------------------------------------------------------------------------------------------ set up, validate and finish


def set_up(cfg: Config, hook: Any, preemption: Preemption, started: float) -> tuple[Run, RunState]:
    """All that a run works with, the sampler with the trainer's weights; on a resume, as the newest whole checkpoint
    has it; in a new run, with the base model's evaluation. Raises UserError for bad input, before a model loads unless
    a checkpoint does not fit it."""
    run, state, beginning = begin.load(cfg, hook, preemption, started)
    stage_run = run.of_stage(state.stage)
    hook.before_training(stage_run, backward, optimizer_step)  # passed in: training/ does not import this
    begin.start(run, state, beginning)
    timer = Timer(run.device)
    timer.seconds["start"] = time.perf_counter() - started
    sync(stage_run, state.step, timer)
    if run.benchmarks and state.base is None:
        print0("evaluating the base model at the first and at the last context")
        state = replace(state, base=validate(run, cfg.end_contexts, {}, timer))
    run.ledger.charge(timer)
    return run, state


def sync(run: Run, step: int, timer: Timer) -> dict[str, float]:
    """Copy the trainer's weights to the sampler and check with a few samples that they arrived: ends the run if not.
    Returns the bytes copied and the probe's k3, see training/watch.py, by column."""
    with timer("sync"):
        size = packing.sync_weights(run.sampler, run.model, DTYPES[run.cfg.dtype])
    with timer("probe"):
        k3 = watch.probe(run.sampler, run.model, run.prompts, run.cfg, step).k3
    return {"sync_bytes": size, "mismatch_sync_k3": k3}


def begin_stage(whole_run: Run, state: RunState, timer: Timer) -> tuple[Run, RunState]:
    """The run as the next stage sees it, and the state that the stage begins with."""
    cfg, run = whole_run.cfg, whole_run.of_stage(state.stage + 1)
    with timer("sync"):
        state = stages.begin_next(cfg, state, run.model, run.reference, run.optimizer)
        state = replace(state, carried=partial.for_next_stage(state, run.prompts, cfg))
    sync(run, state.step, timer)
    return run, state


def validate(run: Run, max_lens: dict[str, int], evaluated: dict[int, dict], timer: Timer) -> dict[str, dict]:
    """The benchmarks' results at contexts given by name. `evaluated` caches those of the current weights, by context,
    and is added to."""
    with timer("eval"):
        for max_len in max_lens.values():
            if max_len not in evaluated:
                results = evaluate(
                    run.sampler, run.tokenizer, run.pool, run.benchmarks, run.cfg, max_len, run.preemption
                )
                evaluated[max_len] = results
                print0(*validation_lines(results, max_len), sep="\n")
    return {name: evaluated[max_len] for name, max_len in max_lens.items()}


def finish(run: Run, state: RunState, steps_at_start: int, evaluated: dict[int, dict], argv: list[str]) -> None:
    """The last evaluation and summary.json; or, between two stages, the command that continues the run."""
    cfg, timer = run.cfg, Timer(run.device)
    if stages.wants_other_gpus(state, cfg):
        export = f"{cfg.run_dir}/hf/{step_name(state.step)} is exported"
        print0(f"{export}; the next stage wants {cfg.stage_gpus[state.stage + 1]} GPUs. Go on with")
        print0(f"  {stages.next_command(state, cfg, argv)}")
    elif steps_at_start == state.step and run_folder.is_finished(cfg.run_dir, state.step):
        print0(f"{cfg.run_dir} was finished already")
    else:
        if state.decision == "collapsed" and cfg.save_every:
            best = from_rank0(stages.best_checkpoint, cfg, state)
            print0(f"the result of this run is its best checkpoint, {cfg.run_dir}/hf/{best}")
            checkpoint.load(cfg.run_dir / "ckpt" / best, run.model, run.optimizer)
            sync(run.of_stage(state.stage), state.step, timer)
            evaluated = {}
        if run.benchmarks:
            print0("evaluating the final model at the first and at the last context")
            final = validate(run, cfg.end_contexts, evaluated, timer)
            run.ledger.charge(timer)
            costs = {"wall_time": run.ledger.wall_clock, **run.ledger.columns(cfg)}
            metrics.write_summary(cfg, state, final, costs)
            timer = Timer(run.device)
    run.ledger.charge(timer)


def report(run: Run, state: RunState, evaluated: dict[int, dict]) -> RunState:
    """Validate the weights if that is due, and write the row of the step they come from. Raises Preempted."""
    cfg, row, timer = run.cfg, dict(state.unreported), Timer(run.device)
    stage_ends = stages.is_over(state, cfg) or stages.is_due(state, cfg)
    if run.benchmarks and (stage_ends or state.step % cfg.eval_every == 0):  # without eval_every there are none
        context = cfg.eval_max_len or row["max_response_len"]
        results = validate(run, {"now": context}, evaluated, timer)["now"]
        row |= {f"eval_{name}": results[name]["accuracy"] for name in run.benchmarks}
        row |= {f"interval_{name}": [results[name]["ci_low"], results[name]["ci_high"]] for name in run.benchmarks}
        row |= {"time_eval": timer.seconds["eval"], "time_step": row["time_step"] + timer.seconds["eval"]}
    run.ledger.charge(timer)
    metrics.warn_if_nothing_can_be_earned(row, run.tokenizer, cfg.think)
    run.log.write(row | run.ledger.columns(cfg), stages.last_step(state, cfg))
    return replace(state, unreported=None)


# ------------------------------------------------------------------------------------------------------------ the loop


def train(whole_run: Run, state: RunState, hook: Any) -> tuple[RunState, dict[int, dict]]:
    """For each step draw prompts, sample, grade, compare, pack, update, sync, report, save. Returns the state after the
    last step, and the validation results of its weights by context. Raises Preempted, once the run is saved."""
    run = whole_run.of_stage(state.stage)  # run and cfg: as the stage has them; whole_run: one entry a stage
    cfg, timeouts_at_start = run.cfg, state.timeouts
    steps_at_start = state.step - bool(state.unreported)
    skips, evaluated = 0, {}  # updates skipped in a row; validation results of the current weights

    try:
        run.preemption.training = True
        if state.unreported:  # the last step was preempted while it was validated
            state = report(run, state, evaluated)
        while not stages.is_over(state, cfg):
            step, step_started, timer = state.step + 1, time.perf_counter(), Timer(run.device)

            # 0. The first step of a stage: its weights, optimizer state, data order and KL reference.
            if stages.is_due(state, cfg):
                if stages.wants_other_gpus(state, cfg) and state.step > steps_at_start:
                    break  # a run that starts here was started on this stage's GPUs
                run, state = begin_stage(whole_run, state, timer)
                cfg = run.cfg
            run.preemption.check_boundary()
            max_len = cfg.max_response_len[state.stage]

            # 1. Draw prompts, sample and grade responses, compare each with its group; again for uniform groups.
            # `drawn` is the state after these draws; a run that is preempted before the update keeps `state`.
            groups, drawn, cached_tokens = collect_groups(run, state, timer)
            with timer("sync"):
                run.sampler.sleep()  # the trainer gets its GPU memory

            # 2. Choose what to learn from, split it into minibatches, spread these over the ranks and pack them.
            with timer("train"):
                chosen = groups_to_train_on(groups, cfg)
                minibatches = packing.plan_minibatches(chosen, max_len, cfg, dist.get_world_size())
                packed = [packing.pack_share(minibatch, cfg, run.device, step) for minibatch in minibatches]

            # 3. Old and reference log-probabilities before any weight moves, then one update a minibatch.
            with timer("logprobs"):
                packed, mismatch = add_fixed_logprobs(run, packed)
                dumps = cfg.save_rollouts_every and step % cfg.save_rollouts_every == 0
                with_tokens = dumps and cfg.save_rollouts_tokens
                differences = watch.token_differences(run.model, minibatches, packed, cfg) if with_tokens else {}
                run.preemption.check()  # from here on weights move
            with timer("train"):
                lr = stages.set_learning_rate(run.optimizer, state, cfg)
                figures, norms, state = learn(run, drawn, minibatches, packed, mismatch)
            skips = metrics.count_skips(norms, skips, step)

            # 4. The sampler gets the new weights, and is asked whether it has them.
            sync_figures = sync(run, step, timer)
            evaluated = {}

            # 5. Ask the schedule what this step means, validate, report.
            timeouts, cached_tokens = map(int, all_sum([run.pool.timeouts, cached_tokens]))
            row = {"step": step, "stage": state.stage, "max_response_len": max_len, "lr": lr}
            row |= metrics.rollout_metrics(groups) | {"groups_trained": len(chosen)} | figures | sync_figures
            row |= {"updates_skipped": state.skipped + norms.count(None), "prompt_tokens_cached": cached_tokens}
            row |= {"reward_timeouts": timeouts_at_start + timeouts}
            row |= partial.columns(groups, state.carried, step) if cfg.partial_rollouts else {}
            row |= curriculum_columns(state, cfg) | entropy_bonus.columns(groups, max_len, state)
            entropy_bonus.warn_if_it_collapses(row, drawn)
            if dumps:
                metrics.dump_rollouts(cfg.run_dir, step, groups, run.prompts, run.tokenizer, differences)
            row |= metrics.time_columns(timer, time.perf_counter() - step_started, row["tokens_generated"])
            row |= metrics.flops_columns(run.model, groups, chosen, row["time_train"])
            run.ledger.charge(timer)
            state = stages.after_step(state, row, cfg)
            state = report(run, state, evaluated)

            # 6. Save: a crash costs at most `save_every` steps.
            stage_ends = stages.is_over(state, cfg) or stages.is_due(state, cfg)
            if cfg.save_every and (step % cfg.save_every == 0 or stage_ends):
                save(run, state)
                hook.after_checkpoint(run, row)
        run.preemption.training = False
        if not stages.wants_other_gpus(state, cfg):  # else the run is at an end here
            run.preemption.check_boundary()
    except Preempted:
        leave(run, state)
        raise
    return state, evaluated


def main(argv: list[str], hook: smoke.NoHook | smoke.SmokeTest = smoke.NO_HOOK) -> None:
    """Set up, train and finish. Raises UserError for bad input, Preempted after SIGTERM or SIGUSR1."""
    if HELP & set(argv):
        return show_help(__doc__, load_config([a for a in argv if a.endswith(".py") and not a.startswith("-")]))
    started, cfg = time.perf_counter(), load_config(argv)
    if cfg.smoke and hook is smoke.NO_HOOK:
        return smoke.smoke_run(main, argv)  # this function again, with a hook that does more
    preflight.check(cfg)
    cfg = hook.prepare(cfg)
    with run_folder.disk_errors(cfg), Preemption(cfg.preempt_seconds) as preemption:
        run, state = set_up(cfg, hook, preemption, started)
        steps_at_start = state.step
        state, evaluated = train(run, state, hook)
        finish(run, state, steps_at_start, evaluated, argv)
    hook.at_end(run)
    tear_down(run)


if __name__ == "__main__":
    run_command(main)
