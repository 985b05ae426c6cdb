"""The CPU's own kernels: attention in blocks against its formula, and what a process takes of the machine."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from kernels import blocks, cpu
from runs import ROOT


def plain_attention(q, k, v, lengths):
    """Sequence by sequence and head by head, from the formula."""
    outputs, first = [], 0
    for n in lengths:
        heads = []
        for h in range(q.shape[1]):
            kv_head = h * k.shape[1] // q.shape[1]
            one = slice(first, first + n)
            scores = q[one, h] @ k[one, kv_head].T / math.sqrt(q.shape[-1])
            scores = scores.masked_fill(torch.ones(n, n).triu(1).bool(), -math.inf)
            heads.append(scores.softmax(-1) @ v[one, kv_head])
        outputs.append(torch.stack(heads, dim=1))
        first += n
    return torch.cat(outputs)


@pytest.mark.parametrize("heads,kv_heads", [(4, 4), (6, 2)])
@pytest.mark.parametrize("kept,queries,scores", [(256, 512, 2**20), (0, 8, 2**20), (0, 8, 100)])
def test_attention_in_blocks_equals_the_formula_in_float64(monkeypatch, heads, kv_heads, kept, queries, scores):
    """Probabilities kept and computed again, one chunk and many, lengths that share blocks and that do not."""
    monkeypatch.setattr(blocks.CausalAttention, "KEPT", kept)
    monkeypatch.setattr(blocks.CausalAttention, "QUERIES", queries)
    monkeypatch.setattr(blocks.CausalAttention, "SCORES", scores)
    lengths, generator = [3, 40, 1, 44, 19, 41], torch.Generator().manual_seed(0)
    inputs = [torch.randn(sum(lengths), h, 16, generator=generator) for h in (heads, kv_heads, kv_heads)]
    grad_out = torch.randn(sum(lengths), heads, 16, generator=generator)
    cu_seqlens = F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int()
    results = []
    for dtype, function, layout in (
        (torch.float32, blocks.attention, blocks.layout(cu_seqlens)),
        (torch.float32, blocks.sdpa, blocks.layout(cu_seqlens)),  # a GPU's
        (torch.float64, plain_attention, lengths),
    ):
        q, k, v = (x.to(dtype).requires_grad_() for x in inputs)
        out = function(q, k, v, layout)
        results.append([out, *torch.autograd.grad(out, (q, k, v), grad_out.to(dtype))])
    for ours, torchs, exact in zip(*results, strict=True):
        assert (ours - exact).norm() < 1e-6 * exact.norm()
        assert (torchs - exact).norm() < 1e-6 * exact.norm()


def test_attention_whose_queries_need_no_gradient_gives_those_of_keys():
    layout = blocks.layout(torch.tensor([0, 5, 30], dtype=torch.int32))
    q, k, v = (torch.randn(30, 2, 16, generator=torch.Generator().manual_seed(i)) for i in range(3))
    (alone,) = torch.autograd.grad(blocks.attention(q, k.requires_grad_(), v, layout).sum(), k)
    (together, _) = torch.autograd.grad(blocks.attention(q.requires_grad_(), k, v, layout).sum(), (k, q))
    assert alone.equal(together)


def test_sizes_of_packs_and_blocks_are_few():
    """Each new shape of a product costs a CPU up to a millisecond."""
    sizes = {n: cpu.few_shapes(n) for n in range(1, 20_000)}
    assert all(n <= size <= max(n + 7, n * 33 / 32) for n, size in sizes.items())
    assert len(set(sizes.values())) < 300
    ids, cu_seqlens = torch.arange(100, 305), torch.tensor([0, 5, 205], dtype=torch.int32)
    padded_ids, position_ids, padded_seqlens = blocks.padded(ids, ids - 100, cu_seqlens)
    assert padded_ids[:205].equal(ids) and padded_seqlens.tolist() == [0, 5, 205, 208]
    assert position_ids.tolist() == [*range(205), 0, 1, 2]
    assert {tokens.shape[1] for tokens in blocks.layout(padded_seqlens).tokens} == {8, 200}


def test_sixteen_bit_attention_is_computed_in_float32():
    cu_seqlens = torch.tensor([0, 30], dtype=torch.int32)
    q, k, v = (torch.randn(30, 2, 16, generator=torch.Generator().manual_seed(i)).bfloat16() for i in range(3))
    ours = blocks.attention(q, k, v, blocks.layout(cu_seqlens))
    exact = plain_attention(q.double(), k.double(), v.double(), [30])
    # rounded once, at the end: another one in the middle would change a third of the numbers
    assert ours.dtype == torch.bfloat16 and (ours != exact.bfloat16()).float().mean() < 0.02


def test_threads_are_the_setting_or_the_environments_or_the_free_cores(monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda n: chosen.append(n))
    monkeypatch.setattr(cpu, "num_cores", lambda: 8)
    monkeypatch.setattr(cpu, "free_cores", lambda: 5.8)
    chosen: list[int] = []
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert "3 threads (of 8 cores)" in cpu.prepare(3)
    assert "1 threads (of 8 cores)" in cpu.prepare()
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert "6 threads (of 8 cores, 5.8 of them free)" in cpu.prepare()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert "1 threads" in cpu.prepare()
    assert chosen == [3, 1, 6, 1]


def test_free_cores_are_the_idle_share_of_those_that_the_process_may_use(monkeypatch):
    times = iter([{0: (100, 200), 3: (50, 300)}, {0: (110, 220), 3: (50, 320)}])
    monkeypatch.setattr(cpu, "core_times", lambda: next(times))
    monkeypatch.setattr(cpu, "num_cores", lambda: 2)
    monkeypatch.setattr(cpu, "WATCHED", 0)
    assert cpu.free_cores() == 0.5  # half of core 0, nothing of core 3


def test_products_that_lose_precision_are_given_back(monkeypatch):
    """A CPU with matrix units takes bfloat16 where torch allows it: stood for by rounding."""
    before = torch.backends.mkldnn.matmul.fp32_precision
    monkeypatch.setattr(cpu, "is_amd", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    randn = torch.randn
    try:
        used = cpu.use_onednn()
        assert torch.backends.mkldnn.matmul.fp32_precision == ("bf16" if used else "none")
        monkeypatch.setattr(torch, "randn", lambda *a, **k: Rounding(randn(*a, **k)))
        assert not cpu.use_onednn() and torch.backends.mkldnn.matmul.fp32_precision == "none"
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before


class Rounding(torch.Tensor):
    def __matmul__(self, other):
        plain, other = self.as_subclass(torch.Tensor), other.as_subclass(torch.Tensor)
        return (plain.bfloat16() @ other.bfloat16()).float() if plain.dtype == torch.float32 else plain @ other


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="only Linux counts a process's threads for it")
def test_gloo_starts_no_team_of_threads():
    code = """
import os, torch, torch.distributed as dist
from kernels import cpu
torch.set_num_threads(2)
with cpu.gloo_without_teams():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
torch.ones(1 << 20).exp()  # this thread's own team
before, block = len(os.listdir("/proc/self/task")), torch.ones(1 << 20)
for work in [dist.all_gather([torch.empty_like(block)], block, async_op=True) for _ in range(32)]:
    work.wait()
print(torch.get_num_threads(), len(os.listdir("/proc/self/task")) - before)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "2 0\n", done.stderr
