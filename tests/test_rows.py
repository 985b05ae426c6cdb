"""Rows of published schemas: which field holds what, what a prompt says besides, and files of every shape."""

import contextlib
import csv
import gzip
import json
from decimal import Decimal
from pathlib import Path

import pytest

from configs import UserError, dataset_name
from problems.files import data_files, objects
from problems.golds import golds, solution_answer
from problems.instructions import bare_problem
from problems.reading import read_all, read_rows
from problems.rows import Fields, as_row
from reward import grade

SAMPLES = Path(__file__).parents[1].parent / "shared" / "samples"
Q, SOLVED = "What is $2 + 3$?", "Adding, we get $\\boxed{5}$."
DAPO = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem.\n\n{}\n\n"
    'Remember to put your answer on its own line after "Answer:".'
)


def chat(text, **more):
    return [{"role": "user", "content": text, **more}]


def verl(text, gold="5", **more):
    return {"data_source": "x", "prompt": chat(text), "reward_model": {"ground_truth": gold, "style": "rule"}, **more}


# Rows as data sets publish them, each of the question Q and the answer 5.
PUBLISHED = {
    "DeepScaleR": {"problem": Q, "answer": "5", "solution": SOLVED},
    "NuminaMath-CoT": {"source": "x", "problem": Q, "solution": SOLVED, "messages": [*chat(Q)]},
    "NuminaMath-1.5": {"problem": Q, "solution": SOLVED, "answer": "notfound", "problem_is_valid": "Yes"},
    "MATH": {"problem": Q, "level": "Level 1", "type": "Algebra", "solution": SOLVED},
    "MATH, old boxes": {"problem": Q, "solution": "so $\\fbox{5}$."},
    "GSM8K": {"question": Q, "answer": "2 + 3 = <<2+3=5>>5\n#### 5"},
    "GSM8K by verl": {
        **verl(Q + ' Let\'s think step by step and output the final answer after "####".'),
        "extra_info": {"answer": "2 + 3 = 5\n#### 5", "question": Q, "index": 0},
    },
    "MATH by verl": verl(Q + " Let's think step by step and output the final answer within \\boxed{}."),
    "DAPO": verl(DAPO.replace("{}", Q)),
    "DAPO, processed": {**verl(Q), "prompt": Q, "solution": "5", "source_prompt": chat(DAPO.replace("{}", Q))},
    "Eurus-2": verl(Q + "\n\nPresent the answer in LaTex format: \\boxed{Your answer}"),
    "Skywork": verl(Q, '["5"]'),
    "SimpleRL": verl(f"Question:\n{Q}\nAnswer:\nLet's think step by step.\n"),
    "SimpleRL, rendered": verl(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n" + Q + "\nPlease reason step "
        "by step, and put your final answer within \\boxed{}.<|im_end|>\n<|im_start|>assistant\n"
    ),
    "Open-Reasoner-Zero": [
        {"from": "human", "value": Q},
        {"from": "assistant", "ground_truth": {"value": "5"}},
    ],
    "R1-Zero": {
        "prompt": f"A conversation between User and Assistant. The User asks. User: {Q}\nAssistant: <think>",
        "gt_answer": "5",
    },
    "OpenMathInstruct": {"problem": Q, "generated_solution": SOLVED, "expected_answer": "5", "problem_source": "x"},
    "NeMo": {
        "problem": "Solve the following math problem. Make sure to put the answer (and only answer) inside \\boxed{}."
        f"\n\n{Q}",
        "expected_answer": 5,
    },
    "MetaMath": {"query": Q, "response": "2 + 3 = 5.\n#### 5\nThe answer is: 5", "original_question": Q, "type": "x"},
    "MegaScience": {"question": Q, "answer": "Adding the two numbers gives us five.", "reference_answer": "5"},
    "MGSM": {"question": f"Frage: {Q}", "answer": "Schritt-Antwort: Wir zählen zwei und drei zusammen.",
             "answer_number": 5},
    "ASDiv": {"question": Q, "body": "", "answer": "5 (apples)"},
    "an empty field before": {"problem": "", "question": Q, "answer": "5"},
    "prose beside a box": {"problem": Q, "answer": "We add both of the numbers and get their sum.", "solution": SOLVED},
    "names with dots": {"problem": Q, "reward_model.ground_truth": "5"},
    "Alpaca, capitals": {"Instruction": "Solve the following problem.", "Input": Q, "Output": SOLVED},
    "Alpaca": {"instruction": "Solve the following math problem.", "input": Q, "output": SOLVED},
    "Alpaca, rendered": verl("Below is an instruction that describes a task. Write a response.\n\n### Instruction:\n"
                             f"{Q}\n\n### Response: Let's think step by step."),
    "MAWPS, original": {"iIndex": 1, "sQuestion": Q, "lSolutions": [5.0]},
    "TinyZero": verl(f"A conversation between User and Assistant. It answers.\nUser: {Q} Show your work in <think> "
                     "</think> tags. And return the final answer in <answer> </answer> tags, for example <answer> 1 "
                     "</answer>.\nAssistant: Let me solve this.\n<think>"),
    "EasyR1": verl(f"{Q} You FIRST think about the reasoning process as an internal monologue and then provide the "
                   "final answer. The reasoning process MUST BE enclosed within <think> </think> tags. The final "
                   "answer MUST BE put in \\boxed{}."),
    "Open-Reasoner-Zero's prompt": verl(
        "You must put your answer inside <answer> </answer> tags, i.e., <answer> answer here </answer>. And your final "
        f"answer will be extracted automatically by the \\boxed{{}} tag.\nThis is the problem:\n{Q}"),
    "Llama's evaluations": verl(
        "Solve the following math problem efficiently and clearly:\n\n- For simple problems (2 steps or fewer):\n"
        "Provide a concise solution.\n\nRegardless of the approach, always conclude with:\n\nTherefore, the final "
        "answer is: $\\boxed{answer}$. I hope it is correct.\n\nWhere [answer] is just the final number or expression "
        f"that solves the problem.\n\nProblem: {Q}"),
    "Qwen, in Chinese": verl(f"{Q}\n请逐步推理，并将最终答案放在\\boxed{{}}中。"),
    "MathInstruct": {"instruction": Q, "output": "Let us add.\nThe answer is 5.", "source": "x"},
    "Big-Math": {"problem": Q, "answer": "5", "source": "x", "domain": ["Algebra"], "llama8b_solve_rate": 0.5},
    "OlympiadBench": {
        "question": Q,
        "solution": [SOLVED],
        "final_answer": ["$5$"],
        "context": None,
        "image_1": None,
    },
    "DeepMath": {"question": Q, "final_answer": "5", "r1_solution_1": "<think>x</think>" + SOLVED},
    "TRL": {"prompt": chat(Q), "solution": "$\\boxed{5}$"},
    "TRL, a bare solution": {"prompt": chat(Q), "solution": "5"},
    "RLVR": {"messages": chat(f"Question: {Q}"), "ground_truth": "5", "dataset": "MATH"},
    "RLVR, with examples": {
        "messages": chat(f"Question: What is 1+1?\nAnswer: So the answer is \\boxed{{2}}.\n\nQuestion: {Q}"),
        "ground_truth": "5",
    },
    "ShareGPT": {"conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": SOLVED}]},
    "AReaL": {"prompt": f"<｜User｜>{Q}\nPlease reason step by step, and put your final answer within \\boxed{{}}."
              "<｜Assistant｜><think>\n", "solutions": ["\\boxed{5}"], "query_id": "a"},
    "SYNTHETIC-1": {
        "prompt": f"Return your final response within \\boxed{{}}. {Q}",
        "verification_info": '{"ground_truth": "5"}',
    },
    "PRM800K": {"question": {"problem": Q, "ground_truth_answer": "5"}, "label": {"steps": []}},
    "AIME, a table": {"ID": "1983-I-1", "Year": "1983", "Problem Number": "1", "Question": Q, "Answer": "005"},
    "AIME 2024": {"ID": "2024-I-1", "Problem": Q, "Solution": SOLVED, "Answer": 5},
    "AMC": {"id": 0, "problem": Q, "answer": 5.0, "url": "x"},
    "MathArena": {"problem_idx": 1, "problem": Q, "answer": 5, "problem_type": ["Algebra"]},
    "SVAMP": {"Body": "Two and three are numbers.", "Question": Q, "Answer": 5.0},
    "MAWPS": {"input": Q, "target": "5"},
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_rows_are_read_without_a_flag(name):
    row = as_row(PUBLISHED[name], "x")
    assert row.problem == ("Two and three are numbers. " if name == "SVAMP" else "") + Q
    assert len(row.answers) == 1 and grade("5", row.answer)
    assert not row.damage


def test_what_was_taken_off_a_prompt_is_said(tmp_path):
    lines = [json.dumps(PUBLISHED[name]) for name in ("DAPO", "RLVR, with examples", "AReaL")]
    lines = [line.replace("2 + 3", f"2 + {i}") for i, line in enumerate(lines)]  # else they are copies
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    note = read_all(tmp_path / "a.jsonl").notes()[0]
    for text in ("'Solve the following math problem", "worked examples (1)", "a chat template (1)"):
        assert text in note, note
    system = {"messages": [{"role": "system", "content": "Be brief."}, *chat(Q)], "answer": "5"}
    assert as_row(system, "x").taken == ("a system prompt",)


@pytest.mark.parametrize(
    "problem",
    [
        "Find $x$ and put your answer in \\boxed{}.",  # the question goes with it
        "Compute $2+3$. Give your answer as a fraction in \\boxed{}.",
        "Solve the following problem by induction: $n<2^n$.",
        "Think of a number. Question: is it even?",
        "Please reason step by step.",  # all there is
        "Problem: a train leaves.\nQuestion: when does it arrive?",
        "Problem: A solution contains 30% acid.\nQuestion: How many litres of acid are there in the boxed bottle?",
        "How many steps are there if we think step by step about $3$ stairs",
        "Put your answer in \\boxed{} if it is even, and double it otherwise. What is $2+3$?",
    ],
)
def test_what_may_belong_to_the_problem_stays(problem):
    text, taken = bare_problem(problem)
    assert text.removeprefix("Problem: ") == problem.removeprefix("Problem: ") and not taken


def test_an_instruction_that_is_not_known_is_said(tmp_path):
    rows = [{"problem": "Find $x$ and put your answer in \\boxed{}.", "answer": "1"}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (note,) = read_all(tmp_path / "a.json").notes()
    assert "1 problems say themselves how to answer" in note and "Find $x$ and put your answer in \\boxed{}" in note


@pytest.mark.parametrize(
    "value, expected",
    [
        ('["31"]', ["31"]), ("['31']", ["31"]), ('["\\\\frac{1}{2}", "0.5"]', ["\\frac{1}{2}", "0.5"]),
        ('["\\frac{1}{2}"]', ["\\frac{1}{2}"]), ("['$221,8$']", ["$221,8$"]), ("$221,$8$", ["221,8"]),
        (["\\frac{1}{2}", "0.5", "0.5 "], ["\\frac{1}{2}", "0.5"]), (["1", None], ["1"]),
        ("[1, 2]", ["[1, 2]"]), ("[0, \\infty)", ["[0, \\infty)"]), ("\\{1, 2\\}", ["\\{1, 2\\}"]),
        ("{1, 2}", ["{1, 2}"]),
        ("{'value': '31'}", ["31"]), ("so\n#### 1,250", ["1250"]), ("#### 1, 250", ["1, 250"]), ("025", ["25"]),
        ("000", ["0"]), (142.0, ["142"]), (0.5, ["0.5"]), (7, ["7"]), ("\\boxed{31}", ["31"]),
        ("The answer is 31.", ["31"]), ("Answer: 31", ["31"]), ("答案是31", ["31"]), ("<think>7</think>31", ["31"]),
        ("31 (accept 31.0)", ["31", "31.0"]), ("9 (apples)", ["9"]), ("f(x)", ["f(x)"]), ("**Answer: 12**", ["12"]),
        ([4.0, -9], ["4", "-9"]), (Decimal("12.50"), ["12.5"]), ("21 (base eight)", ["21 (base eight)"]),
        ("{}", ["{}"]),
        ("### Solution\n#### Step 1: add\nAdd.\n\\boxed{5}", ["5"]), ("4 + 1 #### 5", ["5"]),
        ("Proof.", []), ("#### 7\nThe answer is: 7", ["7"]),
        ("4, -9", ["4, -9"]), ("\\$12.50", ["\\$12.50"]),
        ("notfound", []), ("Not found", []), ("proof", []), ("None", []), ("$$", []), ("", []), (None, []), ([], []),
        (float("nan"), []), ("no solution", ["no solution"]), ("9" * 5000, ["9" * 5000]),
    ],
)  # fmt: skip
def test_golds(value, expected):
    assert golds(value) == expected


@pytest.mark.parametrize(
    "value", [True, {"a": 1}, float("inf"), [True], [{"a": 1}], '{"inputs": ["1"]}', '[{"func_name": "f"}]']
)
def test_what_is_no_gold_is_refused(value):
    with pytest.raises(ValueError, match="neither text nor number"):
        golds(value)


@pytest.mark.parametrize(
    "solution, answer",
    [
        ("\\boxed{1}, no: \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"), ("We add.\n#### 1,250", "1250"),
        ("By a formula.", ""),
        ("So we add. The final answer is $7$.", "$7$"), ("$\\frac{1}{2}$", "$\\frac{1}{2}$"), ("", ""),
        ("Take 3 apples and cut them.", ""), ("Let $x = 3$. Then it holds for all $n$.", ""), ("\\boxed{proof}", ""),
        ("#### Step 1: Add\n2+3=5\n#### Conclusion\nThe sum is 5.", ""),
    ],
)  # fmt: skip
def test_answers_of_solutions(solution, answer):
    assert solution_answer(solution) == answer


@pytest.mark.parametrize(
    "row, message",
    [
        ({"text": Q, "label": "5"}, "no 'problem' among the columns text, label"),
        ({"problem": Q, "level": 3}, "no 'answer' among the columns problem, level"),
        ({"problem": 5, "answer": "5"}, "'problem' is not text"),
        ({"problem": Q, "answer": {"a": 1}}, "'answer' is neither text nor number"),
        ({"prompt": [{"role": "system", "content": Q}], "answer": "5"}, "without a user's turn"),
        ({"prompt": ["a"], "answer": "5"}, "no chat"),
        ({"prompt": chat([{"type": "image_url"}]), "answer": "5"}, "images"),
        ({"question": Q, "answer": "5", "image_1": {"bytes": "x"}}, "shows an image"),
        ({"question": Q, "choices": ["4", "5"], "answer": 1}, "multiple choice"),
        ({"question": Q, "A": "4", "B": "5", "C": "6", "D": "7", "answer": "B"}, "multiple choice"),
        ({"Question": "A boy has N_00 apples.", "Answer": 3}, "numbers stand apart"),
        ({"prompt": chat(Q), "target": 98, "reward_model": {"ground_truth": {"numbers": [1]}}}, "neither text nor"),
        (verl(Q, '{"inputs": ["1"], "outputs": ["2"]}'), "neither text nor number"),
        ({"problem": "p" * 20_001, "answer": "5"}, "more than 20,000 characters"),
    ],
)
def test_what_cannot_be_asked_is_malformed_and_never_empty(row, message):
    with pytest.raises(ValueError, match=message):
        as_row(row, "x")


def test_named_fields_take_the_place_of_the_table(tmp_path):
    row = {"problem": "not this", "task": {"text": Q}, "answer": "0", "out": [{"x": 1}], "Key": "5"}
    read = as_row(row, "x", Fields("task.text", "key"))
    assert (read.problem, read.answer) == (Q, "5")
    for fields, message in ((Fields("task.name"), "no 'task.name' among the columns problem, task, answer, out, Key"),
                            (Fields(answer="gold"), "no 'gold' among the columns"),
                            (Fields(answer="out"), "'out' is neither text nor number"),
                            (Fields("task"), "'task' is an object with text: name one, as task.text"),
                            (Fields("task.text", "task"), "'task' is an object with text: name one")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            as_row(row, "x", fields)


# --------------------------------------------------------------------------------------------------------------- files

ROWS = [{"problem": f"What is ${i}+1$?", "answer": str(i + 1)} for i in range(3)]


def write_shapes(folder):
    """The same rows in every shape of file, by name."""
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    columns = {name: [row[name] for row in ROWS] for name in ROWS[0]}
    shapes = {
        "lines.jsonl": lines,
        "lines.json": lines,
        "list.json": json.dumps(ROWS),
        "indented.json": json.dumps(ROWS, indent=1),
        "columns.json": json.dumps(columns),
        "pandas.json": json.dumps({name: dict(enumerate(values)) for name, values in columns.items()}),
        "rows_api.json": json.dumps({"features": [], "rows": [{"row_idx": 0, "row": row} for row in ROWS]}),
        "named.json": json.dumps({"version": 1, "data": ROWS}),
        "by_id.json": json.dumps({f"p{i}": row for i, row in enumerate(ROWS)}),
    }
    for name, text in shapes.items():
        (folder / name).write_text(text)
    with open(folder / "a.csv", "w", newline="") as f:
        writer = csv.DictWriter(f, ROWS[0])
        writer.writeheader()
        writer.writerows(ROWS)
    for name in ("lines.jsonl", "list.json", "a.csv"):
        (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.Table.from_pylist(ROWS)
    parquet.write_table(table, folder / "a.parquet")
    with pyarrow.OSFile(str(folder / "data.arrow"), "wb") as f, pyarrow.ipc.new_stream(f, table.schema) as writer:
        writer.write_table(table)
    return sorted(path.name for path in folder.iterdir())


def test_every_shape_of_file_gives_the_same_rows(tmp_path):
    names = write_shapes(tmp_path)
    assert len(names) == 15
    for name in names:
        rows = read_all(tmp_path / name).rows
        assert [{"problem": row.problem, "answer": row.answer} for row in rows] == ROWS, name
    assert [row.id for row in read_all(tmp_path / "by_id.json").rows] == ["p0", "p1", "p2"]


def test_one_object_is_one_row_and_a_folder_of_them_a_data_set(tmp_path):
    for i, row in enumerate(ROWS):
        (tmp_path / "algebra").mkdir(exist_ok=True)
        (tmp_path / "algebra" / f"{i}.json").write_text(json.dumps(row))
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / ".hidden.jsonl").write_text("{}")
    (tmp_path / "README.md").write_text("about")
    assert [row.answer for row in read_all(tmp_path).rows] == ["1", "2", "3"]


def test_folders_and_lists_are_read_in_order_and_what_does_not_belong_together_is_refused(tmp_path):
    for name in ("data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl"):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_text(json.dumps({"problem": name, "answer": "1"}))
    assert [row.problem[-14:] for row in read_all(tmp_path / "set").rows] == [
        "0-of-00002.jsonl"[-14:],
        "1-of-00002.jsonl"[-14:],
    ]
    other = tmp_path / "b.jsonl"
    other.write_text(json.dumps(ROWS[0]))
    assert len(data_files(f"{other}, {tmp_path / 'set'}")) == 3
    (tmp_path / "set" / "data" / "test-00000-of-00001.jsonl").write_text("{}")
    with pytest.raises(UserError, match="holds the splits test, train: name the file"):
        read_all(tmp_path / "set")
    (tmp_path / "mixed").mkdir()
    for name in ("a.jsonl", "a.csv"):
        (tmp_path / "mixed" / name).write_text("{}")
    with pytest.raises(UserError, match=r"holds the formats \.csv, \.jsonl"):
        read_all(tmp_path / "mixed")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no \.jsonl, .* file in this folder"):
        read_all(tmp_path / "empty")
    (tmp_path / "with,comma.jsonl").write_text(json.dumps(ROWS[0]))
    assert len(read_all(tmp_path / "with,comma.jsonl").rows) == 1


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.json", b'{"a": [1], "b": [1, 2]}', "columns of different lengths"),
        ("a.json", b'{"train": [{"a": 1}], "test": [{"a": 1}]}', "holds the tables train, test"),
        ("a.json", b"{}", "not a list"),
        ("a.json", b'{"problem": "p", "answer": "1"}\n{"problem', "not JSON"),
        ("a.jsonl.gz", b"no gzip", "cannot read the problems"),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"problem": "p", "answer": "1"}\n' * 99, mtime=0)[:-20],
            "cannot read the problems",
        ),
        ("a.arrow", b"ARROW", "cannot read the problems"),
        ("a.parquet.gz", b"", r"not a \.jsonl"),
    ],
)
def test_files_of_no_rows_are_refused_in_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as refused:
        read_all(tmp_path / name)
    assert "\n" not in str(refused.value)


def test_a_gzip_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("problems.files.MAX_BYTES", 1 << 20)
    for name in ("a.jsonl.gz", "a.json.gz", "a.csv.gz"):
        (tmp_path / name).write_bytes(gzip.compress(b"\n" * (8 << 20)))
        with pytest.raises(UserError, match="more than 1,048,576 bytes when it is unpacked"):
            list(objects(tmp_path / name))


def test_repeated_ids_and_rows_without_an_answer_are_said(tmp_path):
    rows = [
        {"id": "a", **ROWS[0]}, {"id": "a", **ROWS[0]}, {"id": "a", **ROWS[1]}, {"id": "a", **ROWS[2]},
        {"id": "e", **ROWS[2]},
        {"id": "b", "problem": "Prove it.", "answer": "proof"}, {"id": "c", "problem": "\\times", "answer": "\\frac1"},
        {"id": "d", "problem": "\x0crac12", "answer": "1"},
    ]  # fmt: skip
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    reading = read_all(path)
    assert [row.id for row in reading.rows] == ["a", "a#2", "a#3", "e", "c", "d"]
    notes = " | ".join(reading.notes())
    assert "left out copies of rows, id and all: 1" in notes and "2 rows have an id that came" in notes
    assert "left out rows that cannot be used: 1, the first " in notes and "a.jsonl:6: no answer" in notes
    assert "rows with the problem and answer of another: 1" in notes
    assert "rows with damaged text (" in notes and "): 1, the first " in notes and "a.jsonl:8" in notes
    curated = read_rows([path], 0.5)  # which keeps what has no answer for other ways to find one
    assert [row.id for row in curated.rows] == ["a", "a#2", "a#3", "e", "b", "c"]
    assert [row["line"] for row in curated.malformed] == [8]


def test_rows_of_another_task_are_left_out_and_said(tmp_path):
    """PRIME mixes mathematics and programs, INTELLECT-2 has each row's gold, or its tests, in a text."""
    rows = [
        PUBLISHED["SYNTHETIC-1"],
        {"prompt": "Sort.", "verification_info": '{"tests": []}'},
        verl("Sum.", '{"in": 1}'),
    ]
    rows += [{"question": "Name it.", "image": "x.png", "answer": "5"}, {"problem": " ", "answer": "5"}]
    rows += [{"problem": "Sort it.", "ground_truth_solution": None, "test_cases": "[1]"}]
    rows += [{"question": "Who is next?", "answer": "If Jo stands behind Kim, then she is the next one in line."}]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    reading = read_all(path)
    assert [row.problem for row in reading.rows] == [Q]
    assert [line.partition(": ")[2] for line in reading.left_out] == [
        "no answer, and none to be read from a solution",
        "'reward_model.ground_truth' is neither text nor number",
        "the problem shows an image ('image')",
        "an empty problem",
        "no answer, and none to be read from a solution",
        "an explanation in place of an answer: 'If Jo stands behind Kim, then she is the next one in line.'",
    ]
    assert "left out rows that cannot be used: 6, the first" in reading.notes()[-1]


def test_tables_of_spreadsheets_are_read(tmp_path):
    for name, delimiter, encoding in (
        ("semicolons.csv", ";", "utf-8-sig"), ("tabs.csv", "\t", "utf-8"), ("tabs.tsv", "\t", "utf-8"),
        ("wide.tsv", "\t", "utf-16"), ("Commas.CSV", ",", "utf-8"),
    ):  # fmt: skip
        text = f"Problem{delimiter}Answer\r\nWas ist 1+1, größer?{delimiter}2\r\n".replace("1+1, größer", "größer")
        (tmp_path / name).write_bytes(text.encode(encoding))
        (row,) = read_all(tmp_path / name).rows
        assert (row.problem, row.answer) == ("Was ist größer?", "2"), name
    (tmp_path / "a.csv").write_bytes("problem,answer\ngrößer,2\n".encode("cp1252"))
    with pytest.raises(UserError, match=r"not UTF-8 \(.* at byte \d+\): save it as UTF-8"):
        read_all(tmp_path / "a.csv")


def test_values_that_belong_together_are_one_answer_in_every_file(tmp_path):
    row = {"question": "Solve it.", "final_answer": ["2", "3"], "is_multiple_answer": True}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        assert read_all(tmp_path / name).rows[0].answers == ("2, 3",)


def test_what_a_row_was_put_together_from_is_said(tmp_path):
    rows = [
        {"prompt": "What?", "response": "It is \\boxed{7}"},
        {"question": "What is it?", "context": "\x1b[31mAn egg falls.", "answer": "3"},
    ]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    notes = read_all(tmp_path / "a.json").notes()
    assert notes[:2] == ["answers read from solutions: 1", "problems with their context before: 1"]
    assert "\x1b" not in "".join(notes)


def test_fields_named_for_another_file_leave_the_table():
    fields = Fields("task.text", "task.gold", or_table=True)
    assert as_row({"task": {"text": Q, "gold": "5"}}, "x", fields).answers == ("5",)
    assert as_row({"problem": Q, "answer": "5"}, "x", fields).problem == Q


def test_hostile_rows_take_no_more_than_linear_time_and_one_line():
    """A row of 20,000 characters for each pattern that could walk back and forth; minutes, or a traceback, before."""
    floods = ["\n" * 20_000, " " * 20_000, "please " * 2800, "put your " * 2000, "Question: a\n" * 1500]
    floods += [start + fill + "x" for fill in (" " * 20_000, "\n" * 20_000) for start in (
        "Below is an instruction that ### Instruction:", "A conversation between User and Assistant. User:",
        "<|im_start|>user", "Solve the following math problem efficiently and clearly:", "The answer is", "31 (accept",
        "请逐步推理，",
    )]  # fmt: skip
    for text in floods:
        row = {"problem": "Q" + text + "x", "answer": text + ")", "solution": text}
        for raw in (row, row | {"problem": text + "?"}):
            with contextlib.suppress(ValueError):
                as_row(raw, "x")
    deep = "[" * 900 + '"a"' + "]" * 900
    for raw in ({"problem": Q, "answer": json.loads(deep)}, {"problem": Q, "answer": deep}):
        with contextlib.suppress(ValueError):
            assert not as_row(raw, "x").answers or raw["answer"] == deep


def test_many_rows_with_one_id_take_no_more_than_linear_time(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"id": "a", "problem": f"p{i}", "answer": "1"}) + "\n" for i in range(20_000)))
    rows = read_all(path).rows
    assert rows[-1].id == "a#20000" and len({row.id for row in rows}) == 20_000


def test_heavy_columns_are_left_in_the_file():
    columns = ["problem", "messages", "generations", "Answer", "uuid"]
    assert Fields().columns(columns) == ["problem", "Answer", "uuid"]
    assert Fields().columns(["messages", "ground_truth"]) == ["messages", "ground_truth"]
    assert Fields("generations.x").columns(columns) == ["problem", "generations", "Answer", "uuid"]


def test_names_of_data_sets():
    names = {
        "data/aime24.jsonl": "aime24", "a/b.jsonl.gz": "b", "qwen2.5": "qwen2.5", "out/set/": "set",
        "aime_2024/data/train-00000-of-00001.parquet": "aime_2024", "gsm8k/main/test-00000-of-00001.parquet": "gsm8k",
        "train-00000-of-00001.parquet": "train-00000-of-00001",
    }  # fmt: skip
    assert {path: dataset_name(path) for path in names} == names


def test_the_samples_of_published_files_are_read():
    if not SAMPLES.is_dir():
        pytest.skip("the samples of published files are not here")
    expected = {
        row["problem"]: row["answer"] for row in json.loads((SAMPLES / "deepscaler/deepscaler.json").read_text())
    }
    files = [path for path in sorted(SAMPLES.rglob("*")) if path.is_file() and path.parent.name != "completions"]
    assert len(files) >= 29
    for path in files:
        if path.name in ("misread.jsonl", "alternatives.jsonl"):
            continue
        rows = read_all(path).rows
        assert rows and all(grade(expected[row.problem], row.answer) for row in rows), path
    misread = {row.id: row.answers for row in read_all(SAMPLES / "own" / "misread.jsonl").rows}
    assert not {"notfound", "NotFound", "proof", "None", "empty_latex"} & set(misread)
    for name in ("skywork", "pylist", "boxed", "answer_is", "chinese", "dict", "answer_hash", "trailing", "think"):
        assert grade("31", misread[name][0]), name
    assert misread["skywork2"] == ("\\frac{1}{2}", "0.5") and misread["gsm8k_comma"] == ("1250",)
