"""What an evaluation says: tables for terminal and file, the paper's rows beside them, a picture, and comparisons."""

import json
from pathlib import Path
from typing import Any

from configs import UserError
from evaluation.grade import Graded
from evaluation.stats import macro, paired

TITLES = {"aime24": "AIME 2024", "amc23": "AMC 2023", "math500": "MATH-500", "minerva": "Minerva",
          "olympiad": "OlympiadBench"}  # fmt: skip
# DeepScaleR's blog post: pass@1 in percent, mean of 16 samples; in the order of COLUMNS
COLUMNS = ("aime24", "math500", "amc23", "minerva", "olympiad")
PAPER = {
    "DeepScaleR-1.5B-Preview": (43.1, 87.8, 73.6, 30.2, 50.0),
    "DeepSeek-R1-Distill-Qwen-1.5B": (28.8, 82.8, 62.9, 26.5, 43.3),
    "Still-1.5B": (32.5, 84.4, 66.7, 29.0, 45.4),
    "o1-preview": (40.0, 81.4, None, None, None),
}
PAPER_TOKENS = {"DeepSeek-R1-Distill-Qwen-1.5B, AIME 2024": (16336, 6396, 20346),
                "after its 8K stage, AIME 2024": (5851, 3661, 6977)}  # fmt: skip


def percent(x: float | None, low: float | None = None, high: float | None = None) -> str:
    if x is None:
        return "-"
    return f"{100 * x:.1f}" + (f" [{100 * low:.1f}, {100 * high:.1f}]" if low is not None and high is not None else "")


def count(x: float | None) -> str:
    return "-" if x is None else f"{x:,.0f}" if x >= 1000 else f"{x:.1f}"


def average(results: dict[str, dict[str, Any]], rates: list[list[float]]) -> dict[str, Any]:
    """The benchmarks weighed equally: as the paper's average, with the population interval of that."""
    parts = list(results.values())
    mean: dict[str, Any] = {}
    for key in parts[0]:
        values = [p[key] for p in parts]
        if all(isinstance(v, (int, float)) for v in values):
            mean[key] = sum(values) / len(values)
    accuracy, low, high = macro(rates)
    mean |= {"pass_at_1": accuracy, "ci_low": low, "ci_high": high, "sampling_low": None, "sampling_high": None,
             "num_problems": sum(p["num_problems"] for p in parts), "k": min(p["k"] for p in parts),
             "grader_timeouts": sum(p["grader_timeouts"] for p in parts)}  # fmt: skip
    mean.pop("stderr", None)
    return {key: mean.get(key) for key in parts[0]} | mean


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table, its columns aligned."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [[head[0].ljust(widths[0]), *(h.rjust(w) for h, w in zip(head[1:], widths[1:], strict=True))],
             ["-" * w for w in widths]]  # fmt: skip
    lines += [
        [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))] for row in rows
    ]
    return [f"| {' | '.join(line)} |" for line in lines]


def as_markdown(results: dict[str, dict[str, Any]], about: dict[str, Any]) -> str:
    named = {TITLES.get(name, name): r for name, r in results.items()}
    lines = ["# Accuracy", "", ", ".join(f"{k}={v}" for k, v in about.items() if k != "weights"), ""]
    lines += table(
        ["", "problems x k", "pass@1 [95%, other problems]", "[95%, these problems]", "pass@k", "majority@k"],
        [[name, f"{r['num_problems']} x {r['k']}", percent(r["pass_at_1"], r["ci_low"], r["ci_high"]),
          percent(r["pass_at_1"], r["sampling_low"], r["sampling_high"]).partition(" ")[2] or "-",
          percent(r["pass_at_k"]), percent(r["majority_at_k"])] for name, r in named.items()])  # fmt: skip
    lines += ["", "The first interval is for the population that the problems were drawn from, the second for these "
              "very problems, sampled again.", "", "# Lengths, in tokens", ""]  # fmt: skip
    lengths = [[name, count(r["tokens_mean"]), count(r["tokens_correct"]), count(r["tokens_incorrect"]),
                "-" if not r["tokens_correct"] or r["tokens_incorrect"] is None
                else f"{r['tokens_incorrect'] / r['tokens_correct']:.1f}", percent(r["clip_ratio"]),
                percent(r["no_answer_ratio"]), count(r["grader_timeouts"]).removesuffix(".0")]
               for name, r in named.items()]  # fmt: skip
    if "aime24" in results:
        lengths += [[f"paper: {name}", count(mean), count(right), count(wrong), f"{wrong / right:.1f}", "-", "-", "-"]
                    for name, (mean, right, wrong) in PAPER_TOKENS.items()]  # fmt: skip
    lines += table(
        ["", "all", "right", "wrong", "wrong / right", "cut off, %", "no answer, %", "grader time-outs"], lengths
    )
    shown = [c for c in COLUMNS if c in results]
    if shown:
        ours = [["this run", *(percent(results[c]["pass_at_1"]) for c in shown)]]
        theirs = [
            [f"paper: {name}", *(str(row[COLUMNS.index(c)] or "-") for c in shown)] for name, row in PAPER.items()
        ]
        lines += [
            "",
            "# Beside the paper's figures",
            "",
            *table(["pass@1", *(TITLES[c] for c in shown)], ours + theirs),
        ]
        lines += [
            "",
            "The paper's are means of 16 samples at temperature 0.6, top_p 0.95, 32,768 tokens, without error bars.",
        ]
    return "\n".join(lines) + "\n"


def graded_row(r: Graded, gold: str | list[str]) -> dict[str, Any]:
    return {"benchmark": r.benchmark, "id": r.id, "gold": gold, "scores": r.scores, "tokens": r.tokens, "cut": r.cut,
            "answers": r.answers}  # fmt: skip


def others(out: Path, names: list[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What a folder has of other benchmarks than these: results and graded rows."""
    if not (out / "graded.jsonl").is_file() or not (out / "results.json").is_file():
        return {}, []
    try:
        results = dict(json.loads((out / "results.json").read_text(encoding="utf-8")))
    except (ValueError, TypeError) as e:
        raise UserError(f"{out}/results.json: not a JSON object: {e}; remove it") from None
    rows = [row for row in read_graded(out).values() if row["benchmark"] not in names]
    kept = {row["benchmark"] for row in rows}
    return {name: r for name, r in results.items() if name in kept}, rows


def write_files(files: dict[Path, str]) -> None:
    """All aside, and only then renamed."""
    for path, content in files.items():
        path.with_name(path.name + ".tmp").write_text(content, encoding="utf-8")
    for path in files:
        path.with_name(path.name + ".tmp").rename(path)


def write(out: Path, rows: list[dict[str, Any]], results: dict[str, dict[str, Any]], about: dict[str, Any]) -> None:
    """`graded.jsonl`, `results.json`, `results.md`, `accuracy.png`; the tables on the terminal too."""
    if len(results) > 1:
        rates = [[sum(r["scores"]) / len(r["scores"]) for r in rows if r["benchmark"] == name] for name in results]
        results = {**results, "average": average(results, rates)}
    text = as_markdown(results, about)
    out.mkdir(parents=True, exist_ok=True)
    picture(out / "accuracy.png", rows)
    write_files({out / "graded.jsonl": "".join(json.dumps(r) + "\n" for r in rows), out / "results.md": text,
                 out / "results.json": json.dumps(results, indent=1) + "\n"})  # fmt: skip
    print("\n" + text + f"\n{out}/results.json", flush=True)


def picture(path: Path, rows: list[dict[str, Any]]) -> None:
    """For each benchmark the accuracy if responses longer than so many tokens were cut off."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.2))
    for name in dict.fromkeys(r["benchmark"] for r in rows):
        samples = [
            (t, s) for r in rows if r["benchmark"] == name for t, s in zip(r["tokens"], r["scores"], strict=True)
        ]
        if any(t is None for t, _ in samples):
            continue
        samples.sort()
        right, curve = 0.0, []
        for _, score in samples:
            right += score
            curve.append(100 * right / len(samples))
        axes.step([t for t, _ in samples], curve, where="post", label=" " + TITLES.get(name, name).replace("$", r"\$"))
    axes.set(xlabel="tokens a response may have", ylabel="accuracy, %", title="Accuracy against tokens")
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    figure.tight_layout()
    aside = path.with_name("accuracy.tmp.png")
    figure.savefig(aside, dpi=120)
    plt.close(figure)
    aside.rename(path)


# --------------------------------------------------------------------------------------------------------- comparisons


def read_graded(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    path = folder / "graded.jsonl"
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        found = {(str(r["benchmark"]), str(r["id"])): r for r in rows}
        if not all(r["scores"] and all(type(s) in (int, float) for s in r["scores"]) and "gold" in r for r in rows):
            raise ValueError("needs scores and gold")
        return found
    except OSError as e:
        raise UserError(f"{path}: cannot be read: {e.strerror}; is {folder} a finished evaluation?") from None
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{path}: not an evaluation's: {type(e).__name__} {e}") from None


def compare(a: Path, b: Path) -> None:
    """Prints, and writes to `<b>/compare.json`, the paired difference of b and a on the problems that both have; the
    average weighs the benchmarks equally, as an evaluation's does."""
    rows_a, rows_b = read_graded(a), read_graded(b)
    keys = [key for key in rows_a if key in rows_b and rows_a[key]["gold"] == rows_b[key]["gold"]]
    if not keys:
        raise UserError(f"{a} and {b} have no problem in common")
    means = [{key: sum(rows[key]["scores"]) / len(rows[key]["scores"]) for key in keys} for rows in (rows_a, rows_b)]
    groups = {
        name: [[m[key] for key in keys if key[0] == name] for m in means] for name in dict.fromkeys(k[0] for k in keys)
    }
    chosen = {name: [group] for name, group in groups.items()}
    if len(groups) > 1:
        chosen["average"] = list(groups.values())
    results = {}
    for name, parts in chosen.items():
        before, after = (sum(sum(g[i]) / len(g[i]) for g in parts) / len(parts) for i in (0, 1))
        results[name] = {"a": before, "b": after, "num_problems": sum(len(g[0]) for g in parts), **paired(parts)}
    lines = [f"a = {a}, b = {b}: pass@1 in percent, b minus a on the same problems", ""]
    lines += table(["", "problems", "a", "b", "difference [95%]", "p", "verdict"], [
        [TITLES.get(name, name), str(r["num_problems"]), percent(r["a"]), percent(r["b"]),
         f"{100 * r['difference']:+.1f} [{100 * r['low']:+.1f}, {100 * r['high']:+.1f}]",
         f"{r['p']:.4f}" if r["p"] >= 1e-4 else "<0.0001",
         "not distinguishable" if r["p"] >= 0.05 else "b is better" if r["difference"] > 0 else "a is better"]
        for name, r in results.items()])  # fmt: skip
    lines += ["", "p: permutation test, problem by problem; the interval: Student's t on the differences."]
    if left_out := len({*rows_a, *rows_b}) - len(keys):
        lines.append(f"{left_out} problems stand in one of them only, or with another answer, and are left out.")
    changed = sorted(keys, key=lambda key: (-abs(means[1][key] - means[0][key]), key))[:10]
    moves = [[" ".join(k), percent(means[0][k]), percent(means[1][k])] for k in changed if means[0][k] != means[1][k]]
    lines += ["", "The problems that changed most:", "", *table(["problem", "a", "b"], moves)] if moves else []
    write_files({b / "compare.json": json.dumps({"a": str(a), "b": str(b), **results}, indent=1) + "\n"})
    print("\n".join(lines), flush=True)
