"""Qwen2 and Qwen3 on packed tokens: forward pass, Hugging Face folders, FSDP2, log-probabilities without logits.

Sequences lie end to end on one token axis; `cu_seqlens` says where each begins, `position_ids` restart at 0 in each.
Parameter names are Hugging Face's, so a checkpoint loads and saves tensor by tensor. Reads and writes model folders
(`config.json`, `model.safetensors` or its shards, tokenizer files).

Dimensions: T packed tokens, S sequences, D hidden, H query heads, K key/value heads, E head size, F MLP, V vocabulary.
"""

import importlib.util
import inspect
import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint

from configs import UserError, check_regular
from configs._model import ARCHITECTURES, ModelConfig, read_object
from kernels import blocks
from kernels.norm import RMSNorm

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CARRIED_FILES = (  # with an export, so that it is a whole model folder
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)

# ---------------------------------------------------------------------------------------------------------- attention


# The major compute capabilities that torch runs these kernels on. It asks only at the first forward pass
# (torch/nn/attention/_fa3.py and _fa4.py, 2.13).
HOPPER_KERNELS = {"fa3": (9,), "fa4": (9, 10)}


def flash_attention() -> Callable[..., Tensor] | None:
    """flash-attn's kernel for packed sequences, where it is installed. The import of the package alone proves nothing:
    flash-attn 4 brings `flash_attn.cute` and nothing else under that name."""
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        return None
    return flash_attn_varlen_func


def attention_backend(device: torch.device, wanted: str = "auto") -> str:
    """The attention kernel for a device and the setting `attention`; "fa3" and "fa4" also switch torch's own kernel, in
    the whole process. Raises UserError for one that is not there.

    Kernels for packed sequences need compute capability 8.0, so a CPU and an older GPU (a T4: unproven, none was at
    hand) take SDPA.
    """
    major = torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 0
    has_varlen = importlib.util.find_spec("torch.nn.attention.varlen") is not None  # torch 2.10 and later
    if wanted == "auto" and major < 8:
        return "sdpa"
    if wanted in HOPPER_KERNELS and major not in HOPPER_KERNELS[wanted]:
        versions = " or ".join(f"{number}.x" for number in HOPPER_KERNELS[wanted])
        raise UserError(f"attention: {wanted} needs a GPU of compute capability {versions}: --attention=auto")
    if major < 8:
        raise UserError(f"attention: {wanted} needs a GPU of compute capability 8.0 or more: --attention=auto")
    if wanted == "flash_attn" or (wanted == "auto" and not has_varlen):
        if flash_attention() is None:
            remedy = "requirements-gpu.txt says how to build it, or --attention=auto"
            raise UserError(f"attention: there is no flash_attn.flash_attn_varlen_func: {remedy}")
        return "flash_attn"
    if wanted in HOPPER_KERNELS:
        try:
            torch.nn.attention.activate_flash_attention_impl(wanted.upper())
        except (ImportError, AttributeError, RuntimeError, ValueError) as e:
            raise UserError(
                f"attention: torch {torch.__version__} has no {wanted} here: {e}: --attention=auto"
            ) from None
    return "torch_varlen"


def attention_layout(cu_seqlens: Tensor, backend: str, longest: int | None = None) -> Any:
    """What attention needs to know of the pack, computed once a forward pass: (cu_seqlens, longest), for "sdpa" a
    `blocks.Layout`. longest: tokens of the longest sequence; without it a GPU is asked, and waited for."""
    if backend == "sdpa":
        return blocks.layout(cu_seqlens)
    return cu_seqlens, longest or int(cu_seqlens.diff().max())


def attention(q: Tensor, k: Tensor, v: Tensor, layout: Any, backend: str) -> Tensor:
    """Causal self-attention within each packed sequence. q (T, H, E), k and v (T, K, E) -> (T, H, E)."""
    if backend == "flash_attn":
        cu_seqlens, longest = layout
        return flash_attention()(q, k, v, cu_seqlens, cu_seqlens, longest, longest, causal=True)
    if backend == "torch_varlen":
        return torch_varlen_attention(q, k, v, *layout)
    return blocks.attention(q, k, v, layout)


def torch_varlen_attention(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, longest: int) -> Tensor:
    """`torch.nn.attention.varlen`, whose signature moved: 2.10 has `is_causal`, 2.11 `window_size` instead, 2.12 also
    `enable_gqa`. Without the last, fewer key and value heads are simply passed: the kernel tells from the shapes."""
    from torch.nn.attention.varlen import varlen_attn

    known = inspect.signature(varlen_attn).parameters
    options: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    if "enable_gqa" in known:
        options["enable_gqa"] = q.shape[1] != k.shape[1]
    return varlen_attn(q, k, v, cu_seqlens, cu_seqlens, longest, longest, **options)


def rotary_angles(position_ids: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin (T, 1, E) of both halves, sin with the first half's sign turned, for `apply_rotary`. In float32,
    computed as transformers does: a bf16 angle is radians off at long range."""
    exponents = torch.arange(0, head_dim, 2, device=position_ids.device).float() / head_dim
    angles = position_ids[:, None, None].float() * (1.0 / theta**exponents)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


class _Rotary(torch.autograd.Function):
    @staticmethod
    def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        a, b = x.float().chunk(2, dim=-1)
        return (x.float() * cos).addcmul_(torch.cat([b, a], dim=-1), sin).to(x.dtype)

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _Rotary.rotate(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _Rotary.rotate(grad, cos, -sin), None, None  # back by the same angle


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the halves (a, b) of each head to (a cos - b sin, b cos + a sin): GPT-NeoX layout, as Qwen2 and Qwen3.
    x (T, H, E); computed in float32. (Three operations each way, where autograd would make many on half heads.)"""
    return _Rotary.apply(x, cos, sin) if torch.is_grad_enabled() else _Rotary.rotate(x, cos, sin)


# ---------------------------------------------------------------------------------------------------------- the model


class Attention(nn.Module):
    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.head_dim, self.rope_theta = c.head_dim, c.rope_theta
        self.q_proj = nn.Linear(c.hidden_size, c.num_attention_heads * c.head_dim, bias=c.qkv_bias)
        self.k_proj = nn.Linear(c.hidden_size, c.num_key_value_heads * c.head_dim, bias=c.qkv_bias)
        self.v_proj = nn.Linear(c.hidden_size, c.num_key_value_heads * c.head_dim, bias=c.qkv_bias)
        self.o_proj = nn.Linear(c.num_attention_heads * c.head_dim, c.hidden_size, bias=False)
        self.q_norm = RMSNorm(c.head_dim, eps=c.rms_norm_eps) if c.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(c.head_dim, eps=c.rms_norm_eps) if c.qk_norm else nn.Identity()

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (T, H, E), keys and values (T, K, E) of normalised x (T, D), for `attention`."""
        # rollout.TorchSampler._forward repeats this computation: change both
        q, k, v = (proj(x).unflatten(-1, (-1, self.head_dim)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k = self.q_norm(q), self.k_norm(k)
        # Angles come from the integer positions here: FSDP2 casts every float it passes to a layer to bf16.
        cos, sin = rotary_angles(position_ids, self.head_dim, self.rope_theta)
        return apply_rotary(q, cos, sin), apply_rotary(k, cos, sin), v


class MLP(nn.Module):
    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.up_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.down_proj = nn.Linear(c.intermediate_size, c.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(c.hidden_size, eps=c.rms_norm_eps)
        self.self_attn = Attention(c)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, eps=c.rms_norm_eps)
        self.mlp = MLP(c)
        self.checkpointing = False

    def forward(self, x: Tensor, position_ids: Tensor, layout: Any, backend: str) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():  # inside the FSDP unit, so that its hooks see one forward
            return checkpoint(self.block, x, position_ids, layout, backend, use_reentrant=False)
        return self.block(x, position_ids, layout, backend)

    def block(self, x: Tensor, position_ids: Tensor, layout: Any, backend: str) -> Tensor:
        q, k, v = self.before_attention(x, position_ids)
        return self.after_attention(x, attention(q, k, v, layout, backend))

    # The two parts of a block around the attention kernel, which `Qwen2.compile_layers` compiles.

    def before_attention(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.self_attn(self.input_layernorm(x), position_ids)

    def after_attention(self, x: Tensor, out: Tensor) -> Tensor:
        x = x + self.self_attn.o_proj(out.flatten(1))
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(c) for _ in range(c.num_hidden_layers))
        self.norm = RMSNorm(c.hidden_size, eps=c.rms_norm_eps)


class Qwen2(nn.Module):
    """Qwen2 and Qwen3, as transformers' ForCausalLM of each, on packed tokens. `token_logprobs` applies the head."""

    def __init__(self, config: ModelConfig, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.config = config
        self.backend = attention_backend(torch.device(device))
        self.compute_dtype = torch.float32  # of the forward pass; `shard` may lower it
        self.vocab_size = config.vocab_size  # rows that are tokens; the tokenizer may know fewer, see `load_model`
        self.source: Path | None = None  # the folder it came from, whose tokenizer files are carried along
        self.model = Decoder(config)
        if config.tie_word_embeddings:
            self.lm_head = self.model.embed_tokens  # the same module, so the tie survives to_empty and FSDP
        else:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, cu_seqlens: Tensor, longest: int | None = None
    ) -> Tensor:
        """Hidden states (T, D) after the final norm; logits are `hidden @ model.lm_head.weight.T`, tied or not.
        longest: tokens of the longest sequence, so that a GPU need not be asked."""
        num_tokens = len(input_ids)
        if input_ids.is_cpu:
            input_ids, position_ids, cu_seqlens = blocks.padded(input_ids, position_ids, cu_seqlens)
        layout = attention_layout(cu_seqlens, self.backend, longest)
        x = self.model.embed_tokens(input_ids)  # (T, D)
        for layer in self.model.layers:
            x = layer(x, position_ids, layout, self.backend)
        return self.model.norm(x[:num_tokens])

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        mesh: DeviceMesh | None = None,
        compute_dtype: torch.dtype | None = None,
    ) -> "Qwen2":
        """The model of a Hugging Face folder, parameters in `dtype`; with a `mesh`, sharded before a byte is loaded.

        Tensors are read one at a time, so no more than one of them exists twice. Raises UserError.
        """
        with torch.device("meta"):
            model = cls(ModelConfig.from_folder(path), device).to(dtype)
        if mesh is not None:
            model.shard(mesh, compute_dtype or dtype)
        model.to_empty(device=device)
        model.load_weights(stream_weights(path), str(path))
        model.source = Path(path)
        return model

    def shard(self, mesh: DeviceMesh, compute_dtype: torch.dtype) -> None:
        """FSDP2: one unit a layer; embedding, final norm and head in the root, which stays gathered in between.

        Parameters keep their type (float32 in training), are cast to `compute_dtype` for the forward, and gradients
        are reduced in float32.
        """
        self.compute_dtype = compute_dtype
        policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32)
        for layer in self.model.layers:
            fully_shard(layer, mesh=mesh, mp_policy=policy)
        fully_shard(self, mesh=mesh, mp_policy=policy)

    def set_activation_checkpointing(self, on: bool) -> None:
        for layer in self.model.layers:
            layer.checkpointing = on

    def compile_layers(self) -> None:
        """Fuse what stands around the attention kernel, with torch.compile: one graph for all lengths and layers."""
        for layer in self.model.layers:
            layer.before_attention = compiled(layer.before_attention)
            layer.after_attention = compiled(layer.after_attention)

    @torch.no_grad()
    def load_weights(self, named_tensors: Iterable[tuple[str, Tensor]], where: str = "weights") -> None:
        """Copy every tensor into its parameter (a sharded one keeps its own part). Raises UserError on any mismatch."""
        parameters = dict(self.named_parameters())
        missing = set(parameters)
        for name, tensor in named_tensors:
            if name == "lm_head.weight" and self.config.tie_word_embeddings:
                continue
            if name not in parameters:
                raise UserError(f"{where}: unknown tensor {name}")
            p = parameters[name]
            if tensor.shape != p.shape:
                raise UserError(f"{where}: {name} has shape {tuple(tensor.shape)}, the config says {tuple(p.shape)}")
            tensor = tensor.to(p.device, p.dtype)
            if isinstance(p, DTensor):
                tensor = distribute_tensor(tensor, p.device_mesh, p.placements, src_data_rank=None)
            p.copy_(tensor)
            missing.discard(name)
            del tensor  # before the next one is read
        if missing:
            raise UserError(f"{where}: {len(missing)} tensors are missing, the first is {min(missing)}")

    def save_pretrained(self, path: str | Path, dtype: torch.dtype = torch.float32, write: bool = True) -> None:
        """Write a Hugging Face folder. Sharded: every rank calls it, and `write` is true on the one that writes."""
        tensors = {}
        for name, tensor in full_tensors(self, dtype):
            if write:
                tensors[name] = tensor.cpu().contiguous()
        if not write:
            return
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
        name, architecture = str(dtype).removeprefix("torch."), ARCHITECTURES[self.config.raw["model_type"]]
        raw = {**self.config.raw, "architectures": [architecture], "dtype": name, "torch_dtype": name}
        (path / "config.json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
        for file in CARRIED_FILES:
            if self.source is not None and (self.source / file).is_file():
                shutil.copyfile(self.source / file, path / file)

    def flops(self, lengths: Iterable[int]) -> float:
        """FLOPs of one forward pass over sequences of these lengths, head included; of attention the causal half."""
        c, lengths = self.config, list(lengths)
        kv = 2 * c.num_key_value_heads * c.head_dim
        width = c.num_attention_heads * c.head_dim
        layer = c.hidden_size * (2 * width + kv + 3 * c.intermediate_size)
        per_token = 2 * (c.num_hidden_layers * layer + c.hidden_size * c.vocab_size)
        per_pair = 2 * c.num_hidden_layers * width  # two products, half of the square
        return float(sum(per_token * n + per_pair * n * n for n in lengths))


def full_tensors(model: nn.Module, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """(name, whole tensor in `dtype`), one at a time; sharded parameters are cast first, gathered second.

    All ranks must iterate it together. Extra memory: one tensor.
    """
    for name, p in model.named_parameters():
        tensor = p.detach().to(dtype)
        yield name, tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def check_weights(path: str | Path) -> None:
    """Raises UserError if a folder's tensors are not those of its config, by name and shape; reads no numbers."""
    with torch.device("meta"):
        model = Qwen2(ModelConfig.from_folder(path))
    model.load_weights(stream_weights(path, only_shapes=True), str(path))


def stream_weights(path: str | Path, only_shapes: bool = False) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of a folder's `model.safetensors` or its shards, read one at a time; only_shapes: without their
    numbers, on the meta device. Raises UserError."""
    index = Path(path) / "model.safetensors.index.json"
    try:
        shards = set(read_object(index)["weight_map"].values()) if index.exists() else {"model.safetensors"}
        for file in sorted(shards):
            with safe_open(check_regular(Path(path) / file), framework="pt") as f:
                for name in f.keys():  # noqa: SIM118 (safe_open is no dict)
                    dtype = f.get_slice(name).get_dtype()
                    if dtype not in ("F64", "F32", "F16", "BF16"):
                        raise ValueError(f"{name} is {dtype}: only 16, 32 and 64 bit floats are supported")
                    shape = f.get_slice(name).get_shape()
                    yield name, torch.empty(shape, device="meta") if only_shapes else f.get_tensor(name)
    except (OSError, SafetensorError, ValueError, KeyError, AttributeError, TypeError, UserError) as e:
        raise UserError(f"{path}: cannot read the weights: {e}") from None


# -------------------------------------------------------------------------------------------------- log-probabilities


def _aligned_rows(vocab_size: int, rows: int) -> int:
    """Rows of the head that are multiplied: those of the tokens, up to a multiple of 128, which tensor cores want."""
    return min(rows, math.ceil(vocab_size / 128) * 128)


# The elementwise work on a chunk's logits, as two functions without side effects: torch.compile makes one or two passes
# over the logits of each, where eager PyTorch makes about thirty.


def tempered(logits: Tensor, temperature: float, vocab_size: int) -> Tensor:
    """logits / temperature in float32, (C, rows), a new tensor; rows that are no token get no probability, by a finite
    number, since 0 * -inf would be nan."""
    scaled = logits.to(torch.float32, copy=True).div_(temperature)
    scaled[:, vocab_size:] = -1e30
    return scaled


def chunk_scores(
    logits: Tensor, targets: Tensor, temperature: float, vocab_size: int, with_entropy: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """logits (C, rows), targets (C,) -> logsumexp, log-probability of the target, entropy, each (C,) float32."""
    logits = tempered(logits, temperature, vocab_size)
    lse = logits.logsumexp(-1)
    logits.sub_(lse[:, None])  # log-softmax; entropy as lse - sum(p z) would lose digits where lse is large
    logprobs = logits.gather(-1, targets[:, None]).squeeze(-1)
    return lse, logprobs, logits.exp().mul_(logits).sum(-1).neg_() if with_entropy else None


def chunk_gradient(
    logits: Tensor,
    targets: Tensor,
    lse: Tensor,
    entropy: Tensor,
    grad_logprobs: Tensor,
    grad_entropy: Tensor,
    temperature: float,
    vocab_size: int,
) -> Tensor:
    """The gradient (C, rows) of the logits, in their type, from those of log-probabilities and entropy, (C,)."""
    dtype, logits = logits.dtype, tempered(logits, temperature, vocab_size).sub_(lse[:, None])  # log-softmax
    probs = logits.exp()
    # d logprob = onehot - p;  d entropy = -p (log p + entropy)
    logits.add_(entropy[:, None]).mul_(grad_entropy[:, None]).add_(grad_logprobs[:, None])
    gradient = probs.mul_(logits).neg_()
    gradient.scatter_add_(-1, targets[:, None], grad_logprobs[:, None])
    del logits  # no more than two chunks in float32 exist at once
    return gradient.div_(temperature).to(dtype)


def compiled(function: Callable) -> Callable:
    """A function of tensors that have a token a row, fused at its first call: one graph for any number of rows."""
    fused = torch.compile(function, fullgraph=True)

    def call(*args: Any) -> Any:
        for x in args:
            if isinstance(x, Tensor):
                torch._dynamo.maybe_mark_dynamic(x, 0)  # the other sizes stay constants, which makes faster kernels
        return fused(*args)

    return call


@cache
def head_functions(fused: bool) -> tuple[Callable, Callable]:
    """`chunk_scores` and `chunk_gradient`."""
    return (compiled(chunk_scores), compiled(chunk_gradient)) if fused else (chunk_scores, chunk_gradient)


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b in place; `total` is float32."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    elif total.is_cuda:  # the product is summed on from `total`: neither rounded nor stored before
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        total += a @ b


class _TokenLogprobs(torch.autograd.Function):
    """Keeps hidden (T, D) and three (T,) vectors; both passes see C x V logits at a time, never T x V."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        temperature: float,
        chunk: int,
        vocab_size: int,
        with_entropy: bool,
        fused: bool,
    ) -> tuple[Tensor, Tensor | None]:
        scores, _ = head_functions(fused)
        chunks, weight_of_tokens = math.ceil(len(hidden) / chunk), weight[: _aligned_rows(vocab_size, len(weight))]
        results = []
        for h, t in zip(hidden.chunk(chunks), targets.chunk(chunks), strict=True):
            results.append(scores(h @ weight_of_tokens.T, t, temperature, vocab_size, with_entropy))
        lse, logprobs, entropy = zip(*results, strict=True)
        logprobs, entropy = torch.cat(logprobs), torch.cat(entropy) if with_entropy else None
        ctx.save_for_backward(hidden, weight, targets, torch.cat(lse), entropy)
        ctx.temperature, ctx.chunks, ctx.vocab_size, ctx.fused = temperature, chunks, vocab_size, fused
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, grad_logprobs: Tensor, grad_entropy: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, lse, entropy = ctx.saved_tensors
        _, gradient_of = head_functions(ctx.fused)
        grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)  # sums over chunks
        rows, grad_hidden = _aligned_rows(ctx.vocab_size, len(weight)), torch.empty_like(hidden)
        per_token = hidden, grad_hidden, targets, lse, entropy, grad_logprobs, grad_entropy
        for h, grad_h, t, z, e, grad_logp, grad_e in zip(*(x.chunk(ctx.chunks) for x in per_token), strict=True):
            # not kept under a name here, so that `gradient_of` can free the logits
            grad_logits = gradient_of(h @ weight[:rows].T, t, z, e, grad_logp, grad_e, ctx.temperature, ctx.vocab_size)
            torch.mm(grad_logits, weight[:rows], out=grad_h)
            add_product(grad_weight[:rows], grad_logits.T, h)
            del grad_logits  # before the next chunk's exist
        return grad_hidden, grad_weight.to(weight.dtype), None, None, None, None, None, None


def token_logprobs(
    hidden: Tensor,
    lm_head_weight: Tensor,
    targets: Tensor,
    temperature: float,
    chunk: int,
    vocab_size: int | None = None,
    with_entropy: bool = True,
    fused: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of each target and entropy of each distribution, of softmax(logits / temperature).

    hidden (T, D), lm_head_weight (V, D), targets (T,) -> (T,), (T,), float32. At most `chunk` tokens' logits exist at
    once; the backward pass computes them again. Only the first `vocab_size` rows of the head are tokens (all, if None):
    what pads the vocabulary has no probability, here as in both samplers. Without padding this matches verl's
    logprobs_from_logits and entropy_from_logits. with_entropy=False returns None for it, and has no gradient; `fused`
    compiles the elementwise work.
    """
    options = chunk, len(lm_head_weight) if vocab_size is None else vocab_size, with_entropy, fused
    return _TokenLogprobs.apply(hidden, lm_head_weight, targets, temperature, *options)
