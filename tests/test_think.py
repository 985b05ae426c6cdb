"""The settings `think` and `stop_tokens`: where an answer stands, in training, evaluation and others' files alike."""

import json
import shutil

import pytest

import eval as evaluation
from reward import Problem, extract_answer, grade, graded_text, reward_fn
from runs import change_template, flags, make_world, responses, rows_of, run_here, train

OPENED = "<|assistant|><think>\n"
SHUT = "<|assistant|><think>\n\n</think>\n\n"  # of a model that is told not to think


@pytest.mark.parametrize("opened, response, finish_reason, required, optional", [
    ("", "<think>\\boxed{1}</think>\\boxed{2}", "stop", "2", "2"),
    (OPENED, "\\boxed{1}</think>\\boxed{2}", "stop", "2", "2"),
    (OPENED, "\\boxed{1}</think>\\boxed{2}", "length", "2", "2"),  # cut off behind its answer
    (OPENED, "\\boxed{1}</think>", "stop", None, None),  # the thinking's box is no answer
    (OPENED, "\\boxed{1}", "stop", None, "1"),  # answered without closing what the template opened
    (OPENED, "\\boxed{1} but wait", "length", None, None),
    ("", "<think>\\boxed{1}", "stop", None, "1"),
    ("", "<think>\\boxed{1}", "length", None, None),
    ("", "First \\boxed{1}, so \\boxed{2}.", "stop", None, "2"),
    ("", "So it is \\boxed{2}. Wait", "length", None, None),
    ("", "\\boxed{1}</think>\\boxed{2}", "stop", None, "2"),
    ("", "\\boxed{1}</think>\\boxed{2}<think>", "stop", None, "2"),
    ("", "\\boxed{1}</think>none", "stop", None, None),
    (SHUT, "\\boxed{2}", "stop", "2", "2"),
    (SHUT, "\\boxed{2} and", "length", "2", "2"),
    ("", "<think>a</think>\\boxed{1}</think>\\boxed{2}", "stop", "2", "2"),
    (OPENED, "a</think>\\boxed{1}<think>b</think>none", "stop", "1", "1"),  # the first </think> ends the thinking
    ("", "I need no <think> tag: \\boxed{2}", "stop", None, "2"),  # what merely mentions them
    ("", "Without <think> and </think>: \\boxed{2}", "stop", "2", "2"),
    ("\\boxed{7}", "none", "stop", None, None),  # a template's box is not the model's
    ("", "", "stop", None, None),
])  # fmt: skip
def test_where_the_answer_stands(opened, response, finish_reason, required, optional):
    for think, answer in (("required", required), ("optional", optional)):
        text = graded_text(opened, response, finish_reason, think)
        assert extract_answer(text) == answer
        assert reward_fn(Problem("1", "?", answer or "2"), text) == float(answer is not None)
    assert graded_text(opened, response, finish_reason, "required") == opened + response


# ---------------------------------------------------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The world of a model that writes no tags, as its template does not."""
    return make_world(tmp_path_factory.mktemp("plain"), tags=False)


def plain_flags(plain, folder, **changes):
    return flags(plain, folder, **dict(max_response_len="24", group_size="8", save_every=0) | changes)


def test_a_model_without_tags_learns_where_they_are_optional(plain, tmp_path):
    """Its rewards are those of the answers that are dumped, and validation finds them too."""
    output = train(plain_flags(plain, tmp_path, think="optional", stage_steps=5, eval_every=5, eval_k=16))
    rows = rows_of(tmp_path / "run")
    rewards = [row["reward_mean"] for row in rows]
    assert min(rewards) > 0 and len(set(rewards)) > 1 and {row["thinking_ratio"] for row in rows} == {0}
    assert rows[-1]["eval_test"] > 0 and any(row["grad_norm"] for row in rows) and "not one response" not in output
    dumped = [row for step in range(1, 6) for row in responses(tmp_path / "run", step)]
    assert {row["reward"] for row in dumped} == {0, 1}
    for row in dumped:
        assert row["reward"] == (row["answer"] is not None and grade(row["answer"], row["gold"]))


def test_a_model_without_tags_earns_nothing_where_they_are_required_and_one_line_says_so(plain, tmp_path):
    output = train(plain_flags(plain, tmp_path, stage_steps=2))
    assert [row["reward_mean"] for row in rows_of(tmp_path / "run")] == [0, 0]
    lines = [line for line in output.splitlines() if "--think=optional" in line]
    assert len(lines) == 1 and lines[0].startswith("step 1: not one response has both <think> and </think>")


def test_the_share_of_responses_with_tags_is_reported(six_steps):
    assert all(row["thinking_ratio"] > 0.5 for row in rows_of(six_steps))


def evaluated(world, benchmarks, out, *more):
    argv = ["configs/tiny.py", f"--model={world}/base", f"--benchmarks={benchmarks}", f"--out_dir={out}", "--k=4"]
    status, output = run_here(evaluation.main, [*argv, "--temperature=1", "--top_p=1", "--max_tokens=24", *more])
    assert status == 0, output[-3000:]
    return output, json.loads((out / "results.json").read_text())


def test_an_evaluation_looks_for_answers_as_it_is_told(plain, tmp_path):
    """The samples stay; graded by another rule, other benchmarks of the folder are left out; from the file of
    completions come the same figures; a comparison says that they were graded differently."""
    out, again, other = tmp_path / "out", tmp_path / "again", tmp_path / "other.jsonl"
    other.write_text((plain / "test.jsonl").read_text().splitlines()[0] + "\n")
    _, results = evaluated(plain, f"{plain}/test.jsonl,{other}", out, "--think=optional")
    assert results["test"]["pass_at_1"] > 0 and {r["think"] for r in results.values()} == {"optional"}
    assert "think=optional" in (out / "results.md").read_text()
    shutil.copytree(out, again)
    evaluation.main([f"--completions={out}/completions.jsonl", f"--out_dir={tmp_path}/file"])
    assert (tmp_path / "file" / "graded.jsonl").read_bytes() == (out / "graded.jsonl").read_bytes()
    samples = (out / "completions.jsonl").read_bytes()
    output, results = evaluated(plain, f"{plain}/test.jsonl", out)
    assert "other was graded by think=optional and is left out: name it too, to grade it by think=required" in output
    assert (out / "completions.jsonl").read_bytes() == samples and set(results) == {"test"}
    assert results["test"]["pass_at_1"] == 0 and results["test"]["think"] == "required"
    status, output = run_here(evaluation.main, ["--compare", str(out), str(again)])
    assert status == 0 and "a with think=required, b with think=optional" in output
    rows = [json.loads(line) for line in (out / "graded.jsonl").read_text().splitlines()]
    (out / "graded.jsonl").write_text(json.dumps(rows[0] | {"think": "no"}) + "\n")
    assert run_here(evaluation.main, ["--compare", str(out), str(again)])[0] == 2


def test_what_the_template_opened_is_kept_with_our_own_completions(tmp_path):
    """A model that ended by itself within the opened <think> has answered, in training and from the file alike."""
    opened = f"Answer as in \\boxed{{5}}.{OPENED}"  # which is not the model's answer
    texts = [f"{opened}{response}" for response in ("\\boxed{5}", "\\boxed{5}", "x</think>\\boxed{5}", "none")]
    reasons = ["stop", "length", "stop", "stop"]
    completions = [{"text": t, "finish_reason": r, "tokens": 3} for t, r in zip(texts, reasons, strict=True)]
    row = {"benchmark": "b", "id": "1", "answer": "5", "opened": opened, "completions": completions}
    (tmp_path / "c.jsonl").write_text(json.dumps(row) + "\n")
    for think, scores in (("optional", [1, 0, 1, 0]), ("required", [0, 0, 1, 0])):
        out = tmp_path / think
        evaluation.main([f"--completions={tmp_path}/c.jsonl", f"--out_dir={out}", f"--think={think}"])
        assert json.loads((out / "graded.jsonl").read_text())["scores"] == scores


# --------------------------------------------------------------------------------------------------------- stop tokens


def test_stop_tokens_end_responses_in_training_and_evaluation(plain, tmp_path):
    train(plain_flags(plain, tmp_path, stage_steps=1, stop_tokens="{"))
    rows = responses(tmp_path / "run", 1)
    stopped = [row["response"] for row in rows if row["finish_reason"] == "stop"]
    assert "<|assistant|>\\boxed" in stopped and not any("{" in row["response"] for row in rows)  # decoded without it
    _, results = evaluated(plain, plain / "test.jsonl", tmp_path / "out", "--stop_tokens={")
    rows = [json.loads(line) for line in (tmp_path / "out" / "completions.jsonl").read_text().splitlines()]
    texts = [completion["text"] for row in rows for completion in row["completions"]]
    assert any(text.endswith("\\boxed") for text in texts) and not any("{" in text for text in texts)
    argv = ["configs/tiny.py", f"--model={plain}/base", f"--benchmarks={plain}/test.jsonl"]
    argv += [f"--out_dir={tmp_path}/out", "--k=4", "--temperature=1", "--top_p=1", "--max_tokens=24"]
    status, output = run_here(evaluation.main, argv)  # other samples
    assert status == 2 and "stop_tokens=['{'], not None: choose another --out_dir" in output
    unknown = "--stop_tokens=<|im_end|>"
    for output in (
        train([*plain_flags(plain, tmp_path, stage_steps=1, run_name="other"), unknown], status=2),
        run_here(evaluation.main, [*argv, unknown])[1],
    ):
        assert "error: stop_tokens: '<|im_end|>' is no token of" in output


def test_a_template_that_ends_turns_with_another_token_is_named_at_the_start(plain, tmp_path):
    shutil.copytree(plain / "base", tmp_path / "base")
    change_template(tmp_path / "base", "{{ m['content'] }}{{ eos_token }}", "{{ m['content'] }}<|bos|>{{ eos_token }}")
    for name in ("train.jsonl", "test.jsonl"):
        shutil.copy(plain / name, tmp_path)
    warning = "ends a turn with '<|bos|>', which is not among the stop tokens ('<|eos|>')"
    for stop_tokens, warns in (("", True), ("<|bos|>", False)):
        more = {"stop_tokens": stop_tokens} if stop_tokens else {}
        output = train(plain_flags(tmp_path, tmp_path / f"run{warns}", stage_steps=1, think="optional", **more))
        assert (warning in output) == warns
        out = tmp_path / f"out{warns}"
        output, _ = evaluated(tmp_path, tmp_path / "test.jsonl", out, *(f"--{k}={v}" for k, v in more.items()))
        assert (warning in output) == warns
