"""Accuracy of a checkpoint on benchmarks, with error bars, from the samplers and the reward that training uses.

    python eval.py configs/8k.py --model=out/8k/hf/step_001040 [--benchmarks=aime24,math500] [--k=16] ...
    python eval.py --completions=FILE --out_dir=DIR [--benchmarks=...] [--reward=exact,strict] [--think=required]
    python eval.py --compare DIR_A DIR_B                       # the paired difference of two evaluations

The second form grades what any engine wrote (evaluation/README.md has the formats); benchmarks give it the right
answers that the file lacks. Benchmarks are names (`data/<name>.jsonl`; `all`: the paper's five; `2025`: four contests
of that year) or files of your own. torchrun runs it data-parallel. `--dtype=float32,bfloat16,float16` evaluates in each
format on the same seeds, one process after the other, and compares. On a GPU vLLM takes 0.9 of the memory, unless
`--vllm_gpu_memory_utilization` says otherwise here: a config file's is for training. Reads a model folder; writes to
--out_dir `completions.jsonl` as they come, then `graded.jsonl`, `results.json`, `results.md` and `accuracy.png`.
Started again it goes on; with a larger k it adds samples. All settings of the config are flags too: `python
train_grpo.py --help` lists them.
"""

import hashlib
import json
import math
import os
import sys
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from configs import HELP, Config, UserError, dataset_name, load_config, parse_flags, run, show_help, write_whole
from configs._model import resolve_model
from evaluation import report as eval_report
from evaluation.child import free_port, run_child
from evaluation.completions import RESERVED, append_rows, completion_rows, read_responses
from evaluation.engines import read_engine
from evaluation.grade import Graded, Key, Response, grade, summarize
from evaluation.score import report_by
from grader.pool import RewardPool
from kernels import cpu
from model import DTYPES, ModelConfig
from problems.files import suffix_of
from problems.prompts import ChatTokenizer, Prompt, encode_problems, load_problems, unmatched_golds
from problems.rows import Fields
from reward import RULES, Problem
from rollout import Sampler, make_sampler, response_text, sample_seed
from training.checkpoint import check_model_folder
from training.packing import from_rank0, init_distributed, print0
from training.preemption import Preemption
from training.preflight import check_machine

Benchmarks = dict[str, list[Prompt]]  # prompts by the benchmark's name
MEMORY_SHARE = 0.9  # of a GPU, which vLLM takes where no trainer is beside it


@dataclass(frozen=True)
class Options:
    """What eval.py may be told beside the config's settings, as --name=value."""

    benchmarks: tuple[str, ...] = ()  # names, files, folders, "all", "2025"; the config's eval_data
    problem_field: str = ""  # where a row of the benchmarks has its problem, as a.b; "" = where problems/rows.py looks
    answer_field: str = ""  # where it has its answer
    k: int = 16  # samples a problem
    temperature: float = 0.6  # as the paper reported
    top_p: float = 0.95
    max_tokens: int = 32768  # of a response; less where the model has fewer positions
    dtype: tuple[str, ...] = ()  # compute types, compared where there are several; the config's
    reward: tuple[str, ...] = ()  # rules of reward.py, compared on the same responses where there are several; likewise
    out_dir: str = ""  # out/eval/<the model folder's path>
    completions: str = ""  # a file or folder to grade; no model is loaded
    workers: int = 2  # grading processes

    def __post_init__(self) -> None:
        for name in ("k", "max_tokens", "workers"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name}: {getattr(self, name)} is under its minimum 1")
        if self.workers > 256:
            raise UserError(f"--workers: {self.workers} is above its maximum 256")
        if not 0 <= self.temperature < math.inf or not 0 < self.top_p <= 1:
            raise UserError(f"--temperature={self.temperature}, --top_p={self.top_p}: need >= 0, and 0 < top_p <= 1")
        for name, given, known in (("dtype", self.dtype, DTYPES), ("reward", self.reward, RULES)):
            unknown = [value for value in given if value not in known]
            if unknown:
                raise UserError(f"--{name}: {unknown[0]!r} is none of {', '.join(known)}")
            if len(set(given)) < len(given):
                raise UserError(f"--{name}: {','.join(given)} names one twice")


# ------------------------------------------------------------------------------------------------------------ sampling


@dataclass(frozen=True)
class Request:
    """Samples wanted of one problem."""

    benchmark: str
    place: int  # of the problem in its benchmark
    prompt: Prompt
    samples: list[int]  # their numbers


def requests_for(benchmarks: Benchmarks, k: int) -> list[Request]:
    """Samples 0 to k-1 of every problem."""
    requests = []
    for name, prompts in benchmarks.items():
        requests += [Request(name, place, prompt, list(range(k))) for place, prompt in enumerate(prompts)]
    return requests


def sample(
    sampler: Sampler, tokenizer: ChatTokenizer, requests: list[Request], cfg: Config, max_tokens: int
) -> list[list[Response]]:
    """Each request's responses, at the config's `eval_temperature` and `eval_top_p`.

    A sample's seed depends on the config's, the problem and the sample's number alone: two checkpoints are compared on
    the same seeds, and more samples extend a run.
    """
    prompts = [r.prompt.ids for r in requests]
    seeds = [[sample_seed(cfg.seed, "eval", r.benchmark, r.place, number) for number in r.samples] for r in requests]
    groups = []
    rollouts = sampler.generate(prompts, seeds, max_tokens, cfg.eval_temperature, cfg.eval_top_p)
    for request, group in zip(requests, rollouts, strict=True):
        key, problem, responses = (request.benchmark, str(request.place)), request.prompt.problem, []
        for number, rollout in zip(request.samples, group, strict=True):
            text, length = response_text(request.prompt, rollout, tokenizer), len(rollout.response_ids)
            responses.append(Response(key, problem, number, text, length, rollout.finish_reason, request.prompt.opened))
        groups.append(responses)
    return groups


def evaluate(
    sampler: Sampler,
    tokenizer: ChatTokenizer,
    pool: RewardPool,
    benchmarks: Benchmarks,
    cfg: Config,
    max_tokens: int,
    preemption: Preemption,
) -> dict[str, dict[str, Any]]:
    """Validation within training: `cfg.eval_k` samples a problem, at most `max_tokens` tokens each.

    Returns for each benchmark, and under "all" for all problems together, `summarize`'s figures and {accuracy,
    response_len_mean, response_clip_ratio}. Every rank calls it with the same problems and gets the same numbers. A
    response counts as right where its reward is at least 1.0. Raises Preempted, on every rank.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    requests = requests_for(benchmarks, cfg.eval_k)
    groups = preemption.interruptible(sample, sampler, tokenizer, requests[rank::world], cfg, max_tokens)
    preemption.check()
    rank_rows, _ = grade((response for group in groups for response in group), pool, cfg.think)
    rows_of_ranks: list[list[Graded]] = [[]] * world
    dist.all_gather_object(rows_of_ranks, rank_rows)
    rows = [rows_of_ranks[i % world][i // world] for i in range(len(requests))]
    results = {}
    for name in (*benchmarks, "all"):
        figures = summarize([row for row in rows if name in ("all", row.benchmark)])
        lengths = {"response_len_mean": figures["tokens_mean"], "response_clip_ratio": figures["clip_ratio"]}
        results[name] = {**figures, "accuracy": figures["pass_at_1"], **lengths}
    return results


# ---------------------------------------------------------------------------------------------------------- a model run


@dataclass(frozen=True)
class Evaluation:
    """What is asked of a model; ranks share it."""

    cfg: Config  # eval_k, eval_temperature and eval_top_p are those of the command line
    model: Path
    benchmarks: Benchmarks
    notes: list[str]  # on the benchmarks' files, for the user
    max_tokens: int  # of a response
    longest: int  # tokens of a prompt and its response

    def problems(self) -> dict[Key, Problem]:
        return {(name, p.problem.id): p.problem for name, prompts in self.benchmarks.items() for p in prompts}


def load_benchmarks(names: tuple[str, ...], fields: Fields) -> tuple[dict[str, list[Problem]], list[str]]:
    """{name: problems} of names, files, folders and "all", and a line on each thing that was done to the rows. Raises
    UserError."""
    expanded: list[str] = []
    for name in names:
        expanded += eval_report.SETS.get(name, [name])
    benchmarks: dict[str, list[Problem]] = {}
    notes = []
    for given in expanded:
        is_file = bool(suffix_of(Path(given))) or Path(given).is_dir()
        path = Path(given if is_file else f"data/{given}.jsonl")
        if not is_file and not path.is_file():
            remedy = "`python data_prep.py bench` makes the paper's five, and later ones; name your own by its file"
            if given == "parametric":
                remedy = "`python data_prep.py parametric` makes it"
            raise UserError(f"--benchmarks: no {path}: {remedy}")
        name = dataset_name(str(path))
        if name in benchmarks:
            raise UserError(f"--benchmarks: {name}: named twice")
        if name in RESERVED:
            raise UserError(f"--benchmarks: none can be called {name!r}")
        benchmarks[name], file_notes = load_problems(path, fields)
        notes += file_notes
    return benchmarks, notes


def prepare(cfg: Config, options: Options) -> Evaluation:
    """Reads benchmarks and tokenizer, and finds how long responses may be. Raises UserError."""
    fields = Fields(options.problem_field, options.answer_field)
    problems, notes = load_benchmarks(options.benchmarks or cfg.eval_data, fields)  # before a model is downloaded
    if not problems:
        raise UserError("--benchmarks: none named, and the config has no eval_data")
    model = resolve_model(cfg.model)
    tokenizer = ChatTokenizer(model, cfg.stop_tokens)
    check_model_folder(model)
    stop_warning = tokenizer.stop_warning()
    benchmarks = {name: encode_problems(rows, tokenizer, cfg.prompt_suffix) for name, rows in problems.items()}
    longest = max([cfg.max_prompt_len, *(len(p.ids) for prompts in benchmarks.values() for p in prompts)])
    max_tokens = min(options.max_tokens, ModelConfig.from_folder(model).max_position_embeddings - longest)
    if max_tokens < 1:
        raise UserError(f"--model: {model} has no positions left behind the longest prompt")
    cfg = replace(cfg, eval_k=options.k, eval_temperature=options.temperature, eval_top_p=options.top_p)
    notes = [*([stop_warning] if stop_warning else []), *notes, unmatched_golds(benchmarks)]
    return Evaluation(cfg, model, benchmarks, notes, max_tokens, longest + max_tokens)


def digest(problem: Problem) -> str:
    """Tells a problem from another that bears its id."""
    return hashlib.blake2b(repr((problem.problem, problem.answer)).encode(), digest_size=8).hexdigest()


def describe(out: Path, evaluation: Evaluation, dtype: str) -> dict[str, Any]:
    """What all completions in the folder have in common, as its `eval.json` has it. Raises UserError where the folder
    holds other completions."""
    cfg, path = evaluation.cfg, out / "eval.json"
    files = sorted(evaluation.model.glob("*.safetensors"))  # told apart by size and time, not read
    weights = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    about = {"model": str(evaluation.model), "weights": weights, "sampler": cfg.sampler, "seed": cfg.seed}
    about |= {"temperature": cfg.eval_temperature, "top_p": cfg.eval_top_p, "max_tokens": evaluation.max_tokens}
    about |= {"prompt_suffix": cfg.prompt_suffix, "dtype": dtype}
    about |= {"stop_tokens": list(cfg.stop_tokens)} if cfg.stop_tokens else {}
    known = eval_report.read_object(path) or about
    for key, value in {"stop_tokens": None, **about}.items():
        if known.get(key) != value:
            other = f"this folder's completions have {key}={known.get(key)!r}, not {value!r}"
            raise UserError(f"{path}: {other}: choose another --out_dir")
    return about


def missing_samples(evaluation: Evaluation, file: Path) -> list[Request]:
    """What the file of completions still lacks. Raises UserError where it has another problem of the same id."""
    problems = evaluation.problems()
    done: dict[Key, set[int]] = defaultdict(set)
    for row in completion_rows(file):
        key = row["benchmark"], row["id"]
        if key in problems and row.get("problem") != digest(problems[key]):
            other = f"{' '.join(key)} is another problem there, or has another answer"
            raise UserError(f"{file}: {other}: choose another --out_dir")
        done[key] |= {completion["sample"] for completion in row["completions"]}
    requests = []
    for r in requests_for(evaluation.benchmarks, evaluation.cfg.eval_k):
        missing = [number for number in r.samples if number not in done[r.benchmark, r.prompt.problem.id]]
        if missing:
            requests.append(replace(r, samples=missing))
    return requests


def completions_row(responses: list[Response]) -> dict[str, Any]:
    """One problem's responses as a row of `completions.jsonl`."""
    problem, kept = responses[0].problem, ("sample", "text", "tokens", "finish_reason")
    head = {"benchmark": responses[0].key[0], "id": problem.id, "answer": problem.answer, "problem": digest(problem)}
    head["opened"] = responses[0].opened
    return head | {"completions": [{name: getattr(r, name) for name in kept} for r in responses]}


def generate(evaluation: Evaluation, device: torch.device, file: Path) -> Sampler | None:
    """Adds to the file of completions what it lacks, each rank its share of the problems, a few at a time, so that an
    interruption costs little. Returns the sampler, if one was needed."""
    cfg, rank, world = evaluation.cfg, dist.get_rank(), dist.get_world_size()
    if rank == 0:
        append_rows(file, [])  # makes the file, or mends its end
    dist.barrier()
    requests = missing_samples(evaluation, file)
    dist.barrier()  # all have read before one writes
    if not requests:
        return None
    # A rank with nothing to do goes on all the same: vLLM's engines start on all ranks together.
    rank_requests = requests[rank::world]
    machine = cpu.prepare(cfg.threads) if device.type == "cpu" else ""
    sampler = make_sampler(cfg, evaluation.model, device, evaluation.longest, beside_trainer=False)
    print0(f"{world} x {device.type}, {cfg.dtype}, sampler: {sampler.name}{machine}")
    tokenizer = ChatTokenizer(evaluation.model, cfg.stop_tokens)
    batch_size = max(1, 4 * cfg.max_num_seqs // cfg.eval_k)  # problems
    bar = tqdm(total=sum(len(r.samples) for r in rank_requests), desc="sampling", unit=" samples", disable=rank > 0)
    for start in range(0, len(rank_requests), batch_size):
        groups = sample(sampler, tokenizer, rank_requests[start : start + batch_size], cfg, evaluation.max_tokens)
        append_rows(file, [completions_row(responses) for responses in groups])
        bar.update(sum(len(responses) for responses in groups))
    return sampler


def run_model(cfg: Config, options: Options, argv: list[str]) -> None:
    """Samples and scores; where there are several compute types, in a process each, and compares."""
    dtypes = options.dtype or (cfg.dtype,)
    check_machine(cfg, dtypes, trains=False)
    evaluation = prepare(cfg, options)
    root = Path(options.out_dir or f"out/eval/{str(evaluation.model).strip('./').replace('/', '_')}")
    folders = {dtype: root / dtype if len(dtypes) > 1 else root for dtype in dtypes}
    about = {dtype: describe(out, evaluation, dtype) for dtype, out in folders.items()}
    if os.environ.get("RANK", "0") == "0":  # none is refused any more
        for dtype, out in folders.items():
            out.mkdir(parents=True, exist_ok=True)
            write_whole(out / "eval.json", json.dumps(about[dtype], indent=1) + "\n")
    if len(dtypes) > 1:
        run_dtypes(cfg, folders, options.reward, argv)
    else:
        cfg = replace(evaluation.cfg, dtype=dtypes[0])
        run_dtype(replace(evaluation, cfg=cfg), options, root, about[dtypes[0]])


def run_dtype(evaluation: Evaluation, options: Options, out: Path, about: dict[str, Any]) -> None:
    """Samples and scores in the config's compute type."""
    cfg = evaluation.cfg
    device = init_distributed(cfg)
    print0(*evaluation.notes, sep="\n")
    if evaluation.max_tokens < options.max_tokens:
        print0(f"at most {evaluation.max_tokens} tokens a response: the model has no more positions")
    sampler = generate(evaluation, device, out / "completions.jsonl")
    dist.barrier()
    if dist.get_rank() == 0:
        asked, rules = evaluation.problems(), options.reward or (cfg.grading_rule,)
        read = partial(read_responses, out / "completions.jsonl", asked, options.k)
        report_by(rules, cfg.think, read, asked, options.workers, out, about)
    dist.barrier()
    if sampler:
        sampler.close()
    if dist.is_initialized():  # vLLM ends the process group with its engine
        dist.destroy_process_group()


def run_dtypes(cfg: Config, folders: dict[str, Path], rules: tuple[str, ...], argv: list[str]) -> None:
    """This command once for each compute type, into its folder, and what distinguishes the others from the first, by
    each rule. Every rank starts its rank of each. Ends with the status of one that fails."""
    init_distributed(replace(cfg, device="cpu"))  # the GPUs are for the children
    for dtype, out in folders.items():
        environment = {}
        if "RANK" in os.environ:  # they are to meet one another, and not where these ranks have met
            environment = {"MASTER_PORT": str(from_rank0(free_port)), "TORCHELASTIC_USE_AGENT_STORE": "False"}
        sys.stdout.flush()
        run_child([sys.executable, __file__, *argv, f"--dtype={dtype}", f"--out_dir={out}"], environment)
    if dist.get_rank() == 0:
        first, *others = folders.values()
        for rule in rules if len(rules) > 1 else ("",):  # several have a folder each
            for out in others:
                eval_report.compare(first / rule, out / rule)
    dist.barrier()
    dist.destroy_process_group()


def model_config(argv: list[str]) -> Config:
    """The config of a model run. Its share of a GPU's memory is the command line's or MEMORY_SHARE; a config file's
    leaves room for a trainer."""
    cfg = load_config(argv)
    name = "vllm_gpu_memory_utilization"
    if cfg.device == "cpu" or any(argument.partition("=")[0] == f"--{name}" for argument in argv):
        return cfg
    return replace(cfg, vllm_gpu_memory_utilization=MEMORY_SHARE)


def grade_completions(options: Options, given: set[str], others: list[str]) -> None:
    """Scores what any engine wrote. given: the names of the options that were; others: the flags that are settings."""
    unused = [flag for flag in others if not flag.startswith("--think=")]
    of_benchmarks = {"benchmarks", "problem_field", "answer_field"}
    if unused or not options.out_dir or given - {"completions", "out_dir", "workers", "reward", *of_benchmarks}:
        flags = "--out_dir=DIR, --benchmarks=FILE, --workers=N, --reward=RULE and --think=RULE"
        raise UserError(f"--completions takes {flags}, nothing else: all of it is graded")
    if given & of_benchmarks and not options.benchmarks:
        raise UserError("--problem_field and --answer_field are of --benchmarks=FILE, not of the completions")
    cfg = load_config(others)
    # Others' prompts, which may open <think>, are not in their files: lenient, unless it is asked for.
    think = cfg.think if any(flag.startswith("--think=") for flag in others) else "optional"
    benchmarks, notes = load_benchmarks(options.benchmarks, Fields(options.problem_field, options.answer_field))
    print(*notes, sep="\n", end="\n" if notes else "")
    problems = {(name, problem.id): problem for name, rows in benchmarks.items() for problem in rows}
    read, about = partial(read_engine, Path(options.completions), problems), {"completions": options.completions}
    rules = options.reward or (cfg.grading_rule,)
    report_by(rules, think, read, {}, options.workers, Path(options.out_dir), about)


def main(argv: list[str]) -> None:
    if HELP & set(argv):
        return show_help(__doc__, Options())
    if argv[:1] == ["--compare"]:
        if len(argv) != 3 or argv[1].startswith("-") or argv[2].startswith("-"):
            raise UserError("--compare takes two results folders: python eval.py --compare DIR_A DIR_B")
        eval_report.compare(Path(argv[1]), Path(argv[2]))
        return
    values, others = parse_flags(argv, Options)
    for name, value in values.items():
        if value in ("", ()):
            raise UserError(f"--{name}: write --{name}=VALUE")
    options = Options(**values)
    try:
        if not options.completions:
            run_model(model_config(others), options, argv)
            return
        grade_completions(options, set(values), others)
    except OSError as e:  # reading has its own messages
        raise UserError(f"--out_dir: cannot write {e.filename or options.out_dir}: {e.strerror}") from None


if __name__ == "__main__":
    run(main)
