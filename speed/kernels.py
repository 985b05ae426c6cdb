"""The kernels a step is made of, at the sizes of a config: matrix products, attention, log-probabilities.

Each with its speed and the error of a part of its result against the same formula in float64. Needs the model's
config.json, not its weights: inputs are random.

Dimensions: T packed tokens, D hidden, H query heads, K key/value heads, E head size, F MLP, V vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from configs import Config
from model import DTYPES, ModelConfig, attention, attention_backend, attention_layout, token_logprobs
from speed.measure import Section, Spread, alternating, rates, relative_error, repeated
from training.plan import MEAN_SHARE, response_lengths

CHECKED = 64  # rows of a result that are compared with float64
CHECKED_LENGTHS = (64, 37, 5)  # tokens of the sequences that attention is compared on

# -------------------------------------------------------------------------------------------------------------- inputs


def random_tensor(*shape: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Normal numbers, the same ones at each call."""
    generator = torch.Generator(device).manual_seed(0)
    return torch.randn(*shape, generator=generator, device=device).to(dtype)


def full_lengths(cfg: Config) -> list[int]:
    """Tokens of the sequences of a pack in which every one has the greatest length, at the first context."""
    longest = cfg.max_prompt_len + cfg.max_response_len[0] - 1
    return [longest] * (cfg.token_budget // longest)


def ragged_lengths(cfg: Config) -> list[int]:
    """The same of a pack of responses whose lengths are spread as the plan assumes, behind prompts of equal length."""
    limit, prompt = cfg.max_response_len[0], cfg.max_prompt_len
    count = max(1, int(cfg.token_budget / (prompt + MEAN_SHARE * limit)))
    lengths = [prompt + n - 1 for n in response_lengths(max(1, MEAN_SHARE * limit), limit, count)]
    while sum(lengths) > cfg.token_budget:  # rounding
        lengths.pop()
    return lengths


# ----------------------------------------------------------------------------------------------------- matrix products


def product_sizes(c: ModelConfig) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of each matrix that a token passes, those that take the same input joined."""
    q, kv = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    return {
        "qkv": (c.hidden_size, q + 2 * kv),
        "o": (q, c.hidden_size),
        "gate_up": (c.hidden_size, 2 * c.intermediate_size),
        "down": (c.intermediate_size, c.hidden_size),
        "head": (c.hidden_size, c.vocab_size),
    }


def product_figures(
    multiply: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor, device: torch.device
) -> dict[str, Spread | float]:
    """Speed of `multiply(a, b)`, which is to be a @ b, and the error of its first rows. a (M, K), b (K, N)."""
    flops = 2 * a.shape[0] * a.shape[1] * b.shape[1]
    seconds = repeated(lambda: multiply(a, b), device)
    error = relative_error(multiply(a, b)[:CHECKED], a[:CHECKED].double() @ b.double())
    return {"ms": Spread.of([1e3 * s for s in seconds]), "GFLOP/s": rates(flops / 1e9, seconds), "error": error}


def gemm(cfg: Config, shape: ModelConfig, device: torch.device) -> Section:
    """The model's matrix products and their two gradients, as the training of a full pack asks for them."""
    rows, dtype = [], DTYPES[cfg.dtype]
    for name, (inputs, outputs) in product_sizes(shape).items():
        count = min(cfg.token_budget, cfg.logprob_chunk) if name == "head" else cfg.token_budget
        x = random_tensor(count, inputs, device=device, dtype=dtype)
        weight = random_tensor(outputs, inputs, device=device, dtype=dtype)
        grad = random_tensor(count, outputs, device=device, dtype=dtype)
        for kind, a, b in (("forward", x, weight.T), ("input gradient", grad, weight), ("weight gradient", grad.T, x)):
            figures = product_figures(torch.matmul, a, b, device)
            size = f"{a.shape[0]} x {a.shape[1]} x {b.shape[1]}"
            rows.append({"product": f"{name}, {kind}", "size": size, **figures})
    title = f"gemm: {cfg.dtype} products of a pack of {cfg.token_budget:,} tokens, the head's of a chunk"
    return Section(title, rows)


# ----------------------------------------------------------------------------------------------------------- attention


def plain_attention(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """Causal softmax attention, sequence by sequence, in float64. q (T, H, E), k and v (T, K, E) -> (T, H, E)."""
    outputs = []
    for q_, k_, v_ in zip(*(x.double().split(list(lengths)) for x in (q, k, v)), strict=True):
        k_, v_ = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k_, v_))
        scores = torch.einsum("ihe,jhe->hij", q_, k_) / q.shape[2] ** 0.5
        hidden = torch.ones_like(scores[0], dtype=torch.bool).triu(1)
        outputs.append(torch.einsum("hij,jhe->ihe", scores.masked_fill(hidden, float("-inf")).softmax(-1), v_))
    return torch.cat(outputs)


def qkv(tokens: int, c: ModelConfig, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Random queries (T, H, E), keys and values (T, K, E) that take gradients, and a gradient of the output."""
    heads = (c.num_attention_heads, c.num_key_value_heads, c.num_key_value_heads, c.num_attention_heads)
    joined = random_tensor(tokens, sum(heads), c.head_dim, device=device, dtype=dtype)
    *inputs, grad = (x.contiguous() for x in joined.split(heads, dim=1))
    return [*(x.requires_grad_() for x in inputs), grad]


def layout_of(lengths: tuple[int, ...], backend: str, device: torch.device) -> object:
    """What `attention` needs to know of a pack of sequences of these lengths."""
    cu_seqlens = torch.tensor([0, *lengths], device=device).cumsum(0).int()
    return attention_layout(cu_seqlens, backend, max(lengths))


def attention_error(c: ModelConfig, dtype: torch.dtype, backend: str, device: torch.device) -> tuple[float, float]:
    """Of the output, and the largest of the three gradients', on a small pack."""
    q, k, v, grad = qkv(sum(CHECKED_LENGTHS), c, dtype, device)
    out = attention(q, k, v, layout_of(CHECKED_LENGTHS, backend, device), backend)
    exact = plain_attention(q, k, v, CHECKED_LENGTHS)
    gradients = torch.autograd.grad(out, (q, k, v), grad)
    exact_gradients = torch.autograd.grad(exact, (q, k, v), grad.double())
    errors = [relative_error(a, b) for a, b in zip(gradients, exact_gradients, strict=True)]
    return relative_error(out, exact), max(errors)


def attention_seconds(
    lengths: tuple[int, ...], c: ModelConfig, dtype: torch.dtype, backend: str, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of one layer's attention on a pack: "forward", and "both" with its gradients."""
    layout, (q, k, v, grad) = layout_of(lengths, backend, device), qkv(sum(lengths), c, dtype, device)

    def forward() -> Tensor:
        return attention(q, k, v, layout, backend)

    return alternating({"forward": forward, "both": lambda: torch.autograd.grad(forward(), (q, k, v), grad)}, device)


def attention_section(cfg: Config, shape: ModelConfig, device: torch.device) -> Section:
    """The trainer's attention, one layer, on a pack of full and a pack of ragged sequences."""
    dtype, backend, rows = DTYPES[cfg.dtype], attention_backend(device, cfg.attention), []
    forward_error, backward_error = attention_error(shape, dtype, backend, device)
    for name, lengths in (("full", full_lengths(cfg)), ("ragged", ragged_lengths(cfg))):
        seconds = attention_seconds(tuple(lengths), shape, dtype, backend, device)
        flops = 2 * shape.num_attention_heads * shape.head_dim * sum(n * n for n in lengths)  # the causal half
        rows.append(
            {
                "pack": f"{name}: {len(lengths)} of at most {max(lengths)} tokens",
                "forward, ms": Spread.of([1e3 * s for s in seconds["forward"]]),
                "with gradients, ms": Spread.of([1e3 * s for s in seconds["both"]]),
                "forward GFLOP/s": rates(flops / 1e9, seconds["forward"]),
                "error": forward_error,
                "gradients' error": backward_error,
            }
        )
    return Section(f"attention: one layer, {cfg.dtype}, {backend}; errors on {CHECKED_LENGTHS} tokens", rows)


# --------------------------------------------------------------------------------------------------- log-probabilities


def plain_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Log-probabilities of the targets (T,) in float64, with all logits at once."""
    logits = hidden.double() @ weight.double().T / temperature
    return logits.log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)


def head(cfg: Config, shape: ModelConfig, device: torch.device) -> Section:
    """Log-probabilities and entropies of a full pack from its hidden states, in chunks, and their gradients."""
    dtype, tokens = DTYPES[cfg.dtype], cfg.token_budget
    hidden = random_tensor(tokens, shape.hidden_size, device=device, dtype=dtype).requires_grad_()
    weight = random_tensor(shape.vocab_size, shape.hidden_size, device=device, dtype=dtype).mul_(0.02).requires_grad_()
    targets = torch.arange(tokens, device=device) % shape.vocab_size

    def forward() -> Tensor:
        options = cfg.temperature, cfg.logprob_chunk, None, True, cfg.compile != "none"
        return token_logprobs(hidden, weight, targets, *options)[0]

    def both() -> Tensor:
        return torch.autograd.grad(forward().mean(), (hidden, weight))[0]

    part = hidden[:CHECKED].detach().requires_grad_()
    exact = plain_logprobs(part, weight.detach(), targets[:CHECKED], cfg.temperature)
    (exact_gradient,) = torch.autograd.grad(exact.sum() / tokens, part)
    errors = {
        "forward": relative_error(forward()[:CHECKED], exact),
        "with gradients": relative_error(both()[:CHECKED], exact_gradient),
    }
    rows, product = [], 2 * tokens * shape.hidden_size * shape.vocab_size  # FLOPs
    for name, seconds in alternating({"forward": forward, "with gradients": both}, device).items():
        rows.append(
            {
                "log-probabilities": name,
                "ms": Spread.of([1e3 * s for s in seconds]),
                "tokens/s": rates(tokens, seconds),
                "GFLOP/s": rates((1 if name == "forward" else 3) * product / 1e9, seconds),
                "error": errors[name],
            }
        )
    chunk = f"{cfg.logprob_chunk:,} at a time, compile={cfg.compile}"
    note = "GFLOP/s of one product forward and two more for the gradients; what is computed again is not counted"
    return Section(f"head: {tokens:,} tokens, {chunk}, {cfg.dtype}", rows, (note,))
