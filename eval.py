"""Accuracy of a checkpoint on benchmarks, with error bars, from the samplers and the grader that training uses.

    python eval.py configs/8k.py --model=out/8k/hf/step_001040 [--benchmarks=aime24,math500] [--k=16] ...
    python eval.py --completions=FILE.jsonl --out_dir=DIR      # grade what any other engine wrote
    python eval.py --compare DIR_A DIR_B                       # the paired difference of two evaluations

Benchmarks are names (`data/<name>.jsonl`; `all`: the paper's five; `parametric`: fresh problems of --problem_seed) or
.jsonl files of your own. torchrun runs it data-parallel. `--dtype=float32,bfloat16,float16` evaluates in each format
on the same seeds, and compares. Reads a model folder; writes to --out_dir `completions.jsonl` as they come, then
`graded.jsonl`, `results.json`, `results.md` and `accuracy.png`. Started again it goes on; with a larger k it adds
samples. Other flags are the config's settings.
"""

import fcntl
import hashlib
import json
import math
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from configs import Config, UserError, load_config, parse_flag, run
from evaluation import report as eval_report
from evaluation.grade import Graded, boxed_answer, grade, summarize, vote
from grader.pool import RewardPool
from model import DTYPES, ModelConfig, resolve_model
from problems.parametric import problems as parametric_problems
from problems.prompts import ChatTokenizer, Prompt, encode_problems, load_problems
from reward import Problem, extract_answer
from rollout import Rollout, TorchSampler, VLLMSampler, make_sampler, response_text, sample_seed
from training.packing import init_distributed, print0

FIVE = ("aime24", "amc23", "math500", "minerva", "olympiad")
RESERVED = ("all", "average")


@dataclass(frozen=True)
class Options:
    """What eval.py may be told beside the config's settings, as --name=value."""

    benchmarks: tuple[str, ...] = ()  # names, files, "all", "parametric"; the config's eval_data
    k: int = 16  # samples a problem
    temperature: float = 0.6  # as the paper reported
    top_p: float = 0.95
    max_tokens: int = 32768  # of a response; less where the model has fewer positions
    dtype: tuple[str, ...] = ()  # compute types, compared where there are several; the config's
    out_dir: str = ""  # out/eval/<the model folder's path>
    completions: str = ""  # a file to grade; no model is loaded
    problem_seed: int = 0  # of "parametric"
    problem_count: int = 264  # of "parametric"
    workers: int = 2  # grading processes

    def __post_init__(self) -> None:
        for name in ("k", "max_tokens", "problem_count", "workers"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name}: {getattr(self, name)} is under its minimum 1")
        if not 0 <= self.temperature < math.inf or not 0 < self.top_p <= 1:
            raise UserError(f"--temperature={self.temperature}, --top_p={self.top_p}: need >= 0, and 0 < top_p <= 1")
        if unknown := [d for d in self.dtype if d not in DTYPES]:
            raise UserError(f"--dtype: {unknown[0]!r} is none of {', '.join(DTYPES)}")
        if len(set(self.dtype)) < len(self.dtype):
            raise UserError(f"--dtype: {','.join(self.dtype)} names one twice")


# ------------------------------------------------------------------------------------------------------------ sampling


def sample(sampler: TorchSampler | VLLMSampler, todo: list[tuple[str, int, list[int]]],
           benchmarks: dict[str, list[Prompt]], seed: int, max_tokens: int, temperature: float,
           top_p: float) -> list[list[Rollout]]:  # fmt: skip
    """The samples (numbers) asked of each (benchmark, index). A seed depends on run seed, problem and sample only: two
    checkpoints share theirs, and more samples extend a run."""
    return sampler.generate([benchmarks[name][i].ids for name, i, _ in todo],
                            [[sample_seed(seed, "eval", name, i, s) for s in samples] for name, i, samples in todo],
                            max_tokens, temperature, top_p)  # fmt: skip


def evaluate(sampler: TorchSampler | VLLMSampler, tokenizer: ChatTokenizer, pool: RewardPool,
             benchmarks: dict[str, list[Prompt]], cfg: Config,
             max_tokens: int) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Validation within training: `cfg.eval_k` samples a problem, at most `max_tokens` each, for each benchmark and for
    "all" problems: `summarize`, and {accuracy, response_len_mean, response_clip_ratio}. Every rank calls it with the
    same problems and gets the same numbers.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    keys = [(name, i, list(range(cfg.eval_k))) for name, prompts in benchmarks.items() for i in range(len(prompts))]
    mine = keys[rank::world]
    groups = sample(sampler, mine, benchmarks, cfg.seed, max_tokens, cfg.eval_temperature, cfg.eval_top_p)
    rows = {}
    for (name, i, _), group in zip(mine, groups, strict=True):
        prompt = benchmarks[name][i]
        answers = [extract_answer(response_text(prompt, r, tokenizer)) for r in group]
        rows[name, i] = Graded(name, prompt.problem.id, [], [len(r.response_ids) for r in group],
                               [r.finish_reason == "length" for r in group], answers)  # fmt: skip
    grade(list(rows.values()), [benchmarks[name][i].problem.answer for name, i, _ in mine], pool, "")
    parts: list[dict] = [{}] * world
    dist.all_gather_object(parts, rows)
    found = {key: row for part in parts for key, row in part.items()}
    ordered = [found[name, i] for name, i, _ in keys]
    results = {}
    for name in (*benchmarks, "all"):
        r = results[name] = summarize([g for g in ordered if name in ("all", g.benchmark)])
        r |= {"accuracy": r["pass_at_1"], "response_len_mean": r["tokens_mean"], "response_clip_ratio": r["clip_ratio"]}
    return results


# ---------------------------------------------------------------------------------------------------- a results folder


def checked_row(row: Any) -> dict[str, Any]:
    """A row {benchmark, id, answer, completions: [{text, tokens?, finish_reason?, sample?}]}, or ValueError."""
    if not isinstance(row, dict) or not isinstance(row.get("completions"), list):
        raise ValueError("needs benchmark, id, answer and a list of completions")
    golds = row.get("answer") if isinstance(row.get("answer"), list) else [row.get("answer")]
    if not golds or not all(type(g) in (str, int, float) and str(g).strip() for g in golds):
        raise ValueError("needs an 'answer': a text, a number, or a list of them")
    names = [row.get("benchmark"), row.get("id")]
    if not all(isinstance(n, (str, int)) and str(n).isprintable() for n in names) or names[0] in RESERVED:
        raise ValueError(f"needs 'benchmark' and 'id'; a benchmark cannot be called {', '.join(RESERVED)}")
    for c in row["completions"]:
        numbers = [c.get(k) for k in ("tokens", "sample") if c.get(k) is not None] if isinstance(c, dict) else [-1]
        if not all(type(n) is int and 0 <= n < 2**53 for n in numbers) or not isinstance(c.get("text"), str):
            raise ValueError("a completion needs a text 'text', and integers for 'tokens' and 'sample' if it has them")
    return {**row, "benchmark": str(names[0]), "id": str(names[1]),
            "answer": [str(g) for g in golds] if isinstance(row["answer"], list) else str(golds[0])}  # fmt: skip


def completion_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The checked rows of a file of completions. Raises UserError."""
    try:
        with open(path, "rb") as f:
            for number, line in enumerate(f, 1):
                if line.strip():
                    try:
                        yield checked_row(json.loads(line))
                    except (ValueError, RecursionError) as e:
                        raise UserError(f"{path}:{number}: not a row of completions: {e}") from None
    except OSError as e:
        raise UserError(f"{path}: cannot be read: {e.strerror}") from None


def read_completions(path: Path, asked: dict[tuple[str, str], Problem],
                     k: int) -> tuple[list[Graded], list[str | list[str]]]:  # fmt: skip
    """Each problem's samples, in order, without their texts, and its gold. Of our own file the first `k` samples of the
    problems `asked` for; of another's (none asked for) all. One row at a time is in memory."""
    found: dict[tuple[str, str], dict[int, tuple]] = {key: {} for key in asked}
    golds: dict[tuple[str, str], str | list[str]] = {key: problem.answer for key, problem in asked.items()}
    for row in completion_rows(path):
        key = row["benchmark"], row["id"]
        if asked and key not in asked:
            continue
        if golds.setdefault(key, row["answer"]) != row["answer"]:
            raise UserError(f"{path}: {' '.join(key)} stands there with two answers")
        samples = found.setdefault(key, {})
        for c in row["completions"]:
            reason = c.get("finish_reason") or "stop"
            answer = extract_answer(c["text"]) if asked else boxed_answer(c["text"], reason)
            number = len(samples) if c.get("sample") is None else c["sample"]
            samples.setdefault(number, (c.get("tokens"), reason == "length", answer))
    rows = []
    for (benchmark, name), samples in found.items():
        kept = [samples[s] for s in sorted(samples) if not asked or s < k]
        if not kept:
            raise UserError(f"{path}: {benchmark} {name} has no completions")
        tokens, cut, answers = (list(x) for x in zip(*kept, strict=True))
        rows.append(Graded(benchmark, name, [], tokens, cut, answers))
    if not rows:
        raise UserError(f"{path}: no rows")
    return rows, [golds[r.benchmark, r.id] for r in rows]


def report(out: Path, source: Path, options: Options, asked: dict[tuple[str, str], Problem],
           about: dict[str, Any]) -> None:  # fmt: skip
    """Grades a file of completions, writes and prints what came out. What the folder has of other benchmarks stays."""
    rows, golds = read_completions(source, asked, options.k)
    names = list(dict.fromkeys(r.benchmark for r in rows))
    results, graded = eval_report.others(out, names) if asked else ({}, [])
    with RewardPool(options.workers) as pool:
        for name in names:
            before = pool.timeouts
            part = [(r, g) for r, g in zip(rows, golds, strict=True) if r.benchmark == name]
            grade([r for r, _ in part], [g for _, g in part], pool, f"grading {name}")
            vote([r for r, _ in part], pool)
            results[name] = summarize([r for r, _ in part]) | {"grader_timeouts": pool.timeouts - before}
    graded += [eval_report.graded_row(r, g) for r, g in zip(rows, golds, strict=True)]
    eval_report.write(out, graded, results, about)


# ---------------------------------------------------------------------------------------------------------- a model run


def load_benchmarks(names: tuple[str, ...], options: Options) -> dict[str, list[Problem]]:
    """{name: problems} of names, files, "all" and "parametric". Raises UserError."""
    found: dict[str, list[Problem]] = {}
    for name in [each for given in names for each in (FIVE if given == "all" else (given,))]:
        if name == "parametric":
            rows = parametric_problems(options.problem_seed, options.problem_count)
            problems = [Problem(r["id"], r["problem"], r["answer"]) for r in rows]
        elif name.endswith((".jsonl", ".json")):
            problems, name = load_problems(name), Path(name).stem
        else:
            if not Path(f"data/{name}.jsonl").is_file():
                raise UserError(f"--benchmarks: no data/{name}.jsonl: `python data_prep.py bench` makes the paper's "
                                "five; one of your own is named by its .jsonl file")  # fmt: skip
            problems = load_problems(f"data/{name}.jsonl")
        shared = len({p.id for p in problems}) < len(problems)
        if wrong := "named twice" if name in found else "two problems share an id" if shared else "":
            raise UserError(f"--benchmarks: {name}: {wrong}")
        if name in RESERVED:
            raise UserError(f"--benchmarks: none can be called {name!r}")
        found[name] = problems
    return found


def digest(problem: Problem) -> str:
    """Tells a problem from another that bears its id."""
    return hashlib.blake2b(repr((problem.problem, problem.answer)).encode(), digest_size=8).hexdigest()


def fingerprint(path: Path) -> dict[str, Any]:
    """What tells a model folder's weights from others, without reading them all."""
    files = sorted(path.glob("*.safetensors"))
    return {"model": str(path), "weights": [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files]}


def settle(outs: dict[str, Path], about: dict[str, Any]) -> None:
    """A folder holds one model's completions under one way of sampling. Raises UserError for another."""
    for dtype, out in outs.items():
        path = out / "eval.json"
        try:
            known = dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
        except (ValueError, TypeError) as e:
            raise UserError(f"{path}: not a JSON object: {e}") from None
        for key, value in {**about, "dtype": dtype}.items():
            if known and known.get(key) != value:
                raise UserError(f"{path}: this folder's completions have {key}={known.get(key)!r}, not {value!r}: "
                                "choose another --out_dir")  # fmt: skip
    if os.environ.get("RANK", "0") == "0":
        for dtype, out in outs.items():
            out.mkdir(parents=True, exist_ok=True)
            eval_report.write_files({out / "eval.json": json.dumps({**about, "dtype": dtype}, indent=1) + "\n"})


def append(path: Path, rows: list[dict[str, Any]]) -> None:
    """Whole lines, under a lock: several ranks write to one file. What a killed one tore goes first."""
    data = "".join(json.dumps(r) + "\n" for r in rows).encode()
    with open(path, "a+b") as f:
        fcntl.lockf(f, fcntl.LOCK_EX)
        size = f.seek(0, os.SEEK_END)
        while size:  # back to the last line's end, a block at a time
            start = max(0, size - 2**20)
            f.seek(start)
            found = f.read(size - start).rfind(b"\n")
            if found >= 0:
                size = start + found + 1
                break
            size = start
        f.truncate(size)
        f.write(data)
        f.flush()


def generate(cfg: Config, options: Options, path: Path, device: torch.device, out: Path,
             benchmarks: dict[str, list[Prompt]], max_tokens: int,
             dtype: str) -> TorchSampler | VLLMSampler | None:  # fmt: skip
    """What is missing of `completions.jsonl`: each rank its share of the problems, a few at a time, so that an
    interruption costs little. Returns the sampler, if one was needed."""
    file = out / "completions.jsonl"
    if dist.get_rank() == 0:
        append(file, [])
    dist.barrier()
    problems = {(name, p.problem.id): p.problem for name, prompts in benchmarks.items() for p in prompts}
    done: dict[tuple[str, str], set[int]] = defaultdict(set)
    for row in completion_rows(file):
        key = row["benchmark"], row["id"]
        if key in problems and row.get("problem") != digest(problems[key]):
            raise UserError(f"{file}: {' '.join(key)} is another problem there, or has another answer: choose another "
                            "--out_dir")  # fmt: skip
        done[key] |= {c["sample"] for c in row["completions"]}
    dist.barrier()  # all have read before one writes
    todo = [(name, i, missing) for name, prompts in benchmarks.items() for i, p in enumerate(prompts)
            if (missing := [s for s in range(options.k) if s not in done[name, p.problem.id]])]  # fmt: skip
    mine = todo[dist.get_rank() :: dist.get_world_size()]
    if not todo:  # of nobody: to start vLLM's engines takes all ranks
        return None
    longest = max(len(p.ids) for prompts in benchmarks.values() for p in prompts) + max_tokens
    sampler = make_sampler(cfg, path, device, longest, dtype)
    sampler.wake()
    print0(f"{dist.get_world_size()} x {device.type}, {dtype}, sampler: {sampler.name}")
    tokenizer = ChatTokenizer(path)
    size = max(1, 4 * cfg.max_num_seqs // options.k)
    bar = tqdm(total=sum(len(s) for _, _, s in mine), desc="sampling", unit=" samples", disable=dist.get_rank() > 0)
    for start in range(0, len(mine), size):
        part = mine[start : start + size]
        groups = sample(sampler, part, benchmarks, cfg.seed, max_tokens, options.temperature, options.top_p)
        rows = []
        for (name, i, numbers), group in zip(part, groups, strict=True):
            prompt = benchmarks[name][i]
            rows.append({"benchmark": name, "id": prompt.problem.id, "answer": prompt.problem.answer,
                         "problem": digest(prompt.problem), "completions": [
                {"sample": s, "text": response_text(prompt, r, tokenizer), "tokens": len(r.response_ids),
                 "finish_reason": r.finish_reason} for s, r in zip(numbers, group, strict=True)]})  # fmt: skip
        append(file, rows)
        bar.update(sum(len(s) for _, _, s in part))
    sampler.sleep()
    return sampler


def run_model(cfg: Config, options: Options) -> None:
    """Samples and grades, once for each dtype."""
    path = resolve_model(cfg.model)
    tokenizer = ChatTokenizer(path)
    problems = load_benchmarks(options.benchmarks or cfg.eval_data, options)
    if not problems:
        raise UserError("--benchmarks: none named, and the config has no eval_data")
    benchmarks = {name: encode_problems(p, tokenizer, cfg.prompt_suffix) for name, p in problems.items()}
    longest = max([cfg.max_prompt_len, *(len(p.ids) for prompts in benchmarks.values() for p in prompts)])
    max_tokens = min(options.max_tokens, ModelConfig.from_folder(path).max_position_embeddings - longest)
    if max_tokens < 1:
        raise UserError(f"--model: {path} has no positions left behind the longest prompt")
    name = options.out_dir or f"out/eval/{str(path).strip('./').replace('/', '_')}"
    formats = options.dtype or (cfg.dtype,)
    outs = {d: Path(name) / d if len(formats) > 1 else Path(name) for d in formats}
    about = fingerprint(path) | {"sampler": cfg.sampler, "seed": cfg.seed, "temperature": options.temperature,
                                 "top_p": options.top_p, "max_tokens": max_tokens,
                                 "prompt_suffix": cfg.prompt_suffix}  # fmt: skip
    settle(outs, about)
    device = init_distributed(cfg)
    if device.type == "cuda" and cfg.sampler == "torch" and "float32" in formats:
        raise UserError("--dtype: float32 does not run through FlashAttention on a GPU: --sampler=vllm or --device=cpu")
    if max_tokens < options.max_tokens:
        print0(f"at most {max_tokens} tokens a response: the model has no more positions")
    asked = {(name, p.id): p for name, part in problems.items() for p in part}
    engines = []  # vLLM's take the process group with them when they end: none may go before the work is done
    for d, out in outs.items():
        sampler = generate(cfg, options, path, device, out, benchmarks, max_tokens, d)
        engines += [sampler] if isinstance(sampler, VLLMSampler) else []
        dist.barrier()
        if dist.get_rank() == 0:
            report(out, out / "completions.jsonl", options, asked, about | {"dtype": d})
    if dist.get_rank() == 0:
        for other in list(outs.values())[1:]:
            eval_report.compare(outs[formats[0]], other)
    dist.barrier()
    leave(engines)


def leave(engines: list[VLLMSampler]) -> None:
    if len(engines) > 1:  # at exit each would end the process group that the others still hold
        sys.stdout.flush()
        os._exit(0)
    if engines:
        engines[0].close()
    else:
        dist.destroy_process_group()


def main(argv: list[str]) -> None:
    if argv[:1] == ["--compare"]:
        if len(argv) != 3 or argv[1].startswith("-") or argv[2].startswith("-"):
            raise UserError("--compare takes two results folders: python eval.py --compare DIR_A DIR_B")
        eval_report.compare(Path(argv[1]), Path(argv[2]))
        return
    types = {f.name: f.type for f in fields(Options)}
    values, rest = {}, []
    for flag in argv:
        name, equals, text = flag.removeprefix("--").partition("=")
        if flag.startswith("--") and name in types:
            if not equals or not text:
                raise UserError(f"--{name}: write --{name}=VALUE")
            values[name] = parse_flag(f"--{name}", types[name], text)
        else:
            rest.append(flag)
    options = Options(**values)
    try:
        if not options.completions:
            run_model(load_config(rest), options)
            return
        if rest or not options.out_dir or set(values) - {"completions", "out_dir", "workers"}:
            raise UserError("--completions takes --out_dir=DIR and --workers=N, nothing else: all of it is graded")
        source = Path(options.completions)
        report(Path(options.out_dir), source, options, {}, {"completions": options.completions})
    except OSError as e:  # what is read has its own messages
        raise UserError(f"--out_dir: cannot write {e.filename or options.out_dir}: {e.strerror}") from None


if __name__ == "__main__":
    run(main)
