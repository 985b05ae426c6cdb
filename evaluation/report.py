"""What an evaluation says: tables for terminal and file, the paper's rows beside them, a picture, and comparisons."""

import json
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from configs import UserError, check_regular, markdown_table, read_json, write_whole
from evaluation.grade import Graded, Key
from evaluation.stats import macro, paired
from reward import RULES

TITLES = {
    "aime24": "AIME 2024",
    "math500": "MATH-500",
    "amc23": "AMC 2023",
    "minerva": "Minerva",
    "olympiad": "OlympiadBench",
    "aime25": "AIME 2025",
    "hmmt25": "HMMT Feb 2025",
    "brumo25": "BRUMO 2025",
    "cmimc25": "CMIMC 2025",
}
# Sets that may be asked for, and averaged, by name: the paper's, and contests later than the model's training data.
SETS = {"all": tuple(TITLES)[:5], "2025": tuple(TITLES)[5:]}
# DeepScaleR's blog post: pass@1 in percent, mean of 16 samples, in the order of SETS["all"].
PAPER = {
    "DeepScaleR-1.5B-Preview": (43.1, 87.8, 73.6, 30.2, 50.0),
    "DeepSeek-R1-Distill-Qwen-1.5B": (28.8, 82.8, 62.9, 26.5, 43.3),
    "Still-1.5B": (32.5, 84.4, 66.7, 29.0, 45.4),
    "o1-preview": (40.0, 81.4, None, None, None),
}
PAPER_TOKENS = {  # of all, right and wrong responses
    "DeepSeek-R1-Distill-Qwen-1.5B, AIME 2024": (16336, 6396, 20346),
    "after its 8K stage, AIME 2024": (5851, 3661, 6977),
}


# -------------------------------------------------------------------------------------------------------------- tables


def percent(x: float | None) -> str:
    return "-" if x is None else f"{100 * x:.1f}"


def interval(low: float | None, high: float | None) -> str:
    return "-" if low is None or high is None else f"[{100 * low:.1f}, {100 * high:.1f}]"


def count(x: float | None) -> str:
    if x is None:
        return "-"
    return f"{x:,.0f}" if x >= 1000 else f"{x:.1f}"


def accuracy_table(results: dict[str, dict[str, Any]]) -> str:
    head = ["", "problems x k", "pass@1 [95%, other problems]", "[95%, these problems]", "pass@k", "majority@k"]
    rows = []
    for name, r in results.items():
        accuracy = f"{percent(r['pass_at_1'])} {interval(r['ci_low'], r['ci_high'])}"
        sampling = interval(r["sampling_low"], r["sampling_high"])
        size, others = f"{r['num_problems']} x {r['k']}", [percent(r["pass_at_k"]), percent(r["majority_at_k"])]
        rows.append([TITLES.get(name, name), size, accuracy, sampling, *others])
    return markdown_table(head, rows)


def length_table(results: dict[str, dict[str, Any]]) -> str:
    head = ["", "all", "right", "wrong", "wrong / right", "cut off, %", "no answer, %", "grader time-outs"]
    rows = []
    for name, r in results.items():
        right, wrong = r["tokens_correct"], r["tokens_incorrect"]
        ratio = f"{wrong / right:.1f}" if right and wrong is not None else "-"
        shares = [percent(r["clip_ratio"]), percent(r["no_answer_ratio"]), f"{r['grader_timeouts']:,}"]
        rows.append([TITLES.get(name, name), count(r["tokens_mean"]), count(right), count(wrong), ratio, *shares])
    if "aime24" in results:
        for name, (mean, right, wrong) in PAPER_TOKENS.items():
            ratio = f"{wrong / right:.1f}"
            rows.append([f"paper: {name}", count(mean), count(right), count(wrong), ratio, "-", "-", "-"])
    return markdown_table(head, rows)


def paper_table(results: dict[str, dict[str, Any]], shown: list[str]) -> str:
    rows = [["this run", *(percent(results[name]["pass_at_1"]) for name in shown)]]
    for model, figures in PAPER.items():
        accuracy = dict(zip(SETS["all"], figures, strict=True))
        rows.append([f"paper: {model}", *(str(accuracy[name] or "-") for name in shown)])
    return markdown_table(["pass@1", *(TITLES[name] for name in shown)], rows)


def validation_lines(results: dict[str, dict[str, Any]], max_len: int) -> list[str]:
    """What a training run prints of a validation: a line for each benchmark, and for "all" if there are several."""
    names = [name for name in results if name != "all"]
    lines = []
    for name in names if len(names) == 1 else [*names, "all"]:
        r = results[name]
        accuracy = f"{r['accuracy']:.3f} +- {'-' if r['stderr'] is None else format(r['stderr'], '.3f')}"
        lengths = f"length {r['response_len_mean']:.1f}, clipped {r['response_clip_ratio']:.3f}"
        lines.append(f"  {name} at {max_len}: {accuracy}, {lengths}")
    return lines


def as_markdown(results: dict[str, dict[str, Any]], about: dict[str, Any]) -> str:
    described = ", ".join(f"{key}={value}" for key, value in about.items() if key != "weights")
    sections = ["# Accuracy", described, accuracy_table(results)]
    sections += [
        "The first interval is for the population that the problems were drawn from, the second for these very "
        "problems, sampled again."
    ]
    sections += ["# Lengths, in tokens", length_table(results)]
    shown = [name for name in SETS["all"] if name in results]
    if shown:
        conditions = "means of 16 samples at temperature 0.6, top_p 0.95, 32,768 tokens, without error bars"
        sections += ["# Beside the paper's figures", paper_table(results, shown), f"The paper's are {conditions}."]
    return "\n\n".join(sections) + "\n"


# ---------------------------------------------------------------------------------------------------- a results folder


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where there is no file. Raises UserError."""
    try:
        return dict(read_json(path)) if path.exists() else {}
    except (OSError, ValueError, TypeError) as e:
        raise UserError(f"{path}: not a JSON object: {e}; remove it") from None


def read_graded(folder: Path) -> dict[Key, Graded]:
    """The rows of a finished evaluation. Raises UserError."""
    path = folder / "graded.jsonl"
    try:
        lines = check_regular(path).read_text(encoding="utf-8").splitlines()
        rows = [Graded(**json.loads(line)) for line in lines]
        for row in rows:
            samples = list(zip(row.scores, row.tokens, row.cut, row.answers, strict=True))
            if not samples or not all(score in (0, 1) for score in row.scores):
                raise ValueError("needs scores, each 0 or 1")
            if not all(tokens is None or type(tokens) is int for tokens in row.tokens):
                raise ValueError("'tokens' are no integers")
            if row.rule not in tuple(RULES):
                raise ValueError(f"{row.rule!r} is no rule of reward.py")
            if row.think not in ("required", "optional"):
                raise ValueError(f"think is {row.think!r}")
        return {(row.benchmark, row.id): row for row in rows}
    except OSError as e:
        raise UserError(f"{path}: cannot be read: {e.strerror}; is {folder} a finished evaluation?") from None
    except (ValueError, TypeError, RecursionError) as e:
        raise UserError(f"{path}: not an evaluation's: {type(e).__name__} {e}") from None


def read_others(out: Path, names: Collection[str], rule: str, think: str) -> tuple[dict[str, Any], list[Graded]]:
    """What a folder has of other benchmarks than these, graded by this rule and with this `think`: results and rows.
    Says what it has by another. Raises UserError."""
    if not (out / "graded.jsonl").is_file() or not (out / "results.json").is_file():
        return {}, []
    results = read_object(out / "results.json")
    others = [row for row in read_graded(out).values() if row.benchmark not in names]
    rows = [row for row in others if (row.rule, row.think) == (rule, think)]
    for name, was, now in dict.fromkeys((row.benchmark, *differences(row, rule, think)) for row in others):
        if was:
            print(f"{out}: {name} was graded by {was} and is left out: name it too, to grade it by {now}")
    kept = {row.benchmark: results[row.benchmark] for row in rows if row.benchmark in results}
    return {name: {**figures, "reward": rule, "think": think} for name, figures in kept.items()}, rows


def differences(row: Graded, rule: str, think: str) -> tuple[str, str]:
    """What a row was graded by, and what it was not: "" and "" where it was graded by this rule and `think`."""
    pairs = [(row.rule, rule)] if row.rule != rule else []
    pairs += [(f"think={row.think}", f"think={think}")] if row.think != think else []
    return ", ".join(was for was, _ in pairs), ", ".join(now for _, now in pairs)


def with_averages(results: dict[str, dict[str, Any]], rows: list[Graded]) -> dict[str, dict[str, Any]]:
    """With the benchmarks' average, each weighing the same, as the paper's; its interval is the population's. Likewise
    of each of SETS that is all there among others."""
    averages = {"average": list(results)}
    for name, members in SETS.items():
        if set(members) < set(results):
            averages[f"average of {name}"] = list(members)
    return results | {name: average(results, members, rows) for name, members in averages.items()}


def average(results: dict[str, dict[str, Any]], names: list[str], rows: list[Graded]) -> dict[str, Any]:
    benchmarks = [results[name] for name in names]
    accuracy, low, high = macro([[row.accuracy for row in rows if row.benchmark == name] for name in names])
    average: dict[str, Any] = {}
    for key in benchmarks[0]:
        values = [figures[key] for figures in benchmarks]
        average[key] = sum(values) / len(values) if all(isinstance(v, (int, float)) for v in values) else None
    average |= {"pass_at_1": accuracy, "ci_low": low, "ci_high": high}
    average |= dict.fromkeys(("sampling_low", "sampling_high", "stderr"))
    average |= {name: benchmarks[0][name] for name in ("reward", "think")}  # those of all
    average["k"] = min(figures["k"] for figures in benchmarks)
    for key in ("num_problems", "grader_timeouts"):
        average[key] = sum(figures[key] for figures in benchmarks)
    return average


def write(out: Path, rows: list[Graded], results: dict[str, dict[str, Any]], about: dict[str, Any]) -> None:
    """`graded.jsonl`, `results.json`, `results.md`, `accuracy.png`; the tables on the terminal too."""
    if len(results) > 1:
        results = with_averages(results, rows)
    text = as_markdown(results, about)
    out.mkdir(parents=True, exist_ok=True)
    picture(out / "accuracy.png", rows)
    lines = [json.dumps({name: x for name, x in vars(row).items() if name != "majority"}) + "\n" for row in rows]
    write_whole(out / "graded.jsonl", "".join(lines))
    write_whole(out / "results.md", text)
    write_whole(out / "results.json", json.dumps(results, indent=1) + "\n")
    print(f"\n{text}\n{out}/results.json", flush=True)


def picture(path: Path, rows: list[Graded]) -> None:
    """For each benchmark the accuracy if responses longer than so many tokens were cut off."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.2))
    for name in dict.fromkeys(row.benchmark for row in rows):
        samples = []
        for row in rows:
            if row.benchmark == name:
                samples += zip(row.tokens, row.scores, strict=True)
        if all(tokens is not None for tokens, _ in samples):
            samples.sort()
            accuracy = 100 * np.cumsum([score for _, score in samples]) / len(samples)
            label = " " + TITLES.get(name, name).replace("$", r"\$")  # matplotlib leaves out what begins with _
            axes.step([tokens for tokens, _ in samples], accuracy, where="post", label=label)
    axes.set(xlabel="tokens a response may have", ylabel="accuracy, %", title="Accuracy against tokens")
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


# --------------------------------------------------------------------------------------------------------- comparisons


def verdict(result: dict[str, Any]) -> str:
    if result["p"] >= 0.05:
        return "not distinguishable"
    return "b is better" if result["difference"] > 0 else "a is better"


def comparison_table(results: dict[str, dict[str, Any]]) -> str:
    rows = []
    for name, r in results.items():
        difference = f"{100 * r['difference']:+.1f} [{100 * r['low']:+.1f}, {100 * r['high']:+.1f}]"
        p = f"{r['p']:.4f}" if r["p"] >= 1e-4 else "<0.0001"
        accuracies = [percent(r["a"]), percent(r["b"])]
        rows.append([TITLES.get(name, name), str(r["num_problems"]), *accuracies, difference, p, verdict(r)])
    return markdown_table(["", "problems", "a", "b", "difference [95%]", "p", "verdict"], rows)


def rules_table(keys: list[Key], rows_a: dict[Key, Graded], rows_b: dict[Key, Graded]) -> list[str]:
    """Who gains by which rule, where both graded the same answers: how many of them both take, or only one of them,
    and examples."""
    counts: dict[str, Counter] = {}
    examples: dict[tuple[str, str, str], None] = {}  # each once, in order
    for key in keys:
        if rows_a[key].answers != rows_b[key].answers:
            return []
        of_benchmark = counts.setdefault(key[0], Counter())
        for answer, a, b in zip(rows_a[key].answers, rows_a[key].scores, rows_b[key].scores, strict=True):
            of_benchmark[(a, b)] += 1
            if a != b:
                examples[("a" if a else "b", str(answer)[:60], str(rows_a[key].gold)[:60])] = None
    if len(counts) > 1:
        counts["all"] = sum(counts.values(), Counter())
    outcomes = ((1, 1), (1, 0), (0, 1), (0, 0))
    head = ["right by", "both", "a alone", "b alone", "neither"]
    rows = [[TITLES.get(name, name), *(f"{c[outcome]:,}" for outcome in outcomes)] for name, c in counts.items()]
    sections = ["The same responses by both rules:", markdown_table(head, rows)]
    if examples:
        shown = [example for side in "ab" for example in [e for e in examples if e[0] == side][:6]]
        escaped = [[cell.replace("|", "\\|") for cell in example] for example in shown]
        sections += ["Answers that one of them takes:", markdown_table(["right by", "answer", "gold"], escaped)]
    return sections


def compare(a: Path, b: Path) -> None:
    """Prints, and writes to `<b>/compare.json`, the paired difference of b and a on the problems that both have; the
    average weighs the benchmarks equally, as an evaluation's does."""
    rows_a, rows_b = read_graded(a), read_graded(b)
    keys = [key for key in rows_a if key in rows_b and rows_a[key].gold == rows_b[key].gold]
    if not keys:
        raise UserError(f"{a} and {b} have no problem in common")
    groups = {}
    for name in dict.fromkeys(benchmark for benchmark, _ in keys):
        own = [key for key in keys if key[0] == name]
        groups[name] = [([rows_a[key].accuracy for key in own], [rows_b[key].accuracy for key in own])]
    if len(groups) > 1:
        groups["average"] = [group[0] for group in groups.values()]
    results = {}
    for name, pairs in groups.items():
        means = {"a": fmean(fmean(x) for x, _ in pairs), "b": fmean(fmean(x) for _, x in pairs)}
        results[name] = {**means, "num_problems": sum(len(x) for x, _ in pairs), **paired(pairs)}
    notes = ["p: permutation test, problem by problem; the interval: Student's t on the differences."]
    left_out = len({*rows_a, *rows_b}) - len(keys)
    if left_out:
        notes.append(f"{left_out} problems stand in one of them only, or with another answer, and are left out.")
    rules = [", ".join(sorted({rows[key].rule for key in keys})) for rows in (rows_a, rows_b)]
    if rules[0] != rules[1]:
        notes.append(f"Graded by different rules: a by {rules[0]}, b by {rules[1]}.")
    thinks = [", ".join(sorted({rows[key].think for key in keys})) for rows in (rows_a, rows_b)]
    if thinks[0] != thinks[1]:
        notes.append(f"Answers were looked for differently: a with think={thinks[0]}, b with think={thinks[1]}.")
    head = f"a = {a}, b = {b}: pass@1 in percent, b minus a on the same problems"
    sections = [head, comparison_table(results), "\n".join(notes)]
    changes = {key: rows_b[key].accuracy - rows_a[key].accuracy for key in keys}
    changed = sorted((key for key in keys if changes[key]), key=lambda key: (-abs(changes[key]), key))[:10]
    if changed:
        rows = [[" ".join(key), *(percent(rows[key].accuracy) for rows in (rows_a, rows_b))] for key in changed]
        sections += ["The problems that changed most:", markdown_table(["problem", "a", "b"], rows)]
    if rules[0] != rules[1]:
        sections += rules_table(keys, rows_a, rows_b)
    write_whole(b / "compare.json", json.dumps({"a": str(a), "b": str(b), **results}, indent=1) + "\n")
    print("\n\n".join(sections), flush=True)
