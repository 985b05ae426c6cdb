"""What only a GPU can show. Every test here skips, saying so, where there is none."""

import pytest
import torch

from model import Qwen2, add_product, attention, attention_backend, attention_layout, token_logprobs
from rollout import TorchSampler, sample_seed
from runs import flags, rows_of, run_ranks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
GPU = torch.device("cuda")


def relative_error(ours, reference):
    return float((ours.double().cpu() - reference.double().cpu()).norm() / reference.double().norm())


def test_varlen_attention_matches_sdpa_in_float32():
    lengths = [1, 7, 300, 64, 65]
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(sum(lengths), heads, 64, generator=generator).bfloat16() for heads in (6, 2, 2))
    upstream = torch.randn(q.shape, generator=generator).bfloat16()
    results = []
    for device, dtype in ((torch.device("cpu"), torch.float32), (GPU, torch.bfloat16)):
        inputs = [x.to(device, dtype).requires_grad_() for x in (q, k, v)]
        backend = attention_backend(device)
        out = attention(*inputs, attention_layout(cu_seqlens.to(device), backend), backend)
        out.backward(upstream.to(device, dtype))
        results.append([out.detach(), *(x.grad for x in inputs)])
    assert attention_backend(GPU) in ("flash_attn", "torch_varlen")
    for ours, reference in zip(results[1], results[0], strict=True):
        assert relative_error(ours, reference) < 0.02


def test_bf16_logprobs_on_the_gpu_match_float32_on_the_cpu(tiny_model_dir):
    ids = torch.arange(40) % 50
    cu_seqlens = torch.tensor([0, 25, 39], dtype=torch.int32)
    positions = torch.cat([torch.arange(25), torch.arange(14)])
    logprobs = []
    for device, dtype in (("cpu", torch.float32), ("cuda", torch.bfloat16)):
        model = Qwen2.from_pretrained(tiny_model_dir, dtype, device)
        hidden = model(ids[:-1].to(device), positions.to(device), cu_seqlens.to(device))
        logprobs.append(token_logprobs(hidden, model.lm_head.weight, ids[1:].to(device), 0.6, 16)[0].cpu())
    assert (logprobs[0] - logprobs[1]).abs().max() < 0.1


def test_replayed_steps_draw_what_eager_ones_draw(tiny_model_dir):
    seeds = [[sample_seed(p, s) for s in range(40)] for p in range(2)]
    groups = []
    for cuda_graphs in (False, True):  # 40 rows and 312 positions: each crosses an edge of a shape
        sampler = TorchSampler(tiny_model_dir, torch.bfloat16, "cuda", max_num_seqs=40, cuda_graphs=cuda_graphs)
        groups.append(
            sampler.generate([[0, 2, 11, 18], [0, 2, 9, 18, 15, 19, 50, 3, 5, 6, 7, 8]], seeds, 300, 1.0, 1.0)
        )
    for eager, replayed in zip(*([r for g in result for r in g] for result in groups), strict=True):
        assert eager.response_ids == replayed.response_ids
        assert eager.logprobs == pytest.approx(replayed.logprobs, abs=1e-3)


def test_the_fused_head_equals_the_eager_one():
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(rows, 64, generator=generator).to(GPU, torch.bfloat16) for rows in (100, 1000))
    weight = weight / 4
    targets = torch.randint(990, (100,), generator=generator).to(GPU)
    upstream = [torch.randn(100, generator=generator).to(GPU) for _ in range(2)]
    results = []
    for fused in (False, True):  # chunks of 34, 34 and 32 tokens; ten rows that are no tokens
        leaves = [x.clone().requires_grad_() for x in (hidden, weight)]
        values = token_logprobs(*leaves, targets, 0.6, 34, 990, True, fused)
        results.append([*(x.detach() for x in values), *torch.autograd.grad(values, leaves, upstream)])
        without = token_logprobs(hidden, weight, targets, 0.6, 34, 990, False, fused)
        assert without[1] is None and torch.allclose(without[0], values[0], atol=1e-5)
    eager, ours = results
    assert all(relative_error(x, y) < 1e-5 for x, y in zip(ours[:2], eager[:2], strict=True))
    assert all(relative_error(x, y) < 5e-3 for x, y in zip(ours[2:], eager[2:], strict=True))  # they are bfloat16


def test_compiled_layers_equal_eager_ones(tiny_model_dir):
    cu_seqlens = torch.tensor([0, 70, 100], dtype=torch.int32, device=GPU)
    ids, positions = torch.arange(100, device=GPU) % 50, torch.cat([torch.arange(70), torch.arange(30)]).to(GPU)
    results = []
    for compiles in (False, True):
        model = Qwen2.from_pretrained(tiny_model_dir, torch.bfloat16, GPU)
        model.set_activation_checkpointing(True)
        if compiles:
            model.compile_layers()
        hidden = model(ids, positions, cu_seqlens, 70)
        hidden.sin().sum().backward()  # any function whose gradient is not the same everywhere
        results.append([hidden.detach(), *(p.grad for p in model.model.layers.parameters())])
    assert all(relative_error(ours, eager) < 0.03 for ours, eager in zip(results[1], results[0], strict=True))


def test_add_product_sums_in_float32():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator).to(GPU, torch.bfloat16) for shape in ((96, 256), (256, 64)))
    total = torch.randn(96, 64, generator=generator).to(GPU)
    expected = total.double() + a.double() @ b.double()
    add_product(total, a, b)
    assert relative_error(total, expected) < 1e-5  # rounded to bfloat16 it would be 1e-3


def test_a_bf16_run_on_the_gpu_resumes(world, tmp_path):
    for changes in ({"max_steps": 3}, {"resume": "true"}):
        run_ranks(1, flags(world, tmp_path, device="auto", dtype="bfloat16", **changes))
    rows = rows_of(tmp_path / "run")
    assert [r["step"] for r in rows] == [1, 2, 3, 4, 5, 6] and all(r["mismatch_k3"] < 0.02 for r in rows)
