"""The model against transformers' Qwen2 and Qwen3, the golden numbers, and float64 autograd of the plain formula."""

import json
import os
import sys
import weakref
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch._dynamo.utils import counters
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import model as model_file
from configs import UserError
from model import (
    ModelConfig,
    Qwen2,
    attention,
    attention_backend,
    attention_layout,
    full_tensors,
    stream_weights,
    token_logprobs,
)

GOLDEN = Path(__file__).parents[2] / "shared" / "golden"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden files at {GOLDEN}")
LENGTHS = (5, 1, 170, 37, 130, 128, 40, 1)  # one token; blocks of similar ones; two long ones
SHAPES = {  # architecture, tied, query heads, kv heads, head size (None: hidden / heads)
    "tied_gqa_head16": ("qwen2", True, 4, 2, None),
    "untied_gqa_head16": ("qwen2", False, 4, 1, None),
    "untied_mha_head32": ("qwen2", False, 2, 2, None),
    "tied_gqa_explicit_head32": ("qwen2", True, 4, 2, 32),
    "qwen3_tied_gqa_head32": ("qwen3", True, 4, 2, 32),
    "qwen3_untied_gqa_head24": ("qwen3", False, 4, 1, 24),
    "qwen3_untied_mha_head16": ("qwen3", False, 4, 4, 16),
}
CLASSES = {"qwen2": Qwen2ForCausalLM, "qwen3": Qwen3ForCausalLM}
both_architectures = pytest.mark.parametrize("model_type", CLASSES)


def hf_model(model_type: str = "qwen2", seed: int = 0, std: float = 0.1, **changes) -> PreTrainedModel:
    """A random model of transformers with eager attention; biases and norm weights are random too."""
    shape = dict(vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=2)
    shape |= dict(num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32768, rope_theta=10000.0)
    shape |= dict(rms_norm_eps=0.01)  # large enough to be seen
    shape |= {"attn_implementation": "eager", "head_dim": 24 if model_type == "qwen3" else None, **changes}
    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type, **{k: v for k, v in shape.items() if v is not None})
    hf = CLASSES[model_type](config).eval()
    with torch.no_grad():
        for p in hf.parameters():
            p.normal_(0.0, std) if p.dim() == 2 else p.add_(torch.randn_like(p) * 0.1)
    return hf


def ours_of(hf: PreTrainedModel, tmp_path: Path, **options) -> Qwen2:
    hf.save_pretrained(tmp_path)
    return Qwen2.from_pretrained(tmp_path, **options)


def packed(lengths, vocab_size: int = 97, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """input_ids (T,), position_ids (T,), cu_seqlens (S+1,)"""
    ids = torch.randint(vocab_size, (sum(lengths),), generator=torch.Generator().manual_seed(seed))
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    return ids, torch.cat([torch.arange(n) for n in lengths]), cu_seqlens


def hf_forward(hf: PreTrainedModel, ids: Tensor, lengths, position_ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(logits (T, V), hidden (T, D)) of one unpadded sequence at a time."""
    logits, hidden = [], []
    positions = [None] * len(lengths) if position_ids is None else [p[None] for p in position_ids.split(lengths)]
    for row, position in zip(ids.split(lengths), positions, strict=True):
        out = hf.model(input_ids=row[None], position_ids=position).last_hidden_state[0]
        hidden.append(out)
        logits.append(hf.lm_head(out))
    return torch.cat(logits), torch.cat(hidden)


def random_like(x: Tensor, seed: int = 0) -> Tensor:
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))


def close(got: Tensor, want: Tensor, tol: float = 1e-4) -> None:
    torch.testing.assert_close(got.detach(), want.detach(), rtol=tol, atol=tol)


@pytest.fixture(scope="module")
def mesh():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


# ----------------------------------------------------------------------------------------------------- the forward pass


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_hidden_states_and_gradients_match_hf(shape, tmp_path):
    names = ("model_type", "tie_word_embeddings", "num_attention_heads", "num_key_value_heads", "head_dim")
    hf = hf_model(**dict(zip(names, SHAPES[shape], strict=True)))
    model = ours_of(hf, tmp_path)
    assert set(dict(model.named_parameters())) == set(dict(hf.named_parameters()))
    ids, position_ids, cu_seqlens = packed(LENGTHS)
    targets = ids.roll(-1)
    weights = random_like(targets)  # of the logprobs, (T,)
    want_logits, want_hidden = hf_forward(hf, ids, LENGTHS)
    hidden = model(ids, position_ids, cu_seqlens)
    close(hidden, want_hidden)
    close(hidden @ model.lm_head.weight.T, want_logits)

    logprobs, _ = token_logprobs(hidden, model.lm_head.weight, targets, 0.6, 100)
    (logprobs * weights).sum().backward()
    want = (want_logits / 0.6).log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
    close(logprobs, want)
    (want * weights).sum().backward()
    wanted = {name: p.grad for name, p in hf.named_parameters()}
    for name, p in model.named_parameters():
        error, scale = (p.grad - wanted[name]).abs().max(), wanted[name].abs().max().clamp(min=1)
        assert error < 1e-4 * scale, name


@both_architectures
def test_packed_equals_separate(model_type, tmp_path):
    model = ours_of(hf_model(model_type), tmp_path)
    ids, position_ids, cu_seqlens = packed(LENGTHS)
    together = model(ids, position_ids, cu_seqlens)
    apart = [model(row, torch.arange(len(row)), torch.tensor([0, len(row)]).int()) for row in ids.split(LENGTHS)]
    close(together, torch.cat(apart), 1e-5)


@both_architectures
@pytest.mark.parametrize("length", [20, 200])
def test_no_token_sees_the_future_or_a_neighbour(model_type, length, tmp_path):
    model = ours_of(hf_model(model_type), tmp_path)
    lengths = (length, length - 3, length)
    ids, position_ids, cu_seqlens = packed(lengths)
    hidden = model(ids, position_ids, cu_seqlens)
    changed = length + length // 2  # in the middle of the second sequence
    other = ids.clone()
    other[changed] = (ids[changed] + 1) % 97
    difference = (model(other, position_ids, cu_seqlens) - hidden).abs().amax(-1)
    end = 2 * length - 3
    assert difference[:changed].max() == 0 and difference[end:].max() == 0
    assert difference[changed:end].min() > 0


@both_architectures
def test_activation_checkpointing_changes_no_bit(model_type, tmp_path):
    model = ours_of(hf_model(model_type), tmp_path)
    results = []
    for on in (False, True):
        model.set_activation_checkpointing(on)
        hidden = model(*packed(LENGTHS))
        (hidden * random_like(hidden)).sum().backward()
        results.append([hidden.detach(), *(p.grad for p in model.model.parameters())])
        model.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_activation_checkpointing_computes_each_layer_again(tmp_path, monkeypatch):
    model, calls = ours_of(hf_model(), tmp_path), []
    real = model_file.attention
    monkeypatch.setattr(model_file, "attention", lambda *args: calls.append(1) or real(*args))
    for on, forwards in ((False, 2), (True, 4)):
        calls.clear()
        model.set_activation_checkpointing(on)
        model(*packed((5, 6))).sum().backward()
        assert len(calls) == forwards


@both_architectures
def test_flops_match_counted_matrix_products(model_type, tmp_path):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model = ours_of(hf_model(model_type), tmp_path)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        hidden = model(*packed((96,)))  # a number that is not padded
        hidden @ model.lm_head.weight.T
    width = 4 * model.config.head_dim
    attention = 2 * 2 * 2 * 96 * 96 * width // 2  # the counter sees whole squares, half of which causality hides
    assert model.flops([96]) == counter.get_total_flops() - attention


# ---------------------------------------------------------------------------------------------------- golden end to end


CHECKPOINTS = (
    "hd16_tied_theta1e4",
    "hd16_untied_theta1e6",
    "hd32_explicit_tied_theta1e6",
    "hd32_untied_theta1e4_h128",
)


@needs_golden
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_golden_end_to_end(name):
    file = json.loads((GOLDEN / f"08_e2e_{name}.json").read_text())
    inputs, want, tolerance = file["inputs"], file["expected"], file["tolerance"]["float32 implementation"]
    temperature, sequences = inputs["temperature"], want["sequences"]
    model = Qwen2.from_pretrained(GOLDEN / file["checkpoint"])
    lengths = [len(row) for row in inputs["ids"]]
    ids, position_ids, cu_seqlens = packed(lengths)
    ids = torch.tensor(sum(inputs["ids"], []))
    hidden = model(ids, position_ids, cu_seqlens)
    logits = hidden @ model.lm_head.weight.T
    atol = tolerance["logits_atol"]
    for got, key in ((logits, "logits_f32"), (hidden, "last_hidden_after_norm_f32")):
        expected = torch.tensor(sum((s[key] for s in sequences), []))
        torch.testing.assert_close(got.detach(), expected, rtol=0, atol=atol)

    logprobs, entropy = token_logprobs(hidden, model.lm_head.weight, ids.roll(-1), temperature, 16)
    loss = torch.zeros(())
    for i, prompt_len in enumerate(inputs["prompt_len"]):
        here = slice(int(cu_seqlens[i]), int(cu_seqlens[i + 1]) - 1)  # the last token has no target
        for got, key in ((logprobs, "logprobs_t0.6_f64"), (entropy, "entropy_t0.6_f64")):
            expected = torch.tensor(sequences[i][key])
            torch.testing.assert_close(got[here].detach(), expected, rtol=0, atol=tolerance["logprobs_atol"])
        loss = loss + (logprobs[here][prompt_len - 1 :] * torch.tensor(inputs["w_logprob"][i])).sum()
        loss = loss + (entropy[here][prompt_len - 1 :] * torch.tensor(inputs["w_entropy"][i])).sum()
    assert abs(loss.item() - want["loss_f64"]) < atol

    loss.backward()
    parameters = dict(model.named_parameters())
    for key, gradient in want["grads"].items():
        got, scale = parameters[key].grad.flatten(), gradient["norm_f64"]
        assert abs(got.norm().item() - scale) < tolerance["grad_rtol"] * scale, key
        error = (got[gradient["flat_index"]] - torch.tensor(gradient["values_f64"])).abs()
        assert (error < tolerance["grad_rtol"] * torch.tensor(gradient["values_f64"]).abs() + 1e-4 * scale).all(), key
    for key, norm in want["grad_norm_all_params_f64"].items():
        assert abs(parameters[key].grad.norm().item() - norm) < tolerance["grad_rtol"] * norm, key


# -------------------------------------------------------------------------------------------------------- FSDP and bf16


def errors(got: Tensor, want: Tensor) -> tuple[float, float]:
    difference = (got.float() - want).abs()
    return difference.mean().item(), difference.max().item()


@both_architectures
def test_bf16_at_long_positions_is_as_good_as_hf(model_type, mesh, tmp_path, monkeypatch):
    """Windows of a long context, up to position 25,600, under the FSDP policy, against transformers in float32."""
    hf = hf_model(model_type, std=0.15, num_hidden_layers=3, rope_theta=10000.0)
    lengths = [100, 160, 90, 150]
    ids, position_ids, cu_seqlens = packed(lengths)
    position_ids = position_ids + torch.tensor([0, 12_000, 19_000, 25_450]).repeat_interleave(torch.tensor(lengths))
    with torch.no_grad():
        exact = hf_forward(hf, ids, lengths, position_ids)[0]
        model = ours_of(hf, tmp_path, mesh=mesh, compute_dtype=torch.bfloat16)
        theirs = hf_forward(hf.to(torch.bfloat16), ids, lengths, position_ids)[0]

        def logits() -> Tensor:
            hidden = model(ids, position_ids, cu_seqlens)
            assert hidden.dtype == torch.bfloat16
            return hidden @ model.lm_head.weight.T.to(hidden.dtype)

        ours = logits()
        real = model_file.rotary_angles
        monkeypatch.setattr(model_file, "rotary_angles", lambda p, *rest: real(p.bfloat16(), *rest))
        broken = logits()
    model.reshard()
    mean, largest = errors(ours, exact)
    hf_mean, hf_largest = errors(theirs, exact)
    assert mean <= hf_mean and largest <= 1.25 * hf_largest
    assert errors(ours, theirs.float())[0] <= 1.5 * hf_mean  # two independent roundings: sqrt(2)
    late = cu_seqlens[1]  # where a position is no bf16 number
    assert errors(broken[late:], exact[late:])[0] > 3 * errors(ours[late:], exact[late:])[0]


@both_architectures
def test_one_bf16_step_at_lr_1e_6_changes_the_float32_weights(model_type, mesh, tmp_path):
    model = ours_of(hf_model(model_type, std=0.02), tmp_path, mesh=mesh, compute_dtype=torch.bfloat16)
    before = {name: t.clone() for name, t in full_tensors(model, torch.float32)}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0.01)
    ids, position_ids, cu_seqlens = packed(LENGTHS)
    hidden = model(ids, position_ids, cu_seqlens)
    logprobs, _ = token_logprobs(hidden, model.lm_head.weight, ids.roll(-1), 1.0, 256)
    logprobs.mean().neg().backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.parameters())
    optimizer.step()
    after = dict(full_tensors(model, torch.float32))
    changed = sum((after[name] != before[name]).sum().item() for name in before)
    assert changed / sum(t.numel() for t in before.values()) > 0.9
    kept = sum((after[n].bfloat16() == before[n].bfloat16()).sum().item() for n in before)
    assert kept / sum(t.numel() for t in before.values()) > 0.9  # bf16 parameters would have stood still


@both_architectures
def test_every_parameter_is_sharded_again_after_every_pass(model_type, mesh, tmp_path):
    model = ours_of(hf_model(model_type, tie_word_embeddings=True), tmp_path / "hf", mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def all_sharded() -> bool:
        return all(isinstance(p, DTensor) for p in model.parameters())

    batch = packed((5, 9))
    assert all_sharded()
    with torch.no_grad():
        model(*batch)
        model.reshard()
    assert all_sharded()
    model.set_activation_checkpointing(True)
    for _ in range(2):
        hidden = model(*batch)
        token_logprobs(hidden, model.lm_head.weight, batch[0], 1.0, 4)[0].sum().backward()
        assert all_sharded()
        optimizer.step()
        optimizer.zero_grad()
        assert all_sharded()
    assert not any(isinstance(t, DTensor) for _, t in full_tensors(model, torch.bfloat16)) and all_sharded()
    model.save_pretrained(tmp_path / "ours")
    assert all_sharded()


@both_architectures
def test_sharded_gradients_equal_plain_ones(model_type, mesh, tmp_path):
    hf = hf_model(model_type, tie_word_embeddings=True)
    results = []
    for options in ({}, {"mesh": mesh}):
        model = ours_of(hf, tmp_path, **options)
        batch = packed(LENGTHS)
        logprobs, entropy = token_logprobs(model(*batch), model.lm_head.weight, batch[0], 0.6, 100)
        (logprobs - 0.1 * entropy).sum().backward()
        results.append({n: getattr(p.grad, "full_tensor", lambda g=p.grad: g)() for n, p in model.named_parameters()})
    assert results[0].keys() == results[1].keys()
    for name, gradient in results[0].items():
        assert torch.equal(gradient, results[1][name]), name


# ------------------------------------------------------------------------------------------------ choice of attention


@pytest.fixture
def card(monkeypatch):
    """Pretends that there is a GPU of a compute capability."""
    return lambda capability: monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)


CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")


def package(folder: Path, monkeypatch, files: dict[str, str]) -> None:
    """A package flash_attn of these files, in place of an installed one."""
    for module in [m for m in sys.modules if m.split(".")[0] == "flash_attn"]:
        monkeypatch.delitem(sys.modules, module)
    for name, text in files.items():
        path = folder / "flash_attn" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(folder)


def test_torchs_varlen_kernel_comes_first_also_where_flash_attn_is_installed(card, tmp_path, monkeypatch):
    package(tmp_path, monkeypatch, {"__init__.py": "def flash_attn_varlen_func(q, *args, **options): return q + 1"})
    for device, capability, backend in ((CPU, (9, 0), "sdpa"), (CUDA, (7, 5), "sdpa"), (CUDA, (8, 0), "torch_varlen")):
        card(capability)
        assert attention_backend(device) == backend
    assert attention_backend(CUDA, "flash_attn") == "flash_attn"
    q, cu_seqlens = torch.zeros(3, 2, 8), torch.tensor([0, 3]).int()
    assert (attention(q, q, q, attention_layout(cu_seqlens, "flash_attn", 3), "flash_attn") == 1).all()


@pytest.mark.parametrize("wanted", ["flash_attn", "fa3", "fa4"])
def test_an_attention_that_is_not_there_is_refused_in_one_line(card, tmp_path, monkeypatch, wanted):
    # flash-attn 4 has no more than this under the name flash_attn
    package(tmp_path, monkeypatch, {"cute/other.py": ""})
    with pytest.raises(UserError, match=f"attention: {wanted} needs a GPU"):
        attention_backend(CPU, wanted)
    card((9, 0))
    with pytest.raises(UserError, match="^attention: .*--attention=auto$"):
        attention_backend(CUDA, wanted)


@pytest.mark.parametrize("wanted, capability, needed", [
    ("flash_attn", (7, 5), "8.0 or more"),
    ("fa3", (8, 0), "9.x"),
    ("fa3", (10, 0), "9.x"),
    ("fa4", (8, 0), "9.x or 10.x"),
    ("fa4", (12, 0), "9.x or 10.x"),
])  # fmt: skip
def test_an_attention_that_the_card_cannot_run_is_refused_before_a_model_loads(card, wanted, capability, needed):
    card(capability)
    with pytest.raises(UserError, match=f"{wanted} needs a GPU of compute capability {needed}: --attention=auto"):
        attention_backend(CUDA, wanted)


def test_hopper_kernels_come_by_torchs_own_switch(card, tmp_path, monkeypatch):
    kernels = "def _flash_attn_fwd(): ...\ndef _flash_attn_bwd(): ..."
    package(tmp_path, monkeypatch, {"cute/interface.py": kernels})
    card((9, 0))
    try:
        assert attention_backend(CUDA, "fa4") == "torch_varlen"
        assert torch.nn.attention.current_flash_attention_impl() == "FA4"
    finally:
        torch.nn.attention.restore_flash_attention_impl()


# ---------------------------------------------------------------------------------------------------- log-probabilities


def plain_logprobs(hidden, weight, targets, temperature) -> tuple[Tensor, Tensor]:
    log_probs = (hidden @ weight.T / temperature).log_softmax(-1)
    return log_probs.gather(-1, targets[:, None]).squeeze(-1), -(log_probs.exp() * log_probs).sum(-1)


@pytest.mark.parametrize("chunk", [1, 7, 20, 40, 64])  # 7 does not divide T = 40, 64 is more than T
@pytest.mark.parametrize("temperature", [0.6, 1.0])
def test_token_logprobs_match_float64_autograd(chunk, temperature):
    torch.manual_seed(0)
    inputs = torch.randn(40, 16), torch.randn(53, 16)
    targets = torch.randint(53, (40,))
    upstream = torch.randn(2, 40)
    exact, ours = [x.double().requires_grad_() for x in inputs], [x.clone().requires_grad_() for x in inputs]
    want, got = plain_logprobs(*exact, targets, temperature), token_logprobs(*ours, targets, temperature, chunk)
    for used in ((True, True), (True, False), (False, True)):  # gradients through both outputs, and each alone
        for outputs in (want, got):
            total = sum((x * u).sum() for x, u, on in zip(outputs, upstream, used, strict=True) if on)
            total.backward(retain_graph=True)
        for x, y in zip(exact, ours, strict=True):
            torch.testing.assert_close(y.grad.double(), x.grad, rtol=1e-5, atol=2e-5)
            x.grad = y.grad = None
    for w, g in zip(want, got, strict=True):
        assert g.dtype == torch.float32
        torch.testing.assert_close(g.double(), w, rtol=1e-5, atol=1e-5)


def test_chunks_change_no_value():
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(40, 16), torch.randn(53, 16), torch.randint(53, (40,))
    whole = token_logprobs(hidden, weight, targets, 0.6, 40)
    for chunk in (1, 7, 64):
        for a, b in zip(whole, token_logprobs(hidden, weight, targets, 0.6, chunk), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=2e-6)


def test_without_entropy_the_log_probabilities_have_the_same_bits():
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(40, 16), torch.randn(53, 16), torch.randint(50, (40,))
    logprobs, entropy = token_logprobs(hidden, weight, targets, 0.6, 7, 50)
    alone = token_logprobs(hidden, weight, targets, 0.6, 7, 50, with_entropy=False)
    assert alone[1] is None and torch.equal(alone[0], logprobs) and entropy.shape == logprobs.shape


def test_token_logprobs_of_extreme_logits_are_finite():
    hidden = torch.tensor([[1e4, 0.0], [-1e4, 0.0], [0.0, 0.0]], requires_grad=True)
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], requires_grad=True)
    logprobs, entropy = token_logprobs(hidden, weight, torch.tensor([0, 0, 1]), 0.6, 2)
    (logprobs + entropy).sum().backward()
    assert all(x.isfinite().all() for x in (logprobs, entropy, hidden.grad, weight.grad))
    assert logprobs[0] == 0 and entropy[:2].tolist() == [0, 0] and (entropy >= 0).all()


@needs_golden
def test_token_logprobs_match_deepscaler():
    file = json.loads((GOLDEN / "06_logprob_entropy.json").read_text())
    for case in file["cases"]:
        i = case["inputs"]
        targets = torch.tensor(i["labels"])
        upstreams = torch.tensor(i["upstream_logprob"]), torch.tensor(i["upstream_entropy"])
        for want in case["expected"].values():
            for key, used in (("logprob_only", (1, 0)), ("entropy_only", (0, 1)), ("both", (1, 1))):
                hidden, weight = (torch.tensor(i[k]).requires_grad_() for k in ("hidden", "lm_head"))
                logprobs, entropy = token_logprobs(hidden, weight, targets, want["temperature"], 4)
                torch.autograd.backward((logprobs, entropy), [u * on for u, on in zip(upstreams, used, strict=True)])
                gradients = want[f"grad_{key}"]
                results = (logprobs, want["logprobs"]), (entropy, want["entropy"]), (hidden.grad, gradients["dhidden"])
                for got, expected in (*results, (weight.grad, gradients["dlm_head"])):
                    torch.testing.assert_close(got.detach(), torch.tensor(expected), rtol=2e-5, atol=2e-5)


def largest_differences(gradients: dict[str, Tensor], others: dict[str, Tensor]) -> dict[str, float]:
    """name -> norm of the difference, over the gradient's own."""
    return {n: float((g - others[n]).norm() / g.norm()) for n, g in gradients.items()}


def test_compiled_gradients_equal_eager_ones_and_one_graph_serves_all_lengths(mesh, tmp_path):
    """Sharded, with checkpointing, by inductor: as a run on GPUs with compile=layers."""
    torch._dynamo.reset()
    model_file.head_functions.cache_clear()
    counters.clear()
    eager, compiled = (ours_of(hf_model(), tmp_path, mesh=mesh) for _ in range(2))
    for model in (eager, compiled):
        model.set_activation_checkpointing(True)
    compiled.compile_layers()

    def gradients(model: Qwen2, lengths: tuple, fused: bool = False, shift: int = 0) -> dict[str, Tensor]:
        ids, position_ids, cu_seqlens = packed(lengths)
        hidden = model(ids, position_ids + shift, cu_seqlens, max(lengths))
        logprobs, entropy = token_logprobs(hidden, model.lm_head.weight, ids, 0.6, 64, 90, fused=fused)
        (logprobs.sum() + 0.1 * entropy.sum()).backward()
        by_name = {n: p.grad.full_tensor() for n, p in model.named_parameters()}
        model.zero_grad()
        return by_name

    packs = (LENGTHS, (200,), (3, 3, 3, 3), (64, 64), (17, 80, 2))
    for lengths in packs:
        expected = gradients(eager, lengths)
        differences = largest_differences(expected, gradients(compiled, lengths, fused=True))
        # Attention knows differences of positions only, so that a shift shows how much rounding alone changes: most in
        # what belongs to q and k, whose gradients are small differences of large terms.
        rounding = largest_differences(expected, gradients(eager, lengths, shift=1))
        for name, difference in differences.items():
            assert difference < max(1e-6, 2 * rounding[name]), f"{name}: {difference}, {rounding[name]}"
            assert difference < 1e-6 or ".q_" in name or ".k_" in name, f"{name}: {difference}"
    # before and after attention, and a chunk's scores and their gradient; each of its backward passes belongs to it
    assert counters["stats"]["unique_graphs"] == 4 and not counters["graph_break"]


class Memory(TorchDispatchMode):
    """Elements of the largest tensor any operation returns, and the most that were alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.alive = self.peak = 0
        self.seen = weakref.WeakSet()

    def free(self, size: int) -> None:
        self.alive -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if not isinstance(tensor, Tensor) or tensor.untyped_storage() in self.seen:
                continue
            storage = tensor.untyped_storage()
            size = storage.nbytes() // tensor.element_size()
            self.seen.add(storage)
            weakref.finalize(storage, self.free, size)
            self.alive += size
            self.largest, self.peak = max(self.largest, size), max(self.peak, self.alive)
        return out


def test_memory_of_token_logprobs_does_not_grow_with_tokens_times_vocabulary():
    vocab_size, width, chunk = 3000, 16, 32
    peaks = {}
    for size in (256, 2048):
        hidden, weight = (torch.randn(n, width, requires_grad=True) for n in (size, vocab_size))
        targets = torch.randint(vocab_size, (size,))
        with Memory() as memory:
            logprobs, entropy = token_logprobs(hidden, weight, targets, 0.6, chunk)
            (logprobs.sum() + entropy.sum()).backward()
        assert memory.largest <= max(chunk * vocab_size, vocab_size * width, size * width)
        peaks[size] = memory.peak
    assert chunk * vocab_size <= peaks[256] <= 8 * chunk * vocab_size  # the count counts something
    assert peaks[2048] - peaks[256] <= 2 * 2048 * width


# -------------------------------------------------------------------------------------------------------------- folders


@both_architectures
@pytest.mark.parametrize("tied", [True, False])
def test_saved_folder_loads_in_transformers_with_equal_logits(model_type, tied, tmp_path):
    model = ours_of(hf_model(model_type, tie_word_embeddings=tied), tmp_path / "hf")
    model.save_pretrained(tmp_path / "ours")
    assert ("lm_head.weight" in load_file(tmp_path / "ours" / "model.safetensors")) == (not tied)
    hf = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", attn_implementation="eager")
    ids, position_ids, cu_seqlens = packed(LENGTHS)
    assert hf.dtype == torch.float32 and isinstance(hf, CLASSES[model_type])
    with torch.no_grad():
        close(model(ids, position_ids, cu_seqlens) @ model.lm_head.weight.T, hf_forward(hf, ids, LENGTHS)[0], 2e-5)
    again = Qwen2.from_pretrained(tmp_path / "ours")
    assert again.config == model.config
    for (name, p), (other_name, other) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert name == other_name and torch.equal(p, other)


@both_architectures
def test_bf16_folder_loads_in_transformers_as_bf16(model_type, tmp_path):
    model = ours_of(hf_model(model_type), tmp_path / "hf")
    model.save_pretrained(tmp_path / "ours", torch.bfloat16)
    hf = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype="auto")
    assert hf.dtype == torch.bfloat16
    for name, p in hf.named_parameters():
        assert torch.equal(p, dict(model.named_parameters())[name].bfloat16()), name


@both_architectures
def test_sharded_model_saves_the_same_bytes(model_type, mesh, tmp_path):
    hf = hf_model(model_type)
    ours_of(hf, tmp_path / "hf").save_pretrained(tmp_path / "plain")
    sharded = ours_of(hf, tmp_path / "hf", mesh=mesh, compute_dtype=torch.bfloat16)
    sharded.save_pretrained(tmp_path / "sharded")
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "plain" / file).read_bytes() == (tmp_path / "sharded" / file).read_bytes()
    sharded.save_pretrained(tmp_path / "other_rank", write=False)
    assert not (tmp_path / "other_rank").exists()


def test_folder_in_several_shards_loads(tmp_path):
    hf = hf_model(tie_word_embeddings=False)
    hf.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    model, wanted = Qwen2.from_pretrained(tmp_path), dict(hf.named_parameters())
    assert all(torch.equal(p, wanted[name]) for name, p in model.named_parameters())


def test_tokenizer_files_are_carried_along(tiny_model_dir, tmp_path):
    Qwen2.from_pretrained(tiny_model_dir).save_pretrained(tmp_path)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / file).read_bytes() == (tiny_model_dir / file).read_bytes()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    messages = [{"role": "user", "content": "1+2=?"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|bos|><|user|>1+2=?<|assistant|><think>\n"


@both_architectures
def test_saving_keeps_every_other_config_key(model_type, tmp_path):
    hf_model(model_type).save_pretrained(tmp_path / "hf")
    raw = json.loads((tmp_path / "hf" / "config.json").read_text()) | {"eos_token_id": 7, "note": "mine"}
    (tmp_path / "hf" / "config.json").write_text(json.dumps(raw))
    Qwen2.from_pretrained(tmp_path / "hf").save_pretrained(tmp_path / "ours")
    saved = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert {k: saved[k] for k in raw if "dtype" not in k} == {k: v for k, v in raw.items() if "dtype" not in k}


ROPE_KEYS = (
    {"rope_theta": 5e5},
    {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
    {"rope_theta": 5e5, "rope_parameters": {"rope_theta": 5e5}},
    {"rope_theta": 5e5, "rope_scaling": None},
)


@pytest.mark.parametrize("keys", ROPE_KEYS)
def test_rope_theta_is_read_from_either_place(keys, tmp_path):
    hf = hf_model(rope_theta=5e5)
    hf.save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    raw = {k: v for k, v in raw.items() if not k.startswith("rope")} | keys
    (tmp_path / "config.json").write_text(json.dumps(raw))
    model = Qwen2.from_pretrained(tmp_path)
    assert model.config.rope_theta == 5e5
    ids, position_ids, cu_seqlens = packed((150,))
    close(model(ids, position_ids, cu_seqlens), hf_forward(hf, ids, (150,))[1])


def test_published_base_model_config_is_accepted():
    """The config.json of DeepSeek-R1-Distill-Qwen-1.5B, whose window is named but switched off."""
    raw = dict(architectures=["Qwen2ForCausalLM"], attention_dropout=0.0, bos_token_id=151643, eos_token_id=151643,
               hidden_act="silu", hidden_size=1536, initializer_range=0.02, intermediate_size=8960,
               max_position_embeddings=131072, max_window_layers=21, model_type="qwen2", num_attention_heads=12,
               num_hidden_layers=28, num_key_value_heads=2, rms_norm_eps=1e-06, rope_theta=10000,
               sliding_window=4096, tie_word_embeddings=False, torch_dtype="bfloat16", use_cache=True,
               use_mrope=False, use_sliding_window=False, vocab_size=151936)  # fmt: skip
    config = ModelConfig.from_dict(raw)
    with torch.device("meta"):
        model = Qwen2(config)
    assert (config.head_dim, config.rope_theta) == (128, 10000.0)
    assert sum(p.numel() for p in model.parameters()) == 1_777_088_000


def test_published_qwen3_config_is_accepted():
    """The config.json of Qwen3-0.6B, whose heads are wider than hidden / heads."""
    raw = dict(architectures=["Qwen3ForCausalLM"], attention_bias=False, attention_dropout=0.0, bos_token_id=151643,
               eos_token_id=151645, head_dim=128, hidden_act="silu", hidden_size=1024, initializer_range=0.02,
               intermediate_size=3072, max_position_embeddings=40960, max_window_layers=28, model_type="qwen3",
               num_attention_heads=16, num_hidden_layers=28, num_key_value_heads=8, rms_norm_eps=1e-06,
               rope_scaling=None, rope_theta=1000000, sliding_window=None, tie_word_embeddings=True,
               torch_dtype="bfloat16", use_cache=True, use_sliding_window=False, vocab_size=151936)  # fmt: skip
    for changes in ({}, {"layer_types": ["full_attention"] * 28}):
        config = ModelConfig.from_dict(raw | changes)
        with torch.device("meta"):
            ours, theirs = Qwen2(config), Qwen3ForCausalLM(Qwen3Config(**raw | changes))
        shapes = {name: p.shape for name, p in theirs.named_parameters()}
        assert {name: p.shape for name, p in ours.named_parameters()} == shapes
        assert (config.head_dim, config.rope_theta) == (128, 1e6)
        assert sum(p.numel() for p in ours.parameters()) == 596_049_920


def test_qwen3_without_a_head_size_has_transformers_own():
    raw = {"model_type": "qwen3", **dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size"), 64)}
    raw |= {"num_hidden_layers": 1, "num_attention_heads": 4}
    assert ModelConfig.from_dict(raw).head_dim == Qwen3Config(**raw).head_dim == 128


BAD_CONFIGS = {
    "yarn": ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope scaling"),
    "yarn_in_rope_parameters": ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope scaling"),
    "two_thetas": ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e6}}, "rope_theta"),
    "sliding_window": ({"use_sliding_window": True, "sliding_window": 64}, "sliding-window"),
    "sliding_layers": ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding-window"),
    "other_layers": ({"layer_types": ["linear_attention", "full_attention"]}, "only full attention"),
    "another_model": ({"model_type": "llama"}, "model_type is 'llama'; only 'qwen2' and 'qwen3' are supported"),
    "experts_2": ({"model_type": "qwen2_moe"}, "model_type is 'qwen2_moe'"),
    "experts_3": ({"model_type": "qwen3_moe"}, "model_type is 'qwen3_moe'"),
    "next": ({"model_type": "qwen3_next"}, "model_type is 'qwen3_next'"),
    "no_model_type": ({"model_type": ...}, "model_type is None"),
    "qwen3_biases": ({"model_type": "qwen3", "attention_bias": True}, "attention_bias is not supported"),
    "qwen3_sliding_window": ({"model_type": "qwen3", "use_sliding_window": True}, "sliding-window"),
    "qwen3_yarn": ({"model_type": "qwen3", "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope scaling"),
    "qwen3_head_size_null": ({"model_type": "qwen3", "head_dim": None}, "head_dim is None, not a whole number"),
    "another_activation": ({"hidden_act": "gelu"}, "hidden_act"),
    "heads_that_do_not_fit": ({"num_key_value_heads": 3}, "do not fit"),
    "missing_key": ({"hidden_size": ...}, "hidden_size is missing"),
    "rope_theta_0": ({"rope_theta": 0}, "rope_theta 0.0"),
    "rope_theta_nan": ({"rope_theta": float("nan")}, "rope_theta nan"),
    "rope_theta_inf": ({"rope_theta": float("inf")}, "rope_theta inf"),
    "rope_theta_beyond_floats": ({"rope_theta": 10**400}, "wrong kind"),
    "eps_nan": ({"rms_norm_eps": float("nan")}, "rms_norm_eps nan"),
    "eps_negative": ({"rms_norm_eps": -1e-6}, "rms_norm_eps -1e-06"),
    "eps_text": ({"rms_norm_eps": "1e-6"}, "wrong kind"),
    "too_many_tokens": ({"vocab_size": 10**12}, "vocab_size is 1000000000000, not a whole number"),
    "too_many_layers": ({"num_hidden_layers": 10**6}, "num_hidden_layers is 1000000, not a whole number"),
    "no_layers": ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
    "a_fraction": ({"intermediate_size": 96.0}, "intermediate_size is 96.0"),
    "positions_as_text": ({"max_position_embeddings": "512"}, "max_position_embeddings is '512'"),
    "tie_as_text": ({"tie_word_embeddings": "false"}, "tie_word_embeddings is not true or false"),
    "layers_as_list": ({"num_hidden_layers": [2] * 1000}, "num_hidden_layers is [2, 2"),
}


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as e:
        Qwen2.from_pretrained(path)
    message = str(e.value)
    assert "\n" not in message and str(path) in message, message
    return message


@pytest.fixture
def folder(tmp_path) -> Path:
    hf_model(tie_word_embeddings=False).save_pretrained(tmp_path / "m")
    return tmp_path / "m"


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_config_it_cannot_compute_is_refused_in_one_line(case, folder):
    changes, words = BAD_CONFIGS[case]
    raw = json.loads((folder / "config.json").read_text())
    raw = {k: v for k, v in (raw | changes).items() if v is not ...}
    if "rope_theta" in changes or "rope_scaling" in changes:
        raw["rope_parameters"] = changes.get("rope_parameters")
    (folder / "config.json").write_text(json.dumps(raw))
    assert words in refusal(folder)


NO_CONFIGS = [("[" * 99999, "not JSON"), ("{", "not JSON"), ("[1]", "not a JSON object"), (None, "config.json")]


@pytest.mark.parametrize("text, words", NO_CONFIGS, ids=["deep", "torn", "list", "none"])
def test_config_that_is_none_is_refused_in_one_line(text, words, folder):
    (folder / "config.json").unlink() if text is None else (folder / "config.json").write_text(text)
    assert words in refusal(folder)


def test_weights_of_the_other_architecture_are_refused(tmp_path):
    """A checkpoint whose config names the wrong one would be computed without its norms or biases."""
    for model_type, other, own in (("qwen2", "qwen3", "q_proj.bias"), ("qwen3", "qwen2", "q_norm.weight")):
        hf_model(model_type, head_dim=16).save_pretrained(tmp_path)
        config = tmp_path / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": other}))
        change_weights(tmp_path, lambda tensors, own=own: [tensors.pop(n) for n in list(tensors) if own not in n])
        assert "unknown tensor" in refusal(tmp_path)


def change_weights(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_damaged_weights_are_refused_in_one_line(folder):
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for size in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        assert "cannot read the weights" in refusal(folder)
    file.unlink()
    assert "cannot read the weights" in refusal(folder)


def test_weights_of_integers_are_refused(folder):
    change_weights(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(64, dtype=torch.int32)}))
    assert "cannot read the weights: model.norm.weight is I32" in refusal(folder)


def test_weights_from_a_pipe_or_device_are_refused(tmp_path, folder):
    file, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    for path in (file, index):
        for spoil in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
            path.unlink(missing_ok=True)
            spoil(path)
            assert "cannot read the weights" in refusal(folder)
    index.unlink()
    index.write_text("[" * 99999)
    assert "cannot read the weights" in refusal(folder)


def test_missing_shard_or_broken_index_is_refused_in_one_line(tmp_path):
    hf_model().save_pretrained(tmp_path, max_shard_size="60KB")
    index = tmp_path / "model.safetensors.index.json"
    whole = index.read_text()
    for text in ("{", "[]", "{}"):
        index.write_text(text)
        assert "cannot read the weights" in refusal(tmp_path)
    index.write_text(whole)
    sorted(tmp_path.glob("model-*"))[1].unlink()
    assert "cannot read the weights" in refusal(tmp_path)


def test_wrong_tensors_are_refused_by_name(folder):
    name, whole = "model.layers.1.mlp.up_proj.weight", (folder / "model.safetensors").read_bytes()
    for change, words in (
        (lambda t: t.pop(name), f"1 tensors are missing, the first is {name}"),
        (lambda t: t.update({name: t[name][:-1].contiguous()}), f"{name} has shape (95, 64), the config says (96, 64)"),
        (lambda t: t.update({"model.extra": torch.zeros(1)}), "unknown tensor model.extra"),
    ):
        (folder / "model.safetensors").write_bytes(whole)
        change_weights(folder, change)
        assert words in refusal(folder)
        with pytest.raises(UserError) as e:  # what a run and an evaluation ask before an engine starts
            model_file.check_weights(folder)
        assert words in str(e.value)


@pytest.mark.parametrize("sharded", [False, True])
def test_loading_holds_one_file_tensor_at_a_time(sharded, mesh, folder, monkeypatch):
    alive, most = set(), []

    def counted(path):
        for name, tensor in stream_weights(path):
            alive.add(name)
            most.append(len(alive))
            weakref.finalize(tensor, alive.discard, name)
            yield name, tensor
            del tensor  # our own reference, before the next one is read

    monkeypatch.setattr(model_file, "stream_weights", counted)
    Qwen2.from_pretrained(folder, torch.float32, mesh=mesh if sharded else None)
    assert max(most) == 1 and not alive
