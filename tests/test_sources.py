"""The published datasets as they come: file formats, damaged rows, the hub, multiple choice, and a model's answers."""

import contextlib
import csv
import hashlib
import json
import os
import random
import re
import socket
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import data_prep
from configs import UserError
from problems.choices import letter_and_value, opened, split_choices
from problems.endpoint import Endpoint, NoAnswer
from problems.files import objects
from problems.golds import restored
from problems.reading import read_rows
from problems.rows import THE_TABLES, as_row
from problems.sources import BENCHMARKS, LATER_BENCHMARKS, TRAINING, files_in
from test_data_prep import need_embeddings, read_jsonl, with_shared_cache

ROOT = Path(__file__).parents[1]
RAW = ROOT.parent / "shared" / "data" / "raw"
SOURCES = {s.name: s for s in TRAINING}


def write_csv(path, rows):
    with open(path, "w", encoding="utf-8-sig", newline="") as f:
        writer = csv.DictWriter(f, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path, rows):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


# ------------------------------------------------------------------------------------------------------------- formats


def test_every_format_gives_the_same_rows(tmp_path):
    row = {"problem": 'Find $x$,\n\x85 "quoted" \u2028', "solution": "\\boxed{1}"}
    rows = [{**row, "answer": str(i)} for i in range(3)]
    lines = [json.dumps(r, ensure_ascii=False) + "\n" for r in rows]
    (tmp_path / "a.jsonl").write_text("\ufeff" + "".join(lines), "utf-8")
    (tmp_path / "a.json").write_text("\ufeff" + json.dumps(rows), "utf-8")
    write_csv(tmp_path / "a.csv", rows)
    write_parquet(tmp_path / "a.parquet", [{**r, "messages": [{"role": "user"}]} for r in rows])
    for suffix in ("jsonl", "json", "csv", "parquet"):
        unread = {"messages": None} if suffix == "parquet" else {}  # they repeat the row
        read = [raw for _, raw in objects(tmp_path / f"a.{suffix}", select=THE_TABLES.columns)]
        assert read == [row | unread for row in rows], suffix


@pytest.mark.parametrize(
    "line, problem",
    [
        (b'{"problem": 5, "answer": "1"}', "'problem' is not text"),
        (b'{"problem": "p", "answer": true}', "'answer' is neither text nor number"),
        (b'{"problem": "p", "answer": {"a": 1}}', "'answer' is neither text nor number"),
        (b'{"problem": "What is $\\frac12$?", "answer": "1"}', "'problem' has a control character"),
        (b'{"problem": "p", "answer": "3 \\times 4"}', "'answer' has a control character"),
        (b'{"problem": "p \\ud800", "answer": "1"}', "a lone surrogate"),
        (b'{"problem": "p", "answer": "\\frac{7}{12}"}', "a control character"),
        (b'{"problem": "p", "answer": "\\neq 3"}', "a control character"),
        (b'{"problem": "p", "answer": 1e999}', "neither text nor number"),
        (b'{"problem": "p", "answer": "' + b"9" * 5000 + b'"}', "more than 1,000 characters"),
        (b"", "an empty line"),
        (b'{"answer": "1"}', "no 'problem' among the columns answer"),
        (b'{"problem": "p", "answer": "\xff"}', "invalid start byte"),
        (b"[" * 100_000, "recursion"),
        (b"null", "not an object"),
    ],
)
def test_a_damaged_row_is_named_by_file_and_line_and_skipped(tmp_path, line, problem):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"problem": "first", "answer": "1"}\n' + line + b'\n{"problem": "last", "answer": 2.0}\n')
    reading = read_rows([path], 0.5, "still", SOURCES["still"].keep)
    rows = [(r.id, r.problem, r.answer) for r in reading.rows]
    assert rows == [("still-1", "first", "1"), ("still-3", "last", "2")]
    bad = reading.malformed
    assert [(b["file"], b["line"]) for b in bad] == [("a.jsonl", 2)] and problem in bad[0]["problem"]
    path.write_bytes(path.read_bytes() + b"\n \n")  # empty lines at the end are no rows
    if (
        "neither text nor number" in problem or "more than" in problem
    ):  # readable, but nothing for this project: no sign of a damaged file
        assert read_rows([path], 0.0, "still").malformed == bad
        return
    with pytest.raises(UserError, match=r"a\.jsonl: 1 of 3 rows are malformed, the first in line 2"):
        read_rows([path], 0.3, "still", SOURCES["still"].keep)


@pytest.mark.parametrize("name, content, message", [
    ("a.json", b"{}", "not a list"), ("a.json", b"[", "cannot be read"), ("a.parquet", b"PAR1", "cannot be read"),
    ("a.csv", b"a,b\n\xff,1\n", "cannot be read"), ("a.csv", b'a,b\n1,"2\n3,4\n', "unexpected end"),
    ("a.csv", b'a,b\n1,"2\n3,"4\n', "expected after"), ("a.txt", b"", r"not a \.jsonl"),
    ("a.json", b"[" * 100_000, "recursion"), ("b/a.jsonl", None, "cannot be read"),
])  # fmt: skip
def test_a_file_that_cannot_be_read_is_refused_in_one_line(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as refused:
        read_rows([tmp_path / name], 1.0)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_a_pipe_a_folder_or_a_device_is_no_file_of_rows(tmp_path, suffix):
    os.mkfifo(tmp_path / f"pipe.{suffix}")
    (tmp_path / f"folder.{suffix}").mkdir()
    (tmp_path / f"device.{suffix}").symlink_to("/dev/zero")
    for name in ("pipe", "folder", "device"):
        with pytest.raises(UserError, match="not a regular file"):
            list(objects(tmp_path / f"{name}.{suffix}"))


def repeated(text, count):
    pyarrow = pytest.importorskip("pyarrow")
    return pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * count, pyarrow.int32()), pyarrow.array([text]))


def test_a_parquet_file_that_unpacks_to_gigabytes_is_refused(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    million, answers = "a" * 1_000_000, repeated("a" * 300_000, 10_000)
    bombs = {
        "texts": {"problem": repeated(million, 3000)},  # no more than a megabyte in the metadata
        "texts_of_a_list": {"answer": pyarrow.ListArray.from_arrays([0, 10_000], answers)},
        "rows": {"problem": repeated("a", 5_000_000)},
    }
    for name, columns in bombs.items():
        path = tmp_path / f"{name}.parquet"
        parquet.write_table(pyarrow.table(columns), path, compression="zstd")
        assert path.stat().st_size < 30_000
        with pytest.raises(
            UserError, match="bytes when it is unpacked; at most 2,000,000 and 2,147,483,648"
        ) as refused:
            for _ in objects(path):
                pass
        assert "\n" not in str(refused.value)


def test_damaged_parquet_files_are_refused_in_one_line(tmp_path):
    path, rng = tmp_path / "a.parquet", random.Random(0)
    write_parquet(path, [{"problem": f"p{i}", "answer": ["1", "2"], "messages": [{"role": "user"}]} for i in range(9)])
    rows = [{"problem": f"p{i}", "answer": ["1", "2"], "messages": [{"role": "user"}]} for i in range(9)]
    assert [raw for _, raw in objects(path)] == rows
    whole, refused = path.read_bytes(), 0
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(3):
            damaged[rng.randrange(len(whole))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            list(objects(path))
        except UserError as e:
            refused += 1
            assert "\n" not in str(e)
    assert refused > 100


def test_rows_of_other_sources_do_not_hide_what_is_malformed(tmp_path):
    rows = [{"source": "olympiads", "problem": "p"}] * 96 + [{"source": "amc_aime", "problem": 5}] * 4
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    with pytest.raises(UserError, match="4 of 4 rows are malformed"):
        read_rows([tmp_path / "a.jsonl"], 0.1, "amc", SOURCES["amc"].keep)


def test_an_answer_is_not_read_from_a_damaged_solution():
    assert as_row({"problem": "p", "solution": "so \\boxed{\x0crac{1}{2}}"}, "x").answers == ()


def test_the_published_formats_are_read(tmp_path):
    def rows(name, path):
        reading = read_rows([path], 0.0, name, SOURCES[name].keep)
        assert not reading.malformed
        return [(r.id, r.source, r.problem, r.answer) for r in reading.rows]

    aime = {"ID": "1983-1", "Year": 1983, "Problem Number": 1, "Question": "Let $x$,\n$y$", "Answer": 60, "Part": ""}
    write_csv(tmp_path / "aime.csv", [aime, {**aime, "Year": 2024, "Part": "I"}])
    assert rows("aime", tmp_path / "aime.csv") == [("aime-1", "aime", "Let $x$,\n$y$", "60")]
    numina = [("amc_aime", "Find $x$."), ("olympiads", "Prove."), ("amc_aime", "2003 AIME I: find $y$.")]
    row = {"solution": "\\boxed{B}", "messages": []}
    write_parquet(tmp_path / "amc.parquet", [{"source": source, "problem": text, **row} for source, text in numina])
    assert rows("amc", tmp_path / "amc.parquet") == [("amc-1", "amc", "Find $x$.", "B")]
    write_parquet(tmp_path / "still.parquet", [{"question": "What is 2+2?", "answer": "4"}])
    assert rows("still", tmp_path / "still.parquet") == [("still-1", "still", "What is 2+2?", "4")]
    (tmp_path / "d.json").write_text(json.dumps([{"problem": "p", "answer": "1", "solution": "s"}]))
    assert rows("deepscaler", tmp_path / "d.json") == [("deepscaler-1", "deepscaler", "p", "1")]


# --------------------------------------------------------------------------------------------------------- AoPS choices

TWELVE = "12", ""


@pytest.mark.parametrize(
    "choices",
    [
        "$\\textbf{(A)}\\ 10\\qquad\\textbf{(B)}\\ 12\\qquad\\textbf{(C)}\\ 14\\qquad\\textbf{(D)}\\ 16$",
        "$\\textbf{(A) } 10 \\qquad \\textbf{(B) } 12 \\qquad \\textbf{(C) } 14$",
        "$\\mathrm{(A) \\ } 10\\qquad \\mathrm{(B) \\ } 12\\qquad \\mathrm{(C) \\ } 14$",
        "$(\\mathrm {A}) 10 \\qquad (\\mathrm {B}) 12 \\qquad (\\mathrm {C}) 14$",
        "$\\text{(A)}\\ \\text{10} \\qquad \\text{(B)}\\ \\text{12} \\qquad \\text{(C)}\\ \\text{14}$",
        "$\\textbf{(A)} ~10 \\qquad\\textbf{(B)} ~12 \\qquad\\textbf{(C)} ~14$",
        "\\[\\textbf{(A) }10\\quad\\textbf{(B) }12\\quad\\textbf{(C) }14\\]",
        "$\\textbf{(A)}\\ 10$ $\\textbf{(B)}\\ 12$ $\\textbf{(C)}\\ 14$",
        "(A) 10 (B) 12 (C) 14 (D) 16 (E) 18",
        "(A) $10$\n(B) $12$\n(C) $14$\n(D) $16$",
        "$$\\textbf{(A)}\\ 10\\qquad\\textbf{(B)}\\ 12\\qquad\\textbf{(C)}\\ 14$$",
        "$\\text{(A) 10} \\qquad \\text{(B) 12} \\qquad \\text{(C) 14}$",
        "**(A)** 10 **(B)** 12 **(C)** 14 **(D)** 16",
        "$\\textbf{(A)}\\ 10 \\hspace{1cm}\\textbf{(B)}\\ 12\\hspace{1cm}\\textbf{(C)}\\ 14\\hspace{1cm}$",
    ],
)
@pytest.mark.parametrize("answer, solution", [
    ("", "so we get $\\boxed{\\textbf{(B)}\\ 12}$."), ("", "The answer is $\\boxed{\\text{B}}$"), ("B", ""), ("12", ""),
    ("(B)", "\\boxed{7}"), ("", "\\boxed{\\text{(B) 12}}"), ("", "\\boxed{\\textbf{B}~12}"), ("", "\\boxed{B: 12}"),
    ("", "\\boxed{\\textsf{(B)}}"), ("", "\\boxed{\\textbf{(B) 12}}"),
    ("", "which is $\\mathrm{(B)}\\ 12$. It is not $x$."), ("", "\\boxed{(\\mathrm{B})~12}"),
])  # fmt: skip
def test_multiple_choice_becomes_open(choices, answer, solution):
    problem = f"How many are there?\n\n{choices}"
    assert opened(problem, answer, solution) == ("How many are there?", "12", "")


@pytest.mark.parametrize(
    "problem, answer, why",
    [
        ("Which of the following is largest? {}", "B", "asks to choose among its choices"),
        ("Which number is closest to $\\pi$? {}", "12", "asks to choose among its choices"),
        ("How many? {none}", "A", "the right choice is no value"),
        ("How many? {}", "F", "F is none of its choices"),
        ("How many? {}", "\\textbf{B,C}", "is none of its choices"),
        ("In which interval does the root lie? {}", "B", "asks to choose"),
        ("Which number has the most factors? {}", "B", "asks to choose"),
        ("The value of $x^2$ is between {}", "B", "asks to choose"),
        ("How many? ${\\bf{ {}", "B", "not understood"),
        ("How many?", "B", "has no choices"),
        ("How many? {}", "\\textbf{(C)}\\ 12", r"\(C\) is 12 in the solution, 14 in the problem"),
    ],
)
def test_what_cannot_be_asked_openly_is_named_and_left_as_it_is(problem, answer, why):
    first = "\\text{none of these}" if "{none}" in problem else "10"
    choices = f"$\\textbf{{(A)}}\\ {first}\\qquad\\textbf{{(B)}}\\ 12\\qquad\\textbf{{(C)}}\\ 14$"
    problem = problem.replace("{none}", choices).replace("{}", choices)
    unchanged, _, reason = opened(problem, answer, "")
    assert unchanged == problem and re.search(why, reason)


def test_text_around_choices_stays():
    choices = "$\\textbf{(A)}\\ 1\\qquad\\textbf{(B)}\\ \\$2.50\\qquad\\textbf{(C)}\\ \\left(\\frac12,3\\right)$"
    stem, split = split_choices(f"In the figure, how far is $A$ from $B$? {choices}\n\n[asy] draw(A--B); [/asy]")
    assert stem == "In the figure, how far is $A$ from $B$? [asy] draw(A--B); [/asy]"
    assert split == {"A": "1", "B": "\\$2.50", "C": "\\left(\\frac12,3\\right)"}
    for plain in ("Points (A), (B) and (C) lie on a line.", "Let $f(A)=1$ and $g(B)=2$.", "(A) only"):
        assert split_choices(plain) == (plain, {})
    for open_question in (
        "What is the sum of these numbers?",
        "Find the point closest to the origin.",
        "A number which divides 12 is even. How many are there?",
        "What integer is closest to the area?",
    ):
        assert opened(f"{open_question} {choices}", "1", "")[::2] == (open_question, "")
    for answer in ("A+B", "E=mc^2", "Carl", "AB", "12", "(A,B)"):
        assert letter_and_value(answer) == ("", answer)


# ------------------------------------------------------------------------------------------------------------- the hub

SHA = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """What huggingface_hub asks of huggingface.co, for `files` {repository: {name: bytes}}; downloads of large files
    break off unless they start in the middle."""

    protocol_version = "HTTP/1.1"
    files: dict[str, dict[str, bytes]] = {}
    log: list[str] = []

    def log_message(self, *_):
        pass

    def reply(self, status, body, head=False, sent=None, **headers):
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if not head:
            self.wfile.write(body[:sent])

    def do_HEAD(self):
        self.do_GET(head=True)

    def do_GET(self, head=False):
        self.log.append(f"{self.command} {self.path} {self.headers.get('Range')}")
        info = re.match(r"/api/datasets/(\w[^/]*/[^/?]+)(?:/tree/(\w+))?", self.path)
        file = re.match(r"/datasets/(\w[^/]*/[^/]+)/resolve/(\w+)/(.+)", self.path)
        if info and info[1] in self.files:
            contents = self.files[info[1]]
            body = {"id": info[1], "sha": SHA, "siblings": [{"rfilename": name} for name in contents]}
            if info[2]:
                sizes = {name: {"size": len(b), "oid": hashlib.sha1(b).hexdigest()} for name, b in contents.items()}
                body = [{"type": "file", "path": name, **size} for name, size in sizes.items()]
            self.reply(200, json.dumps(body).encode(), Content_Type="application/json")
        elif file and file[3] in self.files.get(file[1], {}):
            body = self.files[file[1]][file[3]]
            start = int((re.match(r"bytes=(\d+)-", self.headers.get("Range") or "") or [0, 0])[1])
            cut = not head and start == 0 and len(body) > 2**20
            headers = dict(ETag=f'"{hashlib.sha1(body).hexdigest()}"', X_Repo_Commit=file[2], Accept_Ranges="bytes")
            if start:
                headers["Content_Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            self.reply(206 if start else 200, body[start:], head, len(body) * 3 // 4 if cut else None, **headers)
            self.close_connection = cut
        else:
            self.reply(404, b"{}", head)


@pytest.fixture
def serve():
    """Starts servers of a handler class on a free port: serve(handler) -> address."""
    servers = []

    def start(handler):
        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), handler))
        # shutdown() waits for the poll interval
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def fetch(address, tmp_path, name, home="home"):
    """`sources.fetch` in a process of its own, since huggingface_hub reads its endpoint when it is imported."""
    code = (
        "import sys; from pathlib import Path; from configs import run; from problems.sources import *\n"
        "def main(argv): print('FILES', *fetch(next(s for s in TRAINING if s.name == argv[0]), Path(argv[1])))\n"
        "run(main)"
    )
    env = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / home), "HF_HUB_DISABLE_XET": "1"}
    argv = [sys.executable, "-c", code, name, str(tmp_path / "raw")]
    return subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)


def test_downloads_are_pinned_go_on_after_a_break_and_are_checked(tmp_path, serve):
    content = b"ID,Year,Question,Answer\n" + b"1,1983,What is 1?,1\n" * 1_200_000  # 24 MB; the hub writes 10 at a time
    Hub.files = {SOURCES["aime"].repo: {"AIME_Dataset_1983_2024.csv": content, "README.md": b"#"}}
    Hub.files[SOURCES["still"].repo] = {"data/train-0.parquet": b"PAR1"}
    Hub.log = []
    (tmp_path / "raw").mkdir()
    address = serve(Hub)
    done = fetch(address, tmp_path, "aime")
    assert done.returncode == 0, done.stderr
    path = tmp_path / "raw" / "aime" / "AIME_Dataset_1983_2024.csv"
    assert path.read_bytes() == content and f"FILES {path}" in done.stdout
    gets = [line for line in Hub.log if line.startswith("GET /datasets")]
    assert all(SOURCES["aime"].revision in line for line in gets) and not any("README" in line for line in gets)
    first, second = (line.split()[2] for line in gets)
    assert first == "None" and int(re.fullmatch(r"bytes=(\d+)-", second)[1]) >= 10 * 2**20  # went on
    assert fetch(address, tmp_path, "still").returncode == 0  # its commit is not known here: the newest, and kept
    lock_file = tmp_path / "raw" / "sources.json"
    lock = json.loads(lock_file.read_text())
    assert lock["still"]["revision"] == SHA and lock["aime"]["revision"] == SOURCES["aime"].revision
    assert lock["aime"]["sha256"] == {"aime/AIME_Dataset_1983_2024.csv": hashlib.sha256(content).hexdigest()}
    asked = len(Hub.log)
    assert fetch(address, tmp_path, "aime").returncode == 0 and len(Hub.log) == asked  # nothing is asked twice
    path.write_bytes(content[:-1])
    done = fetch(address, tmp_path, "aime")
    assert done.returncode == 2 and "not the file that was downloaded" in done.stderr
    lock_file.write_text("{")
    done = fetch(address, tmp_path, "aime")
    assert done.returncode == 2 and "not the downloads' checksums" in done.stderr


def test_without_the_hub_the_way_out_is_named(tmp_path, serve):
    Hub.files, Hub.log = {}, []
    (tmp_path / "raw").mkdir()
    done = fetch(serve(Hub), tmp_path, "omni_math")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "omni_math: the hub did not give KbsdJames/Omni-MATH" in done.stderr and "--raw_dir=DIR" in done.stderr
    assert not (tmp_path / "raw" / "sources.json").exists()


def test_the_contests_of_2025_come_from_the_hub_and_from_a_folder(tmp_path, serve, monkeypatch, capsys):
    """In the published schemas, with made-up rows: math-ai's, one of whose backslashes was read as an escape, and
    MathArena's, whose ids are the same in each."""
    folder, Hub.files, Hub.log = tmp_path / "raw", {}, []
    for source in LATER_BENCHMARKS:
        rows = []
        for i in range(1, source.count + 1):
            kinds = {"problem_type": ["Algebra"]} if source.name != "aime25" else {}
            number = {"id": str(i - 1)} if source.name == "aime25" else {"problem_idx": i}
            answer = str(i) if source.name == "aime25" else f"\\frac{{{2 * i + 1}}}{{2}}, -{i}"
            rows.append(
                {**number, "problem": f"In {source.name}, what is $\\frac{{{i}}}{{1}}$?", "answer": answer, **kinds}
            )
        path = folder / source.name / source.files.replace("*", "00000-of-00001")
        if path.suffix == ".parquet":
            write_parquet(path, rows)
        else:
            path.parent.mkdir(parents=True)
            path.write_text("".join(json.dumps(row).replace("\\\\frac{7}", "\\frac{7}") + "\n" for row in rows))
        Hub.files[source.repo] = {str(path.relative_to(folder / source.name)): path.read_bytes()}
    code = "import data_prep; from configs import run; data_prep.BENCHMARKS = (); run(data_prep.main)"
    env = {**os.environ, "HF_ENDPOINT": serve(Hub), "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    argv = [sys.executable, "-c", code, "bench", f"--out_dir={tmp_path / 'hub'}"]
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    monkeypatch.setattr(data_prep, "BENCHMARKS", ())
    data_prep.main(["bench", f"--raw_dir={folder}", f"--out_dir={tmp_path / 'folder'}"])
    for printed, out in ((done.stdout, tmp_path / "hub"), (capsys.readouterr().out, tmp_path / "folder")):
        assert "aime25: 1 rows had control characters where a backslash was: restored" in printed
        for source in LATER_BENCHMARKS:
            rows = read_jsonl(out / f"{source.name}.jsonl")
            assert len(rows) == source.count and rows[0]["id"] == f"{source.name}-0"
            assert rows[6]["problem"] == f"In {source.name}, what is $\\frac{{7}}{{1}}$?"
            assert rows[6]["answer"] == ("7" if source.name == "aime25" else "\\frac{15}{2}, -7")
    (folder / "hmmt25/data/train-00000-of-00001.parquet").unlink()
    data_prep.main(["bench", f"--raw_dir={folder}", f"--out_dir={tmp_path / 'fewer'}"])
    assert f"hmmt25: no hmmt25/data/train-*.parquet in {folder}: left out" in capsys.readouterr().out
    assert len(list((tmp_path / "fewer").glob("*.jsonl"))) == 3


@pytest.mark.parametrize(
    "text, whole",
    [("\frac12", "\\frac12"), ("\binom", "\\binom"), ("2\times 3", "2\\times 3"), ("a\tb\nc", "a\tb\nc"), ("\0", "\0")],
)
def test_backslashes_that_were_read_as_escapes_are_restored(text, whole):
    assert restored(text) == whole


# ---------------------------------------------------------------------------------------------------- a model's answers


ODD_REPLIES = {
    299: "no JSON",
    298: '{"choices": [{"message": {"content": null}}]}',
    297: "[" * 100_000,
    401: '{\n "error": {\n  "message": "no such key"\n }\n}',
}


class Server(BaseHTTPRequestHandler):
    """OpenAI's chat completions: `script` gives the statuses of the first requests, then 200; answers with a box."""

    script: list[int] = []
    of_problem: dict[str, int] = {}
    seen: list[dict] = []

    def do_GET(self):
        self.seen.append({"path": self.path, "key": self.headers.get("Authorization")})
        self.send_error(404)

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append({"path": self.path, "key": self.headers.get("Authorization"), **body})
        status = self.script.pop(0) if self.script else 200
        text = body["messages"][0]["content"]
        status = self.of_problem.get(text.split("Problem:\n")[1].split("\n")[0], status)
        reply = "\\boxed{none}" if "proof" in text.split("Solution:")[1] else f"It is \\boxed{{{len(text) % 7}}}."
        content = json.dumps({"choices": [{"message": {"content": reply}}]}) if status == 200 else "{}"
        content = ODD_REPLIES.get(status, content)
        if status == 296:
            self.wfile.write(b"what is HTTP?\r\n\r\n")
            return
        self.send_response(200 if 200 <= status < 300 else status)
        if status == 302:
            self.send_header("Location", self.path.replace("/v1", "/elsewhere"))
        self.send_header("Content-Length", str(len(content) + (9 if status == 295 else 0)))  # 295: cut short
        self.end_headers()
        self.wfile.write(content.encode())


def ask(address, tmp_path, questions, budget=100):
    endpoint = Endpoint(address + "/v1", "m", budget, tmp_path / "cache" / "answers.jsonl", pause=0.01)
    return endpoint.answers(questions), endpoint


def test_a_models_answers_are_asked_for_once_and_kept(tmp_path, serve, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    Server.script, Server.seen = [429, 500, 299, 297, 296, 295], []
    address = serve(Server)
    questions = [("p", "s" * i) for i in range(9)] + [("p", "a proof")]
    answers, endpoint = ask(address, tmp_path, questions)
    assert endpoint.requests == len(questions) + 6 == len(Server.seen)  # six came again
    assert answers[-1] == "" and all(a.isdecimal() for a in answers[:-1])
    sent = {"path": "/v1/chat/completions", "key": "Bearer secret", "temperature": 0, "model": "m"}
    assert all(request.items() >= sent.items() for request in Server.seen)
    cache = tmp_path / "cache" / "answers.jsonl"
    cache.write_bytes(cache.read_bytes()[:-5])  # killed while the last line was written
    again, endpoint = ask(address, tmp_path, questions)
    assert again == answers and endpoint.requests == 1
    whole_lines = [line for line in cache.read_text().splitlines() if line.endswith("}")]
    assert len({json.loads(line)["key"] for line in whole_lines}) == len(questions)
    assert "secret" not in cache.read_text()


def test_the_budget_ends_the_questions_and_the_rest_stays_open(tmp_path, serve):
    Server.script, Server.seen = [], []
    answers, _ = ask(serve(Server), tmp_path, [("p", "s" * i) for i in range(9)], budget=4)
    assert sum(map(bool, answers)) == 4 == len(Server.seen)


def test_a_pipe_is_no_file_of_replies(tmp_path):
    os.mkfifo(tmp_path / "answers.jsonl")
    with pytest.raises(UserError, match="not a regular file"):
        Endpoint("http://127.0.0.1:9/v1", "m", 1, tmp_path / "answers.jsonl")


def test_a_question_that_fails_costs_no_other_its_answer(tmp_path, serve, monkeypatch):
    """400 and a reply without text are this question's alone; a server that fails keeps what it answered before."""
    monkeypatch.setattr(Server, "of_problem", {"long": 400, "cut": 298})
    Server.script, Server.seen = [], []
    address = serve(Server)
    answers, endpoint = ask(address, tmp_path, [("long", "s"), ("p", "s"), ("cut", "s")])
    assert [bool(a) for a in answers] == [False, True, False] and endpoint.requests == 3
    monkeypatch.setattr(Server, "of_problem", {"broken": 500})
    questions = [("broken", "s"), *(("q", "s" * i) for i in range(1, 30))]
    with pytest.raises(UserError, match="did not answer 5 times"):
        ask(address, tmp_path, questions)
    monkeypatch.setattr(Server, "of_problem", {})
    answers, endpoint = ask(address, tmp_path, questions)
    assert all(answers) and endpoint.requests < 25  # the others' replies were kept


DRIPS = {  # what is sent at once, what then again and again, what ends it (for a server that is given the time)
    "headers": (b"HTTP/1.1 200 OK\r\n", b"a", b":b\r\nContent-Length: 2\r\n\r\n{}"),
    "continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"),
    "body": (b"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n", b" ", b"{}"),
    "trailers": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n", b"a: b\r\n", b"\r\n"),
    "error": (b"HTTP/1.1 429 No\r\nContent-Length: 9999\r\n", b"a: b\r\n", b"\r\n"),
}


@pytest.mark.parametrize("flood", [False, True], ids=["drip", "flood"])
@pytest.mark.parametrize("name", DRIPS)
def test_a_reply_that_does_not_end_is_given_up(tmp_path, name, flood):
    """Dripped, so that no single wait is long, or without pause; after enough of it the server ends the reply."""
    first, again, end = DRIPS[name]
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve_once():
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):  # the client has gone
                connection.sendall(first)
                for _ in range(150):
                    connection.sendall(again * 2**16 if flood else again)
                    given_up.wait(0 if flood else 0.02)
                connection.sendall(end)

        given_up = threading.Event()
        thread = threading.Thread(target=serve_once)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        endpoint = Endpoint(url, "m", 9, tmp_path / "a.jsonl", timeout=60 if flood else 0.2)
        reason = "does not end|more than 65536|more than 100 headers" if flood else "does not end|timed out"
        with pytest.raises((OSError, HTTPException), match=reason):
            endpoint._post(b"")
        given_up.set()
        thread.join()


def test_an_error_whose_text_drips_is_still_this_questions_alone(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        endpoint = Endpoint(url, "m", 9, tmp_path / "a.jsonl", timeout=0.2)

        def serve_once():
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(b"HTTP/1.1 400 No\r\nContent-Length: 300\r\n\r\n")
                for _ in range(299):
                    connection.sendall(b"a")
                    given_up.wait(0.02)

        given_up = threading.Event()
        thread = threading.Thread(target=serve_once)
        thread.start()
        with pytest.raises(NoAnswer, match="^$"):
            endpoint._post(b"")
        given_up.set()
        thread.join()


def test_the_key_does_not_follow_a_redirect(tmp_path, serve, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    Server.script, Server.seen = [302], []
    with pytest.raises(UserError, match="refuses the request: 302"):
        ask(serve(Server), tmp_path, [("p", "s")])
    assert [s["path"] for s in Server.seen] == ["/v1/chat/completions"]


@pytest.mark.parametrize(
    "status, message", [(401, "refuses the request: 401 .*no such key"), (503, "did not answer 5 times")]
)
def test_a_server_that_gives_nothing_is_named_in_one_line(tmp_path, serve, status, message):
    Server.script, Server.seen = [status] * 100, []
    with pytest.raises(UserError, match=message) as refused:
        ask(serve(Server), tmp_path, [("p", "s")])
    assert "\n" not in str(refused.value)


# ----------------------------------------------------------------------------------------------------------- the filter


@pytest.mark.parametrize("answer, allowed", [
    ("\\frac{3}{7}", True), ("x^2+1", True), ("2\\sqrt{3}", True), ("12\\text{ cm}", True), ("x+y+z", False),
    ("2^{10}", False), ("\\pi r", False), ("2^(x)", False), ("\\text{Evelyn}", True),
])  # fmt: skip
def test_deepscalers_textual_filter_counts_letters_and_powers(answer, allowed):
    assert data_prep.sympy_may_read(answer) == allowed


def test_deepscalers_textual_filter_passes_what_its_published_set_kept():
    path = RAW / "one_shot_rlvr" / "dsr_sub.jsonl"
    if not path.is_file():
        pytest.skip("the published sample is not here")
    answers = [raw["answer"] for _, raw in objects(path)]
    assert sum(map(data_prep.sympy_may_read, answers)) >= 0.98 * len(answers)


# ------------------------------------------------------------------------------------------------------- the benchmarks


@pytest.mark.parametrize(
    "raw, expected",
    [
        ({"problem": " p ", "answer": 142.0}, ("p", ["142"])),
        ({"problem": "p", "answer": "025"}, ("p", ["25"])),
        ({"question": "p", "final_answer": ["$221,$8$"]}, ("p", ["221,8"])),
        ({"problem": "p", "answer": ["9.6\n", "9.60", "9.6"]}, ("p", ["9.6", "9.60"])),
        ({"problem": "p", "answer": "$69$,$84$"}, ("p", ["$69$,$84$"])),
    ],
)
def test_benchmark_golds_come_in_one_schema(raw, expected):
    row = as_row(raw, "x")
    assert (row.problem, list(row.answers)) == expected


def test_the_five_benchmarks_are_complete_and_every_gold_equals_itself(tmp_path, capsys):
    if not RAW.is_dir():
        pytest.skip("the benchmarks' files are not here")
    data_prep.main(["bench", f"--raw_dir={RAW}", f"--out_dir={tmp_path}"])
    benchmarks = {source.name: read_jsonl(tmp_path / f"{source.name}.jsonl") for source in BENCHMARKS}
    sizes = dict(aime24=30, amc23=83, math500=500, minerva=272, olympiad=675)
    assert {name: len(rows) for name, rows in benchmarks.items()} == sizes
    assert all(list(row) == ["id", "source", "problem", "answer"] for rows in benchmarks.values() for row in rows)
    assert "each gold equals itself" in capsys.readouterr().out


def test_a_benchmark_of_another_size_is_refused_and_nothing_written(tmp_path):
    if not RAW.is_dir():
        pytest.skip("the benchmarks' files are not here")
    (tmp_path / "raw" / "deepscaler").mkdir(parents=True)
    for source in BENCHMARKS:
        path = files_in(source, RAW)[0]
        rows = json.loads(path.read_text())
        rows = rows[:-1] if source.name == "minerva" else rows
        (tmp_path / "raw" / "deepscaler" / path.name).write_text(json.dumps(rows))
    with pytest.raises(UserError, match="271 problems; minerva has 272"):
        data_prep.main(["bench", f"--raw_dir={tmp_path / 'raw'}", f"--out_dir={tmp_path / 'out'}"])
    assert not list((tmp_path / "out").glob("*.jsonl"))
    with pytest.raises(UserError, match="0 problems; aime24 has 30"):
        data_prep.main(["bench", f"--raw_dir={tmp_path}", f"--out_dir={tmp_path / 'out'}"])


# -------------------------------------------------------------------------------------------------------- a rebuilt set


@pytest.mark.slow
@pytest.mark.xdist_group("curation")
def test_sources_are_rebuilt_into_a_training_set(tmp_path, tmp_path_factory, serve, monkeypatch):
    """A few rows of each format, AMC's answers from choices and from a model, test copies and copies out. (Of each
    benchmark six problems; that the five are complete is another test's.)"""
    if not RAW.is_dir():
        pytest.skip("the benchmarks' files are not here")
    need_embeddings()
    raw = tmp_path / "raw"
    (raw / "deepscaler").mkdir(parents=True)
    for source in BENCHMARKS:
        path = files_in(source, RAW)[0]
        (raw / "deepscaler" / path.name).write_text(json.dumps(json.loads(path.read_text())[:6]))
    monkeypatch.setattr(data_prep, "BENCHMARKS", [replace(source, count=6) for source in BENCHMARKS])
    aime = json.loads((RAW / "deepscaler" / "train_aime.json").read_text())[:12]
    (raw / "deepscaler" / "train_aime.json").write_text(json.dumps(aime))
    choices = "$\\textbf{(A)}\\ 10\\qquad\\textbf{(B)}\\ 12\\qquad\\textbf{(C)}\\ 14$"
    leaked = json.loads((RAW / "deepscaler" / "test_amc.json").read_text())[3]["problem"]
    fractions = (
        "\\textbf{(A)}\\ \\frac{31}{10}\\qquad \\textbf{(B)}\\ \\frac{49}{15}\\qquad\\textbf{(C)}\\ \\frac{109}{33}"
    )
    amc = {
        "How many primes are less than 40? " + choices: "\\boxed{\\textbf{(B)}\\ 12}",
        "How many sides has a polygon with 35 diagonals?": "By a formula.",
        "Which of the following is even? " + choices: "\\boxed{B}",
        leaked + " " + choices: "\\boxed{C}",
        f"What is the value of \\[3+\\frac{{1}}{{3+\\frac{{1}}{{3+\\frac13}}}}?\\] ${fractions}$": "\\boxed{C}",
        aime[3]["problem"].replace("Find", "Determine"): f"\\boxed{{{aime[3]['answer']}}}",
    }
    rows = [{"source": "amc_aime", "problem": p, "solution": s, "messages": []} for p, s in amc.items()]
    write_parquet(raw / "amc" / "data" / "train-00000-of-00001.parquet", rows)
    Server.script, Server.seen = [], []
    out = with_shared_cache(tmp_path / "out", tmp_path_factory)
    server = ["--answer_model=m", f"--answer_url={serve(Server)}/v1"]
    data_prep.main(["train", f"--raw_dir={raw}", f"--out_dir={out}", *server])
    kept, dropped = ({row["id"]: row for row in read_jsonl(out / f"{name}.jsonl")} for name in ("train", "dropped"))
    assert kept["amc-1"]["problem"] == "How many primes are less than 40?" and kept["amc-1"]["answer"] == "12"
    assert len(Server.seen) == 1 and kept["amc-2"]["answer"].isdecimal()
    reasons = {"amc-3": "not_open", "amc-4": "contaminated", "amc-5": "contaminated", "amc-6": "duplicate"}
    assert {i: d["reason"] for i, d in dropped.items() if i.startswith("amc")} == reasons
    report = json.loads((out / "report.json").read_text())
    assert report["answers_by_model"] == ["amc-2"]
    assert Counter(e["test"].split("-")[0] for e in report["contamination_evidence"])["amc23"] == 2
    assert not report["origins"]["still"]["files"] and len(report["origins"]["amc"]["files"]) == 1
    assert {"source": "amc", "benchmark": "amc23", "rows": 2} in report["contaminated"]
    assert re.search(r"\| amc-5 +\| +amc23-0 \|", (out / "report.md").read_text())  # among the least similar


@pytest.mark.parametrize("flags, message", [
    (["--source=other"], "none of aime"), (["--source=math"], "not on the hub"),
    (["--raw_dir=/nonexistent"], "no folder"),
    (["--answer_url=http://a b", "--answer_model=m"], "no http address"), (["--answer_budget=0"], "under its minimum"),
    (["--answer_url=http://x"], "go together"), (["--answer_url=x", "--answer_model=m"], "no http address"),
    (["--input=x"], "usage"), (["--gradable=x"], "none of ours"),
])  # fmt: skip
def test_bad_flags_of_train_are_refused_in_one_line(tmp_path, flags, message):
    with pytest.raises(UserError, match=message) as refused:
        data_prep.main(["train", f"--out_dir={tmp_path}", *flags])
    assert "\n" not in str(refused.value)
