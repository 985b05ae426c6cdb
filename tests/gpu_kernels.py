"""The checks of gpu_rehearsal.py on the machine and on single functions of the model; what all checks share.

A check is a function of the device and of sizes that yields results. Those of whole runs are in gpu_training.py.

Dimensions: T packed tokens, D hidden, H query heads, K key/value heads, E head size, V vocabulary.
"""

import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from configs import UserError
from model import add_product, attention, attention_backend, attention_layout, token_logprobs
from problems import tiny
from runs import make_world
from training import hardware, plan

GIB = 2**30
Figures = dict[str, tuple[float | str, str]]  # name -> value, unit


@dataclass(frozen=True)
class Sizes:
    attention: tuple[int, int, int]  # H, K, E
    lengths: list[int]  # tokens of the sequences that attention is checked with
    timed: dict[str, list[int]]  # and timed with
    shape: dict[str, Any]  # of the model, whose D and V the head has
    head_tokens: int  # T of the head that is timed
    chunks: tuple[int, ...]  # tokens whose logits exist at once
    rows: int  # tokens whose log-probabilities are compared with float64
    flags: tuple[str, ...]  # of the trainer
    packs: dict[str, int]  # of the trainer's token_budget: tokens of the longest response, behind a prompt of the limit
    compile: tuple[str, ...]  # settings tried
    sampled: tuple[int, int, int]  # of the sampler: slots, tokens of a prompt and of a response
    make_world: Callable[[Path], Any]  # base/, train.jsonl and test.jsonl of the tiny run, in a folder
    tiny_flags: tuple[str, ...]  # of the tiny run


LENGTHS = {"4x8K": [8192] * 4, "24K+8K": [24576, 8192]}
PACKS = {"4x8K": 7168, "2x16K": 15360, "24K+8K": 23552}
REAL = Sizes(
    attention=(12, 2, 128),
    lengths=[1, 7, 300, 2048, 5120],
    timed=LENGTHS,
    shape=plan.R1_DISTILL,
    head_tokens=32768,
    chunks=(1024, 2048, 4096, 8192),
    rows=512,
    flags=(),
    packs=PACKS,
    compile=("none", "head", "layers"),
    sampled=(16, 512, 64),
    make_world=partial(tiny.make_tiny_world, updates=300),  # of 900: on the CPU, while the GPU waits
    tiny_flags=(),
)
TOY = Sizes(
    attention=(6, 2, 16),
    lengths=[1, 7, 30, 64],
    timed={"2x32": [32, 32]},
    shape=dict(tiny.MODEL, vocab_size=200, tie_word_embeddings=False),
    head_tokens=128,
    chunks=(64,),
    rows=32,
    flags=("--max_prompt_len=32", "--max_response_len=96", "--token_budget=128", "--logprob_chunk=64"),
    packs={"2x64": 32, "96+32": 64},
    compile=("none",),
    sampled=(4, 8, 6),
    make_world=make_world,
    tiny_flags=("--prompts_per_step=8", "--group_size=4,4,4", "--max_response_len=24,28,32", "--token_budget=128"),
)


@dataclass(frozen=True)
class Result:
    """Of one check, a line of the report."""

    name: str
    figures: Figures = field(default_factory=dict)
    error: float | None = None
    limit: float | None = None  # the most that the error may be
    expected: str = ""  # of the figures at the real size, by arithmetic
    not_here: str = ""  # why nothing was checked
    failed: str = ""  # why, where no error says it
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return not self.failed and (self.error is None or self.error <= self.limit)


# ----------------------------------------------------------------------------------------------------- time and error


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(function: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call, until the device has done its work."""
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - start


def best_seconds(function: Callable[[], Any], device: torch.device, tries: int = 3) -> float:
    return min(seconds_of(function, device) for _ in range(tries))


def reset_peak(device: torch.device) -> int:
    """Begin to watch for the most memory; returns the bytes of tensors now. torch does not count a CPU's."""
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def peak_gib(device: torch.device, before: int) -> Figures:
    """The most GiB since `reset_peak`, beyond what was there."""
    if device.type != "cuda":
        return {}
    return {"peak": ((torch.cuda.max_memory_allocated(device) - before) / GIB, "GiB")}


def relative_error(ours: Tensor, reference: Tensor) -> float:
    return float((ours.double() - reference.double()).norm() / reference.double().norm())


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"


def values_and_gradients(function: Callable, inputs: list[Tensor], upstream: list[Tensor]) -> list[Tensor]:
    """The tensor or tensors that the function makes of `inputs`, and the gradients of `inputs`."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    values = function(*leaves)
    values = [values] if isinstance(values, Tensor) else values
    return [*(x.detach() for x in values), *torch.autograd.grad(values, leaves, upstream)]


def random_tensors(shapes: list[tuple[int, ...]], device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Standard normal numbers, the same at every call."""
    generator = torch.Generator(device).manual_seed(0)
    return [torch.randn(shape, generator=generator, device=device).to(dtype) for shape in shapes]


# ------------------------------------------------------------------------------------------------------------- checks


def check_environment(device: torch.device, s: Sizes) -> Iterator[Result]:
    """Versions, a matrix product and a copy."""
    source = torch.ones(GIB // 2 if device.type == "cuda" else 2**20, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    copied = 2 * source.nbytes / best_seconds(lambda: target.copy_(source), device)  # read and written
    figures: Figures = {
        "torch": (torch.__version__, ""),
        "product": (hardware.matmul_flops(device, torch.bfloat16, size=256) / 1e12, "TFLOP/s"),
        "copy": (copied / 1e12, "TB/s"),
    }
    expected = "copy below 4.8 TB/s (H200), 3.35 (H100), 2.04 (A100); CUDA 13 needs a driver of about 580 or newer"
    if device.type == "cuda":
        properties, name = torch.cuda.get_device_properties(device), torch.cuda.get_device_name(device)
        driver = Path("/proc/driver/nvidia/version")  # not in every container
        version = re.search(r"\d{3,}\.\d[.\d]*", driver.read_text()) if driver.is_file() else None
        figures |= {"CUDA": (str(torch.version.cuda), ""), "cuDNN": (str(torch.backends.cudnn.version()), "")}
        figures |= {"driver": (version[0] if version else "unknown", "")}
        figures |= {"memory": (properties.total_memory / GIB, "GiB")}
        peak = hardware.data_sheet_peak(name)
        expected += f"; product below {peak / 1e12:.0f} TFLOP/s, the data sheet's" if peak else ""
    yield Result("environment", figures, expected=expected)


def reference_attention(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    """The formula, a sequence at a time. q (T, H, E), k and v (T, K, E) -> (T, H, E)."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    outputs = []
    for q_, k_, v_ in zip(*(x.split(lengths) for x in (q, k, v)), strict=True):
        scores = torch.einsum("qhe,khe->hqk", q_, k_) / math.sqrt(q.shape[2])
        future = torch.ones_like(scores[0], dtype=torch.bool).triu(1)
        outputs.append(torch.einsum("hqk,khe->qhe", scores.masked_fill(future, -math.inf).softmax(-1), v_))
    return torch.cat(outputs)


def packed_attention(lengths: list[int], device: torch.device, backend: str) -> Callable[..., Tensor]:
    """`attention` of q, k, v over sequences of these lengths."""
    cu_seqlens = torch.tensor([0, *lengths], device=device).cumsum(0).int()
    return partial(attention, layout=attention_layout(cu_seqlens, backend, max(lengths)), backend=backend)


def check_attention(device: torch.device, s: Sizes, wanted: str = "auto") -> Iterator[Result]:
    """Attention on packed sequences as the model calls it, against the formula in float64; its speed."""
    name = "attention" if wanted == "auto" else f"attention {wanted}"
    try:
        backend = attention_backend(device, wanted)
    except UserError as e:
        yield Result(name, not_here=str(e))
        return
    (h, kv, e), tokens = s.attention, sum(s.lengths)
    shapes = [(tokens, h, e), (tokens, kv, e), (tokens, kv, e), (tokens, h, e)]
    *inputs, upstream = random_tensors(shapes, device, torch.bfloat16)
    reference = partial(reference_attention, lengths=s.lengths)
    exact = values_and_gradients(reference, [x.double() for x in inputs], [upstream.double()])
    attend = packed_attention(s.lengths, device, backend)

    def repeated(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, *(x.repeat_interleave(h // kv, dim=1) for x in (k, v)))

    for how, function in (("", attend), (", K repeated to H", repeated)):
        ours = values_and_gradients(function, inputs, [upstream])
        errors = [relative_error(x, y) for x, y in zip(ours, exact, strict=True)]
        figures: Figures = {"kernel": (backend, "")}
        figures |= {what: (error, "") for what, error in zip(("forward", "dq", "dk", "dv"), errors, strict=True)}
        yield Result(name + how, figures, max(errors), 0.02)
    for pack, lengths in s.timed.items():
        yield Result(
            f"{name} at {pack}",
            attention_rates(lengths, s, device, backend),
            expected="370 and 320 TFLOP/s (H200), with FlashAttention 2",
        )


def attention_rates(lengths: list[int], s: Sizes, device: torch.device, backend: str) -> Figures:
    """TFLOP/s, of the causal half."""
    (h, kv, e), tokens = s.attention, sum(lengths)
    shapes = [(tokens, h, e), (tokens, kv, e), (tokens, kv, e), (tokens, h, e)]
    *leaves, upstream = random_tensors(shapes, device, torch.bfloat16)
    attend, leaves = packed_attention(lengths, device, backend), [x.requires_grad_() for x in leaves]
    out = attend(*leaves)  # warms up, and is what the backward pass starts from
    forward = best_seconds(lambda: attend(*leaves), device)
    gradients = partial(torch.autograd.grad, out, leaves, upstream, retain_graph=True)
    gradients()
    backward = best_seconds(gradients, device)
    flops = 2 * h * e * sum(n * n for n in lengths)  # two products forward, five backward
    rates = {"forward": flops / forward, "backward": 2.5 * flops / backward}
    return {name: (rate / 1e12, "TFLOP/s") for name, rate in rates.items()}


def head_inputs(tokens: int, s: Sizes, device: torch.device) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """hidden (T, D) and weight (V, D) in bfloat16; targets (T,); gradients of log-probabilities and entropy, (T,)."""
    d, v = s.shape["hidden_size"], s.shape["vocab_size"]
    hidden, weight = random_tensors([(tokens, d), (v, d)], device, torch.bfloat16)
    upstream = random_tensors([(tokens,), (tokens,)], device, torch.float32)
    targets = torch.randint(v, (tokens,), generator=torch.Generator().manual_seed(0)).to(device)
    return [hidden, weight * (2 / math.sqrt(d))], targets, upstream  # logits of standard deviation 2


def check_head(device: torch.device, s: Sizes) -> Iterator[Result]:
    """Log-probabilities and entropies from hidden states: time and memory by chunk, the compiler's with the first;
    error against float64."""
    for chunk in s.chunks:
        for fused in (False, True):
            yield head_speed(chunk, fused, s, device)
    inputs, targets, upstream = head_inputs(s.rows, s, device)

    def formula(hidden: Tensor, weight: Tensor) -> list[Tensor]:
        logprobs = (hidden @ weight.T / 0.6).log_softmax(-1)
        return [logprobs.gather(-1, targets[:, None]).squeeze(-1), -(logprobs.exp() * logprobs).sum(-1)]

    exact = values_and_gradients(formula, [x.double() for x in inputs], [x.double() for x in upstream])
    for fused in (False, True):
        ours = values_and_gradients(partial(head, targets, s.rows // 2, fused), inputs, upstream)
        errors = [relative_error(x, y) for x, y in zip(ours, exact, strict=True)]
        names = "log-probabilities", "entropy", "gradient of hidden", "gradient of weight"
        figures: Figures = {name: (error, "") for name, error in zip(names, errors, strict=True)}
        yield Result(f"head, {'fused' if fused else 'eager'}, {s.rows} tokens", figures, max(errors), 0.02)


def head(targets: Tensor, chunk: int, fused: bool, hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor | None]:
    """`token_logprobs` at temperature 0.6; without a gradient also without entropy, as the trainer's fixed passes."""
    return token_logprobs(hidden, weight, targets, 0.6, chunk, None, torch.is_grad_enabled(), fused)


def head_speed(chunk: int, fused: bool, s: Sizes, device: torch.device) -> Result:
    """Milliseconds of both passes and of a forward pass alone, memory beside the inputs', seconds of the compiler."""
    inputs, targets, upstream = head_inputs(s.head_tokens, s, device)
    function = partial(head, targets, chunk, fused)
    both = partial(values_and_gradients, function, inputs, upstream)
    forward = torch.no_grad()(partial(function, *inputs))
    cold = seconds_of(both, device) + seconds_of(forward, device)
    before = reset_peak(device)
    times = best_seconds(forward, device), best_seconds(both, device)
    figures: Figures = {"forward": (1000 * times[0], "ms"), "both": (1000 * times[1], "ms")}
    figures |= {"compiling, warming up": (cold - sum(times), "s")} | peak_gib(device, before)
    expected = "under 150 ms for both, goal 93 ms and 4 GiB" if fused else "forward 140 ms, both 360 ms"
    return Result(f"head, {'fused' if fused else 'eager'}, chunk {chunk}", figures, expected=expected)


def check_add_product(device: torch.device, s: Sizes) -> Iterator[Result]:
    """model.add_product: on CUDA the product of two bfloat16 matrices is summed in float32 and never rounded; on a CPU
    it is rounded before it is added."""
    d, chunk = s.shape["hidden_size"], s.chunks[0]
    a, b = random_tensors([(4 * d, chunk), (chunk, d)], device, torch.bfloat16)
    total = torch.zeros(4 * d, d, device=device)
    add_product(total, a, b)
    error = relative_error(total, a.double() @ b.double())
    yield Result("add_product", error=error, limit=1e-4 if device.type == "cuda" else 1e-2)
