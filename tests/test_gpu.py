"""What only a GPU can show. Every test here skips, saying so, where there is none."""

import pytest
import torch

from model import Qwen2, attention, attention_backend, attention_layout, token_logprobs
from rollout import TorchSampler, sample_seed
from runs import flags, rows_of, run_ranks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


def test_varlen_attention_matches_sdpa_in_float32():
    lengths, gpu = [1, 7, 300, 64, 65], torch.device("cuda")
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(sum(lengths), heads, 64, generator=generator).bfloat16() for heads in (6, 2, 2))
    upstream = torch.randn(q.shape, generator=generator).bfloat16()
    results = []
    for device, dtype in ((torch.device("cpu"), torch.float32), (gpu, torch.bfloat16)):
        inputs = [x.to(device, dtype).requires_grad_() for x in (q, k, v)]
        backend = attention_backend(device)
        out = attention(*inputs, attention_layout(cu_seqlens.to(device), backend), backend)
        out.backward(upstream.to(device, dtype))
        results.append([out.detach().cpu().float(), *(x.grad.cpu().float() for x in inputs)])
    assert attention_backend(gpu) in ("flash_attn", "torch_varlen")
    for ours, reference in zip(results[1], results[0], strict=True):
        assert (ours - reference).norm() / reference.norm() < 0.02


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


def test_a_bf16_run_on_the_gpu_resumes(world, tmp_path):
    for changes in ({"max_steps": 3}, {"resume": "true"}):
        run_ranks(1, flags(world, tmp_path, device="auto", dtype="bfloat16", **changes))
    rows = rows_of(tmp_path / "run")
    assert [r["step"] for r in rows] == [1, 2, 3, 4, 5, 6] and all(r["mismatch_k3"] < 0.02 for r in rows)
