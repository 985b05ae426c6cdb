"""Every setting of a run: the `Config` fields with their units, the checks, and `load_config`.

A config file is one expression, `Config(key=value, ...)`, that lists only what differs from the defaults, and the
defaults are DeepScaleR's first stage as published. The file is parsed, never executed. Flags are the fields:
`--lr=2e-6 --max_response_len=64,96,144`. Reads the config file; writes nothing.
"""

import ast
import dataclasses
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from configs._checks import check_choices, check_ranges, check_stages
from configs._shared import (
    HELP,
    PREEMPTED_STATUS,
    Preempted,
    UserError,
    check_regular,
    checked,
    dataset_name,
    flush,
    lost_rank,
    markdown_table,
    parse_flag,
    parse_flags,
    read_json,
    run,
    show_help,
    write_whole,
)

__all__ = [
    "HELP",
    "PER_STAGE",
    "PREEMPTED_STATUS",
    "Config",
    "Preempted",
    "UserError",
    "check_regular",
    "dataset_name",
    "flush",
    "load_config",
    "lost_rank",
    "markdown_table",
    "parse_config_file",
    "parse_flag",
    "parse_flags",
    "read_json",
    "run",
    "show_help",
    "write_whole",
]
# settings that have the names of vLLM now
RENAMED = {
    "sampler_slots": "max_num_seqs",
    "sampler_memory_share": "vllm_gpu_memory_utilization",
    "sampler_sleep_level": "vllm_sleep_level",
}


# settings that may have one entry a stage; a single value serves all stages
PER_STAGE = ("train_data", "prompts_per_step", "temperature", "minibatches", "lr", "kl_coef", "entropy_coef")


@dataclass(frozen=True, kw_only=True)
class Config:
    # the run
    run_name: str = "8k"  # the run folder is out_dir/run_name
    out_dir: str = "out"
    seed: int = 0  # every random number of the run is a function of this
    resume: bool = False  # go on from the newest whole checkpoint, or from the start where there is none
    smoke: bool = False  # only try it: the worst case, two steps, a resume; then a verdict (training/smoke.py)
    save_every: int = 20  # steps between checkpoints and exports, a stage's last step included; 0 = never
    keep_checkpoints: int = 3  # newest ones kept; besides, each stage's best, and KL references
    export_dtype: Literal["float32", "bfloat16"] = "float32"  # of hf/step_*: float32 where a later stage loads it
    save_rollouts_tokens: bool = False  # dumps also have each token's mismatch; a forward pass more in these steps
    save_rollouts_every: int = 20  # steps between dumps of all responses; 0 = never
    wandb: bool = False  # also log to Weights & Biases
    # model and data
    model: str = "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"  # folder or hub id
    # rows of any published schema: a file, a folder, or several with commas; in a config file one entry a stage, or one
    train_data: str | tuple[str, ...] = "data/train.jsonl"
    problem_field: str = ""  # where a row has its problem, as a.b; "" = where problems/rows.py looks (eval_data: else)
    answer_field: str = ""  # where it has its answer
    eval_data: tuple[str, ...] = ("data/aime24.jsonl",)  # files or folders; each is reported as eval_<file stem>
    # texts or ids of tokens that end a response, beside those of the model folder: the chat template's own, say
    stop_tokens: tuple[str, ...] = ()
    prompt_suffix: str = " Let's think step by step and output the final answer within \\boxed{}."
    # rollouts
    sampler: Literal["torch", "vllm"] = "torch"
    max_num_seqs: int = 64  # sequences that a rank generates at once; torch: each holds a cache of its full length
    vllm_gpu_memory_utilization: float = 0.6  # vllm: of a GPU's memory while it is awake, weights and KV cache
    vllm_sleep_level: int = 1  # vllm: 1 = its weights wait in RAM while the trainer works, 2 = they are dropped
    prompts_per_step: int | tuple[int, ...] = 128  # one entry a stage, or one for all
    group_size: tuple[int, ...] = (8,)  # samples a prompt, one entry a stage
    temperature: float | tuple[float, ...] = 0.6  # one entry a stage, or one for all
    top_p: float = 1.0  # training wants 1: the log-probabilities below are those of the whole distribution
    max_prompt_len: int = 1024  # tokens; longer prompts are counted and left out
    skip_solved: int = 0  # visits in a row, all samples right, after which a prompt is left out; 0 = never
    weigh_draw: bool = False  # an epoch keeps a seen prompt with probability 4p(1-p), p its smoothed pass rate
    max_response_len: tuple[int, ...] = (8192,)  # tokens, one entry a stage; it may shrink as well
    # A step's generation ends when prompts_per_step groups are finished; the rest goes on in the next step, under its
    # weights (training/partial.py). Needs rollout_correction="truncate".
    partial_rollouts: bool = False
    max_staleness: int = 4  # steps that a token may be old when it is trained on; a step waits for groups that would be
    # the context schedule
    # auto = a stage ends at its turning point (schedule.py), or after stage_steps; the last one after stage_steps alone
    stage_policy: Literal["fixed", "auto"] = "fixed"
    stage_steps: tuple[int, ...] = (1040,)  # steps, one entry a stage; under auto the patience limit
    stage_window: int = 240  # steps that a trend is judged by
    stage_patience: int = 20  # steps in a row that must agree
    stage_from: Literal["best", "last"] = "last"  # the checkpoint of a stage that the next one carries on from
    # What a stage finds: reset = as in a new run (DeepScaleR reset all three), keep = as the stage before left it.
    stage_optimizer: Literal["reset", "keep"] = "reset"
    stage_data_order: Literal["reset", "keep"] = "reset"
    stage_reference: Literal["reset", "keep"] = "reset"  # reset: the KL reference is the weights the stage begins with
    reference: str = ""  # folder or hub id of another KL reference, for all stages: a teacher; "" = as stage_reference
    # GPUs, one entry a stage, and no others: before a stage with another number the run stops and prints the command
    stage_gpus: tuple[int, ...] = ()
    max_steps: int = 0  # cuts the whole run short; 0 = no cap
    # the optimizer
    minibatches: int | tuple[int, ...] = 2  # updates a step (128 prompts in two of 64); one entry a stage, or one
    lr: float | tuple[float, ...] = 1e-6  # constant within a stage; one entry a stage, or one for all
    lr_warmup_steps: int = 0  # over which lr rises from 0, whenever the optimizer begins anew
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_eps: float = 1e-8
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    # the loss
    policy_loss: Literal["ppo", "gspo", "cispo"] = "ppo"  # ratios a token or a sequence, clipped; or weights, clipped
    clip_eps_low: float = 0.2  # the ratio is clipped to 1 - low .. 1 + high
    clip_eps_high: float = 0.2
    dual_clip: float = 0.0  # bounds the loss of bad actions at this times |advantage|; 0 = off
    # Archer: tokens with a higher entropy than this share of their response's have a clip of their own, low and high,
    # and no KL penalty; 0 = off
    high_entropy_quantile: float = 0.0
    high_entropy_clip_eps: float = 0.5
    # Times the KL penalty against the reference, the stage's frozen start; 0 = none. One entry a stage, or one for all
    kl_coef: float | tuple[float, ...] = 0.001
    kl_estimator: Literal["k1", "k2", "k3", "k3_clamped"] = "k3_clamped"
    entropy_coef: float | tuple[float, ...] = 0.001  # times the entropy bonus; one entry a stage, or one for all
    # Nats a token under which the entropy is to be raised (Skywork-OR1): the coefficient begins as entropy_coef, grows
    # by entropy_coef_step after a step under it, shrinks after others, is used after steps under it alone. 0 = constant
    entropy_target: float = 0.0
    entropy_coef_step: float = 1e-4
    entropy_coef_max: float = 0.005  # that it grows to
    loss_agg: Literal["token", "sequence", "dr_grpo", "deepscaler"] = "token"
    normalize_advantage_std: bool = True
    mask_truncated: bool = False  # truncated responses give no gradient (DeepScaleR trains on them)
    overlong_buffer: int = 0  # tokens before the limit over which the reward falls by up to 1; 0 = off
    # Groups that are all right or all wrong leave the batch. (A step of such groups alone never updates anything.)
    drop_uniform_groups: bool = False
    refill_attempts: int = 0  # times that other prompts are drawn in place of dropped ones
    rollout_correction: Literal["none", "truncate", "mask", "sequence_mask"] = "none"
    rollout_correction_low: float = 0.5  # weight bounds, see losses.rollout_weights
    rollout_correction_high: float = 2.0
    mismatch_limit: float = 0.003  # KL(sampler || trainer) a token, mean of k3 (or k1), beyond which the run stops
    # the machine
    device: Literal["auto", "cpu"] = "auto"  # auto = NVIDIA GPUs, one a process; without one it is refused
    # compute type (float16: with a loss scale, also for GPUs without bfloat16); parameters, gradients, Adam are float32
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    token_budget: int = 32768  # tokens a micro-batch on a rank
    logprob_chunk: int = 2048  # tokens whose logits exist at once
    activation_checkpointing: bool = True
    # The trainer's attention. auto: torch's varlen kernel on GPUs from the A100 on, else SDPA; flash_attn: the package;
    # fa3, fa4: torch's own switch to kernels for Hopper, a prototype (torch.nn.attention.activate_flash_attention_impl)
    attention: Literal["auto", "flash_attn", "fa3", "fa4"] = "auto"
    # What torch.compile fuses: nothing; the elementwise work on logits; also what stands around attention in each layer
    compile: Literal["none", "head", "layers"] = "none"
    # of a process on a CPU; 0 = OMP_NUM_THREADS where it is set, else those free (a resumed run: as before)
    threads: int = 0
    shard_size: int = 0  # ranks that share one copy of the weights (HSDP: the GPUs of a node); 0 = all of them (FSDP)
    gpu_dollars_per_hour: float = 0.0  # for the ledger; 0 = no dollars
    # When an answer counts as right, see reward.RULES. none: by the exact rule, for the metrics alone; all advantages
    # are 0, and the policy learns from the KL reference
    reward: Literal["exact", "strict", "deepscaler", "none"] = "exact"
    # Where the answer stands. required: behind <think> and </think>, DeepScaleR's rule; optional: behind </think>, or
    # anywhere in a response without it that ended by itself, see reward.graded_text
    think: Literal["required", "optional"] = "required"
    reward_workers: int = 8  # grading processes on a rank
    reward_timeout: float = 2.0  # seconds of CPU time an answer may take; ten times as many on the clock
    process_group_timeout: int = 7200  # seconds a rank may wait for the others
    preempt_seconds: int = 180  # that a step may go on after SIGTERM or SIGUSR1, see training/preemption.py
    # evaluation
    eval_every: int = 20  # steps; 0 = never, and no summary.json
    eval_k: int = 16  # samples a problem
    eval_temperature: float = 0.6
    eval_top_p: float = 1.0
    eval_max_len: int = 0  # tokens of a response, more than a stage's context if need be; 0 = the stage's own context

    @property
    def run_dir(self) -> Path:
        return Path(self.out_dir) / self.run_name

    @property
    def grading_rule(self) -> str:
        """The rule that metrics and validation go by."""
        return "exact" if self.reward == "none" else self.reward

    @property
    def uses_reference(self) -> bool:
        """Has any stage a KL penalty?"""
        return any(self.entries("kl_coef"))

    @property
    def end_contexts(self) -> dict[str, int]:
        """Where the base and the final model are evaluated: the first and the last context, in tokens."""
        return {"first": self.max_response_len[0], "last": self.max_response_len[-1]}

    @property
    def longest_response(self) -> int:
        """Tokens of the longest response of any stage that is trained on."""
        return max(self.max_response_len)

    @property
    def total_steps(self) -> int:
        steps = sum(self.stage_steps)
        return min(steps, self.max_steps) if self.max_steps else steps

    def of_stage(self, stage: int) -> "Config":
        """The settings of PER_STAGE as this stage has them, all others unchanged, but for a teacher without a use."""
        of_stage = {name: self.entries(name)[stage] for name in PER_STAGE}
        return replace(self, **of_stage, reference=self.reference if of_stage["kl_coef"] else "")

    def entries(self, name: str) -> tuple:
        """A setting of PER_STAGE, one entry a stage."""
        value = getattr(self, name)
        return value if isinstance(value, tuple) else (value,) * len(self.max_response_len)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, checked(field.name, field.type, getattr(self, field.name)))
        check_ranges(self)
        for name in ("out_dir", "model", "reference", "train_data", "eval_data"):
            object.__setattr__(self, name, from_home(getattr(self, name)))
        check_stages(self, PER_STAGE)
        check_choices(self)


def from_home(paths: str | tuple[str, ...]) -> str | tuple[str, ...]:
    """With `~` as the home folder."""
    return tuple(map(os.path.expanduser, paths)) if isinstance(paths, tuple) else os.path.expanduser(paths)


def beside_scripts(values: dict[str, Any]) -> dict[str, Any]:
    """The settings of a config file and the defaults, with data that is not here but beside this project's scripts, as
    the config files are."""
    data = {"train_data": Config.train_data, "eval_data": Config.eval_data} | values
    for name in ("train_data", "eval_data"):
        paths = data[name] if isinstance(data[name], (tuple, list)) else (data[name],)
        beside = [Path(__file__).parents[1] / str(path) for path in paths]
        if beside and all(path.exists() for path in beside) and not any(Path(str(path)).exists() for path in paths):
            data[name] = tuple(map(str, beside)) if isinstance(data[name], (tuple, list)) else str(beside[0])
    return values | data


def parse_config_file(path: str) -> dict[str, Any]:
    """The keyword arguments of the file's one `Config(...)` expression, as literals; a path is looked for here, then
    beside this project's scripts. Raises UserError."""
    beside = Path(__file__).parents[1] / path
    try:
        tree = ast.parse((Path(path) if Path(path).exists() else beside).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: cannot read the config file: {e}") from None
    except (SyntaxError, ValueError, MemoryError, RecursionError) as e:
        raise UserError(f"{path}: not a config file: {e or 'nested too deeply'}") from None
    body = [n for n in tree.body if not (isinstance(n, ast.ImportFrom) and n.module == "configs")]
    body = [n for n in body if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))]  # the docstring
    call = body[0].value if len(body) == 1 and isinstance(body[0], ast.Expr) else None
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Config"):
        raise UserError(f"{path}: must hold one expression, Config(key=value, ...)")
    values: dict[str, Any] = {}
    if call.args or any(k.arg is None for k in call.keywords):
        raise UserError(f"{path}:{call.lineno}: Config takes key=value arguments only")
    for keyword in call.keywords:
        if keyword.arg in values:
            raise UserError(f"{path}:{keyword.value.lineno}: {keyword.arg}: given twice")
        try:
            values[keyword.arg] = ast.literal_eval(keyword.value)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            raise UserError(f"{path}:{keyword.value.lineno}: {keyword.arg}: not a plain value") from None
    return values


def load_config(argv: list[str]) -> Config:
    """The config of `[FILE] [--key=value ...]`, flags over file over defaults. Raises UserError."""
    flags, others = parse_flags(argv, Config)
    files = [a for a in others if not a.startswith("--")]
    if len(files) > 1:
        raise UserError(f"one config file at a time, got {' '.join(files)}")
    in_file = parse_config_file(files[0]) if files else {}
    fields = {field.name for field in dataclasses.fields(Config)}
    unknown = [(f"{files[0]}: {name}", name) for name in in_file if name not in fields]
    unknown += [(a.partition("=")[0], a[2:].partition("=")[0]) for a in others if a.startswith("--")]
    for where, name in unknown:
        if name in RENAMED:
            raise UserError(f"{where}: is now called {RENAMED[name]}")
        raise UserError(f"{where}: no such setting (configs/__init__.py lists them all)")
    try:
        return Config(**{**beside_scripts(in_file), **flags})
    except UserError as e:  # a message of Config begins with the name of the field
        name = str(e).partition(":")[0]
        where = "--" if name in flags else f"{files[0]}: " if name in in_file else ""
        raise UserError(f"{where}{e}") from None
