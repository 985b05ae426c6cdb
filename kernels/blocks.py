"""Causal attention on packed sequences where there is no kernel for them: on a CPU, and on a GPU older than the A100.

Sequences of similar length share a right-padded block, so the number of blocks grows with the logarithm of the length
range. `layout` plans them once a forward pass; `attention` is then called by every layer.

Dimensions: T packed tokens, H query heads, K key/value heads, G = H/K, E head size; B sequences of a block, of at most
L tokens; R rows of all blocks together; N = B K.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.cpu import few_shapes


@dataclass(frozen=True)
class Layout:
    """Which token stands where. A block's rows, each the vector of a head, are ordered (B, K, G, L), so that products
    for each sequence and key head need no copy. Padding repeats the last token: after the end, so causality hides it,
    and no gradient comes from it."""

    tokens: list[Tensor]  # (B, L) of each block: the token of each place
    real: list[Tensor]  # (B, L): False where it is padding
    rows: dict[int, tuple[Tensor, Tensor, Tensor]]  # by number of heads, see `rows_of`

    def rows_of(self, heads: int, groups: int) -> tuple[Tensor, Tensor, Tensor]:
        """For vectors (T, heads, E), seen as (T * heads, E): which of them each row is, (R,); the row of each of them,
        (T * heads,); and the rows that are padding. The same for all layers of a pass."""
        if heads not in self.rows:
            head = torch.arange(heads, device=self.tokens[0].device).view(groups, -1, 1)  # (K, H/K, 1)
            index = torch.cat([(t[:, None, None] * heads + head).flatten() for t in self.tokens])
            real = torch.cat([r[:, None, None].expand(-1, *head.shape[:2], -1).flatten() for r in self.real])
            row = torch.arange(len(index), device=index.device)
            inverse = torch.empty_like(row[real]).index_copy_(0, index[real], row[real])
            self.rows[heads] = index, inverse, row[~real]
        return self.rows[heads]

    def blocks(self, groups: int, *rows: Tensor) -> Iterator[list[Tensor]]:
        """Rows (R, X), block by block as (N, G, L, X); G is 1 for what belongs to key heads."""
        sizes = [tokens.numel() for tokens in self.tokens]
        parts = [x.split([size * (len(x) // sum(sizes)) for size in sizes]) for x in rows]
        for tokens, *block in zip(self.tokens, *parts, strict=True):
            n, length = len(tokens) * groups, tokens.shape[1]
            yield [x.view(n, -1, length, x.shape[-1]) for x in block]


def padded(input_ids: Tensor, position_ids: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A pack on a CPU, with one more sequence at its end where that makes its number of tokens one of `few_shapes`."""
    padding = few_shapes(len(input_ids)) - len(input_ids)
    if not padding:
        return input_ids, position_ids, cu_seqlens
    position_ids = torch.cat([position_ids, torch.arange(padding)])
    return F.pad(input_ids, (0, padding)), position_ids, torch.cat([cu_seqlens, cu_seqlens[-1:] + padding])


def layout(cu_seqlens: Tensor) -> Layout:
    """The blocks of a pack; cu_seqlens (S+1,)."""
    lengths, order = cu_seqlens.diff().long().sort()
    starts = cu_seqlens[:-1].long()[order]
    sizes, tokens, real, first = lengths.tolist(), [], [], 0
    while first < len(sizes):
        last = first
        while last + 1 < len(sizes) and sizes[last + 1] <= max(sizes[first] * 1.25, sizes[first] + 16):
            last += 1
        span = torch.arange(few_shapes(sizes[last]), device=cu_seqlens.device)  # (L,)
        length, start = lengths[first : last + 1, None], starts[first : last + 1, None]
        tokens.append(start + span.minimum(length - 1))  # (B, L)
        real.append(span < length)
        first = last + 1
    return Layout(tokens, real, {})


def attention(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """q (T, H, E), k and v (T, K, E) -> (T, H, E)."""
    return sdpa(q, k, v, layout) if q.is_cuda else CausalAttention.apply(q, k, v, layout)


def sdpa(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """`attention` by torch's own kernels, a call a block."""
    heads, groups = q.shape[1], k.shape[1]
    index, inverse, _ = layout.rows_of(heads, groups)
    kv_index, _, _ = layout.rows_of(groups, groups)
    rows = [x.flatten(0, 1).index_select(0, i) for x, i in ((q, index), (k, kv_index), (v, kv_index))]
    outputs = []
    for block in layout.blocks(groups, *rows):
        out = F.scaled_dot_product_attention(*block, is_causal=True, enable_gqa=heads > groups)  # (N, G, L, E)
        outputs.append(out.reshape(-1, q.shape[-1]))
    return torch.cat(outputs).index_select(0, inverse).view_as(q)


class CausalAttention(torch.autograd.Function):
    """Of a pack, on a CPU: q (T, H, E), k and v (T, K, E) -> (T, H, E).

    Products of whole matrices, which a CPU's libraries do best, in chunks whose scores stay in its cache. Memory grows
    with L, not its square: the backward pass computes the probabilities again (FlashAttention, arXiv 2205.14135,
    algorithm 4), but of short sequences, where they take no more memory than an MLP's activations. In float32,
    whatever the type of q: 16-bit products of this size gain little, and would round the scores.
    """

    QUERIES, SCORES = 512, 2**20  # of a chunk, at most
    KEPT = 256  # tokens of a sequence whose probabilities are kept

    @staticmethod
    def chunks(q: Tensor) -> Iterator[tuple[slice, slice]]:
        """Slices of N and L of a block's queries (N, G, L, E)."""
        for start in range(0, q.shape[2], CausalAttention.QUERIES):
            queries = slice(start, min(start + CausalAttention.QUERIES, q.shape[2]))
            size = max(1, CausalAttention.SCORES // (q.shape[1] * (queries.stop - start) * queries.stop))
            for first in range(0, len(q), size):
                yield slice(first, first + size), queries

    @staticmethod
    def probs(q: Tensor, k: Tensor) -> Tensor:
        """Of a chunk: scaled queries (N, G, L', E), keys up to the last of them (N, L, E) -> (N, G, L', L)."""
        scores = (q.flatten(1, 2) @ k.mT).unflatten(1, q.shape[1:3])
        scores[..., -q.shape[2] :] += torch.full((q.shape[2], q.shape[2]), -torch.inf).triu_(1)
        return scores.softmax(-1)

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        heads, groups, scale = q.shape[1], k.shape[1], q.shape[-1] ** -0.5
        index, inverse, _ = layout.rows_of(heads, groups)
        kv_index, _, _ = layout.rows_of(groups, groups)
        rows_q = q.flatten(0, 1).index_select(0, index).float().mul_(scale)
        rows_k, rows_v = (x.flatten(0, 1).index_select(0, kv_index).float() for x in (k, v))
        rows_out, kept = torch.empty_like(rows_q), []
        for block_q, block_k, block_v, block_out in layout.blocks(groups, rows_q, rows_k, rows_v, rows_out):
            for part, queries in CausalAttention.chunks(block_q):
                q_, v_ = block_q[part, :, queries], block_v[part, 0, : queries.stop]
                probs = CausalAttention.probs(q_, block_k[part, 0, : queries.stop])
                block_out[part, :, queries] = (probs.flatten(1, 2) @ v_).view_as(q_)
                if any(ctx.needs_input_grad) and block_q.shape[2] <= CausalAttention.KEPT:
                    kept.append(probs)
        ctx.save_for_backward(rows_q, rows_k, rows_v, rows_out, *kept)
        ctx.layout, ctx.shapes, ctx.dtype = layout, (q.shape, k.shape), q.dtype
        return rows_out.index_select(0, inverse).view_as(q).to(q.dtype)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        rows_q, rows_k, rows_v, rows_out, *kept = ctx.saved_tensors
        (_, heads, head_dim), (_, groups, _) = ctx.shapes
        index, inverse, padding = ctx.layout.rows_of(heads, groups)
        _, kv_inverse, _ = ctx.layout.rows_of(groups, groups)
        rows_grad = grad_out.flatten(0, 1).index_select(0, index).float().index_fill_(0, padding, 0.0)
        rows_delta = (rows_grad * rows_out).sum(-1, keepdim=True)
        grads = torch.empty_like(rows_q), torch.zeros_like(rows_k), torch.zeros_like(rows_v)
        inputs = rows_q, rows_k, rows_v, rows_grad, rows_delta
        kept = iter(kept)
        for q, k, v, grad, delta, grad_q, grad_k, grad_v in ctx.layout.blocks(groups, *inputs, *grads):
            for part, queries in CausalAttention.chunks(q):
                q_, k_, v_ = q[part, :, queries], k[part, 0, : queries.stop], v[part, 0, : queries.stop]
                probs = next(kept) if q.shape[2] <= CausalAttention.KEPT else CausalAttention.probs(q_, k_)
                grad_ = grad[part, :, queries].flatten(1, 2)
                grad_v[part, 0, : queries.stop] += probs.flatten(1, 2).mT @ grad_
                grad_scores = (grad_ @ v_.mT).view_as(probs).sub_(delta[part, :, queries]).mul_(probs).flatten(1, 2)
                grad_q[part, :, queries] = (grad_scores @ k_).view_as(q_)
                grad_k[part, 0, : queries.stop] += grad_scores.mT @ q_.flatten(1, 2)
        grad_q, grad_k, grad_v = grads
        grad_q = grad_q.mul_(head_dim**-0.5).index_select(0, inverse).view(ctx.shapes[0])
        grad_k, grad_v = (x.index_select(0, kv_inverse).view(ctx.shapes[1]) for x in (grad_k, grad_v))
        return grad_q.to(ctx.dtype), grad_k.to(ctx.dtype), grad_v.to(ctx.dtype), None
