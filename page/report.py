"""`report.html`: what a run did, cost and wrote, in one file that opens from the disk.

Reads metrics.jsonl, config.json, summary.json and rollouts/ of a run; all but the first may be missing. The page asks
for nothing: styles, code and data stand in it. Data are JSON, of which `<` is escaped, so that no text can end its
element; what is read only when somebody looks at it, a step's rollouts, is compressed (gzip, base64).
"""

import base64
import gzip
import hashlib
import html
import json
from datetime import datetime
from pathlib import Path
from typing import Any

from configs import UserError, read_json, write_whole
from page.alarms import alarms
from page.dumps import Dump, dump_files, figure, read_dumps

HERE = Path(__file__).parent
SCRIPTS = ("report.js", "curves.js", "rollouts.js")  # one after the other
CURVES = (  # the columns of metrics.jsonl that the page shows, besides eval_* and interval_*
    *("step", "stage", "max_response_len", "reward_mean", "response_len_mean", "response_len_correct"),
    *("response_len_incorrect", "response_clip_ratio", "answered_ratio", "solve_none", "solve_all", "entropy", "kl"),
    *("grad_norm", "mismatch_k3", "mismatch_sync_k3", "mismatch_stale_k3", "tokens_per_second", "time_rollout"),
    *("time_tail", "time_reward", "time_logprobs", "time_train", "time_sync", "time_probe", "time_eval", "time_step"),
    *("gpu_hours", "dollars"),
)


def write_report(runs: dict[Path, list[dict[str, Any]]]) -> Path:
    """Write report.html into the folder of the first run, with the curves of the others over its own. runs: the rows
    of metrics.jsonl, whose values are numbers, None or lists. Raises UserError."""
    run_dir, rows = next(iter(runs.items()))
    config, summary = read_part(run_dir, "config.json"), read_part(run_dir, "summary.json")
    dumps = read_dumps(run_dir, settings_of(config).get("reward", "exact"))
    data = {
        "runs": [{"name": n, "columns": columns(r)} for n, r in zip(names_of(list(runs)), runs.values(), strict=True)],
        "top": top(run_dir, rows, config, summary),
        "evaluations": evaluations(summary),
        "alarms": alarms(rows, settings_of(config), [d.step for d in dumps]),
        "mismatch_limit": figure(settings_of(config).get("mismatch_limit")),
        "left_out": len(dump_files(run_dir)) - len(dumps),
        "dumps": [{"step": d.step, "samples": d.num_samples, "texts": d.num_texts} for d in dumps],
    }
    path = run_dir / "report.html"
    try:
        write_whole(path, page(name_of(run_dir), data, dumps))
    except OSError as e:
        raise UserError(f"{path}: cannot be written: {e.strerror}") from None
    return path


# ------------------------------------------------------------------------------------------------------ the run's files


def read_part(run_dir: Path, name: str) -> dict[str, Any]:
    """An object that the page can do without: {} where there is no such file. Raises UserError for one that is none."""
    path = run_dir / name
    if not path.exists():
        return {}
    try:
        value = read_json(path)
        if not isinstance(value, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError, RecursionError) as e:
        problem = f"{type(e).__name__}: {' '.join(str(e).split())}"
        raise UserError(f"{path}: cannot be read: {problem}; move it away") from None
    return value


def settings_of(config: dict[str, Any]) -> dict[str, Any]:
    settings = config.get("config")
    return settings if isinstance(settings, dict) else {}


def names_of(run_dirs: list[Path]) -> list[str]:
    """Of several runs; with the folder above where names are the same."""
    names = [name_of(run_dir) for run_dir in run_dirs]
    above = [f"{name_of(run_dir.resolve().parent)}/{name}" for run_dir, name in zip(run_dirs, names, strict=True)]
    return [long if names.count(name) > 1 else name for name, long in zip(names, above, strict=True)]


def name_of(run_dir: Path) -> str:
    return run_dir.resolve().name.encode(errors="replace").decode()


def columns(rows: list[dict[str, Any]]) -> dict[str, list]:
    """{column: its value in each step}, without columns that have none."""
    names = [*CURVES, *sorted({n for row in rows for n in row if n.startswith(("eval_", "interval_"))})]
    table: dict[str, list] = {}
    for name in names:
        values = [row.get(name) for row in rows]
        is_interval = name.startswith("interval_")
        table[name] = [v and [figure(x) for x in v] for v in values] if is_interval else [figure(v) for v in values]
    return {name: values for name, values in table.items() if any(value is not None for value in values)}


# ----------------------------------------------------------------------------------------------- what stands on the top


def top(run_dir: Path, rows: list[dict[str, Any]], config: dict[str, Any], summary: dict[str, Any]) -> dict[str, Any]:
    """Name, verdict in sentences, facts as (name, value) and stages."""
    settings = settings_of(config)
    facts = [
        ("model", settings.get("model")),
        ("training set", settings.get("train_data")),
        ("sampler", settings.get("sampler")),
        ("ranks", config.get("world_size")),
        ("git", config.get("git")),
        ("command", config.get("command")),
        ("this page", f"written {datetime.now():%Y-%m-%d %H:%M}, after step {rows[-1]['step']:,}"),
    ]
    return {
        "name": name_of(run_dir),
        "verdict": [*(accuracy_sentences(summary) or so_far(rows)), cost_sentence(rows, summary, settings)],
        "facts": [[name, str(value)] for name, value in facts if value not in (None, "")],
        "stages": stages(rows),
    }


def accuracy_sentences(summary: dict[str, Any]) -> list[str]:
    """Base -> final at the first and at the last context; nothing without a summary."""
    sentences = []
    for when in ("first", "last"):
        before, after = (benchmarks(summary.get(f"{model}_{when}_benchmarks")) for model in ("base", "final"))
        for name in (name for name in before if name in after):
            change = f"{with_interval(before[name])} -> {with_interval(after[name])}"
            sentences.append(f"Accuracy on {name} at {summary.get(f'{when}_context')} tokens: {change}.")
    return sentences


def so_far(rows: list[dict[str, Any]]) -> list[str]:
    """What a run that is under way, or was ended, has come to."""
    sentences = ["The run has not come to its final evaluation."]
    for name in sorted({n for row in rows for n in row if n.startswith("eval_")}):
        evaluated = [row for row in rows if figure(row.get(name)) is not None]
        if evaluated:
            first, last = (f"{100 * row[name]:.1f}% at step {row['step']}" for row in (evaluated[0], evaluated[-1]))
            sentences.append(f"Accuracy on {name.removeprefix('eval_')}: {first} -> {last}.")
    return sentences


def benchmarks(results: Any) -> dict[str, dict[str, Any]]:
    """Results by benchmark; "all" only where there are several."""
    found = {name: r for name, r in results.items() if isinstance(r, dict)} if isinstance(results, dict) else {}
    return {name: r for name, r in found.items() if name != "all" or len(found) > 2}


def with_interval(result: dict[str, Any]) -> str:
    """28.4% (23.4 to 33.4)"""
    if figure(result.get("accuracy")) is None:
        return "?"
    low, high = figure(result.get("ci_low")), figure(result.get("ci_high"))
    interval = "" if low is None or high is None else f" ({100 * low:.1f} to {100 * high:.1f})"
    return f"{100 * result['accuracy']:.1f}%{interval}"


def cost_sentence(rows: list[dict[str, Any]], summary: dict[str, Any], settings: dict[str, Any]) -> str:
    last = rows[-1]
    parts = [f"{last['step']:,} step{'' if last['step'] == 1 else 's'}"]
    hours = "{} hours on the CPU" if settings.get("device") == "cpu" else "{} GPU-hours"
    for name, unit in (("gpu_hours", hours), ("dollars", "${}")):
        value = summary.get(name, last.get(name))
        if figure(value) is not None:
            parts.append(
                unit.format(
                    f"{value:,.0f}" if value >= 100 else f"{value:.2f}" if name == "dollars" else f"{value:.3g}"
                )
            )
    if summary.get("verdict") == "collapsed":
        parts.append("ended because it had collapsed")
    return ", ".join(parts) + "."


def stages(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """[{context, first, last}]: the steps of each stage."""
    found: list[dict[str, Any]] = []
    for i, row in enumerate(rows):
        if i == 0 or row.get("stage") != rows[i - 1].get("stage"):
            found.append({"context": figure(row.get("max_response_len")), "first": row["step"]})
        found[-1]["last"] = row["step"]
    return found


def evaluations(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for base and final, each context and benchmark."""
    names = {"problems": "num_problems", "samples": "k", "pass@k": "pass_at_k", "majority": "majority_at_k",
             "tokens": "tokens_mean", "right": "tokens_correct", "wrong": "tokens_incorrect", "cut off": "clip_ratio",
             "no answer": "no_answer_ratio"}  # fmt: skip
    table = []
    for when in ("first", "last"):
        for model in ("base", "final"):
            results = summary.get(f"{model}_{when}_benchmarks")
            for benchmark, result in benchmarks(results).items():
                row = {"benchmark": benchmark, "model": model, "context": figure(summary.get(f"{when}_context"))}
                row |= {"accuracy": with_interval(result)}
                table.append(row | {name: figure(result.get(key)) for name, key in names.items()})
    return table


# ------------------------------------------------------------------------------------------------------------- the page


def in_script(value: Any) -> str:
    """JSON that can stand in an element: no text in it can end that."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def packed(value: Any) -> str:
    return base64.b64encode(gzip.compress(json.dumps(value, allow_nan=False).encode(), 9, mtime=0)).decode()


def page(name: str, data: dict[str, Any], dumps: list[Dump]) -> str:
    blocks = [f'<script type="application/json" id="data">{in_script(data)}</script>']
    for dump in dumps:
        blocks.append(f'<script type="text/plain" id="dump-{dump.step}">{packed(dump.data)}</script>')
    katex = (HERE / "katex.min.js").read_text(encoding="utf-8")
    script = "\n".join((HERE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    hashes = [base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() for code in (katex, script)]
    parts = {
        "TITLE": html.escape(name),
        "HASHES": " ".join(f"'sha256-{digest}'" for digest in hashes),  # the browser runs these two and nothing else
        "STYLE": (HERE / "report.css").read_text(encoding="utf-8"),
        "DATA": "\n".join(blocks),
        "KATEX": katex,
        "SCRIPT": script,
    }
    template = (HERE / "report.html").read_text(encoding="utf-8")
    pieces = template.split("@@")  # text, name, text, name, ..., so that nothing is looked for in what was put in
    return "".join(parts[piece] if i % 2 else piece for i, piece in enumerate(pieces))
