"""The small files around the loop: schedule, evaluation figures, the tiny world, plots, the bench."""

import json
import math
import random
import re

import pytest
import torch

import bench
import data_prep
import plot
from configs import UserError, load_config
from evaluation.grade import Graded, summarize
from problems import tiny
from problems.prompts import ChatTokenizer, load_problems
from reward import reward
from rollout import Rollout
from runs import flags, run_here
from training import metrics


def test_accuracy_and_its_standard_error_are_those_of_the_problem_means():
    rows = [
        Graded("b", "0", [1.0, 0.0], [5, 9], [False, True], [None, None]),
        Graded("b", "1", [1.0, 1.0], [4, 6], [False, False], [None, None]),
        Graded("b", "2", [0.0, 0.0], [8, 8], [True, True], [None, None]),
    ]
    figures = summarize(rows)
    means = torch.tensor([0.5, 1.0, 0.0], dtype=torch.float64)
    assert figures["pass_at_1"] == pytest.approx(means.mean().item())
    assert figures["stderr"] == pytest.approx(means.std().item() / math.sqrt(3))
    assert (figures["tokens_mean"], figures["clip_ratio"], figures["num_problems"]) == (40 / 6, 0.5, 3)


def test_rollout_metrics_count_groups_and_lengths():
    def group(rewards, shortest):
        rollouts = []
        for i, value in enumerate(rewards):
            n = shortest + i
            rollouts.append(Rollout(0, i, [1], [1] * n, [], "length" if n > 4 else "stop", value))
        return rollouts

    row = metrics.rollout_metrics([group([1.0, 1.0], 1), group([0.0, 1.0], 2), group([0.0, 0.0], 4)])
    assert (row["reward_mean"], row["solve_all"], row["solve_none"]) == (0.5, 1 / 3, 1 / 3)
    assert (row["response_len_mean"], row["tokens_generated"], row["response_clip_ratio"]) == (17 / 6, 17, 1 / 6)
    assert (row["response_len_correct"], row["response_len_incorrect"]) == (2.0, 11 / 3)
    assert metrics.rollout_metrics([group([1.0, 1.0], 1)])["response_len_incorrect"] is None


def test_what_is_not_finite_becomes_null():
    row = metrics.json_row({"loss": float("nan"), "kl": float("inf"), "step": 3, "lr": 0.5, "x": None})
    assert json.dumps(row, allow_nan=False) == '{"loss": null, "kl": null, "step": 3, "lr": 0.5, "x": null}'


def test_traces_are_graded_by_their_last_sum_and_slip_as_often_as_told():
    rng, right, redone = random.Random(0), 0, 0
    for _ in range(3000):
        numbers = [rng.randint(1, 9) for _ in range(5)]
        text = tiny.trace(numbers, rng)
        right += reward("<think>\n" + text, str(sum(numbers)))
        redone += "wait" in text
        assert re.fullmatch(r"(\d+(\+\d=\d+){4}( wait )?){1,3}</think>\\boxed\{\d+\}", text)
    four_good_steps = (1 - tiny.SLIP) ** 4
    assert four_good_steps - 0.02 < right / 3000 < four_good_steps + 0.03  # two slips may cancel
    assert abs(redone / 3000 - tiny.REDO[0]) < 0.03


def test_the_tiny_world_is_whole_disjoint_and_repeatable(tmp_path, monkeypatch):
    for name in ("a", "b"):
        tiny.make_tiny_world(tmp_path / name, updates=2, seed=1)
    for file in ("train.jsonl", "test.jsonl", "base/model.safetensors", "base/tokenizer.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    train, test = ([p.problem for p in load_problems(tmp_path / f"a/{n}.jsonl")[0]] for n in ("train", "test"))
    assert len(set(test)) == len(test) and not set(train) & set(test)
    problem = load_problems(tmp_path / "a/test.jsonl")[0][0]
    assert int(problem.answer) == sum(map(int, re.findall(r"\d", problem.problem)))
    chat = ChatTokenizer(tmp_path / "a/base")
    assert max(len(ids) for ids, _ in chat.prompts(train)) <= 40


def test_transformers_reads_the_tiny_tokenizer_as_we_do(tmp_path):
    """vLLM.chat takes transformers' tokenizer too."""
    AutoTokenizer = pytest.importorskip("transformers").AutoTokenizer
    tiny.new_model(tiny.make_tokenizer(tmp_path), seed=0).save_pretrained(tmp_path)  # its config.json picks the class
    tiny.write_problems(tmp_path, train_rows=4000, test_rows=250, seed=0)
    ours, theirs = ChatTokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    problems = [p.problem for name in ("train", "test") for p in load_problems(tmp_path / f"{name}.jsonl")[0]]
    chats = [[{"role": "user", "content": problem}] for problem in problems]
    expected = theirs.apply_chat_template(chats, add_generation_prompt=True, return_dict=False)
    assert len(problems) == 4250 and [ids for ids, _ in ours.prompts(problems)] == expected
    text = tiny.trace([1, 2, 3], random.Random(0)) + "\n wait <|eos|>"
    ids = ours.tokenizer.encode(text).ids
    assert ids == theirs.encode(text, add_special_tokens=False)
    assert theirs.decode(ids) == text and ours.decode(ids) == text.removesuffix("<|eos|>")
    every_token = "".join(tiny.SPECIAL) + tiny.CHARACTERS  # ids in this order: weights taught before stay right
    assert ours.tokenizer.encode(every_token).ids == list(range(len(tiny.SPECIAL) + len(tiny.CHARACTERS)))


def test_a_tiny_world_in_place_is_kept_and_a_bad_command_is_refused(tmp_path, capsys):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "model.safetensors").write_text("mine")
    data_prep.main(["tiny", f"--out_dir={tmp_path}"])
    assert (tmp_path / "base" / "model.safetensors").read_text() == "mine"
    assert "is there already" in capsys.readouterr().out
    for argv in ([], ["tiny", "--no=1"], ["tiny", "--out_dir"], ["tiny", "x"]):
        with pytest.raises(UserError, match="usage"):
            data_prep.main(argv)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        data_prep.main(["tiny", f"--out_dir={tmp_path}/file"])


def test_figures_are_drawn_from_metrics(tmp_path):
    rows = []
    for step in range(1, 8):
        row = {"step": step, "stage": step // 4, "max_response_len": 8 * (1 + step // 4), "reward_mean": 0.1 * step}
        row |= {"response_len_mean": 9, "response_clip_ratio": None if step == 3 else 0.2, "tokens_generated": 1000}
        rows.append(row | ({"eval_test": 0.5} if step % 2 else {}))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows) + '{"torn')
    plot.main([str(tmp_path)])
    figures = {p.name: p.read_bytes() for p in (tmp_path / "figures").iterdir()}
    assert set(figures) == {"reward.png", "length.png", "clip_ratio.png", "accuracy.png", "curves.png", "tokens.png"}
    assert all(data.startswith(b"\x89PNG") and len(data) > 5000 for data in figures.values())
    for limit, base in ((0, 0.1), (8, 0.1), (16, 0.2), (9, None)):  # the base model's point, where it was evaluated
        (tmp_path / "config.json").write_text(json.dumps({"config": {"eval_max_len": limit}}))
        both = {f"base_{w}_benchmarks": {"test": {"accuracy": a}} for w, a in (("first", 0.1), ("last", 0.2))}
        (tmp_path / "summary.json").write_text(json.dumps(both | {"first_context": 8, "last_context": 16}))
        assert plot.base_accuracy(tmp_path, "eval_test") == base
    assert plot.smooth([1.0, 2.0, 3.0, 10.0], 3) == [1.5, 2.0, 5.0, 6.5]


def test_plotting_nothing_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot read the metrics"):
        plot.main([str(tmp_path)])
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="no steps yet"):
        plot.main([str(tmp_path)])


def test_the_bench_prints_every_phase(world, tmp_path):
    status, output = run_here(bench.main, [*flags(world, tmp_path), "--sections=reward,sync,step"])
    assert status == 0, output[-2000:]
    assert re.search(r"^\| 32 +\|.*\| +0 \|$", output, re.MULTILINE)  # 8 x 4 answers, graded as they are
    assert re.search(r"^sync: [\d,]+ bytes of float32 weights a step", output, re.MULTILINE)
    report = output[output.index("3 steps of 8 prompts x 4 samples") :]
    lines = re.findall(r"^(\w+) +([\d.]+) +([\d.]+)%.* ([\d.]+) +([\d.]+)$", report, re.MULTILINE)
    assert [m[0] for m in lines] == ["rollout", "tail", "reward", "logprobs", "train", "sync", "probe", "rest", "step"]
    assert sum(float(m[2]) for m in lines) == pytest.approx(200, abs=0.5)
    assert all(float(fastest) <= float(median) <= float(slowest) for _, median, _, fastest, slowest in lines)
    assert "GFLOP/s a rank" in report and "GiB resident" in report
    assert not list(tmp_path.iterdir())


def test_the_published_stages_load():
    contexts = [load_config([f"configs/{name}.py"]).max_response_len for name in ("8k", "16k", "24k")]
    assert contexts == [(8192,), (16384,), (24576,)]


def test_the_columns_of_a_steps_updates_are_means_by_name(group_of_one):
    sums = metrics.LossSums(*torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 10.0], dtype=torch.float64))
    columns = metrics.loss_columns(sums, [0.5, 1.5], [None, 3.0])
    assert columns == {"pg_loss": 0.2, "kl": 0.3, "entropy": 0.4, "pg_clip_frac": 0.5, "loss": 1.0, "grad_norm": 3.0,
                       "tokens_trained": 10}  # fmt: skip
