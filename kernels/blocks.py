"""Causal attention on packed sequences where there is no kernel for them: on a CPU, and on a GPU older than the A100.

Sequences of similar length share a right-padded block, so the number of blocks grows with the logarithm of the length
range. `layout` plans them once a forward pass; `attention` is then called by every layer.

Dimensions: T packed tokens, H query heads, K key/value heads, G = H/K, E head size; B sequences of a block, of at most
L tokens; R rows of all blocks together; N = B K.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


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


def layout(cu_seqlens: Tensor) -> Layout:
    """The blocks of a pack; cu_seqlens (S+1,)."""
    lengths, order = cu_seqlens.diff().long().sort()
    starts = cu_seqlens[:-1].long()[order]
    sizes, tokens, real, first = lengths.tolist(), [], [], 0
    while first < len(sizes):
        last = first
        while last + 1 < len(sizes) and sizes[last + 1] <= max(sizes[first] * 1.25, sizes[first] + 16):
            last += 1
        span = torch.arange(sizes[last], device=cu_seqlens.device)  # (L,)
        length, start = lengths[first : last + 1, None], starts[first : last + 1, None]
        tokens.append(start + span.minimum(length - 1))  # (B, L)
        real.append(span < length)
        first = last + 1
    return Layout(tokens, real, {})


def attention(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """q (T, H, E), k and v (T, K, E) -> (T, H, E)."""
    heads, groups = q.shape[1], k.shape[1]
    q_rows, kv_rows = layout.rows_of(heads, groups), layout.rows_of(groups, groups)
    q, k, v = _ToRows.apply(q, *q_rows), _ToRows.apply(k, *kv_rows), _ToRows.apply(v, *kv_rows)
    outputs, first = [], 0
    for b, n in (tokens.shape for tokens in layout.tokens):
        last = first + b * n
        block_q = q[first * heads : last * heads].view(b * groups, -1, n, q.shape[-1])  # (N, G, L, E)
        block_k, block_v = (x[first * groups : last * groups].view(b * groups, n, -1) for x in (k, v))  # (N, L, E)
        outputs.append(attend_block(block_q, block_k, block_v).reshape(-1, q.shape[-1]))
        first = last
    return _FromRows.apply(torch.cat(outputs), *q_rows).view(-1, heads, q.shape[-1])


def attend_block(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Of one block: q (N, G, L, E), k and v (N, L, E) -> (N, G, L, E)."""
    if q.is_cuda:
        options = {"is_causal": True, "enable_gqa": q.shape[1] > 1}
        return F.scaled_dot_product_attention(q, k[:, None], v[:, None], **options)
    return CausalAttention.apply(q, k, v)


class _ToRows(torch.autograd.Function):
    """Vectors (T, heads, E) -> rows of blocks (R, E). Autograd's own backward of an index would add row by row, for the
    padding's sake, whose gradient is zero here."""

    @staticmethod
    def forward(ctx, x, index, inverse, padding):
        ctx.inverse, ctx.shape = inverse, x.shape
        return x.reshape(-1, x.shape[-1]).index_select(0, index)

    @staticmethod
    def backward(ctx, grad):
        return grad.index_select(0, ctx.inverse).view(ctx.shape), None, None, None


class _FromRows(torch.autograd.Function):
    """The way back: rows of blocks (R, E) -> vectors (T * heads, E)."""

    @staticmethod
    def forward(ctx, rows, index, inverse, padding):
        ctx.index, ctx.padding = index, padding
        return rows.index_select(0, inverse)

    @staticmethod
    def backward(ctx, grad):
        return grad.index_select(0, ctx.index).index_fill_(0, ctx.padding, 0.0), None, None, None


class CausalAttention(torch.autograd.Function):
    """Causal attention on a CPU: q (N, G, L, E), k and v (N, L, E) -> (N, G, L, E), for N key heads of G query heads.

    Products of whole matrices, which a CPU's libraries do best, in chunks whose scores stay in its cache. Memory grows
    with L, not its square: the backward pass computes the probabilities again (FlashAttention, arXiv 2205.14135,
    algorithm 4), but of short sequences, where they take no more memory than an MLP's activations. In float32,
    whatever the type of q: 16-bit products of this size gain little, and would round the scores.
    """

    QUERIES, SCORES = 512, 2**20  # of a chunk, at most
    KEPT = 256  # tokens of a sequence whose probabilities are kept

    @staticmethod
    def chunks(q: Tensor) -> Iterator[tuple[slice, slice]]:
        """Slices of N and L."""
        for start in range(0, q.shape[2], CausalAttention.QUERIES):
            queries = slice(start, min(start + CausalAttention.QUERIES, q.shape[2]))
            size = max(1, CausalAttention.SCORES // (q.shape[1] * (queries.stop - start) * queries.stop))
            for first in range(0, len(q), size):
                yield slice(first, first + size), queries

    @staticmethod
    def probs(q: Tensor, k: Tensor, queries: slice) -> Tensor:
        """Of a chunk: q (N, G, L', E), k (N, L, E) -> (N, G, L', L up to the chunk's end)."""
        scores = (q.flatten(1, 2) * q.shape[-1] ** -0.5) @ k[:, : queries.stop].mT
        scores = scores.unflatten(1, q.shape[1:3])
        scores[..., queries.start :] += torch.full((q.shape[2], q.shape[2]), -torch.inf).triu_(1)
        return scores.softmax(-1)

    @staticmethod
    def forward(ctx, q, k, v):
        dtype = q.dtype
        q, k, v = q.float(), k.float(), v.float()
        out, kept = torch.empty_like(q), []
        for part, queries in CausalAttention.chunks(q):
            q_ = q[part, :, queries]
            probs = CausalAttention.probs(q_, k[part], queries)
            out[part, :, queries] = (probs.flatten(1, 2) @ v[part, : queries.stop]).view_as(q_)
            if q.shape[2] <= CausalAttention.KEPT and ctx.needs_input_grad[0]:
                kept.append(probs)
        ctx.save_for_backward(q, k, v, out, *kept)
        ctx.dtype = dtype
        return out.to(dtype)

    @staticmethod
    def backward(ctx, grad_out):
        q, k, v, out, *kept = ctx.saved_tensors
        grad_out = grad_out.float()
        delta = (grad_out * out).sum(-1, keepdim=True)  # (N, G, L, 1)
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for i, (part, queries) in enumerate(CausalAttention.chunks(q)):
            q_, grad, end = q[part, :, queries], grad_out[part, :, queries].flatten(1, 2), queries.stop
            probs = kept[i] if kept else CausalAttention.probs(q_, k[part], queries)
            grad_v[part, :end] += probs.flatten(1, 2).mT @ grad
            grad_scores = (grad @ v[part, :end].mT).view_as(probs).sub_(delta[part, :, queries]).mul_(probs)
            grad_scores = grad_scores.flatten(1, 2).mul_(q.shape[-1] ** -0.5)
            grad_q[part, :, queries] = (grad_scores @ k[part, :end]).view_as(q_)
            grad_k[part, :end] += grad_scores.mT @ q_.flatten(1, 2)
        return grad_q.to(ctx.dtype), grad_k.to(ctx.dtype), grad_v.to(ctx.dtype)
