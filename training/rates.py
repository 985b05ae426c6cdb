"""How fast this machine does each kind of a step's work, at the sizes of a config's own packs and decode steps: the
rates that predict.py puts where the plan has a GPU's data sheet.

Dimensions: T packed tokens, D hidden, F MLP, H heads, K kv heads, E head_dim.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
import torch.nn.functional as F

from configs import Config
from configs._model import resolve_model
from kernels.norm import rms_norm
from model import DTYPES, ModelConfig, apply_rotary, attention, attention_layout, rotary_angles
from rollout import TorchSampler, attend_cache
from training.plan import LAYER_TRAFFIC

TRIES = 5  # the median counts
DECODED = 40  # tokens, about, that the time of a decode step is taken from


@dataclass(frozen=True)
class Rates:
    """What this machine does a second, and the seconds of a decode step with one response."""

    forward: float  # FLOP/s of products
    backward: float  # FLOP/s of the products of forward and backward
    attention: float  # FLOP/s of the causal half, forward
    traffic: float  # bytes/s of elementwise operations
    cached_token: float  # seconds of all layers' attention to a cached token, while decoding
    decode_step: float  # seconds of a step with one response


def seconds_of(function: Callable[[], object]) -> float:
    """The median of a few calls, the first not counted."""
    function()
    times = []
    for _ in range(TRIES):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return median(times)


def product_rates(c: ModelConfig, tokens: int, dtype: torch.dtype) -> tuple[float, float]:
    """FLOP/s of a layer's products with T tokens: forward alone, and with those of the backward pass."""
    heads = (c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim
    sizes = [(c.hidden_size, heads), (c.num_attention_heads * c.head_dim, c.hidden_size)]
    sizes += 2 * [(c.hidden_size, c.intermediate_size)] + [(c.intermediate_size, c.hidden_size)]
    inputs = [torch.randn(tokens, n, dtype=dtype) for n, _ in sizes]
    weights = [torch.randn(m, n, dtype=dtype) for n, m in sizes]
    gradients = [torch.randn(tokens, m, dtype=dtype) for _, m in sizes]

    def forward() -> None:
        for x, w in zip(inputs, weights, strict=True):
            F.linear(x, w)

    def backward() -> None:
        for x, w, g in zip(inputs, weights, gradients, strict=True):
            g @ w, g.T @ x

    flops = 2 * tokens * sum(n * m for n, m in sizes)
    forward_seconds = seconds_of(forward)
    return flops / forward_seconds, 3 * flops / (forward_seconds + seconds_of(backward))


def attention_rate(c: ModelConfig, lengths: list[int], dtype: torch.dtype) -> float:
    """FLOP/s of the causal half, forward, over a pack of sequences of these lengths."""
    cu_seqlens = F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int()
    q, k, v = (
        torch.randn(sum(lengths), n, c.head_dim, dtype=dtype)
        for n in (c.num_attention_heads, c.num_key_value_heads, c.num_key_value_heads)
    )
    layout = attention_layout(cu_seqlens, "sdpa", max(lengths))
    flops = 2 * c.num_attention_heads * c.head_dim * sum(n * n for n in lengths)
    return flops / seconds_of(lambda: attention(q, k, v, layout, "sdpa"))


def traffic_rate(c: ModelConfig, tokens: int, dtype: torch.dtype) -> float:
    """Bytes/s of a layer's elementwise operations with T tokens, forward, with bytes as `kernel_work` counts them."""
    heads = c.num_attention_heads + c.num_key_value_heads
    gate, up = (torch.randn(tokens, c.intermediate_size, dtype=dtype) for _ in range(2))
    x, qk = torch.randn(tokens, c.hidden_size, dtype=dtype), torch.randn(tokens, heads, c.head_dim, dtype=dtype)
    angles, weight = rotary_angles(torch.arange(tokens), c.head_dim, c.rope_theta), torch.ones(c.hidden_size)

    def elementwise() -> None:
        F.silu(gate) * up
        apply_rotary(qk, *angles)
        for _ in range(2):
            x + rms_norm(x, weight, c.rms_norm_eps)

    sizes = gate.numel(), x.numel(), qk.numel()
    counted = sum(n * size for n, size in zip(LAYER_TRAFFIC, sizes, strict=True)) * dtype.itemsize / 2
    return counted / seconds_of(elementwise)


def cached_token_seconds(c: ModelConfig, rows: int, length: int) -> float:
    """Of all layers' attention, of `rows` responses to `length` cached tokens each, as the sampler's step computes it
    on a CPU: in float32, with a mask, with the new token written into the cache."""
    heads = c.num_key_value_heads, c.num_attention_heads // c.num_key_value_heads
    q, new = torch.randn(rows, *heads, c.head_dim), torch.randn(rows, 2, heads[0], c.head_dim)
    cache = torch.randn(c.num_hidden_layers, 2, rows, heads[0], length, c.head_dim)
    row, position = torch.arange(rows), torch.full((rows,), length - 1)

    def of_all_layers() -> None:
        unseen = torch.arange(length) > position[:, None, None, None]
        bias = torch.zeros_like(unseen, dtype=torch.float32).masked_fill(unseen, -math.inf)
        for of_layer in cache:
            of_layer[:, row, :, position] = new
            attend_cache(q, *of_layer, bias)

    return seconds_of(of_all_layers) / (rows * length)


def decode_step_seconds(cfg: Config, prompt: int) -> float:
    """Of responses one after the other, whatever their tokens are."""
    sampler = TorchSampler(resolve_model(cfg.model), DTYPES[cfg.dtype], max_num_seqs=1)
    sampler.eos_ids = torch.tensor([-1])  # the id of no token: no response ends before its last one
    prompts, limit, tokens, seconds = [[0] * prompt], max(2, min(DECODED, cfg.max_response_len[0])), 0, 0.0
    while tokens < DECODED:
        start = time.perf_counter()
        sampler.generate(prompts, [[tokens]], 1, 1.0, 1.0)
        first = time.perf_counter()
        ((rollout,),) = sampler.generate(prompts, [[tokens]], limit, 1.0, 1.0)
        seconds += time.perf_counter() - first - (first - start)  # without prompt and first token
        tokens += len(rollout.response_ids) - 1
    return seconds / tokens


def measured_rates(cfg: Config, c: ModelConfig, prompt: int, lengths: list[int]) -> Rates:
    """At the sizes of a pack, and of a decode step, of responses of these lengths."""
    dtype, pack = DTYPES[cfg.dtype], []
    for n in lengths:
        if sum(pack) + prompt + n - 1 > cfg.token_budget:
            break
        pack.append(prompt + n - 1)
    forward, backward = product_rates(c, sum(pack), dtype)
    rows, half_way = min(cfg.max_num_seqs, len(lengths)), prompt + sum(lengths) // (2 * len(lengths))
    return Rates(
        forward=forward,
        backward=backward,
        attention=attention_rate(c, pack, dtype),
        traffic=traffic_rate(c, sum(pack), dtype),
        cached_token=cached_token_seconds(c, rows, half_way),
        decode_step=decode_step_seconds(cfg, prompt),
    )
