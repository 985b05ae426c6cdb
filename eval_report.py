"""What an evaluation says: tables for terminal and file, the paper's rows beside them, a picture, and comparisons."""

import json
from pathlib import Path
from typing import Any

from configs import UserError
from eval_stats import macro, paired

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


def write(out: Path, rows: list[Any], results: dict[str, dict[str, Any]], about: dict[str, Any]) -> None:
    """`graded.jsonl`, `results.json`, `results.md`, `accuracy.png`; the tables on the terminal too."""
    text = as_markdown(results, about)
    graded = [{"benchmark": r.benchmark, "id": r.id, "scores": r.scores, "tokens": r.tokens, "cut": r.cut,
               "answers": r.answers} for r in rows]  # fmt: skip
    for name, content in (("graded.jsonl", "".join(json.dumps(g) + "\n" for g in graded)), ("results.md", text),
                          ("results.json", json.dumps(results, indent=1) + "\n")):  # fmt: skip
        aside = out / f"{name}.tmp"
        aside.write_text(content, encoding="utf-8")
        aside.rename(out / name)
    picture(out / "accuracy.png", rows)
    print("\n" + text + f"\n{out}/results.json", flush=True)


def picture(path: Path, rows: list[Any]) -> None:
    """For each benchmark the accuracy if responses longer than so many tokens were cut off."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.2))
    for name in dict.fromkeys(r.benchmark for r in rows):
        samples = [(t, s) for r in rows if r.benchmark == name for t, s in zip(r.tokens, r.scores, strict=True)]
        if any(t is None for t, _ in samples):
            continue
        samples.sort()
        right, curve = 0.0, []
        for _, score in samples:
            right += score
            curve.append(100 * right / len(samples))
        axes.step([t for t, _ in samples], curve, where="post", label=TITLES.get(name, name))
    axes.set(xlabel="tokens a response may have", ylabel="accuracy, %", title="Accuracy against tokens")
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


# --------------------------------------------------------------------------------------------------------- comparisons


def read_graded(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    path = folder / "graded.jsonl"
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return {(r["benchmark"], r["id"]): r | {"mean": sum(r["scores"]) / len(r["scores"])} for r in rows}
    except OSError as e:
        raise UserError(f"{path}: cannot be read: {e.strerror}; is {folder} a finished evaluation?") from None
    except (ValueError, KeyError, TypeError, ZeroDivisionError) as e:
        raise UserError(f"{path}: not an evaluation's: {type(e).__name__} {e}") from None


def compare(a: Path, b: Path) -> dict[str, dict[str, float]]:
    """Prints, and writes to `<b>/compare.json`, the paired difference of b and a on the problems that both have."""
    rows_a, rows_b = read_graded(a), read_graded(b)
    keys = [key for key in rows_a if key in rows_b]
    if not keys:
        raise UserError(f"{a} and {b} have no problem in common")
    results: dict[str, dict[str, float]] = {}
    names = list(dict.fromkeys(name for name, _ in keys))
    for name in [*names, "all"] if len(names) > 1 else names:
        part = [key for key in keys if name in ("all", key[0])]
        means = [[rows[key]["mean"] for key in part] for rows in (rows_a, rows_b)]
        results[name] = {"a": sum(means[0]) / len(part), "b": sum(means[1]) / len(part), "num_problems": len(part),
                         **paired(*means)}  # fmt: skip
    lines = [f"a = {a}, b = {b}: pass@1 in percent, b minus a on the same problems", ""]
    lines += table(["", "problems", "a", "b", "difference [95%]", "p", "verdict"], [
        [TITLES.get(name, name), str(r["num_problems"]), percent(r["a"]), percent(r["b"]),
         f"{100 * r['difference']:+.1f} [{100 * r['low']:+.1f}, {100 * r['high']:+.1f}]",
         f"{r['p']:.4f}" if r["p"] >= 1e-4 else "<0.0001",
         "not distinguishable" if r["p"] >= 0.05 else "b is better" if r["difference"] > 0 else "a is better"]
        for name, r in results.items()])  # fmt: skip
    left_out = len(rows_a) + len(rows_b) - 2 * len(keys)
    lines += ["", "p: permutation test, problem by problem; the interval: Student's t on the differences."]
    lines += [f"{left_out} problems stand in one of them only and are left out."] if left_out else []
    changed = sorted(keys, key=lambda key: (-abs(rows_b[key]["mean"] - rows_a[key]["mean"]), key))[:10]
    changed = [key for key in changed if rows_a[key]["mean"] != rows_b[key]["mean"]]
    moves = [[" ".join(key), percent(rows_a[key]["mean"]), percent(rows_b[key]["mean"])] for key in changed]
    lines += ["", "The problems that changed most:", "", *table(["problem", "a", "b"], moves)] if moves else []
    print("\n".join(lines), flush=True)
    (b / "compare.json").write_text(
        json.dumps({"a": str(a), "b": str(b), **results}, indent=1) + "\n", encoding="utf-8"
    )
    return results
