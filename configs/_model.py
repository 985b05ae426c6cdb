"""What a model folder's `config.json` says, checked: `ModelConfig`. And where a model is: here, or on the hub.

`model.py` computes these shapes and no others.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs import UserError, read_json

ARCHITECTURES = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}  # model_type: its class in transformers
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


def resolve_model(name: str, setting: str = "model") -> Path:
    """The folder `name`, or a snapshot of the Hugging Face hub repository `name`, downloaded once. Raises UserError."""
    if Path(name).is_dir():
        return Path(name)
    if is_hub_id(name):
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja"]))
        except Exception as e:  # the hub's errors share no base class, and each of them means: no model
            reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
            raise UserError(f"{setting}: no folder {name}, and the hub did not give it: {reason}") from None
    raise UserError(f"{setting}: no such folder: {name}")
