"""Training and generation as the loop has them, each beside bare code on the same work: what the rest costs.

Both sides take turns in one run. Weights come from the config's model folder; tokens are random, since their values
change no speed, and no response ends before its last token.

Dimensions: B sequences, n new tokens of each, L cache positions, T packed tokens; D, H, K, E, V as in model.py.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.rendezvous import rendezvous
from torch.nn.attention import SDPBackend, sdpa_kernel

import train_grpo
from configs import Config, UserError
from configs._model import resolve_model
from kernels.norm import rms_norm
from model import (
    DTYPES,
    ModelConfig,
    Qwen2,
    apply_rotary,
    attention,
    attention_backend,
    attention_layout,
    rotary_angles,
    stream_weights,
    token_logprobs,
)
from rollout import Rollout, TorchSampler, attend_cache, sample_seed
from speed.kernels import full_lengths, ragged_lengths
from speed.measure import Section, alternating, rates, ratios
from training import packing
from training.packing import Batch, Minibatch
from training.plan import PROMPT

GENERATED = 256  # tokens of a response, at most, so that a run takes seconds
KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]  # the torch sampler's
CHECKED = 4  # sequences whose log-probabilities are compared with a float32 model's


@contextmanager
def process_group(cfg: Config, section: str) -> Iterator[torch.device]:
    """`packing.init_distributed`, gone afterwards, so that the next section can have its own. Its keys in torchrun's
    store begin with the section: a second group would find the addresses of the first there, and wait for ever. Raises
    UserError."""
    store = None
    if "RANK" in os.environ:
        torchruns, _, _ = next(rendezvous("env://"))
        store = dist.PrefixStore(section, torchruns)
    device = packing.init_distributed(cfg, store)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def random_ids(vocab_size: int, count: int, length: int) -> list[list[int]]:
    """`count` sequences of token ids, the same ones at each call."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocab_size, (count, length), generator=generator).tolist()


# ------------------------------------------------------------------------------------------------------------ training


def random_rollouts(lengths: list[int], vocab_size: int) -> list[Rollout]:
    """A response of so many packed tokens behind a prompt of one, for each length."""
    rollouts, all_ids = [], random_ids(vocab_size, len(lengths), max(lengths) + 1)
    for i, (n, ids) in enumerate(zip(lengths, all_ids, strict=True)):
        rollouts.append(Rollout(i, 0, ids[:1], ids[1 : n + 1], [-1.0] * n, "length", advantage=(-1.0) ** i))
    return rollouts


def training_pack(lengths: list[int], vocab_size: int, cfg: Config, device: torch.device) -> tuple[Batch, Minibatch]:
    """A pack of sequences of these lengths, and the minibatch that it is all of, on every rank."""
    b = packing.pack(random_rollouts(lengths, vocab_size), False, device)
    if cfg.kl_coef:  # any numbers: the reference's own pass belongs to another phase
        b = replace(b, ref_logprobs=b.rollout_logprobs)
    tokens = dist.get_world_size() * sum(lengths)
    return b, Minibatch([], tokens, dist.get_world_size() * len(lengths), cfg.max_response_len[0])


def bare_backward(model: Qwen2, b: Batch, cfg: Config) -> None:
    """Forward pass, mean log-probability of the targets, backward pass, and nothing else."""
    hidden = model(b.input_ids, b.position_ids, b.cu_seqlens, b.longest)
    options = cfg.temperature, cfg.logprob_chunk, model.vocab_size
    token_logprobs(hidden, model.lm_head.weight, b.targets, *options)[0].mean().backward()
    model.zero_grad()


@torch.no_grad()
def logprob_error(model: Qwen2, reference: Qwen2, b: Batch, cfg: Config) -> float:
    """The largest difference of a token's log-probability from the float32 model's."""
    difference = packing.batch_logprobs(model, b, cfg)[0] - packing.batch_logprobs(reference, b, cfg)[0]
    model.reshard()  # without a backward pass FSDP2 leaves the root's parameters unsharded
    return float(difference.abs().max())


def train(cfg: Config) -> Section:
    """`train_grpo.backward` on a pack of full and a pack of ragged sequences, beside `bare_backward` on a model that is
    not sharded. Raises UserError."""
    path, rows = resolve_model(cfg.model), []
    with process_group(cfg, "train") as device:
        model = packing.load_model(cfg, path, device, torch.float32)
        bare = Qwen2.from_pretrained(path, DTYPES[cfg.dtype], device)
        reference = Qwen2.from_pretrained(path, torch.float32, device)
        bare.vocab_size = reference.vocab_size = model.vocab_size
        bare.backend, reference.backend = model.backend, "sdpa"  # the kernels for packed sequences take no float32
        for copy in (model, bare):
            copy.set_activation_checkpointing(cfg.activation_checkpointing)
        for name, lengths in (("full", full_lengths(cfg)), ("ragged", ragged_lengths(cfg))):
            b, minibatch = training_pack(lengths, model.vocab_size, cfg, device)

            def ours(b: Batch = b, minibatch: Minibatch = minibatch) -> None:
                train_grpo.backward(model, [b], minibatch, cfg)
                model.zero_grad()

            functions = {"ours": ours, "bare": lambda b=b: bare_backward(bare, b, cfg)}
            seconds, tokens = alternating(functions, device), dist.get_world_size() * sum(lengths)
            rows.append(
                {
                    "pack": f"{name}: {len(lengths)} of at most {max(lengths)} tokens",
                    "tokens/s": rates(tokens, seconds["ours"]),
                    "bare tokens/s": rates(tokens, seconds["bare"]),
                    "ratio": ratios(seconds["ours"], seconds["bare"]),
                    "GFLOP/s": rates(3 * dist.get_world_size() * model.flops(lengths) / 1e9, seconds["ours"]),
                    "error": logprob_error(model, reference, b, cfg),
                }
            )
    note = "error: the largest difference of a log-probability from the float32 model's, in nats"
    return Section(f"train: forward and backward of a pack, {cfg.dtype}, compile={cfg.compile}", rows, (note,))


# ---------------------------------------------------------------------------------------------------------- generation


class BareDecoder:
    """A plain decode loop with the sampler's kernels: the whole batch at once, no end before the last token."""

    def __init__(self, path: Path, dtype: torch.dtype, device: torch.device) -> None:
        self.config, self.device = ModelConfig.from_folder(path), device
        self.weights = {name: tensor.to(device, dtype) for name, tensor in stream_weights(path)}
        tied = self.config.tie_word_embeddings
        self.backend = attention_backend(device)
        self.head = self.weights["model.embed_tokens.weight" if tied else "lm_head.weight"]

    def linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[name + ".weight"], self.weights.get(name + ".bias"))

    def norm(self, x: Tensor, name: str) -> Tensor:
        return rms_norm(x, self.weights[name + ".weight"], self.config.rms_norm_eps)

    def attend(self, layer: int, x: Tensor, cache: Tensor, start: int, angles: tuple[Tensor, Tensor]) -> Tensor:
        """x (B, n, D) of positions from `start` on -> (B, n, H * E). Writes keys and values to cache (layers, 2, B, K,
        L, E)."""
        name, c, end = f"model.layers.{layer}.self_attn.", self.config, start + x.shape[1]
        q, k, v = (self.linear(x, f"{name}{kind}_proj").unflatten(-1, (-1, c.head_dim)) for kind in "qkv")
        if c.qk_norm:
            q, k = self.norm(q, name + "q_norm"), self.norm(k, name + "k_norm")
        q, k = apply_rotary(q, *angles), apply_rotary(k, *angles)
        cache[layer, 0, :, :, start:end], cache[layer, 1, :, :, start:end] = k.transpose(1, 2), v.transpose(1, 2)
        if start == 0:
            cu_seqlens = torch.arange(0, q.shape[0] * end + 1, end, dtype=torch.int32, device=self.device)
            layout = attention_layout(cu_seqlens, self.backend, end)
            packed = attention(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), layout, self.backend)
            return packed.view(*x.shape[:2], -1)
        keys, values = cache[layer]  # (B, K, L, E)
        q = q.view(len(q), c.num_key_value_heads, -1, c.head_dim)  # heads that share keys read them once
        if q.is_cuda:
            return F.scaled_dot_product_attention(q, keys[:, :, :end], values[:, :, :end]).reshape(len(q), 1, -1)
        bias = torch.zeros(keys.shape[2])
        bias[end:] = -torch.inf
        return attend_cache(q, keys, values, bias).view(len(q), 1, -1)

    def logits(self, ids: Tensor, cache: Tensor, start: int) -> Tensor:
        """Logits (B, V) behind the last of new tokens (B, n), whose first has position `start`."""
        c = self.config
        positions = torch.arange(start, start + ids.shape[1], device=self.device)
        angles = rotary_angles(positions, c.head_dim, c.rope_theta)
        x = F.embedding(ids, self.weights["model.embed_tokens.weight"])
        for i in range(c.num_hidden_layers):
            name = f"model.layers.{i}."
            out = self.attend(i, self.norm(x, name + "input_layernorm"), cache, start, angles)
            x = x + self.linear(out, name + "self_attn.o_proj")
            y = self.norm(x, name + "post_attention_layernorm")
            gate = F.silu(self.linear(y, name + "mlp.gate_proj"))
            x = x + self.linear(gate * self.linear(y, name + "mlp.up_proj"), name + "mlp.down_proj")
        return F.linear(self.norm(x[:, -1], "model.norm"), self.head)

    @torch.inference_mode()
    @sdpa_kernel(KERNELS)
    def generate(self, prompts: list[list[int]], group: int, max_tokens: int, temperature: float) -> Tensor:
        """`group` responses (B, max_tokens) to each prompt; all prompts have the same length."""
        ids, c = torch.tensor(prompts, device=self.device), self.config
        shape = [c.num_hidden_layers, 2, len(prompts), c.num_key_value_heads, ids.shape[1], c.head_dim]
        cache = torch.zeros(shape, dtype=torch.float32 if self.device.type == "cpu" else self.head.dtype)
        cache = cache.to(self.device)
        logits = self.logits(ids, cache, 0).repeat_interleave(group, dim=0)
        cache = cache.repeat_interleave(group, dim=2)
        drawn = []
        for position in range(ids.shape[1], ids.shape[1] + max_tokens):
            if position == cache.shape[-2]:
                cache = F.pad(cache, (0, 0, 0, 32))
            drawn.append(torch.multinomial((logits.float() / temperature).softmax(-1), 1))  # (B, 1)
            if len(drawn) < max_tokens:
                logits = self.logits(drawn[-1], cache, position)
        return torch.cat(drawn, dim=1).cpu()


def without_stop(sampler: TorchSampler) -> TorchSampler:
    """The sampler itself, which from now on ends no response before its last token."""
    sampler.eos_ids = torch.tensor([-1], device=sampler.device)  # the id of no token
    return sampler


def generation_error(rollouts: list[Rollout], reference: Qwen2, cfg: Config) -> float:
    """The largest difference of the sampler's log-probabilities from the float32 model's, over a few rollouts."""
    b = packing.pack(rollouts[:CHECKED], False, next(reference.parameters()).device)
    with torch.no_grad():
        exact = packing.batch_logprobs(reference, b, cfg)[0]
    return float(((exact - b.rollout_logprobs) * b.response_mask).abs().max())


def generate(cfg: Config) -> Section:
    """The torch sampler, all slots taken, beside `BareDecoder`. Each rank has the same work. Raises UserError."""
    if cfg.sampler != "torch":
        raise UserError("sampler: the section generate compares the torch sampler with a bare loop: --sampler=torch")
    path, dtype = resolve_model(cfg.model), DTYPES[cfg.dtype]
    group = min(cfg.group_size[0], cfg.max_num_seqs)
    count = min(cfg.prompts_per_step, cfg.max_num_seqs // group)
    max_tokens, world_size = min(GENERATED, cfg.max_response_len[0]), int(os.environ.get("WORLD_SIZE", "1"))
    with process_group(cfg, "generate") as device:
        sampler = without_stop(TorchSampler(path, dtype, device, count * group))
        bare = BareDecoder(path, dtype, device)
        prompts = random_ids(sampler.vocab_size, count, min(PROMPT, cfg.max_prompt_len))
        seeds = [[sample_seed(i, j) for j in range(group)] for i in range(count)]

        def ours() -> list[list[Rollout]]:
            return sampler.generate(prompts, seeds, max_tokens, cfg.temperature, 1.0)

        rollouts = [r for responses in ours() for r in responses]
        assert all(len(r.response_ids) == max_tokens for r in rollouts), "the sampler has stopped a response"
        functions = {"ours": ours, "bare": lambda: bare.generate(prompts, group, max_tokens, cfg.temperature)}
        seconds, tokens = alternating(functions, device), world_size * count * group * max_tokens
        reference = Qwen2.from_pretrained(path, torch.float32, device)
        reference.vocab_size, reference.backend = sampler.vocab_size, "sdpa"
        error = generation_error(rollouts, reference, cfg)
    row = {
        "batch": f"{count} prompts x {group} samples of {max_tokens} tokens",
        "tokens/s": rates(tokens, seconds["ours"]),
        "bare tokens/s": rates(tokens, seconds["bare"]),
        "ratio": ratios(seconds["ours"], seconds["bare"]),
        "error": error,
    }
    note = "error: the largest difference of a log-probability from the float32 model's, in nats"
    return Section(f"generate: {sampler.name}, {cfg.dtype}, prompts of {len(prompts[0])} tokens", [row], (note,))
