"""The checks of gpu_rehearsal.py on whole parts: the trainer's passes at the real shape, the sampler, a tiny run."""

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import train_grpo
from configs import Config, load_config
from gpu_kernels import (
    Figures,
    Result,
    Sizes,
    best_seconds,
    first_line,
    peak_gib,
    random_tensors,
    relative_error,
    reset_peak,
    seconds_of,
    synchronize,
)
from model import DTYPES, ModelConfig, Qwen2, attention_backend
from problems import tiny
from rollout import TorchSampler
from runs import ROOT, rows_of, run_here
from training import hardware, memory, packing, plan, smoke

CONFIG = str(ROOT / "configs" / "8k.py")

# -------------------------------------------------------------------------------------------------------- the trainer


def random_model(cfg: Config, s: Sizes, device: torch.device) -> Qwen2:
    """As packing.load_model makes it of a folder, but with random weights made on the device."""
    with torch.device("meta"):
        model = Qwen2(ModelConfig.from_dict(s.shape))
    model.shard(packing.device_mesh(cfg, device), DTYPES[cfg.dtype])
    model.to_empty(device=device)
    for name, p in model.named_parameters():
        p.detach().to_local().copy_(random_weight(name, p.shape, device))
    model.backend = attention_backend(device, cfg.attention)
    model.set_activation_checkpointing(cfg.activation_checkpointing)
    return model


def random_weight(name: str, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Norms are 1, as after no training; all others normal, with the usual deviation."""
    return torch.ones(shape, device=device) if "norm" in name else torch.randn(shape, device=device) * 0.02


@dataclass(frozen=True)
class Training:
    """What the trainer's checks share. The optimizer's lr is 0, so that all of them see the same weights."""

    cfg: Config
    device: torch.device
    model: Qwen2
    optimizer: torch.optim.AdamW
    eager: dict[str, Tensor]  # log-probabilities (T,) of each pack, before anything was compiled


def check_train(device: torch.device, s: Sizes) -> Iterator[Result]:
    """The trainer's own functions on full packs, a world of one: time, memory, and what torch.compile makes of it.
    The head's functions are compiled once, for the settings `head` and `layers`."""
    where = "auto" if device.type == "cuda" else "cpu"
    cfg = load_config([CONFIG, f"--device={where}", *s.flags])
    packing.init_distributed(cfg)
    torch.manual_seed(0)
    model = random_model(cfg, s, device)
    training = Training(cfg, device, model, torch.optim.AdamW(model.parameters(), lr=0.0), {})
    for setting in s.compile:
        if setting == "layers":
            model.compile_layers()
        results = []
        for name, longest in s.packs.items():
            results.append(time_pack(replace(training, cfg=replace(cfg, compile=setting)), name, longest))
            yield results[-1]
        if setting == "none":
            yield planned_memory(results, s)
    yield host_syncs(training)
    dist.destroy_process_group()


def pack_of(training: Training, longest: int) -> tuple[Config, packing.Batch, packing.Minibatch]:
    """The fullest pack of sequences whose responses have `longest` tokens, which is on-policy and has a reference."""
    cfg, model = replace(training.cfg, max_response_len=(longest,)), training.model
    b = smoke.worst_pack(cfg, model.vocab_size, training.device)
    b = replace(b, ref_logprobs=packing.fixed_logprobs(model, [b], cfg)[0])
    return cfg, b, packing.Minibatch([], int(b.response_mask.sum()), len(b.cu_seqlens) - 1, longest)


def time_pack(training: Training, name: str, longest: int) -> Result:
    """Seconds of a pass without gradient, of forward and backward, and of the optimizer, and the share of the peak:
    three forward passes' FLOPs, what is computed again not counted."""
    model, device = training.model, training.device
    start = time.perf_counter()
    cfg, b, minibatch = pack_of(training, longest)
    score = partial(packing.fixed_logprobs, model, [b], cfg)
    train = partial(train_grpo.backward, model, [b], minibatch, cfg)
    train()
    norm = train_grpo.optimizer_step(model, training.optimizer, 0.0, cfg)
    synchronize(device)
    first = time.perf_counter() - start
    reset_peak(device)
    step, tries = partial(train_grpo.optimizer_step, model, training.optimizer, 0.0, cfg), []
    for _ in range(2):
        tries.append([seconds_of(function, device) for function in (score, train, step)])
    scored, trained, stepped = map(min, zip(*tries, strict=True))
    lengths, peak = b.cu_seqlens.diff().tolist(), hardware.peak_flops(device, DTYPES[cfg.dtype])
    figures: Figures = {"MFU": (100 * 3 * model.flops(lengths) / trained / peak, "%")}
    figures |= {"no gradient": (scored, "s"), "forward and backward": (trained, "s"), "optimizer": (stepped, "s")}
    figures |= {"compiling, warming up": (first - scored - trained - stepped, "s")} | peak_gib(device, 0)
    logprobs = score()[0]
    eager = training.eager.setdefault(name, logprobs)  # the first setting's
    return Result(
        f"train, compile={cfg.compile}, {name}",
        figures,
        relative_error(logprobs, eager),
        0.02,
        expected="eager 33, 31, 30% (H200), about 29% (H100); goal 44, 43, 42%",
        failed="" if norm else "the gradient is not finite, or 0",
    )


def planned_memory(results: list[Result], s: Sizes) -> Result:
    """The largest peak of these packs against the plan for one GPU."""
    peaks = [result.figures["peak"][0] for result in results if "peak" in result.figures]
    if not peaks:
        return Result("memory", not_here="torch counts a GPU's memory alone")
    # No reference is loaded here. Of the GPU the plan reads nothing for the trainer's moments.
    job = plan.stages([CONFIG, "--gpu=h200", "--gpus=1", "--kl_coef=0", *s.flags])[0]
    planned = memory.trainer_peak(job) - memory.CONTEXT - memory.ASLEEP  # neither is among torch's tensors
    figures: Figures = {"peak": (max(peaks), "GiB"), "plan": (planned, "GiB")}
    return Result("memory", figures, abs(max(peaks) / planned - 1), 0.15, expected="the plan's")


def host_syncs(training: Training) -> Result:
    """Forward and backward must not wait for the GPU. torch raises where one of its own functions does."""
    if training.device.type != "cuda":
        return Result("host syncs", not_here="a CPU has none")
    cfg, b, minibatch = pack_of(training, training.cfg.max_response_len[0])
    torch.cuda.set_sync_debug_mode("error")
    try:
        train_grpo.backward(training.model, [b], minibatch, cfg)
    except RuntimeError as e:
        return Result("host syncs", failed=first_line(e))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return Result("host syncs", {"found": (0.0, "")}, expected="0")


# -------------------------------------------------------------------------------------------------------- the sampler


def make_sampler(s: Sizes, device: torch.device, cuda_graphs: bool) -> TorchSampler:
    """With random weights of the real shape, which are never on disk: the folder it is built from has the tiny model
    and tokenizer."""
    with tempfile.TemporaryDirectory() as folder:
        tiny.new_model(tiny.make_tokenizer(Path(folder)), seed=0).save_pretrained(folder)
        sampler = TorchSampler(folder, torch.bfloat16, device, s.sampled[0], cuda_graphs=cuda_graphs)
    sampler.config, sampler.vocab_size, sampler.weights = ModelConfig.from_dict(s.shape), s.shape["vocab_size"], {}
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in Qwen2(sampler.config).named_parameters()}
    torch.manual_seed(0)
    sampler.load_weights((name, random_weight(name, shape, device)) for name, shape in shapes.items())
    return sampler


def check_sampler(device: torch.device, s: Sizes) -> Iterator[Result]:
    """TorchSampler: milliseconds of a token of all slots, with CUDA graphs and without; both draw the same tokens."""
    slots, prompt_len, max_tokens = s.sampled
    prompts = torch.randint(2, s.shape["vocab_size"], (slots, prompt_len), generator=torch.Generator().manual_seed(0))
    arguments, greedy = (prompts.tolist(), [[seed] for seed in range(slots)]), []
    for cuda_graphs in (False, True):
        sampler = make_sampler(s, device, cuda_graphs)
        groups = sampler.generate(*arguments, max_tokens, 0.0, 1.0)
        greedy.append(torch.cat([torch.tensor(group[0].response_ids) for group in groups]))
        one, all_of_them = (
            best_seconds(partial(sampler.generate, *arguments, n, 0.6, 1.0), device, tries=2) for n in (1, max_tokens)
        )
        figures: Figures = {"a token": (1000 * (all_of_them - one) / (max_tokens - 1), "ms"), "first": (one, "s")}
        differ = float((greedy[-1] != greedy[0]).double().mean())  # of tokens, from the first setting's
        yield Result(
            f"sampler, cuda_graphs={cuda_graphs}", figures, differ, 0.02, expected="15 to 25 ms a token without graphs"
        )
    yield masked_attention(device, s)


def masked_attention(device: torch.device, s: Sizes) -> Result:
    """Attention of a decoding step over caches that grow by a token a call: cuDNN plans anew for every shape."""
    if device.type != "cuda":
        return Result("decoding attention", not_here="cuDNN's attention needs a GPU")
    (heads, kv, size), slots = s.attention, s.sampled[0]
    others = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    figures: Figures = {}
    for name, backends in (("cuDNN", [SDPBackend.CUDNN_ATTENTION]), ("others", others)):
        milliseconds = []
        try:
            for length in range(1024, 1056):
                shapes = [(slots, kv, heads // kv, size), *[(slots, kv, length, size)] * 2, (slots, 1, 1, length)]
                q, k, v, mask = random_tensors(shapes, device, torch.bfloat16)
                with sdpa_kernel(backends):
                    call = partial(F.scaled_dot_product_attention, q, k, v, attn_mask=mask)
                    milliseconds.append(1000 * seconds_of(call, device))
            figures[name] = (sorted(milliseconds)[len(milliseconds) // 2], "ms, median of new lengths")
        except RuntimeError as error:  # cuDNN does not take every shape
            figures[name] = (first_line(error), "")
    return Result("decoding attention", figures, expected="cuDNN up to 440 ms a new shape, as others measured")


# ------------------------------------------------------------------------------------------------------------ programs


def check_tiny(device: torch.device, s: Sizes) -> Iterator[Result]:
    """Twelve steps of configs/tiny.py in bfloat16, with a resume after eight; error: the largest k3 of sampler against
    trainer, see training/watch.py."""
    with tempfile.TemporaryDirectory() as folder:
        with redirect_stdout(sys.stderr):
            s.make_world(Path(folder))
        argv = ["configs/tiny.py", f"--model={folder}/base", f"--train_data={folder}/train.jsonl", "--dtype=bfloat16"]
        argv += [f"--out_dir={folder}", "--run_name=run", f"--device={'auto' if device.type == 'cuda' else 'cpu'}"]
        argv += ["--stage_policy=fixed", "--eval_every=0", "--save_every=4", *s.tiny_flags]
        for flags in (["--max_steps=8"], ["--max_steps=12", "--resume=true"]):
            status, output = run_here(train_grpo.main, argv + flags)
            if status:
                yield Result("tiny run", failed=f"status {status}: {output.strip().splitlines()[-1]}")
                return
        rows = rows_of(Path(folder) / "run")
    rewards = [row["reward_mean"] for row in rows]
    figures: Figures = {"reward of steps 1 to 4": (sum(rewards[:4]) / 4, ""), "9 to 12": (sum(rewards[8:]) / 4, "")}
    figures |= {"a step": (min(row["time_step"] for row in rows), "s")}
    steps = [row["step"] for row in rows]
    failed = "" if steps == list(range(1, 13)) else f"metrics.jsonl has the steps {steps}"
    largest = max(row["mismatch_k3"] or 0.0 for row in rows)  # None: a step without an update
    yield Result("tiny run", figures, largest, Config.mismatch_limit, "an error of about 1e-5, a CPU's", failed=failed)


def check_gpu_tests(device: torch.device, s: Sizes) -> Iterator[Result]:
    """tests/test_gpu.py, whose tests all skip where there is no GPU."""
    if importlib.util.find_spec("pytest") is None:
        yield Result("tests/test_gpu.py", not_here="pytest is not installed: pip install -r requirements-test.txt")
        return
    command = [sys.executable, "-m", "pytest", "tests/test_gpu.py"]
    environment = os.environ | ({} if device.type == "cuda" else {"CUDA_VISIBLE_DEVICES": ""})
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    lines = (done.stdout + done.stderr).strip().splitlines() or ["no output"]
    counts = {name: int(number) for number, name in re.findall(r"(\d+) (passed|failed|skipped|error)", lines[-1])}
    figures: Figures = {name: (float(number), "") for name, number in counts.items()}
    wanted = "passed" if device.type == "cuda" else "skipped"
    failed = "" if done.returncode == 0 and wanted in counts else lines[-1]
    yield Result("tests/test_gpu.py", figures, failed=failed)
