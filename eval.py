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
import json
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

import eval_report
from configs import Config, UserError, load_config, parse_flag, run
from eval_grade import Graded, boxed_answer, grade, summarize, vote
from model import DTYPES, ModelConfig, resolve_model
from packing import init_distributed, print0
from parametric import problems as parametric_problems
from prompts import ChatTokenizer, Problem, Prompt, encode_problems, load_problems
from reward import RewardPool, extract_answer
from rollout import Rollout, TorchSampler, VLLMSampler, make_sampler, response_text, sample_seed

PAPERS = ("aime24", "amc23", "math500", "minerva", "olympiad")


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
        if not self.temperature >= 0 or not 0 < self.top_p <= 1:
            raise UserError(
                f"--temperature={self.temperature} --top_p={self.top_p}: not temperature >= 0, 0 < top_p <= 1"
            )
        if unknown := [d for d in self.dtype if d not in DTYPES]:
            raise UserError(f"--dtype: {unknown[0]!r} is none of {', '.join(DTYPES)}")


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


def completion_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows {benchmark, id, answer, completions} of a file; a torn last line is passed over. Raises UserError."""
    try:
        with open(path, "rb") as f:
            for number, line in enumerate(f, 1):
                try:
                    row = json.loads(line)
                    if not isinstance(row["answer"], (str, list)):
                        row["answer"] = str(row["answer"])
                    for key in ("benchmark", "id"):
                        row[key] = str(row[key])
                    for c in row["completions"]:
                        if not isinstance(c["text"], str) or not isinstance(c.get("tokens"), (int, type(None))):
                            raise TypeError("a completion needs a text 'text' and a number 'tokens'")
                    yield row
                except (ValueError, KeyError, TypeError, RecursionError) as e:
                    if not line.endswith(b"\n"):
                        return
                    what = f"no {e}" if isinstance(e, KeyError) else str(e)
                    raise UserError(f"{path}:{number}: not a row of completions: {what}") from None
    except OSError as e:
        raise UserError(f"{path}: cannot be read: {e.strerror}") from None


def read_completions(path: Path, limit: int = 0) -> tuple[list[Graded], list[str | list[str]]]:
    """Each problem's samples, in order, without their texts, and its gold; of a sample that stands twice the first, and
    at most `limit` of a problem (0: all). One row at a time is in memory."""
    found: dict[tuple[str, str], dict[int, tuple]] = defaultdict(dict)
    golds: dict[tuple[str, str], str | list[str]] = {}
    for row in completion_rows(path):
        key = row["benchmark"], row["id"]
        golds[key] = row["answer"]
        samples = found[key]
        for c in row["completions"]:
            reason = c.get("finish_reason") or "stop"
            number = c.get("sample", len(samples))
            samples.setdefault(number, (c.get("tokens"), reason == "length", boxed_answer(c["text"], reason)))
    rows = []
    for (benchmark, name), samples in found.items():
        kept = [samples[s] for s in sorted(samples)][: limit or None]
        tokens, cut, answers = (list(x) for x in zip(*kept, strict=True)) if kept else ([], [], [])
        rows.append(Graded(benchmark, name, [], tokens, cut, answers))
    if not rows or not all(r.answers for r in rows):
        raise UserError(f"{path}: {'no rows' if not rows else 'a problem without completions'}")
    return rows, [golds[r.benchmark, r.id] for r in rows]


def report(out: Path, source: Path, options: Options, order: list[str], about: dict[str, Any]) -> dict[str, Any]:
    """Grades a file of completions, and writes and prints what came out. `order`: the benchmarks; the file's own."""
    rows, golds = read_completions(source, options.k if order else 0)
    names = order or list(dict.fromkeys(r.benchmark for r in rows))
    if order:  # of a longer file only what was asked for, in the order of the problems' files
        kept = [(r, g) for r, g in zip(rows, golds, strict=True) if r.benchmark in names]
        rows, golds = [r for r, _ in kept], [g for _, g in kept]
    with RewardPool(options.workers) as pool:
        timeouts = {}
        for name in names:
            before = pool.timeouts
            part = [(r, g) for r, g in zip(rows, golds, strict=True) if r.benchmark == name]
            grade([r for r, _ in part], [g for _, g in part], pool, f"grading {name}")
            vote([r for r, _ in part], pool)
            timeouts[name] = pool.timeouts - before
    rows.sort(key=lambda r: (names.index(r.benchmark), r.id))
    results = {name: summarize([r for r in rows if r.benchmark == name]) | {"grader_timeouts": timeouts[name]}
               for name in names}  # fmt: skip
    if len(names) > 1:
        rates = [[sum(r.scores) / len(r.scores) for r in rows if r.benchmark == name] for name in names]
        results["average"] = eval_report.average(results, rates)
    out.mkdir(parents=True, exist_ok=True)
    eval_report.write(out, rows, results, about)
    return results


# ---------------------------------------------------------------------------------------------------------- a model run


def load_benchmarks(names: tuple[str, ...], options: Options) -> dict[str, list[Problem]]:
    """{name: problems} of names, files, "all" and "parametric". Raises UserError."""
    found: dict[str, list[Problem]] = {}
    for name in [each for given in names for each in (PAPERS if given == "all" else (given,))]:
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
        if name in found or len({p.id for p in problems}) < len(problems):
            raise UserError(f"--benchmarks: {name}: {'named twice' if name in found else 'two problems share an id'}")
        found[name] = problems
    return found


def fingerprint(path: Path) -> dict[str, Any]:
    """What tells a model folder's weights from others, without reading them all."""
    files = sorted(path.glob("*.safetensors"))
    return {"model": str(path), "weights": [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files]}


def settle(out: Path, about: dict[str, Any]) -> None:
    """A folder holds one model's completions under one way of sampling. Raises UserError for another."""
    path = out / "eval.json"
    if path.is_file():
        try:
            known = dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as e:
            raise UserError(f"{path}: not a JSON object: {e}") from None
        for key, value in about.items():
            if known.get(key) != value:
                raise UserError(f"{path}: this folder's completions have {key}={known.get(key)!r}, not {value!r}: "
                                "choose another --out_dir")  # fmt: skip
    elif os.environ.get("RANK", "0") == "0":
        out.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".tmp")
        aside.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        aside.rename(path)


def append(path: Path, rows: list[dict[str, Any]]) -> None:
    """Whole lines, under a lock: several ranks write to one file."""
    data = "".join(json.dumps(r) + "\n" for r in rows).encode()
    with open(path, "ab") as f:
        fcntl.lockf(f, fcntl.LOCK_EX)
        f.write(data)
        f.flush()


def drop_torn_line(path: Path) -> None:
    if path.is_file():
        with open(path, "r+b") as f:
            size = f.seek(0, os.SEEK_END)
            while size:  # back to the last line's end, a block at a time
                start = max(0, size - 2**20)
                f.seek(start)
                found = f.read(size - start).rfind(b"\n")
                if found >= 0:
                    f.truncate(start + found + 1)
                    return
                size = start
            f.truncate(0)


def generate(cfg: Config, options: Options, path: Path, device: torch.device, out: Path,
             benchmarks: dict[str, list[Prompt]], max_tokens: int,
             dtype: str) -> TorchSampler | VLLMSampler | None:  # fmt: skip
    """What is missing of `completions.jsonl`: each rank its share of the problems, a few at a time, so that an
    interruption costs little. Returns the sampler, if one was needed."""
    file = out / "completions.jsonl"
    if dist.get_rank() == 0:
        drop_torn_line(file)
    dist.barrier()
    done: dict[tuple[str, str], set[int]] = defaultdict(set)
    for row in completion_rows(file) if file.is_file() else []:
        done[row["benchmark"], row["id"]] |= {c["sample"] for c in row["completions"]}
    dist.barrier()  # all have read before one writes
    todo = [(name, i, missing) for name, prompts in benchmarks.items() for i, p in enumerate(prompts)
            if (missing := [s for s in range(options.k) if s not in done[name, p.problem.id]])]  # fmt: skip
    mine = todo[dist.get_rank() :: dist.get_world_size()]
    if not mine:
        return None
    longest = max(len(p.ids) for prompts in benchmarks.values() for p in prompts) + max_tokens
    sampler = make_sampler(cfg, path, device, longest, dtype)
    sampler.wake()
    print0(f"{dist.get_world_size()} x {device.type}, {dtype}, sampler: {sampler.name}")
    tokenizer = ChatTokenizer(path)
    size = max(1, 4 * cfg.sampler_slots // options.k)
    bar = tqdm(total=sum(len(s) for _, _, s in mine), desc="sampling", unit=" samples", disable=dist.get_rank() > 0)
    for start in range(0, len(mine), size):
        part = mine[start : start + size]
        groups = sample(sampler, part, benchmarks, cfg.seed, max_tokens, options.temperature, options.top_p)
        rows = []
        for (name, i, numbers), group in zip(part, groups, strict=True):
            prompt = benchmarks[name][i]
            rows.append({"benchmark": name, "id": prompt.problem.id, "answer": prompt.problem.answer, "completions": [
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
    benchmarks = {name: encode_problems(p, tokenizer, cfg.prompt_suffix) for name, p in problems.items()}
    room = ModelConfig.from_folder(path).max_position_embeddings - max(
        len(p.ids) for prompts in benchmarks.values() for p in prompts)  # fmt: skip
    if room < 1:
        raise UserError(f"--model: {path} has no positions left behind the longest prompt")
    max_tokens = min(options.max_tokens, room)
    name = options.out_dir or f"out/eval/{str(path).strip('./').replace('/', '_')}"
    formats = options.dtype or (cfg.dtype,)
    about = fingerprint(path) | {"sampler": cfg.sampler, "seed": cfg.seed, "temperature": options.temperature,
                                 "top_p": options.top_p, "max_tokens": max_tokens,
                                 "prompt_suffix": cfg.prompt_suffix}  # fmt: skip
    outs = {d: Path(name) / d if len(formats) > 1 else Path(name) for d in formats}
    for d, out in outs.items():
        settle(out, about | {"dtype": d})
    device = init_distributed(cfg)
    if device.type == "cuda" and cfg.sampler == "torch" and "float32" in formats:
        raise UserError(
            "--dtype: float32 does not run through FlashAttention on a GPU: --sampler=vllm, or --device=cpu"
        )
    if max_tokens < options.max_tokens:
        print0(f"at most {max_tokens} tokens a response: the model has no more positions")
    engines = []  # vLLM's take the process group with them when they end: none may go before the work is done
    for d, out in outs.items():
        engines += [generate(cfg, options, path, device, out, benchmarks, max_tokens, d)]
        dist.barrier()
        if dist.get_rank() == 0:
            report(out, out / "completions.jsonl", options, list(benchmarks), about | {"dtype": d})
    if dist.get_rank() == 0:
        for other in list(outs.values())[1:]:
            eval_report.compare(outs[formats[0]], other)
    dist.barrier()
    vllm = [e for e in engines if isinstance(e, VLLMSampler)]
    if len(vllm) > 1:  # at exit each would end the process group that the others still hold
        sys.stdout.flush()
        os._exit(0)
    vllm[0].close() if vllm else dist.destroy_process_group()


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
    if options.completions:
        if rest or not options.out_dir:
            raise UserError(f"--completions needs --out_dir=DIR, and no model or config: {' '.join(rest)}")
        report(Path(options.out_dir), Path(options.completions), options, [], {"completions": options.completions})
    else:
        run_model(load_config(rest), options)


if __name__ == "__main__":
    run(main)
