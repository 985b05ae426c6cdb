"""Evaluation: statistics against simulation and brute force, completions graded, runs resumed and compared."""

import itertools
import json
import math
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

import eval as evaluation
from configs import UserError, load_config
from conftest import SHARED
from evaluation import report
from evaluation import stats as eval_stats
from evaluation.child import run_child
from evaluation.engines import opening
from evaluation.grade import Graded, summarize, vote
from evaluation.report import read_object, validation_lines
from evaluation.stats import macro, majority, paired, pass_at, population_interval, sampling_interval, t_quantile
from grader import pool as grader_pool
from grader.pool import RewardPool
from problems.prompts import ChatTokenizer, encode_problems, load_problems
from problems.rows import Fields, as_row
from reward import extract_answer, graded_text
from rollout import TorchSampler
from runs import ROOT, run_here, run_ranks, start_ranks
from training.preemption import Preemption

RAW = SHARED / "data" / "raw" / "deepscaler"


def test_t_quantiles_are_the_tables():
    for df, t in ((1, 12.7062), (2, 4.3027), (10, 2.2281), (29, 2.0452), (499, 1.9647), (1e6, 1.95996)):
        assert t_quantile(df) == pytest.approx(t, abs=1e-4)


# sizes, samples and what the chances of being right are drawn from: a Beta distribution's parameters
SIZES = {"AIME 2024": (30, 16, (0.4, 0.6)), "MATH-500": (500, 16, (3.0, 0.4))}


@pytest.mark.parametrize("name", SIZES)
def test_each_interval_covers_its_own_target(name):
    """2,000 simulated evaluations: the population interval covers the population's accuracy, the sampling interval that
    of the problems drawn, in 93 to 97% of them; and neither covers the other's target as it should."""
    n, k, (a, b) = SIZES[name]
    rng, covered = np.random.default_rng(1), np.zeros(3)
    for _ in range(2000):
        chances = rng.beta(a, b, n)
        right = rng.binomial(k, chances)
        population = population_interval((right / k).tolist())
        sampling = sampling_interval(right.tolist(), [k] * n)
        covered += [
            population[0] <= a / (a + b) <= population[1],
            sampling[0] <= chances.mean() <= sampling[1],
            sampling[0] <= a / (a + b) <= sampling[1],
        ]
    population_share, sampling_share, wrong_target = covered / 2000
    assert 0.93 <= population_share <= 0.97 and 0.93 <= sampling_share <= 0.97
    assert wrong_target < 0.7


def test_intervals_without_spread_and_without_repetition():
    assert population_interval([1.0] * 30) == (pytest.approx(0.025 ** (1 / 30)), 1.0)
    assert population_interval([0.0] * 30) == (0.0, pytest.approx(1 - 0.025 ** (1 / 30)))
    nine_of_ten = (0.5550, 0.9975)  # Clopper and Pearson's
    assert population_interval([1.0] * 9 + [0.0]) == pytest.approx(nine_of_ten, abs=1e-4)
    assert population_interval([0.5, 0.5]) == pytest.approx((0.0126, 0.9874), abs=1e-4)
    assert sampling_interval([1, 0], [1, 1]) is None
    none_of_eight = 1 - 0.025 ** (1 / 8)
    assert sampling_interval([4, 0], [4, 4]) == pytest.approx((0.5 - none_of_eight, 0.5 + none_of_eight))
    assert sampling_interval([1, 0, 2, 2], [2] * 4) == (0.375, 0.875)  # one open problem moves it by a quarter at most
    average, low, high = macro([[0.0] * 30, [0.5, 0.6] * 50])
    assert high - average >= population_interval([0.0] * 30)[1] / 2 and low < average


def test_pass_at_k_equals_all_subsets():
    for n, c, k in itertools.product(range(1, 8), range(8), range(1, 8)):
        if c <= n and k <= n:
            outcomes = [i < c for i in range(n)]
            subsets = list(itertools.combinations(outcomes, k))
            assert pass_at(k, n, c) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_majority_breaks_ties_at_random():
    assert majority([3, 1], [True, False]) == 1 and majority([1, 3], [True, False]) == 0
    assert majority([2, 2, 1], [True, False, True]) == 0.5 and majority([], []) == 0


def test_the_paired_test_has_five_percent_false_alarms(monkeypatch):
    """Two models of the same chances on 30 problems x 16 samples, 2,000 times."""
    monkeypatch.setattr(eval_stats, "FLIPS", 1000)
    rng, alarms, covered = np.random.default_rng(2), 0, 0
    for i in range(2000):
        chances = rng.beta(0.4, 0.6, 30)
        a, b = (rng.binomial(16, chances) / 16 for _ in range(2))
        result = paired([(a, b)], seed=i)
        alarms += result["p"] < 0.05
        covered += result["low"] <= 0 <= result["high"]
    assert 0.035 <= alarms / 2000 <= 0.065 and 0.935 <= covered / 2000 <= 0.965


def test_two_points_are_not_a_difference_at_thirty_problems():
    """43.1 against 41.0, the published figure and its reproduction: 207 and 197 of 30 x 16 samples right. Fifteen
    points are a difference."""
    rng = np.random.default_rng(0)
    chances = rng.beta(0.4, 0.6, 30)

    def evaluation_of(right):
        counts = rng.binomial(16, chances)
        while counts.sum() != right:
            i, step = rng.integers(30), int(np.sign(right - counts.sum()))
            counts[i] += step if 0 <= counts[i] + step <= 16 else 0
        return counts / 16

    published, reproduced, better = (evaluation_of(right) for right in (207, 197, 279))
    result = paired([(reproduced, published)])
    assert result["difference"] == pytest.approx(10 / 480) and result["p"] > 0.05 and result["low"] < 0 < result["high"]
    assert paired([(published, better)])["p"] < 0.05


def test_a_comparison_over_benchmarks_weighs_them_equally():
    rng = np.random.default_rng(0)
    small = (rng.random(30) * 0.5, rng.random(30) * 0.5 + 0.4)
    large = (rng.random(600) * 0.5 + 0.3, rng.random(600) * 0.5 + 0.25)
    result = paired([small, large])
    assert result["difference"] == pytest.approx(((small[1] - small[0]).mean() + (large[1] - large[0]).mean()) / 2)
    assert result["difference"] > 0 and result["p"] < 0.01 and result["low"] > 0
    assert paired([([0.5], [1.0])])["low"] == -0.5 and paired([([1, 0], [1, 0])])["high"] == 0


def test_the_average_of_benchmarks_weighs_them_equally():
    small, large = [1.0, 0.0, 1.0], [0.25, 0.75] * 50
    average, low, high = macro([small, large])
    assert average == pytest.approx((2 / 3 + 0.5) / 2) and low < average < high
    below = [statistics.mean(m) - population_interval(m)[0] for m in (small, large)]
    assert average - low == pytest.approx(math.hypot(*below) / 2)


# ---------------------------------------------------------------------------------------------- answers and completions


@pytest.mark.parametrize("text, finish_reason, answer", [
    ("<think>\n1</think>so \\boxed{2}", "stop", "2"), ("hm \\boxed{1} </think> \\boxed{2}", "stop", "2"),
    ("<think>\\boxed{1}", "length", None), ("<think>\\boxed{1}", "stop", "1"), ("It is \\boxed{3}.", "stop", "3"),
    ("thinking, \\boxed{1}, and", "length", None), ("</think>nothing", "stop", None),
])  # fmt: skip
def test_the_answer_stands_behind_the_thinking(text, finish_reason, answer):
    assert extract_answer(graded_text(opening(text, None), text, finish_reason, "optional")) == answer


def graded(scores, answers):
    return Graded("b", "1", scores, [1] * len(scores), [False] * len(scores), answers)


def test_a_vote_joins_wrong_answers_that_are_equal():
    rows = [
        graded([1, 1, 0, 0, 0, 0], ["5", "5", "1/2", "0.5", "\\frac12", "9"]),  # three halves outvote two fives
        graded([1, 1, 0, 0, 0], ["5", "5.0", "x+1", "1+x", "7"]),  # two and two: a tie
        graded([1, 0, 0], ["5", None, None]),
        graded([0, 0], ["1", "1"]),
        graded([0], [None]),
    ]
    with RewardPool(1) as pool:
        voted = vote(rows, pool)
    assert [r.majority for r in voted] == [0.0, 0.5, 1.0, 0.0, 0.0]
    assert [r.majority for r in rows] == [None] * 5  # the rows stay what they were


class ByRemainder:
    """Stands for the pool: two answers are equal where their numbers differ by a multiple of 7 (or, not transitively,
    by 1 or less)."""

    def __init__(self, near):
        self.near, self.asked = near, 0

    def grades(self, answers, golds, progress=""):
        self.asked += len(answers)
        gaps = [abs(int(a[1:]) - int(b[1:])) for a, b in zip(answers, golds, strict=True)]
        return [float(gap <= 1 if self.near else gap % 7 == 0) for gap in gaps]


def unbounded_vote(row, pool):
    """Every wrong answer compared with every other, and joined to the first that it equals."""
    first_equal, counts = {}, Counter()
    for answer, score in zip(row.answers, row.scores, strict=True):
        if answer is not None and not score and answer not in first_equal:
            equals = [other for other in first_equal if pool.grades([other], [answer])[0]]
            first_equal[answer] = first_equal[equals[0]] if equals else answer
    counts.update(first_equal[a] for a, s in zip(row.answers, row.scores, strict=True) if a is not None and not s)
    right = sum(row.scores)
    return majority([right, *counts.values()], [True] + [False] * len(counts)) if right else 0.0


@pytest.mark.parametrize("near", [False, True])
def test_votes_are_those_of_comparing_all_with_all(near):
    rng, rows, pool = np.random.default_rng(0), [], ByRemainder(near)
    for _ in range(400):
        numbers = rng.integers(0, rng.integers(2, 30), rng.integers(1, 40))
        scores = (rng.random(len(numbers)) < rng.choice([0.1, 0.3])).astype(float).tolist()
        answers = ["5" if score else None if n == 0 else f"w{n}" for n, score in zip(numbers, scores, strict=True)]
        rows.append(graded(scores, answers))
    voted = [row.majority for row in vote(rows, pool)]
    assert voted == [unbounded_vote(row, pool) for row in rows] and len(set(voted)) > 2


def test_a_vote_among_tens_of_thousands_of_different_answers_is_bounded():
    """The most frequent ones are compared all the same."""
    others, pool = [f"w{7 * i + 1}" for i in range(30_000)], ByRemainder(False)
    answers = ["5"] * 20_000 + others + ["w2"] * 19_000 + ["w9"] * 2_000
    rows = [graded([1.0] * 20_000 + [0.0] * 51_000, answers)]
    assert vote(rows, pool)[0].majority == 0.0 and pool.asked == 64 * 63 / 2
    assert summarize(vote(rows, pool))["majority_at_k"] == 0.0


# The published files, and how many problems each holds.
FILES = {"test_aime": 30, "test_amc": 83, "test_math": 500, "test_minerva": 272, "test_olympiad_bench": 675}
NAMES = dict(zip(FILES, ("aime24", "amc23", "math500", "minerva", "olympiad"), strict=True))


def completions_file(path, change):
    with open(path, "w") as f:
        for file, name in NAMES.items():
            for i, raw in enumerate(json.loads((RAW / f"{file}.json").read_text())):
                gold = list(as_row(raw, "x").answers)
                texts = [change(g) for g in gold]
                completions = [{"text": t, "tokens": len(t), "finish_reason": "stop"} for t in texts]
                row = {"benchmark": name, "id": f"{name}-{i}", "answer": gold, "completions": completions}
                f.write(json.dumps(row) + "\n")


CHANGES = [
    (lambda g: f"<think>\n</think>\\boxed{{{g}}}", 1.0),
    (lambda g: f"It is \\boxed{{{g}}}", 1.0),
    (lambda g: "<think></think>\\boxed{\\text{wrong}}", 0.0),
    (lambda g: f"<think>\\boxed{{{g}}}</think>", 0.0),
]


@pytest.mark.parametrize("change, accuracy", CHANGES)
def test_golds_as_completions_are_all_right_and_corrupted_ones_all_wrong(tmp_path, capsys, change, accuracy):
    if not RAW.is_dir():
        pytest.skip("the benchmarks' files are not here")
    completions_file(tmp_path / "c.jsonl", change)
    evaluation.main([f"--completions={tmp_path}/c.jsonl", f"--out_dir={tmp_path}/out"])
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    expected = {NAMES[file]: (accuracy, size) for file, size in FILES.items()} | {"average": (accuracy, 1560)}
    assert {name: (r["pass_at_1"], r["num_problems"]) for name, r in results.items()} == expected
    assert "paper: DeepScaleR-1.5B-Preview" in capsys.readouterr().out


@pytest.mark.parametrize("line, message", [
    ('{"benchmark": "b", "id": "1", "answer": "2"}\n', "a list of completions"), ("[1]\n", "not a row"),
    ("x\n", "not a row"),
    ('{"benchmark": "b", "id": "1", "gold": "2", "completions": [{"text": "3"}]}', "needs an 'answer'"),
    ('{"benchmark": "b", "id": "1", "answer": [], "completions": [{"text": "3"}]}\n', "needs an 'answer'"),
    ('{"benchmark": "b", "id": "1", "answer": null, "completions": [{"text": "3"}]}\n', "needs an 'answer'"),
    ('{"benchmark": "average", "id": "1", "answer": "2", "completions": []}\n', "cannot be called"),
    ('{"benchmark": "b", "id": "1", "answer": "2", "completions": [{"text": "3", "sample": [0]}]}\n', "integers for"),
    ('{"benchmark": "b", "id": "1", "answer": "2", "completions": [{"text": "3", "tokens": -5}]}\n', "integers for"),
    ('{"benchmark": "b", "id": "1", "answer": "2", "completions": [{"text": "3", "tokens": true}]}\n', "integers for"),
    ('{"benchmark": "b", "id": "1", "answer": "2", "completions": [{"text": "3"}]}\n'
     '{"benchmark": "b", "id": "1", "answer": "5", "completions": [{"text": "3"}]}\n', "with two answers"),
    ('{"benchmark": "b", "id": "1", "answer": "2", "completions": [{"text": 3}]}\n', "needs a text"),
    ('{"benchmark": "b", "id": "1", "answer": "2", "completions": []}\n', "has no completions"), ("", "no rows"),
])  # fmt: skip
def test_a_bad_file_of_completions_is_named_in_one_line(tmp_path, line, message):
    (tmp_path / "c.jsonl").write_text(line)
    with pytest.raises(UserError, match=message) as refused:
        evaluation.main([f"--completions={tmp_path}/c.jsonl", f"--out_dir={tmp_path}/out"])
    assert "\n" not in str(refused.value) and not (tmp_path / "out").exists()


WHOLE = '{"benchmark": "b", "id": "1", "scores": [1.0], "tokens": [5], "cut": [false], "answers": ["7"]}'


@pytest.mark.parametrize("line, message", [
    ("[" * 100_000, "not an evaluation's: RecursionError"), (WHOLE.replace("[1.0]", "[]"), "not an evaluation's"),
    (WHOLE.replace("[1.0]", "[NaN]"), "each 0 or 1"), (WHOLE.replace("[5]", "[5, 6]"), "not an evaluation's"),
    (WHOLE.replace("[5]", '["5"]'), "no integers"), (WHOLE.replace("}", ', "rule": ["a"]}'), "no rule of reward.py"),
    (WHOLE.replace("[1.0]", "7"), "not an evaluation's"),
    ('"text"', "not an evaluation's"), (None, "not a regular file"),
])  # fmt: skip
def test_a_results_folder_that_is_none_is_named_in_one_line(tmp_path, line, message):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "graded.jsonl").write_text(WHOLE + "\n")
    if line is None:
        (tmp_path / "b" / "graded.jsonl").unlink()
        os.mkfifo(tmp_path / "b" / "graded.jsonl")
    else:
        (tmp_path / "b" / "graded.jsonl").write_text(f"{WHOLE}\n{line}\n")
    with pytest.raises(UserError, match=message) as refused:
        evaluation.main(["--compare", str(tmp_path / "a"), str(tmp_path / "b")])
    assert "\n" not in str(refused.value)


def test_a_settings_file_that_is_no_object_is_named_in_one_line(tmp_path):
    path = tmp_path / "eval.json"
    assert read_object(path) == {}
    for content in ("[" * 100_000, "7", "{", "\0"):
        path.write_text(content)
        with pytest.raises(UserError, match="not a JSON object"):
            read_object(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match="not a regular file"):
        read_object(path)


def test_a_pipe_is_no_file_of_completions(tmp_path):
    os.mkfifo(tmp_path / "c.jsonl")
    with pytest.raises(UserError, match=r"c\.jsonl: cannot be read: not a regular file"):
        evaluation.main([f"--completions={tmp_path}/c.jsonl", f"--out_dir={tmp_path}/out"])


def test_a_single_problem_has_no_standard_error():
    one, two = graded([1.0, 0.0], ["5", "6"]), graded([1.0, 1.0], ["5", "5"])
    assert summarize([one])["stderr"] is None and summarize([one, two])["stderr"] == pytest.approx(0.25)
    lengths = {"response_len_mean": 9.0, "response_clip_ratio": 0.0}
    results = {name: {"accuracy": 0.5, **summarize(rows), **lengths} for name, rows in (("b", [one]), ("all", [one]))}
    assert validation_lines(results, 44) == ["  b at 44: 0.500 +- -, length 9.0, clipped 0.000"]


@pytest.fixture(scope="module")
def sums(world, tmp_path_factory):
    """24 problems for the world's base model, which answers now and then."""
    path = tmp_path_factory.mktemp("sums") / "sums.jsonl"
    rows = [{"id": f"s{a}{b}", "problem": f"{a}+{b}=?", "answer": str(a + b)} for a in range(1, 5) for b in range(1, 7)]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


@pytest.mark.parametrize("argv, message", [
    (["--k=0"], "under its minimum"), (["--workers=100000"], "above its maximum"),
    (["--temperature=-1"], "need >= 0"), (["--dtype=int8"], "none of"),
    (["--compare", "a"], "two results folders"), (["--compare", "a", "b"], "cannot be read"),
    (["--k"], "write --k=VALUE"),
    (["--completions=x"], "takes --out_dir"), (["--completions=x", "--out_dir=y", "--k=2"], "nothing else"),
    (["--completions=x", "--out_dir=y", "--seed=2"], "nothing else"),
    (["--completions=x", "--out_dir=y", "--reward=lenient"], "--reward: .*exact, strict, deepscaler"),
    (["--dtype=float32,float32"], "twice"), (["--temperature=inf"], "need >= 0"),
    (["configs/tiny.py", "--eval_data="], "none named"),
    (["configs/tiny.py", "--benchmarks=nothing"], "no data/nothing.jsonl"),
    (["configs/tiny.py", "--benchmarks={sums},{sums}"], "named twice"), (["--nonsense=1"], "no such setting"),
    (["--completions="], "write --completions=VALUE"), (["--problem_seed=1"], "no such setting"),
])  # fmt: skip
def test_bad_flags_are_refused_in_one_line(tiny_model_dir, sums, argv, message):
    argv = [*argv, f"--model={tiny_model_dir}"] if "configs/tiny.py" in argv else argv
    argv = [flag.format(sums=sums) for flag in argv]
    with pytest.raises(UserError, match=message) as refused:
        evaluation.main(argv)
    assert "\n" not in str(refused.value)


def test_a_missing_benchmark_names_the_command_that_makes_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, command in (("parametric", "parametric` makes it"), ("aime24", "bench` makes the paper's five")):
        with pytest.raises(UserError, match=f"no data/{name}.jsonl: `python data_prep.py {command}"):
            evaluation.load_benchmarks((name,), Fields())


def test_numbers_as_golds_and_samples_without_numbers_are_read(tmp_path):
    rows = [
        {"benchmark": "b", "id": 7, "answer": [1, 2], "completions": [{"text": "\\boxed{2}"}]},
        {"benchmark": "b", "id": 7, "answer": [1, 2], "completions": [{"text": "\\boxed{3}", "sample": None}]},
        {"benchmark": "$a_{$|", "id": "1", "answer": 5, "completions": [{"text": "\\boxed{5}", "tokens": 3}]},
    ]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    evaluation.main([f"--completions={tmp_path}/c.jsonl", f"--out_dir={tmp_path}/out"])
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["b"]["pass_at_1"], results["b"]["k"], results["b"]["tokens_mean"]) == (0.5, 2, None)
    assert results["$a_{$|"]["pass_at_1"] == 1 and (tmp_path / "out" / "accuracy.png").stat().st_size > 1000


def test_another_reward_is_what_evaluation_scores_with(world, group_of_one, tmp_path, monkeypatch):
    """With a `reward_fn` of its own; right is a reward of at least 1.0, from files and within training alike."""
    script = tmp_path / "other_reward.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "import reward\n"
        "reward.reward_fn = lambda problem, text: len(text) / len(problem.answer)\n"
        "reward.main(sys.argv[1:])\n"
    )
    monkeypatch.setattr(grader_pool, "SCRIPT", script)
    texts = ["<think>" + "x" * n for n in (0, 12, 13, 14, 30)]
    row = {"benchmark": "b", "id": "1", "answer": "a" * 20, "completions": [{"text": t} for t in texts]}
    (tmp_path / "c.jsonl").write_text(json.dumps(row) + "\n")
    evaluation.main([f"--completions={tmp_path}/c.jsonl", f"--out_dir={tmp_path}/out"])
    assert json.loads((tmp_path / "out" / "graded.jsonl").read_text())["scores"] == [0.0, 0.0, 1.0, 1.0, 1.0]

    cfg = load_config(["configs/tiny.py", "--eval_k=4"])
    tokenizer, sampler = ChatTokenizer(world / "base"), TorchSampler(world / "base", torch.float32)
    prompts = encode_problems(load_problems(world / "test.jsonl")[0], tokenizer, "")
    groups = evaluation.sample(sampler, tokenizer, evaluation.requests_for({"test": prompts}, 4), cfg, 24)
    lengths = [len(response.text) for group in groups for response in group]
    limit = int(statistics.median(lengths))
    prompts = [replace(prompt, problem=replace(prompt.problem, answer="a" * limit)) for prompt in prompts]
    with RewardPool(1) as pool:
        results = evaluation.evaluate(sampler, tokenizer, pool, {"test": prompts}, cfg, 24, Preemption(0))
    share = statistics.mean(length >= limit for length in lengths)
    assert results["test"]["accuracy"] == results["all"]["accuracy"] == share and 0 < share < 1


# ---------------------------------------------------------------------------------------------------------- model runs


def arguments(world, benchmarks, out, *flags):
    model = ["configs/tiny.py", f"--model={world}/base", f"--benchmarks={benchmarks}", f"--out_dir={out}"]
    return [*model, "--temperature=1", "--top_p=1", "--max_tokens=30", *flags]


def test_a_damaged_export_is_not_evaluated(world, six_steps, tmp_path):
    shutil.copytree(six_steps / "hf/step_000006", tmp_path / "base")
    data = bytearray((tmp_path / "base/model.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "base/model.safetensors").write_bytes(data)
    status, output = run_here(evaluation.main, arguments(tmp_path, world / "test.jsonl", tmp_path / "out"))
    assert status == 2 and "base is damaged: model.safetensors does not match its hash" in output
    assert not (tmp_path / "out").exists()


def evaluated(*args):
    """An evaluation in this process, and what it printed."""
    status, output = run_here(evaluation.main, arguments(*args))
    assert status == 0, output[-3000:]
    return output


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def same_figures(a, b):
    return all((a / name).read_bytes() == (b / name).read_bytes() for name in ("results.json", "graded.jsonl"))


@pytest.fixture(scope="module")
def whole(world, sums, tmp_path_factory):
    """The folder of an evaluation that nothing interrupted, k=4."""
    out = tmp_path_factory.mktemp("whole")
    evaluated(world, sums, out, "--k=4")
    return out


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_and_ends_with_the_same_figures(world, sums, whole, tmp_path):
    """One sequence at a time (a row a problem), killed twice, its last line torn."""
    file = tmp_path / "completions.jsonl"
    for lines in (2, 6):
        argv = arguments(world, sums, tmp_path, "--k=4", "--max_num_seqs=1")
        process, output = start_ranks(1, argv, evaluation.main)[0]
        while process.is_alive() and not (file.exists() and file.read_bytes().count(b"\n") >= lines):
            time.sleep(0.02)
        process.kill()
        process.join()
        output.close()
        assert not (tmp_path / "results.json").exists()
        with open(file, "ab") as f:
            f.write(b'{"benchmark": "sums", "id')
    evaluated(world, sums, tmp_path, "--k=4")
    assert same_figures(tmp_path, whole)


@pytest.mark.slow
def test_two_ranks_under_torchrun_have_the_same_figures(world, sums, whole, tmp_path):
    """In each of two formats: the ranks of a format meet where torchrun's own, which wait for them, have not met. And
    by each of two rules, compared rule by rule."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "eval.py"]
    flags = ["--k=4", "--dtype=float32,bfloat16", "--reward=exact,strict"]
    command = [*launch, *arguments(world, sums, tmp_path, *flags)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("2 x cpu, ") == 2 and "b minus a on the same problems" in done.stdout
    exact, expected = results_of(tmp_path / "float32/exact")["sums"], results_of(whole)["sums"]
    assert exact == expected and "The same responses by both rules:" in done.stdout
    for rule in ("exact", "strict"):
        compared = json.loads((tmp_path / "bfloat16" / rule / "compare.json").read_text())
        assert compared["a"] == str(tmp_path / "float32" / rule)
        assert compared["sums"]["num_problems"] == 24 and 0 <= compared["sums"]["p"] <= 1


def test_a_larger_k_adds_samples_and_another_seed_is_refused(world, sums, whole, tmp_path):
    evaluated(world, sums, tmp_path, "--k=1")
    evaluated(world, sums, tmp_path, "--k=4")
    assert same_figures(tmp_path, whole)
    lines = (tmp_path / "completions.jsonl").read_text().splitlines()
    counts = [len(json.loads(line)["completions"]) for line in lines]
    assert sorted(counts) == [1] * 24 + [3] * 24  # the first sample was not asked for again
    status, output = run_here(evaluation.main, arguments(world, sums, tmp_path, "--seed=1"))
    assert status == 2 and "seed=0, not 1: choose another --out_dir" in output


def test_our_own_completions_can_be_graded_again(whole, tmp_path):
    """With what their prompts opened, and so with the same figures."""
    evaluation.main([f"--completions={whole}/completions.jsonl", f"--out_dir={tmp_path}", "--think=required"])
    assert (tmp_path / "results.json").read_bytes() == (whole / "results.json").read_bytes()


def test_a_format_whose_folder_has_other_completions_is_refused_before_any_is_sampled(world, sums, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "bfloat16")
    argv = arguments(world, sums, tmp_path, "--k=4", "--dtype=float32,bfloat16")
    status, output = run_here(evaluation.main, argv)
    assert status == 2 and output.count("\n") == 1 and "dtype='float32', not 'bfloat16'" in output
    assert not (tmp_path / "float32").exists()


@pytest.mark.parametrize("code, status", [("sys.exit(int(os.environ['STATUS']))", 7), ("os.kill(os.getpid(), 9)", 137)])
def test_a_process_that_fails_gives_its_status_to_the_one_that_waits(code, status):
    run_child([sys.executable, "-c", "pass"], {})
    with pytest.raises(SystemExit) as e:
        run_child([sys.executable, "-c", f"import os, sys; {code}"], {"STATUS": "7"})
    assert e.value.code == status


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_the_process_that_is_waited_for_too(tmp_path, number):
    """One to the process that waits, and as from a terminal to both."""
    handler = signal.getsignal(number)
    also = "os.kill(os.getpid(), signal.SIGINT); " if number == signal.SIGINT else ""
    code = f"import os, signal; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); {also}"
    with pytest.raises((SystemExit, KeyboardInterrupt)) as e:
        run_child([sys.executable, "-c", f"{code}os.kill(os.getppid(), {int(number)}); signal.pause()"], {})
    assert e.type is KeyboardInterrupt if number == signal.SIGINT else e.value.code == 128 + number
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert signal.getsignal(number) == handler


@pytest.mark.parametrize("flags, share", [
    (["configs/one_gpu.py"], 0.9), (["configs/one_gpu.py", "--vllm_gpu_memory_utilization=0.5"], 0.5),
    (["configs/one_gpu.py", "--vllm_gpu_memory_utilization", "0.4"], 0.4), (["configs/tiny.py"], 0.6),
])  # fmt: skip
def test_vllm_takes_nearly_all_of_a_gpu_where_nobody_trains(flags, share):
    """The config file's 0.5 is for training; on a CPU the share is one of the machine's memory."""
    assert evaluation.model_config(flags).vllm_gpu_memory_utilization == share


def main_that_names_its_engines(argv):
    evaluation.main(argv)
    print(f"vllm in this process: {'vllm' in sys.modules}", flush=True)


@pytest.mark.slow
def test_vllm_has_the_same_greedy_accuracy_and_goes_on_where_a_rank_has_nothing_left(world, sums, tmp_path):
    """Two ranks in two formats: float32 lacks all samples, bfloat16 those of one problem. A GPU takes one engine a
    process in its life, so those that compare start none."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    flags = ("--k=1", "--temperature=0", "--process_group_timeout=100")
    evaluated(world, sums, tmp_path / "torch", *flags)
    begun = tmp_path / "two" / "bfloat16"
    begun.mkdir(parents=True)
    about = read_object(tmp_path / "torch" / "eval.json") | {"sampler": "vllm", "dtype": "bfloat16"}
    (begun / "eval.json").write_text(json.dumps(about))
    lines = (tmp_path / "torch" / "completions.jsonl").read_bytes().splitlines(keepends=True)
    (begun / "completions.jsonl").write_bytes(b"".join(lines[:-1]) + lines[-1][:20])

    argv = arguments(world, sums, tmp_path / "two", *flags, "--sampler=vllm", "--dtype=float32,bfloat16")
    output = run_ranks(2, argv, main=main_that_names_its_engines)
    results = results_of(tmp_path / "two" / "float32")
    assert results == results_of(tmp_path / "torch") and 0 < results["sums"]["pass_at_1"] < 1
    assert (begun / "completions.jsonl").read_bytes().startswith(b"".join(lines[:-1]))
    assert results_of(begun)["sums"]["num_problems"] == 24
    assert output.count("2 x cpu") == 2 and "b minus a on the same problems" in output
    assert output.count("vllm in this process: False") == 2


def test_a_folder_does_not_mix_problems_and_keeps_other_benchmarks(world, sums, tmp_path):
    """Other problems under the same ids are refused; fewer are reported alone; another benchmark adds to it."""
    out = tmp_path / "out"
    evaluated(world, sums, out, "--k=1")
    figures = results_of(out)["sums"]
    rows = [json.loads(line) for line in sums.read_text().splitlines()]
    (tmp_path / "few").mkdir()
    few = tmp_path / "few" / "sums.jsonl"
    few.write_text("".join(json.dumps(r) + "\n" for r in rows[:5]))
    evaluated(world, few, out, "--k=1")
    assert results_of(out)["sums"]["num_problems"] == 5
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps(rows[0]) + "\n")
    evaluated(world, f"{other},{sums}", out, "--k=1")
    assert results_of(out)["sums"] == figures and set(results_of(out)) == {"other", "sums", "average"}
    evaluated(world, other, out, "--k=1")
    assert results_of(out)["sums"] == figures and results_of(out)["other"]["num_problems"] == 1
    few.write_text("".join(json.dumps({**r, "answer": "77"}) + "\n" for r in rows))
    status, output = run_here(evaluation.main, arguments(world, few, out, "--k=1"))
    assert status == 2 and "is another problem there" in output and "Traceback" not in output


def graded_by(rule, completions, out):
    """A file of completions graded by a rule: its results, and the scores of each of its problems."""
    evaluation.main([f"--completions={completions}", f"--out_dir={out}", f"--reward={rule}"])
    rows = [json.loads(line) for line in (out / "graded.jsonl").read_text().splitlines()]
    assert [row["rule"] for row in rows] == [rule] * len(rows) and f"reward={rule}" in (out / "results.md").read_text()
    return results_of(out), [row["scores"] for row in rows]


def test_the_same_completions_by_each_rule(tmp_path, capsys):
    """In the second problem x+1 and 1+x are one wrong answer, as frequent as the right one, but not by the text."""
    problems = [("1/4", ["1/4", "0.25", "0.5"]), ("7", ["7", "x+1", "1+x", "3", "7"]), ("3", ["3.00000001"])]
    rows = []
    for number, (gold, answers) in enumerate(problems):
        completions = [{"text": f"<think></think>\\boxed{{{answer}}}"} for answer in answers]
        rows.append({"benchmark": f"b{number}", "id": "1", "answer": gold, "completions": completions})
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    expected = {"exact": ([2, 2, 0], 0.5), "strict": ([1, 2, 0], 1.0), "deepscaler": ([2, 2, 1], 0.5)}
    for rule, (right, majority_at_k) in expected.items():
        results, scores = graded_by(rule, tmp_path / "c.jsonl", tmp_path / rule)
        assert (list(map(sum, scores)), results["b1"]["majority_at_k"]) == (right, majority_at_k)
        assert {figures["reward"] for figures in results.values()} == {rule} and "average" in results
    capsys.readouterr()
    evaluation.main(["--compare", str(tmp_path / "exact"), str(tmp_path / "strict")])
    assert "Graded by different rules: a by exact, b by strict." in capsys.readouterr().out


def test_a_folder_does_not_mix_rules(world, sums, tmp_path):
    """Its completions are graded again by the new rule; what the folder has of other benchmarks by the old is left
    out, and comes back when it is asked for."""
    other = tmp_path / "other.jsonl"
    other.write_text(sums.read_text().splitlines()[0] + "\n")
    out = tmp_path / "out"
    evaluated(world, f"{other},{sums}", out, "--k=1")
    completions = (out / "completions.jsonl").read_bytes()
    output = evaluated(world, sums, out, "--k=1", "--reward=strict")
    assert "other was graded by exact and is left out" in output
    assert {name: r["reward"] for name, r in results_of(out).items()} == {"sums": "strict"}
    evaluated(world, other, out, "--k=1", "--reward=strict")
    assert {name: r["reward"] for name, r in results_of(out).items()} == dict.fromkeys(results_of(out), "strict")
    assert set(results_of(out)) == {"sums", "other", "average"}
    assert (out / "completions.jsonl").read_bytes() == completions  # no sample was drawn again


def test_a_comparison_names_what_changed(tmp_path, capsys):
    for name, scores in (("a", ([1, 1], [0, 0], [1, 0])), ("b", ([1, 1], [1, 1], [0, 0]))):
        (tmp_path / name).mkdir()
        samples = {"tokens": [1, 1], "cut": [False] * 2, "answers": ["1", "2"]}
        rows = [{"benchmark": "x", "id": str(i), "gold": "1", "scores": s, **samples} for i, s in enumerate(scores)]
        rows.append({"benchmark": "x", "id": "4", "gold": name, "scores": [1, 1], **samples})  # another problem
        (tmp_path / name / "graded.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    evaluation.main(["--compare", str(tmp_path / "a"), str(tmp_path / "b")])
    said = capsys.readouterr().out
    assert "+16.7 [" in said and "not distinguishable" in said and "1 problems stand in one" in said
    assert re.search(r"x 1 +\| +0\.0 +\| +100\.0", said) and said.index("x 1") < said.index("x 2") and "x 0" not in said


def write_completions(path, rows):
    """rows: (benchmark, id, gold, [answers])."""
    lines = []
    for benchmark, problem_id, gold, answers in rows:
        texts = [{"text": f"<think></think>\\boxed{{{a}}}", "tokens": 5, "finish_reason": "stop"} for a in answers]
        lines.append(json.dumps({"benchmark": benchmark, "id": problem_id, "answer": gold, "completions": texts}))
    path.write_text("\n".join(lines) + "\n")
    return path


def test_two_rules_grade_the_same_responses_and_say_who_gains(tmp_path, capsys):
    rows = [
        ("a", "1", "0.25", ["\\frac14", "0.25"]),
        ("a", "2", "7", ["8", "7"]),
        ("b", "1", "5", ["5\\text{ or }6", "5"]),
    ]
    path, out = write_completions(tmp_path / "c.jsonl", rows), tmp_path / "out"
    evaluation.main([f"--completions={path}", f"--out_dir={out}", "--reward=exact,strict"])
    exact, strict = results_of(out / "exact"), results_of(out / "strict")
    assert (exact["a"]["pass_at_1"], strict["a"]["pass_at_1"]) == (0.75, 0.5)
    printed = capsys.readouterr().out
    assert "Graded by different rules: a by exact, b by strict." in printed
    cells = [[cell.strip() for cell in line.strip("| ").split("|")] for line in printed.splitlines()]
    assert ["a", "2", "1", "0", "1"] in cells and ["all", "3", "1", "1", "1"] in cells
    assert ["a", "\\frac14", "0.25"] in cells and ["b", "5\\text{ or }6", "5"] in cells
    assert json.loads((out / "strict" / "compare.json").read_text())["a"]["difference"] == -0.25


def test_sets_of_benchmarks_are_asked_for_and_averaged_by_name(tmp_path, monkeypatch):
    names = [*report.SETS["all"], *report.SETS["2025"]]
    rows = [(name, "1", "1", ["1" if name in report.SETS["2025"][:1] else "2"]) for name in names]
    path = write_completions(tmp_path / "c.jsonl", rows)
    evaluation.main([f"--completions={path}", f"--out_dir={tmp_path / 'out'}"])
    results = results_of(tmp_path / "out")
    assert set(results) == {*names, "average", "average of all", "average of 2025"}
    averages = [results[name]["pass_at_1"] for name in ("average", "average of all", "average of 2025")]
    assert averages == pytest.approx([1 / 9, 0, 1 / 4]) and results["average of 2025"]["num_problems"] == 4
    assert "AIME 2025" in (tmp_path / "out/results.md").read_text()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no data/aime25.jsonl"):
        evaluation.load_benchmarks(("2025",), Fields())


def test_a_folder_that_cannot_be_is_refused_before_anything_is_graded(tmp_path):
    (tmp_path / "file").write_text("")
    rows = write_completions(tmp_path / "c.jsonl", [("a", "1", "1", ["1"])])
    with pytest.raises(UserError, match="file is no folder"):
        evaluation.main([f"--completions={rows}", f"--out_dir={tmp_path / 'file'}", "--reward=exact,strict"])
