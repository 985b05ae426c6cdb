"""Files of completions that other engines wrote: each format by a few rows, what is refused, what is said."""

import gzip
import json
import os
import resource
import subprocess
import sys

import pytest

import eval as evaluation
from configs import UserError
from conftest import SHARED
from evaluation.engines import read_engine
from evaluation.formats import engine_rows
from evaluation.grade import grade
from grader.pool import RewardPool
from reward import Problem
from runs import ROOT


@pytest.fixture(scope="module")
def pool():
    with RewardPool(1) as pool:
        yield pool


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def scores(pool, path, asked=None, think="optional"):
    """{benchmark: {id: scores}}"""
    rows, _ = grade(read_engine(path, asked or {}), pool, think)
    found = {}
    for row in rows:
        found.setdefault(row.benchmark, {})[row.id] = row.scores
    return found


def thought(answer):
    return f"I add \\boxed{{7}} up.\n</think>\n\nIt is \\boxed{{{answer}}}."


def chat(answer, finish_reason="stop", **message):
    content = {"role": "assistant", "content": thought(answer), "reasoning_content": None} | message
    return {"index": 0, "message": content, "finish_reason": finish_reason}


def batch(custom_id, *choices, error=None):
    body = {"object": "chat.completion", "choices": list(choices), "usage": {"completion_tokens": 80}}
    return {"id": "r", "custom_id": custom_id, "response": {"status_code": 200, "body": body}, "error": error}


def harness(doc_id, gold, texts, **more):
    row = {"doc_id": doc_id, "doc": {"problem": f"p{doc_id}", "answer": gold}, "target": gold, "resps": [texts]}
    return row | {"filtered_resps": ["5"] * len(texts), "filter": "none"} | more


TWO, RIGHT_WRONG = [thought(5), thought(9)], {"0": [1, 0], "1": [0, 1]}
OLD_LISTS = [(["5"], [thought(5), "it's \\boxed{9}</think>\\boxed{9}"]), (["8", "9"], TWO)]
# each with the texts 5 and 9 for two problems whose answers are 5 and 9: (rows, the scores by id)
FORMATS = {
    "lm-evaluation-harness": ([harness(0, "5", TWO), harness(1, 9, TWO)], RIGHT_WRONG),
    "lm-evaluation-harness, two filters": (
        [harness(i, g, TWO, filter=f) for i, g in ((0, "5"), (1, "9")) for f in ("strict", "flexible")],
        RIGHT_WRONG,
    ),
    "lm-evaluation-harness, without target": ([harness(0, "5", TWO, target=None)], {"0": [1, 0]}),
    "lighteval": (
        [
            {
                "doc": {"query": f"q{i}", "choices": ["4", "5", "9"], "gold_index": gold, "id": str(i)},
                "model_response": {"text": TWO, "output_tokens": [[1, 2], [1]], "reasonings": [None, None]},
            }
            for i, gold in enumerate(([1], 2))
        ],
        RIGHT_WRONG,
    ),
    "lighteval, older": (
        [
            {"full_prompt": f"q{i}", "predictions": str(texts), "gold": str(golds), "choices": "[]"}
            for i, (golds, texts) in enumerate(OLD_LISTS)
        ],
        RIGHT_WRONG,
    ),
    "verl": (
        [{"input": f"<｜User｜>q{g}", "output": text, "gts": g, "score": 1.0} for text in TWO for g in "59"],
        RIGHT_WRONG,
    ),
    "Qwen2.5-Math": (
        [
            {"idx": i, "question": "q", "gt": g, "answer": f"${g}$", "solution": "s", "code": TWO, "pred": ["5", "5"]}
            for i, g in enumerate("59")
        ],
        RIGHT_WRONG,
    ),
    "OpenCompass": (
        [{"id": i, "origin_prompt": "q", "prediction": thought(5), "gold": g} for i, g in enumerate("59")],
        {"0": [1], "1": [0]},
    ),
    "ours, lists of texts": (
        [{"benchmark": "own", "id": str(i), "answer": g, "completions": TWO} for i, g in enumerate("59")],
        RIGHT_WRONG,
    ),
    "own, responses": ([{"id": i, "answer": g, "responses": TWO} for i, g in enumerate((5, 9))], RIGHT_WRONG),
    "own, one text a row": (
        [{"prompt": f"q{g}", "answer": g, "generation": text} for g in "59" for text in TWO],
        RIGHT_WRONG,
    ),
    "own, generations with reasons": (
        [{"problem": "q", "solution": "s", "answer": "5", "generations": TWO, "finish_reasons": ["stop", "length"]}],
        {"0": [1, 0]},
    ),
    "own, without id and question": ([{"answer": g, "model_output": thought(5)} for g in "59"], {"0": [1], "1": [0]}),
    "own, a nested answer": (
        [{"prompt": [{"role": "user"}], "reward_model": {"ground_truth": "5"}, "data_source": "own", "responses": TWO}],
        {"0": [1, 0]},
    ),
    "vLLM": (
        [
            {"prompt": f"q{g}", "answer": g, "outputs": [{"text": text, "token_ids": [1, 2]} for text in TWO]}
            for g in "59"
        ],
        RIGHT_WRONG,
    ),
    "SGLang": (
        [
            {"id": 0, "answer": "5", "text": "\\boxed{5}", "meta_info": {"finish_reason": {"type": kind}}}
            for kind in ("stop", "length")
        ],
        {"0": [1, 0]},
    ),
    "chat responses": ([{"id": 0, "answer": "5", "response": {"choices": [chat(5), chat(9)]}}], {"0": [1, 0]}),
    "own, with counts and choices": (
        [{"question": "q", "choices": ["4", "5"], "samples": 2, "answer": "5", "response": TWO}],
        {"0": [1, 0]},
    ),
    "own, two names for one answer": (
        [{"id": 0, "answer": 5, "gold": "5", "response": TWO, "text": "all of it"}],
        {"0": [1, 0]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_is_read(pool, tmp_path, name):
    rows, expected = FORMATS[name]
    assert scores(pool, write(tmp_path / "own.jsonl", rows)) == {"own": expected}


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_is_read_from_every_kind_of_file(pool, tmp_path, name):
    """As a list, as lines, compressed, as columns of Parquet, and from a folder of shards."""
    rows, expected = FORMATS[name]
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "own.json").write_text(json.dumps(rows, indent=1))
    write(tmp_path / "own.json", rows)
    with gzip.open(tmp_path / "own.jsonl.gz", "wt") as f:
        f.writelines(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "shards").mkdir()
    for i, row in enumerate(rows):
        write(tmp_path / "shards" / f"own-{i:05}-of-{len(rows):05}.jsonl", [row])
    files = [tmp_path / "list" / "own.json", tmp_path / "own.json", tmp_path / "own.jsonl.gz", tmp_path / "shards"]
    one_type = len({type(row.get("answer", row.get("target"))) for row in rows}) == 1 and name != "lighteval"
    if one_type:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        files.append(tmp_path / "own.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(rows), files[-1])
    for file in files:
        assert scores(pool, file) == {"own": expected}, file


@pytest.mark.parametrize("name, tokens", [("lighteval", [2, 1]), ("vLLM", [2, 2]), ("verl", [None])])
def test_tokens_are_counted_where_they_are_known(tmp_path, name, tokens):
    responses = list(read_engine(write(tmp_path / "own.jsonl", FORMATS[name][0]), {}))
    assert [response.tokens for response in responses[: len(tokens)]] == tokens


def test_a_folder_of_an_evaluation_is_its_completions(pool, tmp_path):
    rows = [{"benchmark": "b", "id": "0", "answer": "5", "completions": TWO}]
    write(tmp_path / "completions.jsonl", rows)
    write(tmp_path / "graded.jsonl", [{"benchmark": "b", "scores": [1.0]}])
    assert scores(pool, tmp_path) == {"b": {"0": [1, 0]}}


def test_benchmarks_are_called_by_row_task_or_file(pool, tmp_path):
    harness_file = write(tmp_path / "samples_aime24_2025-05-01T00-00-00.123.jsonl", [harness(0, "5", TWO)])
    assert list(scores(pool, harness_file)) == ["aime24"]
    doc = {"query": "q", "choices": ["5"], "gold_index": [0], "id": "0", "task_name": "lighteval|amc23|0"}
    lighteval = write(tmp_path / "details.jsonl", [{"doc": doc, "model_response": {"text": TWO}}])
    assert list(scores(pool, lighteval)) == ["amc23"]
    assert set(scores(pool, tmp_path)) == {"aime24", "amc23"}


def test_thinking_beside_the_text_is_put_before_it(pool, tmp_path):
    """And what is cut off within it has no answer."""
    hidden = {"reasoning_content": "\\boxed{9}?", "content": "\\boxed{5}"}
    newer = {"reasoning": "\\boxed{9}?", "content": "\\boxed{5}"}
    unfinished = {
        "id": 0,
        "answer": "5",
        "response": None,
        "reasoning_content": "\\boxed{5}",
        "finish_reason": "length",
    }
    assert scores(pool, write(tmp_path / "cut.jsonl", [unfinished])) == {"cut": {"0": [0]}}
    cut = {"reasoning_content": "It is \\boxed{5}", "content": None}
    rows = [
        {"id": 0, "answer": "5", "choices": [chat(1, **hidden), chat(1, **newer), chat(1, "length", **cut)]},
        {"id": 1, "answer": "5", "response": "\\boxed{5}", "reasoning_content": "\\boxed{9}?"},
    ]
    path = write(tmp_path / "own.jsonl", rows)
    assert (
        scores(pool, path)
        == {"own": {"0": [1, 1, 0], "1": [1]}}
        == {"own": scores(pool, path, think="required")["own"]}
    )
    text = next(engine_rows(path, False))["completions"][0]["text"]
    assert text == "<think>\\boxed{9}?</think>\\boxed{5}"


def test_required_tags_count_as_opened_in_the_prompt(pool, tmp_path):
    texts = ["a</think>\\boxed{5}", "<think>a</think>\\boxed{5}", "\\boxed{5}", "<think>\\boxed{5}"]
    completions = [{"text": text, "finish_reason": "stop"} for text in texts]
    path = write(tmp_path / "own.jsonl", [{"id": 0, "answer": "5", "outputs": completions}])
    assert scores(pool, path, think="required")["own"]["0"] == [1, 1, 0, 0]
    assert scores(pool, path)["own"]["0"] == [1, 1, 1, 1]


@pytest.mark.parametrize("reason, right", [
    ("stop", 1), ("eos", 1), (None, 1), ("length", 0), ("max_tokens", 0), ("LENGTH", 0), ({"type": "length"}, 0),
])  # fmt: skip
def test_reasons_of_every_engine(pool, tmp_path, reason, right):
    outputs = [{"text": "\\boxed{5}", "finish_reason": reason}, {"text": "", "finish_reason": "stop"}]
    path = write(tmp_path / "own.jsonl", [{"id": 0, "answer": "5", "outputs": outputs}])
    assert scores(pool, path)["own"]["0"] == [right, 0]


CUT = "So \\boxed{5}. But wait"


@pytest.mark.parametrize("texts, right, said", [
    ([CUT, CUT], [1, 1], "no text closes </think> or says why it ended"),
    ([CUT, thought(5), CUT], [0, 1, 0], "2 texts without </think> count as cut off"),
    ([thought(5), "<think>" + CUT], [1, 0], "1 texts without </think> count as cut off"),
    (["<think>" + CUT], [0], "1 texts without </think> count as cut off"),
    ([thought(5)], [1], ""),
    ([CUT, {"text": thought(5), "finish_reason": "stop"}], [1, 1], ""),  # the file has reasons
])  # fmt: skip
def test_a_file_that_does_not_say_how_texts_ended_is_judged_as_a_whole(pool, tmp_path, capsys, texts, right, said):
    """Also where the text that tells comes last."""
    rows = [{"id": i, "answer": "5", "completions": [text]} for i, text in enumerate(texts)]
    assert list(scores(pool, write(tmp_path / "own.jsonl", rows))["own"].values()) == [[x] for x in right]
    output = capsys.readouterr().out
    assert said in output and ("count" in output) == bool(said)


# ------------------------------------------------------------------------------------------------------------- batches

ASKED = {("b", str(i)): Problem(str(i), f"q{i}", gold) for i, gold in enumerate("59")}


@pytest.mark.parametrize("name", ["{}", "b-{}", "request_{}", "b_{}"])
def test_a_batch_gets_its_answers_by_id(pool, tmp_path, name):
    """Exact, or behind what all ids have in common; the problem's question is there too."""
    rows = [batch(name.format(i), chat(5), chat(9), chat(9, "length", content=CUT)) for i in (1, 0)]
    path = write(tmp_path / "out.jsonl", rows)
    assert scores(pool, path, ASKED) == {"b": {"1": [0, 1, 0], "0": [1, 0, 0]}}
    assert {response.problem for response in read_engine(path, ASKED)} == set(ASKED.values())


def test_ids_of_several_benchmarks_are_told_apart_by_their_names(pool, tmp_path):
    asked = ASKED | {("c", "0"): Problem("0", "other", "9")}
    path = write(tmp_path / "out.jsonl", [batch("c-0", chat(9)), batch("b-0", chat(9)), batch("b-1", chat(9))])
    assert scores(pool, path, asked) == {"c": {"0": [1]}, "b": {"0": [0], "1": [1]}}
    with pytest.raises(UserError, match="no problem of --benchmarks has the id 'x-0'"):
        scores(pool, write(path, [batch("x-0", chat(9))]), asked)


def test_a_file_with_answers_is_joined_too(pool, tmp_path):
    path = write(tmp_path / "own.jsonl", [{"id": i, "answer": "7", "response": thought(5)} for i in (0, 1)])
    assert scores(pool, path) == {"own": {"0": [0], "1": [0]}} and scores(pool, path, ASKED)["b"]["0"] == [1]


def test_failed_requests_and_missing_problems_are_said(pool, tmp_path, capsys):
    failed = batch("b-1") | {"response": None, "error": {"code": "x", "message": "too\nlong"}}
    refused = batch("b-0") | {"response": {"status_code": 400, "body": {"error": {"message": "bad"}}}}
    path = write(tmp_path / "out.jsonl", [batch("b-0", chat(5)), refused, failed])
    assert scores(pool, path, ASKED) == {"b": {"0": [1]}}
    output = capsys.readouterr().out
    assert "2 requests failed and count as no samples, the first: b-0: bad" in output
    assert "no completions of 1 of the 2 problems of --benchmarks, which are left out, the first: b 1" in output
    with pytest.raises(UserError, match="all 1 requests failed, the first: b-1: too long"):
        scores(pool, write(path, [failed]), ASKED)


def test_a_batch_is_graded_on_the_command_line(tmp_path):
    benchmark = write(tmp_path / "mine.jsonl", [{"problem": p.problem, "answer": p.answer} for p in ASKED.values()])
    path = write(tmp_path / "out.jsonl", [batch(f"r-{i}", chat(5), chat(9, content="\\boxed{9}")) for i in (0, 1)])
    for think, accuracy in (("", 0.5), ("required", 0.25)):
        argv = [f"--completions={path}", f"--benchmarks={benchmark}", f"--out_dir={tmp_path}/out"]
        evaluation.main([*argv, f"--think={think}"] if think else argv)
        results = json.loads((tmp_path / "out" / "results.json").read_text())
        assert results["mine"]["pass_at_1"] == accuracy and results["mine"]["think"] == (think or "optional")


# ------------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize("row, message", [
    ({"id": 0, "answer": "5", "tokens": 3}, r"no texts in the columns 'id', 'answer', 'tokens'"),
    ({"id": 0, "response": "x", "score": 1.0}, "a value among the columns 'id', 'response', 'score', or --b"),
    ({"id": 0, "answer": "5", "response": "x", "output": "y"}, "'response' and 'output' may both be the texts"),
    ({"id": 0, "answer": "5", "ground_truth": "6", "output": "y"}, "'answer' and 'ground_truth' may both be the right"),
    ({"id": 0, "answer": "5", "responses": ["x", 7]}, "needs a text"),
    ({"id": 0, "answer": "5", "choices": ["4", "5"], "prediction": "5"}, "no texts in the columns"),
    ({"id": 0, "answer": "5", "responses": []}, "own 0 has no completions"),
    ({"id": 0, "answer": "5", "responses": ["x"], "finish_reasons": ["stop"] * 2}, "2 finish reasons for 1 texts"),
    ({"id": 0, "answer": {"a": 1}, "response": "x"}, "needs an 'answer'"),
    ({"id": [0], "answer": "5", "response": "x"}, "needs 'benchmark' and 'id'"),
    (harness(0, "5", [[-1.5, False]]), "needs a text"),  # log-likelihoods
    ({"full_prompt": "q", "gold": "['5']", "predictions": "[array('x')]"}, "no list as Python writes it"),
    ({"doc": {"choices": ["5"], "gold_index": 3, "id": "0"}, "model_response": {"text": ["x"]}}, "gold_index .3. is "),
    (batch("b-0", chat(5)), "needs an 'answer' with a value among the columns .*, or --benchmarks=FILE"),
    ("text", "needs an object"), (None, "needs an object"),
])  # fmt: skip
def test_what_is_not_understood_is_named_in_one_line(tmp_path, row, message):
    rows = [{"id": 9, "answer": "5", "response": "x"}, row] if isinstance(row, dict) and "id" in row else [row]
    path = write(tmp_path / "own.jsonl", rows)
    place = rf"own\.jsonl:{len(rows)}: not a row of completions: " if "has no completions" not in message else ""
    with pytest.raises(UserError, match=f"{place}.*{message}") as refused:
        list(read_engine(path, {}))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("rows, message", [
    ([{"id": 0, "answer": "5", "response": "x"}, {"id": 0, "answer": "6", "response": "x"}], "with two answers"),
    ([{"index": 0, "problem": p, "answer": "5", "response": "x"} for p in "ab"], "own 0 stands there with two q"),
    ([{"id": 0, "answer": "5", "response": "x"}, {"answer": "5", "response": "x"}], "no id, unlike the rows before"),
])  # fmt: skip
def test_rows_that_contradict_each_other_are_refused(tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        list(read_engine(write(tmp_path / "own.jsonl", rows), {}))


@pytest.mark.parametrize("ids, message", [
    (["0", "x"], "has the id 'x'"), (["b-0", "b-7"], "has the id 'b-0', nor"),
    (["b-0-0", "b-1-1"], "the ids 'b-0-0' and 'b-1-1' differ before their ends"),  # number of problem, of sample
])  # fmt: skip
def test_ids_without_a_problem_are_refused(tmp_path, ids, message):
    with pytest.raises(UserError, match=message) as refused:
        list(read_engine(write(tmp_path / "out.jsonl", [batch(i, chat(5)) for i in ids]), ASKED))
    assert "\n" not in str(refused.value)


def test_a_number_at_the_end_of_an_id_is_the_problem_s_where_all_have_one(pool, tmp_path):
    ids = sorted(problem_id for _, problem_id in ASKED)
    path = write(tmp_path / "out.jsonl", [batch(f"req{i}", chat(5)) for i in ids])
    assert sorted(key for of_one in scores(pool, path, ASKED).values() for key in of_one) == ids


def test_fields_of_benchmarks_are_not_those_of_completions(tmp_path):
    path = write(tmp_path / "own.jsonl", [{"id": 0, "answer": "5", "my_gold": "6", "response": "\\boxed{5}"}])
    with pytest.raises(UserError, match="are of --benchmarks=FILE, not of the completions"):
        evaluation.main([f"--completions={path}", f"--out_dir={tmp_path / 'out'}", "--answer_field=my_gold"])


def test_several_files_that_count_as_one_are_said(tmp_path, pool, capsys):
    for name in ("a", "b"):
        write(tmp_path / f"{name}.jsonl", [{"benchmark": "x", "id": 0, "answer": "5", "response": thought(5)}])
    assert scores(pool, tmp_path) == {"x": {"0": [1, 1]}}
    assert "2 files are graded as one, from " in capsys.readouterr().out


def test_texts_without_a_box_are_said(tmp_path, capsys):
    path = write(tmp_path / "own.jsonl", [{"id": 0, "answer": "5", "response": "The answer is 5."}])
    evaluation.main([f"--completions={path}", f"--out_dir={tmp_path / 'out'}"])
    assert "own: not one response has an answer in \\boxed{}, so none can be right" in capsys.readouterr().out


def test_a_row_without_an_id_is_not_joined(tmp_path):
    path = write(tmp_path / "own.jsonl", [{"problem": "q", "response": "x"}])
    with pytest.raises(UserError, match="has no id that a benchmark's problem could have"):
        list(read_engine(path, ASKED))


def test_files_that_are_none_are_refused_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b'{"id": 0}\n' * 999)[:-20])
    (tmp_path / "d.jsonl.gz").write_bytes(b"no gzip")
    (tmp_path / "e.parquet").write_bytes(b"no parquet")
    (tmp_path / "f.json").write_text('{"a": [1,\n2')
    (tmp_path / "g.json").write_text("[]")
    os.mkfifo(tmp_path / "h.parquet")
    for name in ("empty", "none.jsonl", "c.jsonl.gz", "d.jsonl.gz", "e.parquet", "f.json", "g.json", "h.parquet"):
        with pytest.raises(UserError, match=f"(?s)^(?!.*\n).*{name}"):
            list(read_engine(tmp_path / name, {}))


def test_an_object_of_columns_is_a_table_and_another_a_row(pool, tmp_path):
    row = {"id": 0, "answer": "5", "responses": [{"text": text} for text in TWO]}
    for value, expected in ((row, {"0": [1, 0]}), ({"answer": ["5", "9"], "responses": [TWO, TWO]}, RIGHT_WRONG)):
        (tmp_path / "own.json").write_text(json.dumps(value, indent=1))
        assert scores(pool, tmp_path / "own.json") == {"own": expected}


@pytest.mark.parametrize("gold, right", [("4 + 1 #### 5", 1), ('["6", "5"]', 1), (5.0, 1), ("so \\boxed{6}", 0)])
def test_answers_are_read_as_those_of_problem_files(pool, tmp_path, gold, right):
    assert scores(pool, write(tmp_path / "own.jsonl", [harness(0, gold, TWO[:1])])) == {"own": {"0": [right]}}


def test_a_large_file_is_read_a_row_at_a_time(tmp_path):
    """200 MB of texts that no reason ends, so that it is read twice."""
    path, text = tmp_path / "own.jsonl", "So it is. " * 20_000
    with open(path, "w") as f:
        for i in range(1000):
            f.write(json.dumps({"id": i, "answer": "5", "response": text + ("</think>" if i == 999 else "")}) + "\n")
    code = "import sys; from pathlib import Path; from evaluation.engines import read_engine\n"
    code += "print(sum(r.finish_reason == 'length' for r in read_engine(Path(sys.argv[1]), {})))"
    limit = lambda: resource.setrlimit(resource.RLIMIT_AS, (160 << 20, 160 << 20))  # noqa: E731
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, preexec_fn=limit)
    assert done.stdout.splitlines()[-1:] == ["999"], done.stderr[-2000:]


# ------------------------------------------------------------------------------------------------------------- samples

SAMPLES = SHARED / "samples" / "completions"
EXPECTED = {  # rows, scores of each problem; a batch's last answer is wrong as well as cut off
    "details_lighteval_aime24_0_2025.parquet": [1, 0, 1, 0], "openai_batch_output.jsonl": [1, 0, 1, 0],
    "ours.jsonl": [1, 0, 1, 0], "ours_cut_no_reason.jsonl": [1], "ours_no_tags.jsonl": [1],
    "samples_aime24_2025-05-01T00-00-00.jsonl": [1, 0, 1, 0], "simple_texts.jsonl": [1, 0, 1, 0],
    "verl_val_20.jsonl": [1, 0],
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_sample_files(pool, name):
    if not (SAMPLES / name).is_file():
        pytest.skip("the sample files are not here")
    asked = {}
    if name == "openai_batch_output.jsonl":
        golds = [json.loads(line)["answer"] for line in (SAMPLES / "ours.jsonl").read_text().splitlines()]
        asked = {("aime24", str(i)): Problem(str(i), "", gold) for i, gold in enumerate(golds)}
    (by_id,) = scores(pool, SAMPLES / name, asked).values()
    assert list(by_id.values()) == [EXPECTED[name]] * 6
