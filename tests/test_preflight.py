"""What is refused before anything is downloaded or loaded, and which GPUs are known by name."""

import errno
import importlib.util
import os
import shutil

import pytest
import torch

import bench
import eval
import train_grpo
from configs import UserError, load_config
from model import attention_backend, attention_layout
from runs import flags, run_here, train
from training import preflight
from training.hardware import data_sheet_peak, peak_flops


@pytest.fixture(autouse=True)
def nothing_is_downloaded(monkeypatch):
    def refuse(name):
        raise AssertionError(f"{name} was about to be loaded")

    monkeypatch.setattr(train_grpo, "resolve_model", refuse)
    monkeypatch.setattr(eval, "resolve_model", refuse)


def with_gpu(monkeypatch, capability=None, name="NVIDIA A100-SXM4-80GB", count=1):
    """Torch sees GPUs of this kind; without a capability, none."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: name)


def with_vllm(monkeypatch, there):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: there or None if name == "vllm" else find_spec(name, *rest)
    )


def refusal(*argv):
    with pytest.raises(UserError) as e:
        preflight.check(load_config([str(a) for a in argv]))
    assert "\n" not in str(e.value)
    return str(e.value)


@pytest.mark.parametrize("main", [train_grpo.main, bench.main, eval.main], ids=["train_grpo", "bench", "eval"])
def test_without_a_gpu_nothing_starts_on_the_cpu_unless_it_is_told_to(monkeypatch, tmp_path, main):
    with_gpu(monkeypatch)
    status, output = run_here(main, ["configs/8k.py", f"--out_dir={tmp_path / 'out'}"])
    assert status == 2 and output.startswith("error: device: torch ") and output.count("\n") == 1, output
    assert "--device=cpu" in output and "configs/tiny.py" in output and not (tmp_path / "out").exists()


def test_plan_and_grading_need_no_gpu(monkeypatch, tmp_path, capsys):
    with_gpu(monkeypatch)
    bench.main(["configs/8k.py", "--plan"])
    assert "GPU-hours" in capsys.readouterr().out
    row = '{"benchmark": "b", "id": "1", "answer": "2", "completions": [{"text": "<think></think>\\\\boxed{2}"}]}\n'
    (tmp_path / "theirs.jsonl").write_text(row)
    eval.main([f"--completions={tmp_path / 'theirs.jsonl'}", f"--out_dir={tmp_path / 'out'}"])
    assert "100.0" in capsys.readouterr().out


def test_the_cheapest_check_comes_first(monkeypatch, world, tmp_path):
    """A run in which everything is wrong, mended one by one."""
    argv = flags(world, tmp_path / "out" / "deep", train_data=tmp_path / "none.jsonl", dtype="bfloat16", sampler="vllm")
    argv.append("--device=auto")
    with_vllm(monkeypatch, there=False)
    with_gpu(monkeypatch)
    assert refusal(*argv).startswith("device: ")
    with_gpu(monkeypatch, (7, 5), "Tesla T4")
    assert refusal(*argv).startswith("sampler: vllm is not installed")
    with_vllm(monkeypatch, there=True)
    line = refusal(*argv)
    assert line == "dtype: Tesla T4 (compute capability 7.5) has no bfloat16, which needs 8.0: --dtype=float16"
    argv.append("--dtype=float16")
    assert refusal(*argv) == f"train_data: no file {tmp_path}/none.jsonl"
    argv.append(f"--train_data={world / 'train.jsonl'}")
    assert refusal(*argv, "--eval_every=1", f"--eval_data={tmp_path}") == (
        f"eval_data: {tmp_path}: no .jsonl, .json, .csv, .tsv, .parquet, .arrow file in this folder"
    )
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    line = refusal(*argv)
    assert line.startswith(f"out_dir: {tmp_path}/out/deep/run: a save takes ") and "0.0 MB are free" in line
    preflight.check(load_config([*argv, "--save_every=0"]))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    preflight.check(load_config(argv))
    assert not (tmp_path / "out").exists()


def test_a_disk_that_does_not_answer_is_left_to_the_run_folder(monkeypatch, world, tmp_path):
    def stale(path):
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(shutil, "disk_usage", stale)
    preflight.check(load_config(flags(world, tmp_path)))


def test_what_a_gpu_cannot_do_is_refused_with_what_it_can(monkeypatch, world, tmp_path):
    argv = flags(world, tmp_path, device="auto")  # in float32
    with_gpu(monkeypatch, (8, 6), "NVIDIA A10")
    assert "float32 does not run through FlashAttention on a GPU: use bfloat16 or --device=cpu" in refusal(*argv)
    preflight.check(load_config([*argv, "--dtype=bfloat16"]))
    cfg = load_config([*argv, "--sampler=vllm"])
    with_vllm(monkeypatch, there=True)
    preflight.check_machine(cfg, ("float32", "bfloat16"), trains=False)  # vLLM has its own attention
    with_gpu(monkeypatch, (7, 5), "Tesla T4")
    assert "use float16 or --device=cpu" in refusal(*argv)
    preflight.check(load_config([*argv, "--dtype=float16"]))
    monkeypatch.setitem(os.environ, "LOCAL_RANK", "2")
    with_gpu(monkeypatch, (8, 0), count=2)
    line = refusal(*argv, "--dtype=bfloat16")
    assert line == "device: process 3 of this machine, which has 2 GPUs: --nproc_per_node=2"


@pytest.mark.parametrize(
    "path, command",
    [
        ("data/train.jsonl", "python data_prep.py train --source=deepscaler"),
        ("data/aime24.jsonl", "python data_prep.py bench"),
        ("data/parametric.jsonl", "python data_prep.py parametric"),
        ("data/tiny/train.jsonl", "python data_prep.py tiny"),
        ("data/gsm8k/main/train-00000-of-00001.parquet", "hf download openai/gsm8k"),
    ],
)
def test_a_missing_file_is_named_with_the_command_that_makes_it(monkeypatch, tmp_path, path, command):
    monkeypatch.chdir(tmp_path)
    assert refusal("--device=cpu", f"--train_data={path}").startswith(f"train_data: no file {path}: `{command}")


def test_data_is_looked_for_before_a_model(world, tmp_path):
    output = train(flags(world, tmp_path / "out", model="some/hub-model", train_data="data/none/x.jsonl"), status=2)
    assert output.startswith("error: train_data: no file data/none/x.jsonl") and not (tmp_path / "out").exists()
    argv = [*flags(world, tmp_path / "out", model="some/hub-model")[:1], "--benchmarks=none"]
    status, output = run_here(eval.main, argv)
    assert status == 2 and output.startswith("error: --benchmarks: no data/none.jsonl")


# ------------------------------------------------------------------------------------------------------------- hardware


@pytest.mark.parametrize(
    "name, peak",
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA A100-PCIE-40GB", 312e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA A10G", None),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H200", 989e12),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", None),
        ("Tesla T4", 65e12),
        ("NVIDIA GeForce RTX 3090", 71e12),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
    ],
)
def test_a_gpu_is_known_by_its_whole_name(name, peak):
    assert data_sheet_peak(name) == peak


def test_the_peak_of_float16_is_the_data_sheets_too(monkeypatch):
    with_gpu(monkeypatch, (7, 5), "Tesla T4")
    peak_flops.cache_clear()
    assert peak_flops(torch.device("cuda", 0), torch.float16) == 65e12
    peak_flops.cache_clear()


def test_a_gpu_without_varlen_attention_takes_sdpa_with_its_index_on_the_gpu(monkeypatch):
    for capability, varlen in (((7, 5), False), ((8, 0), True)):
        with_gpu(monkeypatch, capability)
        assert (attention_backend(torch.device("cuda", 0)) != "sdpa") == varlen
    cu_seqlens = torch.tensor([0, 3, 40, 45], dtype=torch.int32)
    expected = attention_layout(cu_seqlens, "sdpa")
    with torch.device("meta"):  # where a tensor lands whose device is not named
        blocks, row_of_token = attention_layout(cu_seqlens, "sdpa")
    assert torch.equal(row_of_token, expected[1])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(blocks, expected[0], strict=True))
