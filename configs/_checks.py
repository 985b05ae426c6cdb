"""Which values a `Config` may have, and which of them go together. Every function raises UserError."""

import dataclasses
from pathlib import Path
from typing import Any

from configs._shared import UserError, dataset_name, is_path


def check_ranges(cfg: Any) -> None:
    """Each setting for itself."""
    at_least = {"save_every": 0, "keep_checkpoints": 1, "save_rollouts_every": 0, "max_steps": 0, "eval_every": 0,
                "max_num_seqs": 1, "prompts_per_step": 1, "group_size": 2, "max_prompt_len": 1, "seed": 0,
                "max_response_len": 1, "stage_steps": 1, "minibatches": 1, "token_budget": 2, "eval_k": 1,
                "logprob_chunk": 1, "reward_workers": 1, "process_group_timeout": 1, "lr": 0, "weight_decay": 0,
                "clip_eps_low": 0, "clip_eps_high": 0, "eval_temperature": 0, "rollout_correction_low": 0,
                "adam_beta1": 0, "adam_beta2": 0, "stage_window": 8, "stage_patience": 1,
                "stage_gpus": 1, "overlong_buffer": 0, "refill_attempts": 0, "shard_size": 0,
                "gpu_dollars_per_hour": 0, "eval_max_len": 0, "preempt_seconds": 0, "threads": 0,
                "max_staleness": 1, "lr_warmup_steps": 0, "skip_solved": 0,
                "entropy_target": 0, "entropy_coef_step": 0, "entropy_coef_max": 0}  # fmt: skip
    for name, low in at_least.items():
        entries = as_tuple(getattr(cfg, name))
        if not entries and name != "stage_gpus":
            raise UserError(f"{name}: at least one entry is needed")
        low = 1 if name == "group_size" and cfg.reward == "none" else low
        if any(entry < low for entry in entries):
            reason = " (a group of one has no advantage)" if name == "group_size" else ""
            raise UserError(f"{name}: {min(entries)} is under its minimum {low}{reason}")
    for name in ("temperature", "max_grad_norm", "adam_eps", "reward_timeout", "mismatch_limit"):
        for value in as_tuple(getattr(cfg, name)):
            if value <= 0:
                raise UserError(f"{name}: {value} must be greater than 0")
    if cfg.vllm_sleep_level not in (1, 2):
        raise UserError(f"vllm_sleep_level: {cfg.vllm_sleep_level} is neither 1 nor 2")
    if not 0 < cfg.vllm_gpu_memory_utilization < 1:
        raise UserError(f"vllm_gpu_memory_utilization: {cfg.vllm_gpu_memory_utilization} must be between 0 and 1")
    if not 0 <= cfg.high_entropy_quantile < 1:
        raise UserError(f"high_entropy_quantile: {cfg.high_entropy_quantile} is not a share from 0 to under 1")
    if not 0 <= cfg.high_entropy_clip_eps < 1:
        raise UserError(f"high_entropy_clip_eps: {cfg.high_entropy_clip_eps} is not from 0 to under 1")
    for name in ("top_p", "eval_top_p"):
        if not 0 < getattr(cfg, name) <= 1:
            raise UserError(f"{name}: {getattr(cfg, name)} must be in (0, 1]")
    for name, most in (
        ("process_group_timeout", 10**9),
        ("preempt_seconds", 10**9),
        ("reward_timeout", 3600),
        ("reward_workers", 256),
        ("threads", 1024),
    ):
        if getattr(cfg, name) > most:
            raise UserError(f"{name}: {getattr(cfg, name)} is above its maximum {most}")
    for name in ("out_dir", "run_name", "model", "reference", "train_data", "eval_data"):
        for path in as_tuple(getattr(cfg, name)):
            if not is_path(path) and (path or name != "reference"):
                raise UserError(f"{name}: {path[:60]!r} is no path: empty, too long, or with a null character")
    for field in dataclasses.fields(cfg):
        for value in as_tuple(getattr(cfg, field.name)):
            if isinstance(value, float) and value > 1e30:  # float32 ends at 3e38
                raise UserError(f"{field.name}: {value} is above its maximum 1e+30")
    for name in ("clip_eps_low", "adam_beta1", "adam_beta2"):
        if getattr(cfg, name) >= 1 and not (name == "clip_eps_low" and cfg.policy_loss == "cispo"):
            raise UserError(f"{name}: {getattr(cfg, name)} must be under 1")


def as_tuple(value: Any) -> tuple:
    return value if isinstance(value, tuple) else (value,)


def check_stages(cfg: Any, per_stage: tuple[str, ...]) -> None:
    """As many entries as stages, and what must hold in each. per_stage: settings whose one value serves all."""
    stages = len(cfg.max_response_len)
    for name in ("group_size", "stage_steps", "stage_gpus", *per_stage):
        value = getattr(cfg, name)
        if isinstance(value, tuple) and len(value) != stages and (value or name != "stage_gpus"):
            raise UserError(f"{name}: {len(value)} entries for {stages} stages of max_response_len")
    longest = cfg.max_prompt_len + cfg.longest_response
    if cfg.token_budget < longest:
        sequence = f"max_prompt_len + max_response_len = {longest} tokens"
        raise UserError(f"token_budget: {cfg.token_budget} holds no sequence of {sequence}; raise it to {longest}")
    for parts, prompts in zip(cfg.entries("minibatches"), cfg.entries("prompts_per_step"), strict=True):
        if parts > prompts:
            raise UserError(f"minibatches: {parts} parts of prompts_per_step={prompts} prompts")
    if cfg.overlong_buffer > min(cfg.max_response_len):
        raise UserError(f"overlong_buffer: {cfg.overlong_buffer} is longer than max_response_len")
    if cfg.shard_size and any(n % cfg.shard_size for n in cfg.stage_gpus):
        raise UserError(f"stage_gpus: {cfg.stage_gpus} are no multiples of shard_size={cfg.shard_size}")
    if len(set(cfg.stage_gpus)) > 1 and not cfg.save_every:
        raise UserError("stage_gpus: other GPUs go on from a checkpoint; needs save_every above 0")


def check_choices(cfg: Any) -> None:
    """Settings that do not go together."""
    if cfg.dual_clip and (cfg.dual_clip <= 1 or cfg.policy_loss == "cispo"):
        raise UserError(f"dual_clip: {cfg.dual_clip} must be above 1, or 0 for none; cispo takes none")
    if cfg.high_entropy_quantile and cfg.policy_loss != "ppo":
        raise UserError(f"high_entropy_quantile: it is for policy_loss=ppo, not {cfg.policy_loss}; use 0")
    if cfg.refill_attempts and not cfg.drop_uniform_groups:
        raise UserError("refill_attempts: only dropped groups are replaced; needs drop_uniform_groups=true")
    if cfg.partial_rollouts and cfg.rollout_correction != "truncate":
        # the masks would drop what has aged, which is the long answers
        reason = "tokens of older weights must be weighed, and none left out; use --rollout_correction=truncate"
        raise UserError(f"partial_rollouts: {reason}")
    if cfg.partial_rollouts and cfg.refill_attempts:
        raise UserError("refill_attempts: partial_rollouts draws no groups in place of others; use 0")
    if cfg.partial_rollouts and cfg.stage_data_order == "keep" and len(set(cfg.entries("prompts_per_step"))) > 1:
        # a stage carries over as many groups as a step trains on, or its last step would have too few
        raise UserError("prompts_per_step: partial_rollouts and stage_data_order=keep want one for all stages")
    if cfg.reference and not cfg.uses_reference:
        raise UserError("reference: nothing is learned from it with kl_coef=0")
    if cfg.reward == "none" and not (cfg.reference and all(cfg.entries("kl_coef"))):
        raise UserError("reward: with none there is nothing to learn but a teacher's: give reference and kl_coef")
    for name in ("drop_uniform_groups", "overlong_buffer", "skip_solved", "weigh_draw"):
        if cfg.reward == "none" and getattr(cfg, name):
            raise UserError(f"{name}: goes by rewards, and reward=none has none")
    for name in ("skip_solved", "weigh_draw"):
        if cfg.stage_policy == "auto" and getattr(cfg, name):
            reason = "the controller would take the harder prompts of a curriculum for a collapse"
            raise UserError(f"{name}: {reason}: use stage_policy=fixed")
    for coef in cfg.entries("entropy_coef"):
        if cfg.entropy_target and not 0 <= coef <= cfg.entropy_coef_max:
            raise UserError(f"entropy_coef: {coef} is not in 0 .. entropy_coef_max={cfg.entropy_coef_max}")
    if cfg.stage_from == "best" and not cfg.save_every:
        raise UserError("stage_from: best is a checkpoint's; needs save_every above 0")
    if cfg.sampler == "vllm" and max(*as_tuple(cfg.temperature), cfg.eval_temperature) > 2:
        raise UserError("temperature: vllm takes none above 2; use --sampler=torch")
    low, high = cfg.rollout_correction_low, cfg.rollout_correction_high
    if low >= high:
        raise UserError(f"rollout_correction_low: {low} must be under rollout_correction_high={high}")
    if cfg.top_p < 1 and cfg.rollout_correction != "none":
        raise UserError("top_p: rollout_correction compares whole distributions; use top_p=1")
    stems = [dataset_name(f) for f in cfg.eval_data]
    if len({*stems, "all"}) <= len(stems):
        raise UserError(f"eval_data: the file names {stems} must differ, and none may be 'all'")
    if not cfg.run_name or Path(cfg.run_name).name != cfg.run_name or cfg.run_name in (".", ".."):
        raise UserError(f"run_name: {cfg.run_name!r} must be a plain folder name")
