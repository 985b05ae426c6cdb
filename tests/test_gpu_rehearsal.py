"""tests/gpu_rehearsal.py at toy size: every check passes on the CPU, its output can be parsed, what fails says why."""

import json
import multiprocessing
import os
import subprocess
import sys

import pytest
import torch

import gpu_rehearsal
from gpu_kernels import Result
from runs import ENV, ROOT, run_here

FIELDS = {"name", "ok", "error", "limit", "figures", "expected", "seconds", "not_here", "failed", "device", "size"}


def results_in(output):
    """The RESULT lines, parsed."""
    return [json.loads(line.removeprefix("RESULT ")) for line in output.splitlines() if line.startswith("RESULT ")]


@pytest.mark.slow
def test_every_check_passes_at_toy_size():
    command = [sys.executable, "tests/gpu_rehearsal.py", "--device=cpu", "--size=toy"]
    done = subprocess.run(command, cwd=ROOT, env=ENV, capture_output=True, text=True)
    lines, results = done.stdout.splitlines(), results_in(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    gpu = "used" if torch.cuda.is_available() else "here"
    assert lines[0] == f"No GPU is {gpu}: sizes are toy, and no figure means anything for a GPU."
    absent = sum(bool(result["not_here"]) for result in results)
    assert lines[-1].endswith(f"all {len(results) - absent} passed, {absent} not here") and absent
    assert "expected, model" not in done.stdout
    assert all(set(result) == FIELDS and result["ok"] and result["device"] == "CPU" for result in results)
    for name in gpu_rehearsal.CHECKS:
        first_word = {"gpu_tests": "tests/test_gpu.py", "attention_fa4": "attention fa4"}.get(name, name.split("_")[0])
        assert any(result["name"].startswith(first_word) for result in results), name
    checked = [result for result in results if not result["not_here"]]
    assert all(result["figures"] or result["error"] is not None for result in checked)
    assert all(len(figure) == 2 for result in checked for figure in result["figures"].values())


def raises(device, s):
    yield Result("first", {"speed": (1.0, "m/s")}, error=0.1, limit=0.2)
    raise ValueError("no good\nand more of it")


def is_far_off(device, s):
    yield Result("second", error=float("nan"), limit=0.2)


def dies(device, s):
    yield Result("third", not_here="no such card")
    os._exit(3)


def test_a_check_that_raises_is_off_or_dies_has_failed_and_the_next_one_runs(monkeypatch):
    checks = {"raises": raises, "off": is_far_off, "dies": dies, "good": gpu_rehearsal.check_add_product}
    monkeypatch.setattr(gpu_rehearsal, "CHECKS", checks)
    monkeypatch.setattr(gpu_rehearsal, "FORKS", multiprocessing.get_context("fork"))  # a process that has these checks
    status, output = run_here(gpu_rehearsal.main, ["--device=cpu"])
    ok = [(result["name"], result["ok"]) for result in results_in(output)]
    expected = [("first", True), ("raises", False), ("second", False), ("third", True), ("dies", False)]
    assert ok == [*expected, ("add_product", True)] and status == 1
    assert "FAILED raises: ValueError: no good\n" in output and "FAILED dies: its process ended with status 3" in output
    assert output.splitlines()[-1].endswith("FAILED: 3 of 6: raises; second; dies")


def is_interrupted(device, s):
    yield Result("first")
    raise KeyboardInterrupt


def test_an_interrupted_check_ends_without_a_traceback(monkeypatch):
    monkeypatch.setattr(gpu_rehearsal, "CHECKS", {"interrupted": is_interrupted})
    reader, writer = multiprocessing.Pipe(duplex=False)
    gpu_rehearsal.run_check("interrupted", "cpu", "toy", writer)
    assert reader.recv().name == "first"
    with pytest.raises(EOFError):
        reader.recv()


def test_bad_flags_are_refused_in_one_line():
    for argv, words in (
        (["--only=attention,heads"], "--only: 'heads' is not one of environment, attention,"),
        (["--only="], "--only: write --only=NAME"),
        (["--sizes=toy"], "--sizes=toy: no such flag"),
        (["--size=small"], "--size: 'small' is not one of"),
    ):
        status, output = run_here(gpu_rehearsal.main, argv)
        assert status == 2 and words in output and len(output.splitlines()) == 1, output
    if not torch.cuda.is_available():
        status, output = run_here(gpu_rehearsal.main, ["--device=cuda"])
        assert status == 2 and output.startswith("error: device: torch") and len(output.splitlines()) == 1, output
