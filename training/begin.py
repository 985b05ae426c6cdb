"""How a run begins: from a config to everything that the loop works with. All ranks call both functions together."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from configs import Config, UserError
from configs._model import ModelConfig, resolve_model
from grader.pool import RewardPool
from kernels import cpu
from model import Qwen2
from problems.prompts import ChatTokenizer, Prompt, load_benchmarks, load_stage_prompts, unmatched_golds
from rollout import Sampler, make_sampler
from training import carried, checkpoint, metrics, packing, run_folder, stages
from training.checkpoint import RunState
from training.ledger import Ledger
from training.metrics import Timer
from training.packing import from_rank0, longest_sequence, print0
from training.preemption import Preemption


@dataclass(frozen=True)
class Run:
    """What a run works with from its first step to its last; `of_stage` has it as a stage sees it. Its progress is a
    `RunState`."""

    cfg: Config  # of the whole run, or as `Config.of_stage` has it
    device: torch.device
    tokenizer: ChatTokenizer
    prompts: list[Prompt]  # of the stage
    stage_prompts: list[list[Prompt]]  # those of every stage
    benchmarks: dict[str, list[Prompt]]  # for validation, by name
    sampler: Sampler  # its own copy of the weights
    pool: RewardPool
    model: Qwen2  # the policy, in float32 shards
    reference: Qwen2 | None  # frozen; None if no stage has a KL penalty
    optimizer: torch.optim.AdamW
    ledger: Ledger
    log: metrics.StepLog
    lock: run_folder.RunLock  # no other run in this folder
    preemption: Preemption

    def of_stage(self, stage: int) -> "Run":
        """The run with the settings and the prompts of a stage. Asked of the whole run."""
        return replace(self, cfg=self.cfg.of_stage(stage), prompts=self.stage_prompts[stage])


@dataclass(frozen=True)
class Beginning:
    """What `start` still has to do and to say."""

    newest: Path | None  # the checkpoint that the run goes on from
    files: dict[str, str]  # see run_folder.identity
    run_id: str
    remarks: list[str]  # on data and tokenizer
    machine: str  # what was chosen for a CPU


def load(cfg: Config, hook: Any, preemption: Preemption, started: float) -> tuple[Run, RunState, Beginning]:
    """Data, process group, sampler and models. Raises UserError for bad input, before a model loads."""
    path = resolve_model(cfg.model)
    tokenizer = ChatTokenizer(path, cfg.stop_tokens)
    stop_warning = tokenizer.stop_warning()
    stage_prompts, notes = load_stage_prompts(cfg, tokenizer)
    benchmarks, eval_notes = load_benchmarks(cfg, tokenizer)
    longest = longest_sequence(cfg, path, benchmarks)
    reference_path = find_reference(cfg, path)
    device = packing.init_distributed(cfg)
    machine = cpu.prepare(run_folder.threads(cfg)) if device.type == "cpu" else ""
    hook.before_loading(cfg)
    lock = run_folder.RunLock(cfg.run_dir)
    newest = from_rank0(checkpoint.find, cfg.run_dir) if cfg.resume else None
    state = replace(checkpoint.read_state(newest), carried=carried.read(newest)) if newest else RunState()
    if state.epoch is None:
        old = "an earlier version of this program wrote it, whose data order this one does not know"
        raise UserError(f"{newest}: {old}: go on with that version, or begin from its export with another --run_name")
    stages.check_gpus(state, cfg)
    files = from_rank0(run_folder.check_identity, cfg, path, reference_path if cfg.reference else None)
    run_id = from_rank0(run_folder.run_id, cfg)
    ledger, log = Ledger(cfg.run_dir, started), metrics.StepLog(cfg, run_id)

    with Timer(device)("load"):
        sampler = make_sampler(cfg, path, device, longest)  # first: vLLM counts its share of a GPU's free memory
        model, reference = packing.load_models(cfg, path, reference_path, device)
    betas = cfg.adam_beta1, cfg.adam_beta2
    fused = device.type == "cpu"  # a pass a tensor there, not one an operation
    lr = cfg.entries("lr")[state.stage]  # each step sets its own
    optimizer = torch.optim.AdamW(model.parameters(), lr, betas, cfg.adam_eps, cfg.weight_decay, fused=fused)
    packing.create_moments(model, optimizer)
    run = Run(
        cfg=cfg,
        device=device,
        tokenizer=tokenizer,
        prompts=stage_prompts[state.stage],
        stage_prompts=stage_prompts,
        benchmarks={} if cfg.smoke else benchmarks,  # a smoke run only checks that they can be read and fit
        sampler=sampler,
        pool=RewardPool(cfg.reward_workers, cfg.reward_timeout, rule=cfg.grading_rule),
        model=model,
        reference=reference,
        optimizer=optimizer,
        ledger=ledger,
        log=log,
        lock=lock,
        preemption=preemption,
    )
    remarks = [*notes, *eval_notes, *([stop_warning] if stop_warning else [])]
    return run, state, Beginning(newest, files, run_id, remarks, machine)


def find_reference(cfg: Config, model: Path) -> Path | None:
    """The folder of the KL reference, None where there is none. Raises UserError for a teacher that cannot score what
    the model writes."""
    if not cfg.reference:
        return model if cfg.uses_reference else None
    path = resolve_model(cfg.reference, "reference")
    checkpoint.check_model_folder(path, "reference")
    ours, theirs = ChatTokenizer(model).tokenizer.get_vocab(), ChatTokenizer(path).tokenizer.get_vocab()
    different = sorted((token for token in {**ours, **theirs} if ours.get(token) != theirs.get(token)), key=repr)
    if different:
        example = f"{different[0]!r} is {ours.get(different[0])} in the model, {theirs.get(different[0])} in it"
        reason = f"{len(different)} tokens have other ids ({example})"
        raise UserError(f"reference: {path} has another tokenizer: {reason}; take a teacher of the model's family")
    longest, positions = cfg.max_prompt_len + cfg.longest_response, ModelConfig.from_folder(path)
    if longest > positions.max_position_embeddings:
        limit = f"it has only max_position_embeddings={positions.max_position_embeddings}"
        raise UserError(f"reference: {path} is to score {longest} tokens, but {limit}")
    return path


def start(run: Run, state: RunState, beginning: Beginning) -> None:
    """Load the checkpoint that a resumed run goes on from, make the folder ready for the step after `state`, and say
    what the run is. Raises UserError for a checkpoint that does not fit, or a disk that is full."""
    cfg = run.cfg
    if beginning.newest:
        checkpoint.load(beginning.newest, run.model, run.optimizer)
        stages.load_reference(cfg, state, run.reference)
        print0(f"resuming after step {state.step} from {beginning.newest}")
    stages.warn_if_too_short(cfg)
    from_rank0(run_folder.begin, cfg, beginning.files, beginning.run_id, state)
    print0(*beginning.remarks, sep="\n")
    by_file = dict(zip(cfg.entries("train_data"), run.stage_prompts, strict=True))
    by_file = {"train_data": run.prompts} if len(by_file) == 1 else by_file
    print0(from_rank0(unmatched_golds, {**by_file, **run.benchmarks}))
    if not stages.is_over(state, cfg):
        from_rank0(run_folder.check_disk, cfg, sum(p.numel() for p in run.model.parameters()))
    kernel = run.model.backend if cfg.attention == "auto" else cfg.attention
    world = f"{dist.get_world_size()} x {run.device.type}"
    print0(f"{world}, attention: {kernel}, sampler: {run.sampler.name}{beginning.machine}")
    if run.benchmarks:
        print0(metrics.validation_settings(cfg))
