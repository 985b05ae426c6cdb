"""Qwen2 and Qwen3 on packed tokens: forward pass, Hugging Face folders, FSDP2, log-probabilities without logits.

Sequences lie end to end on one token axis; `cu_seqlens` says where each begins, `position_ids` restart at 0 in each.
Parameter names are Hugging Face's, so a checkpoint loads and saves tensor by tensor. Reads and writes model folders
(`config.json`, `model.safetensors` or its shards, tokenizer files).

Dimensions: T packed tokens, S sequences, D hidden, H query heads, K key/value heads, E head size, F MLP, V vocabulary.
"""

import inspect
import json
import math
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
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

from configs import UserError, check_regular, read_json

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ARCHITECTURES = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}  # model_type: its class in transformers
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
# What a config.json may ask for, from 1 on: far beyond any model, and little enough to be built and refused in seconds.
LIMITS = dict(vocab_size=10_000_000, hidden_size=100_000, intermediate_size=1_000_000, num_hidden_layers=1_000,
              num_attention_heads=10_000, num_key_value_heads=10_000, head_dim=100_000,
              max_position_embeddings=1_000_000_000)  # fmt: skip


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a model folder. Raises UserError."""
    try:
        value = read_json(path)
    except OSError as e:
        raise UserError(f"{path.parent}: not a model folder: {e.strerror}: {path.name}") from None
    except ValueError as e:
        raise UserError(f"{path}: not JSON: {e}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object")
    return value


@dataclass(frozen=True)
class ModelConfig:
    """The part of a Hugging Face `config.json` the forward pass needs; `raw` keeps the whole file."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope_theta: float
    rms_norm_eps: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    qkv_bias: bool  # Qwen2: q, k and v have biases
    qk_norm: bool  # Qwen3: each head of q and k is normalised before the rotary embedding
    raw: dict = field(repr=False, compare=False)

    @classmethod
    def from_dict(cls, raw: dict[str, Any], where: str = "config.json") -> "ModelConfig":
        """Raises UserError for anything this forward pass does not compute: another architecture, rope scaling,
        sliding windows, another activation; and for values of the wrong kind."""
        try:
            return cls._from_dict(raw, where)
        except KeyError as e:
            raise UserError(f"{where}: {e.args[0]} is missing") from None
        except (TypeError, ValueError, AttributeError, ArithmeticError) as e:
            raise UserError(f"{where}: a value is of the wrong kind: {e}") from None

    @classmethod
    def _from_dict(cls, raw: dict[str, Any], where: str) -> "ModelConfig":
        rope = raw.get("rope_parameters") or {}
        scaling = raw.get("rope_scaling") or {}
        kinds = {s.get("rope_type", s.get("type", "default")) for s in (rope, scaling)}
        thetas = {float(t) for t in (raw.get("rope_theta"), rope.get("rope_theta")) if t is not None}
        if raw.get("model_type") not in ARCHITECTURES:
            raise UserError(f"{where}: model_type is {raw.get('model_type')!r}; only 'qwen2' and 'qwen3' are supported")
        qwen3 = raw["model_type"] == "qwen3"
        if qwen3 and raw.get("attention_bias"):  # also of o_proj to transformers, not to vLLM
            raise UserError(f"{where}: attention_bias is not supported in a Qwen3 model")
        if kinds != {"default"}:
            raise UserError(f"{where}: rope scaling {sorted(kinds - {'default'})} is not supported")
        if raw.get("use_sliding_window") or set(raw.get("layer_types") or ()) - {"full_attention"}:
            raise UserError(f"{where}: sliding-window attention is not supported, only full attention in every layer")
        if raw.get("hidden_act", "silu") != "silu":
            raise UserError(f"{where}: hidden_act {raw['hidden_act']!r} is not supported, only 'silu'")
        if len(thetas) > 1:
            raise UserError(f"{where}: rope_theta and rope_parameters disagree: {sorted(thetas)}")
        heads, hidden = raw["num_attention_heads"], raw["hidden_size"]
        config = cls(
            vocab_size=raw["vocab_size"],
            hidden_size=hidden,
            intermediate_size=raw["intermediate_size"],
            num_hidden_layers=raw["num_hidden_layers"],
            num_attention_heads=heads,
            num_key_value_heads=raw.get("num_key_value_heads") or heads,
            head_dim=raw.get("head_dim", 128) if qwen3 else raw.get("head_dim") or hidden // heads,
            rope_theta=thetas.pop() if thetas else 10_000.0,
            rms_norm_eps=raw.get("rms_norm_eps", 1e-6),
            max_position_embeddings=raw.get("max_position_embeddings", 32_768),
            tie_word_embeddings=raw.get("tie_word_embeddings", False),
            qkv_bias=not qwen3,
            qk_norm=qwen3,
            raw=raw,
        )
        for name, limit in LIMITS.items():
            value = getattr(config, name)
            if type(value) is not int or not 1 <= value <= limit:
                raise UserError(f"{where}: {name} is {value!r:.60}, not a whole number from 1 to {limit:,}")
        if not (0 < config.rope_theta < math.inf and 0 < config.rms_norm_eps < math.inf):
            values = f"rope_theta {config.rope_theta} or rms_norm_eps {config.rms_norm_eps}"
            raise UserError(f"{where}: {values} not above 0")
        if type(config.tie_word_embeddings) is not bool:
            raise UserError(f"{where}: tie_word_embeddings is not true or false")
        if config.num_attention_heads % config.num_key_value_heads or config.head_dim % 2:
            sizes = f"{heads} heads, {config.num_key_value_heads} kv heads and head_dim {config.head_dim}"
            raise UserError(f"{where}: {sizes} do not fit together")
        return config

    @classmethod
    def from_folder(cls, path: str | Path) -> "ModelConfig":
        return cls.from_dict(read_object(Path(path) / "config.json"), f"{path}/config.json")


def is_hub_id(name: str) -> bool:
    """Is this the name of a Hugging Face hub repository, and no folder here?"""
    return name.count("/") == 1 and not name.startswith(("/", ".", "~", "out/")) and not Path(name).is_dir()


def resolve_model(name: str) -> Path:
    """The folder `name`, or a snapshot of the Hugging Face hub repository `name`, downloaded once. Raises UserError."""
    if Path(name).is_dir():
        return Path(name)
    if is_hub_id(name):
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja"]))
        except Exception as e:  # the hub's errors share no base class, and each of them means: no model
            reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
            raise UserError(f"model: no folder {name}, and the hub did not give it: {reason}") from None
    raise UserError(f"model: no such folder: {name}")


# ---------------------------------------------------------------------------------------------------------- attention


def attention_backend(device: torch.device) -> str:
    """The varlen attention for a device: `flash_attn` if installed, torch's own on CUDA otherwise; both need compute
    capability 8.0, so a CPU and an older GPU (a T4: unproven, none was at hand) take SDPA."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        return "sdpa"
    try:
        import flash_attn  # noqa: F401
    except ImportError:
        return "torch_varlen"
    return "flash_attn"


def attention_layout(cu_seqlens: Tensor, backend: str) -> Any:
    """What attention needs to know of the pack, computed once a forward pass.

    Varlen: (cu_seqlens, longest). SDPA: sequences of similar length share a right-padded block, so the number of its
    calls grows with the logarithm of the length range, not with S. Each block is an index (B, L) into the T axis; the
    last tensor maps a token to its row among the blocks' outputs. Padding is after the end, so causality hides it.
    """
    lengths, device = cu_seqlens.diff(), cu_seqlens.device
    if backend != "sdpa":
        return cu_seqlens, int(lengths.max())
    lengths, order = lengths.long().sort()
    starts = cu_seqlens[:-1].long()[order]
    sizes, blocks, rows, first, offset = lengths.tolist(), [], [], 0, 0
    while first < len(sizes):
        last = first
        while last + 1 < len(sizes) and sizes[last + 1] <= max(sizes[first] * 1.25, sizes[first] + 16):
            last += 1
        span = torch.arange(sizes[last], device=device)  # (L,)
        length, start = lengths[first : last + 1, None], starts[first : last + 1, None]
        blocks.append(start + span.minimum(length - 1))  # (B, L); padding repeats the last token
        row = torch.arange(offset, offset + blocks[-1].numel(), device=device)
        rows.append(row[(span < length).flatten()])
        offset, first = offset + blocks[-1].numel(), last + 1
    token_of_row = torch.cat([b.flatten() for b in blocks])[torch.cat(rows)]
    return blocks, torch.empty_like(token_of_row).index_copy_(0, token_of_row, torch.cat(rows))


def attention(q: Tensor, k: Tensor, v: Tensor, layout: Any, backend: str) -> Tensor:
    """Causal self-attention within each packed sequence. q (T, H, E), k and v (T, K, E) -> (T, H, E)."""
    if backend == "flash_attn":
        from flash_attn import flash_attn_varlen_func

        cu_seqlens, longest = layout
        return flash_attn_varlen_func(q, k, v, cu_seqlens, cu_seqlens, longest, longest, causal=True)
    if backend == "torch_varlen":
        return torch_varlen_attention(q, k, v, *layout)
    blocks, row_of_token = layout
    outputs = []
    for block in blocks:
        b, n = block.shape
        q_, k_, v_ = (x[block.flatten()].view(b, n, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))  # (B, H, L, E)
        out = F.scaled_dot_product_attention(q_, k_, v_, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
        outputs.append(out.transpose(1, 2).reshape(b * n, *q.shape[1:]))
    return torch.cat(outputs)[row_of_token]


def torch_varlen_attention(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, longest: int) -> Tensor:
    """`torch.nn.attention.varlen`, whose signature moved: 2.10 has `is_causal`, 2.12 `enable_gqa`."""
    from torch.nn.attention.varlen import varlen_attn

    known = inspect.signature(varlen_attn).parameters
    options = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    if q.shape[1] != k.shape[1]:
        if "enable_gqa" in known:
            options["enable_gqa"] = True
        else:
            k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    return varlen_attn(q, k, v, cu_seqlens, cu_seqlens, longest, longest, **options)


def rotary_angles(position_ids: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin (T, 1, E/2) in float32, computed as transformers does: a bf16 angle is radians off at long range."""
    exponents = torch.arange(0, head_dim, 2, device=position_ids.device).float() / head_dim
    angles = position_ids[:, None, None].float() * (1.0 / theta**exponents)
    return angles.cos(), angles.sin()


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the halves of each head (GPT-NeoX layout, as Qwen2 and Qwen3). x (T, H, E); computed in float32."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


# ---------------------------------------------------------------------------------------------------------- the model


class Attention(nn.Module):
    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.head_dim, self.rope_theta = c.head_dim, c.rope_theta
        self.q_proj = nn.Linear(c.hidden_size, c.num_attention_heads * c.head_dim, bias=c.qkv_bias)
        self.k_proj = nn.Linear(c.hidden_size, c.num_key_value_heads * c.head_dim, bias=c.qkv_bias)
        self.v_proj = nn.Linear(c.hidden_size, c.num_key_value_heads * c.head_dim, bias=c.qkv_bias)
        self.o_proj = nn.Linear(c.num_attention_heads * c.head_dim, c.hidden_size, bias=False)
        self.q_norm = nn.RMSNorm(c.head_dim, eps=c.rms_norm_eps) if c.qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(c.head_dim, eps=c.rms_norm_eps) if c.qk_norm else nn.Identity()

    def forward(self, x: Tensor, position_ids: Tensor, layout: Any, backend: str) -> Tensor:
        # rollout.TorchSampler._forward repeats this computation: change both
        q, k, v = (proj(x).unflatten(-1, (-1, self.head_dim)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k = self.q_norm(q), self.k_norm(k)  # (T, H, E) and (T, K, E)
        # Angles come from the integer positions here: FSDP2 casts every float it passes to a layer to bf16.
        cos, sin = rotary_angles(position_ids, self.head_dim, self.rope_theta)
        out = attention(apply_rotary(q, cos, sin), apply_rotary(k, cos, sin), v, layout, backend)  # (T, H, E)
        return self.o_proj(out.flatten(1))


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
        self.input_layernorm = nn.RMSNorm(c.hidden_size, eps=c.rms_norm_eps)
        self.self_attn = Attention(c)
        self.post_attention_layernorm = nn.RMSNorm(c.hidden_size, eps=c.rms_norm_eps)
        self.mlp = MLP(c)
        self.checkpointing = False

    def forward(self, x: Tensor, position_ids: Tensor, layout: Any, backend: str) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():  # inside the FSDP unit, so that its hooks see one forward
            return checkpoint(self.block, x, position_ids, layout, backend, use_reentrant=False)
        return self.block(x, position_ids, layout, backend)

    def block(self, x: Tensor, position_ids: Tensor, layout: Any, backend: str) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), position_ids, layout, backend)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(c) for _ in range(c.num_hidden_layers))
        self.norm = nn.RMSNorm(c.hidden_size, eps=c.rms_norm_eps)


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

    def forward(self, input_ids: Tensor, position_ids: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Hidden states (T, D) after the final norm; logits are `hidden @ model.lm_head.weight.T`, tied or not."""
        layout = attention_layout(cu_seqlens, self.backend)
        x = self.model.embed_tokens(input_ids)  # (T, D)
        for layer in self.model.layers:
            x = layer(x, position_ids, layout, self.backend)
        return self.model.norm(x)

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


def _aligned_rows(vocab_size: int | None, rows: int) -> int:
    """Rows of the head that are multiplied: those of the tokens, up to a multiple of 128, which tensor cores want."""
    return rows if vocab_size is None else min(rows, math.ceil(vocab_size / 128) * 128)


def _chunk_logits(hidden: Tensor, weight: Tensor, temperature: float, vocab_size: int | None) -> Tensor:
    """(C, rows); what is no token gets no probability, by a finite number, since 0 * -inf would be nan."""
    logits = torch.matmul(hidden, weight.T).float().div_(temperature)
    if vocab_size is not None:
        logits[:, vocab_size:] = -1e30
    return logits


class _TokenLogprobs(torch.autograd.Function):
    """Keeps hidden (T, D) and three (T,) vectors; both passes see C x V logits at a time, never T x V."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, temperature, chunk, vocab_size):
        size = hidden.shape[0]
        lse, logprobs, entropy = (torch.empty(size, device=hidden.device) for _ in range(3))
        for i in range(0, size, chunk):
            j = slice(i, i + chunk)
            logits = _chunk_logits(hidden[j], weight[: _aligned_rows(vocab_size, len(weight))], temperature, vocab_size)
            lse[j] = logits.logsumexp(-1)
            logits.sub_(lse[j, None])  # log-softmax; entropy as lse - sum(p z) would lose digits where lse is large
            logprobs[j] = logits.gather(-1, targets[j, None]).squeeze(-1)
            entropy[j] = logits.exp().mul_(logits).sum(-1).neg_()
        ctx.save_for_backward(hidden, weight, targets, lse, entropy)
        ctx.temperature, ctx.chunk, ctx.vocab_size = temperature, chunk, vocab_size
        return logprobs, entropy

    @staticmethod
    def backward(ctx, grad_logprobs, grad_entropy):
        hidden, weight, targets, lse, entropy = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)  # sums over chunks
        rows = _aligned_rows(ctx.vocab_size, len(weight))
        weight, grad_of_rows = weight[:rows], grad_weight[:rows]
        for i in range(0, hidden.shape[0], ctx.chunk):
            j = slice(i, i + ctx.chunk)
            logits = _chunk_logits(hidden[j], weight, ctx.temperature, ctx.vocab_size).sub_(lse[j, None])  # log-softmax
            probs = logits.exp()
            # d logprob = onehot - p;  d entropy = -p (log p + entropy)
            logits.add_(entropy[j, None]).mul_(grad_entropy[j, None]).add_(grad_logprobs[j, None])
            grad_logits = probs.mul_(logits).neg_()
            del logits, probs  # so that no more than two chunks exist at once
            grad_logits.scatter_add_(-1, targets[j, None], grad_logprobs[j, None])
            grad_logits = grad_logits.div_(ctx.temperature).to(hidden.dtype)
            grad_hidden[j] = grad_logits @ weight
            grad_of_rows += grad_logits.T @ hidden[j]
            del grad_logits
        return grad_hidden, grad_weight.to(weight.dtype), None, None, None, None


def token_logprobs(
    hidden: Tensor,
    lm_head_weight: Tensor,
    targets: Tensor,
    temperature: float,
    chunk: int,
    vocab_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of each distribution, of softmax(logits / temperature).

    hidden (T, D), lm_head_weight (V, D), targets (T,) -> (T,), (T,), float32. `chunk` tokens' logits exist at once;
    the backward pass computes them again. Only the first `vocab_size` rows of the head are tokens (all, if None): what
    pads the vocabulary has no probability, here as in both samplers. Without padding this matches verl's
    logprobs_from_logits and entropy_from_logits.
    """
    return _TokenLogprobs.apply(hidden, lm_head_weight, targets, temperature, chunk, vocab_size)
