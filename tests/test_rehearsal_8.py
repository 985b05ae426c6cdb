"""The rehearsal for a node of 8 GPUs, shrunk to two CPU ranks and a tiny model; and what it reads from logs."""

import importlib.util
import json
import re
import subprocess
import sys
import tarfile

import pytest

import rehearsal_figures
from runs import ENV, ROOT, run_here
from test_vllm import WITHOUT_VLLM
from training import plan


@pytest.mark.slow
@pytest.mark.xdist_group("vllm")
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason=WITHOUT_VLLM)
def test_a_rehearsal_goes_on_after_a_step_that_fails_and_packs_a_report(world, tmp_path):
    """Three of its steps, of which the first fails. (vLLM starts in ten seconds a rank: here in the last one alone.)"""
    extra = "--sampler=vllm --prompts_per_step=8 --max_prompt_len=16 --token_budget=128 --max_num_seqs=16"
    sizes = {"CONFIG": "configs/tiny.py", "LENGTHS": "24,28,32", "GPU": "none", "EXTRA": extra}
    files = {"MODEL": world / "base", "TRAIN": world / "train.jsonl", "BENCH": world / "test.jsonl"}
    environment = ENV | sizes | {name: str(path) for name, path in files.items()}
    environment |= {"PYTHON": sys.executable, "STEPS": "plan download kill", "SECRET_TOKEN": "hunter2"}
    command = ["bash", "tests/gpu_rehearsal_8.sh", str(tmp_path / "out"), "2"]
    rehearsal = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    output = rehearsal.stdout + rehearsal.stderr
    assert rehearsal.returncode == 1, output
    table = [line.split() for line in (tmp_path / "out/report/summary.txt").read_text().splitlines()[2:]]
    statuses = [("plan", "2"), ("download", "0"), ("kill", "0")]
    assert [(step, status) for step, status, _ in table] == statuses, output
    assert "--gpu: 'none' is not one of" in output
    assert "rank 0 ended with status 1" in output and "error: lost contact with another rank" in output
    with tarfile.open(tmp_path / "out/report.tar.gz") as report:
        names = set(report.getnames())
        environment = report.extractfile("report/environment.txt").read().decode()
    logs = {f"report/logs/{name}.log" for name in ("plan", "download", "kill", "kill_rank_0", "kill_rank_1")}
    run = {f"report/runs/kill/{name}" for name in ("metrics.jsonl", "config.json", "ledger.json")}
    assert logs | run | {"report/packages.txt", "report/figures.txt", "report/summary.txt"} <= names
    assert "OMP_NUM_THREADS=1\n" in environment and "hunter2" not in environment


def test_what_the_comments_expect_of_the_plan_is_what_it_prints(capsys):
    script, guide = ((ROOT / name).read_text() for name in ("tests/gpu_rehearsal_8.sh", "docs/first_hour.md"))
    short = ["--max_response_len=2048", "--eval_every=0", "--save_every=0", "--stage_from=last"]
    plan.main(["configs/8k.py", *short, "--gpu=h100", "--gpus=8"])
    printed = " ".join(capsys.readouterr().out.split())
    for words in re.findall(r'"((?:together|good:|poor:) [^"]*)"', script):
        assert words in printed, words
    trainers_peak, awake = re.search(r"together [\d.]+ ([\d.]+) .* ([\d.]+) 79.1 GiB", printed).groups()
    words = f"the trainer takes {float(trainers_peak):.1f} GiB, with vLLM awake {float(awake):.1f} of 79.1"
    assert words in guide and f'(model): {float(trainers_peak):.1f} in "worst pack"' in script


def test_figures_of_a_log():
    log = """    3  out/runs/8k-smoke: a save takes 28.4 GB
   41  8 x cuda, attention: torch_varlen, sampler: vllm 0.32.0, vllm.v1.worker.gpu.model_runner.GPUModelRunner
   90  INFO 11-26 [gpu_worker.py:1] Sleep mode freed 41.5 GiB memory, 2.1 GiB memory is still in use.
   90  INFO 11-26 [abstract.py:1] It took 0.61 seconds to fall asleep.
  130  rollout      10.240   60.0%     100,000
  131  smoke: PASSED: a pack
"""
    assert rehearsal_figures.of_log("bench_64", log, 2048) == [
        "bench_64: ready after 41 s, attention: torch_varlen, sampler: vllm 0.32.0, "
        "vllm.v1.worker.gpu.model_runner.GPUModelRunner",
        "bench_64: smoke: PASSED: a pack",
        "bench_64: Sleep mode freed 41.5 GiB memory, 2.1 GiB memory is still in use.",
        "bench_64: It took 0.61 seconds to fall asleep.",
        "bench_64: 5.00 ms an engine step, where the longest response has 2048 tokens",
    ]


def test_figures_of_memory_are_the_plans_and_the_smoke_runs():
    plan = """    6  GiB on a GPU            head's bwd   optimizer  generation
    6  together                     13.95        7.55       51.86
    6  train            6.9      10.5
    6  GiB on a GPU            head's bwd   optimizer  generation
"""
    head, together = rehearsal_figures.of_log("plan", plan, 44)
    assert head.startswith("plan: GiB on a GPU") and together.split() == ["plan:", "together", "13.95", "7.55", "51.86"]
    smoke = """   72  phase          seconds   peak GiB a rank
   72  worst pack         5.1              0.89
   72  rollout            1.0              0.86
"""
    assert rehearsal_figures.of_log("smoke", smoke, 44) == ["smoke: peak GiB a rank: worst pack 0.89, rollout 0.86"]


def test_figures_of_a_run_hold_the_mismatch_against_the_shipped_limit(tmp_path):
    times = {f"time_{phase}": 1.25 for phase in rehearsal_figures.PHASES}
    rows = [{"step": 1, "mismatch_sync_k3": 0.0012, "mismatch_k3": 0.0031} | times]
    rows += [{"step": 2, "mismatch_sync_k3": 0.0012, "mismatch_k3": None} | times]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = rehearsal_figures.of_steps("t06", tmp_path / "metrics.jsonl")
    assert lines[0] == "t06 step 1: k3 after the sync 1.2e-03, within 0.003"
    assert lines[1] == "t06 step 1: k3 on all tokens 3.1e-03, beyond 0.003"
    assert lines[2].startswith("t06 step 1: seconds: rollout 1.2, tail 1.2") and len(lines) == 5


def test_figures_of_no_rehearsal_are_refused_in_one_line(tmp_path):
    (tmp_path / "report/logs").mkdir(parents=True)
    for argv in ([], [str(tmp_path)], [str(tmp_path), "long"], [str(tmp_path / "report"), "44"]):
        status, output = run_here(rehearsal_figures.main, argv)
        assert status == 2 and "needs the OUT_DIR of a rehearsal" in output and len(output.splitlines()) == 1
    assert run_here(rehearsal_figures.main, [str(tmp_path), "44"])[0] == 0
