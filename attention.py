"""Causal attention on packed tokens, by whichever kernel the device has, and rotary positions.

Sequences lie end to end on one token axis; `cu_seqlens` says where each begins, and none sees another.

Dimensions: T packed tokens, S sequences, H query heads, K key/value heads, E head size; B, L a padded block on the CPU.
"""

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def attention_backend(device: torch.device) -> str:
    """The varlen attention for a device: `flash_attn` if installed, torch's own on CUDA otherwise, SDPA on CPU."""
    if device.type != "cuda":
        return "sdpa"
    try:
        import flash_attn  # noqa: F401
    except ImportError:
        return "torch_varlen"
    return "flash_attn"


def attention_layout(cu_seqlens: Tensor, backend: str) -> Any:
    """What attention needs to know of the pack, computed once a forward pass.

    CUDA: (cu_seqlens, longest). CPU: sequences of similar length share a right-padded block, so the number of SDPA
    calls grows with the logarithm of the length range, not with S. Each block is an index (B, L) into the T axis; the
    last tensor maps a token to its row among the blocks' outputs. Padding is after the end, so causality hides it.
    """
    lengths = cu_seqlens.diff()
    if backend != "sdpa":
        return cu_seqlens, int(lengths.max())
    lengths, order = lengths.long().sort()
    starts = cu_seqlens[:-1].long()[order]
    sizes, blocks, rows, first, offset = lengths.tolist(), [], [], 0, 0
    while first < len(sizes):
        last = first
        while last + 1 < len(sizes) and sizes[last + 1] <= max(sizes[first] * 1.25, sizes[first] + 16):
            last += 1
        span = torch.arange(sizes[last])  # (L,)
        length, start = lengths[first : last + 1, None], starts[first : last + 1, None]
        blocks.append(start + span.minimum(length - 1))  # (B, L); padding repeats the last token
        rows.append((offset + torch.arange(span.numel() * (last + 1 - first)))[(span < length).flatten()])
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
    """Rotate the halves of each head (GPT-NeoX layout, as Qwen2). x (T, H, E); computed in float32."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)
