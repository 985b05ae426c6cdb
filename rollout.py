"""Prompts in, sampled responses out: the two sampling engines, one interface.

`TorchSampler` is embedded: its own copy of the weights, a KV cache and a fixed number of slots; whenever a sequence
ends, the next one takes its slot (continuous batching). `VLLMSampler` (engines/vllm_sampler.py) is vLLM in this
process, one engine a rank. Both return `Rollout`s (engines/samples.py). The random numbers of a sequence depend on its
seed and the position only. Reads model folders; writes nothing.

Dimensions: N live sequences, L cache positions, V vocabulary; H, K, E as in model.py; G = H/K.
"""

import math
from collections.abc import Iterable, Iterator
from itertools import accumulate, islice
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from configs import Config
from engines.samples import Quota, Rollout, check_lengths, in_groups, joined, sample_seed, texts_to_go_on_with
from engines.vllm_sampler import VLLMSampler
from kernels.blocks import padded
from kernels.norm import rms_norm
from model import (
    DTYPES,
    ModelConfig,
    apply_rotary,
    attention,
    attention_backend,
    attention_layout,
    rotary_angles,
    stream_weights,
)
from problems.prompts import ChatTokenizer, Prompt

__all__ = ["Rollout", "Sampler", "TorchSampler", "VLLMSampler", "make_sampler", "response_text", "sample_seed"]
# cuDNN, torch's first choice on sm_90 for attention with a mask, plans anew for every shape. A CPU's choice is FLASH.
NOT_CUDNN = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def response_text(prompt: Prompt, rollout: Rollout, tokenizer: ChatTokenizer) -> str:
    """What the chat template opened (`<think>`), and the response. (`reward.graded_text`: what the grader reads of
    it.)"""
    return prompt.opened + tokenizer.decode(rollout.response_ids)


# ------------------------------------------------------------------------------------------------------------ sampling


def mix(z: Tensor) -> Tensor:
    """SplitMix64's mixing function (Steele, Lea, Flood 2014, figure 16) of int64 numbers: products wrap; >> is
    arithmetic, so the sign bits are masked off."""
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * (0xBF58476D1CE4E5B9 - (1 << 64))
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * (0x94D049BB133111EB - (1 << 64))
    return z ^ ((z >> 31) & ((1 << 33) - 1))


def uniforms(seeds: Tensor, positions: Tensor) -> Tensor:
    """One float64 in [0, 1) for each (seed, position), both (N,) int64.

    Counter-based: SplitMix64 over seed and counter, top 53 bits.
    """
    return uniforms_of_mixed(mix(seeds), positions)


def uniforms_of_mixed(seeds: Tensor, positions: Tensor) -> Tensor:
    """The same from what `mix` makes of the seeds, which does not change from token to token."""
    bits = mix(seeds + (positions + 1) * (0x9E3779B97F4A7C15 - (1 << 64)))
    return ((bits >> 11) & ((1 << 53) - 1)).double() * 2.0**-53


def sample_tokens(
    logits: Tensor, uniform: Tensor, temperature: float, top_p: float, vocab_size: int
) -> tuple[Tensor, Tensor]:
    """Inverse-CDF sampling. logits (N, V) float32, uniform (N,) float64 -> tokens (N,), logprobs (N,) float32.

    Ids at or beyond `vocab_size` (rows that pad a checkpoint's vocabulary) have no probability, here as in vLLM and the
    trainer. Log-probabilities are those of softmax(logits / temperature), of the kept tokens alone if top_p < 1, as
    vLLM's processed_logprobs. Temperature 0 is greedy, with log-probabilities at temperature 1. Sums run in float64: a
    float32 sum over 152K entries may end below the number drawn, and the index past V.
    """
    logits = logits[:, :vocab_size]
    if temperature == 0:
        tokens = logits.argmax(-1)
        return tokens, logits.log_softmax(-1).gather(-1, tokens[:, None]).squeeze(-1)
    logprobs = (logits / temperature).log_softmax(-1)
    probs = logprobs.double().exp()
    if top_p < 1:
        ordered, order = torch.sort(probs, dim=-1, descending=True, stable=True)
        beyond = ordered.cumsum(-1) - ordered >= top_p * probs.sum(-1, keepdim=True)  # likelier ones hold top_p already
        probs = probs.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), 0.0)
        logprobs = logprobs - probs.sum(-1, keepdim=True).log().float()
    cdf = probs.cumsum(-1)  # (N, vocab_size)
    total = cdf[:, -1:].contiguous()
    tokens = torch.searchsorted(cdf, uniform[:, None] * total, right=True)
    tokens = tokens.minimum(torch.searchsorted(cdf, total)).squeeze(-1)  # not past the last one with any probability
    tokens = tokens.clamp(max=logits.shape[1] - 1)  # nan logits lead past the end; `generate` reports them
    return tokens, logprobs.gather(-1, tokens[:, None]).squeeze(-1)


def attend_cache(q: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """Attention of one token a sequence to its cache, in two products of all sequences, which on a CPU beat the kernel
    made for many queries. q (N, K, G, E), keys and values (N, K, L, E), bias (N, 1, 1, L) -> (N, K, G, E)."""
    scores = torch.bmm(q.float().flatten(0, 1), keys.flatten(0, 1).mT).unflatten(0, q.shape[:2])  # (N, K, G, L)
    probs = torch.add(bias, scores, alpha=q.shape[-1] ** -0.5).softmax(-1)
    return torch.bmm(probs.flatten(0, 1), values.flatten(0, 1)).view_as(q).to(q.dtype)


class Decoding:
    """One `generate` call of TorchSampler: its samples, and which of them lives in which row of the KV cache.

    Live samples fill rows 0..N-1, so no work is done for finished ones; one that waits takes the row of a finished one.
    The tensors stay where they are in memory, since CUDA graphs keep addresses. A last sample, `nobody`, has free rows.
    """

    def __init__(
        self,
        store: Tensor,
        prompts: list[list[int]],
        seeds: list[list[int]],
        slots: int,
        max_tokens: int,
        begun: list[int],
        quota: Quota,
    ) -> None:
        """store: keys and values of all prompts, packed (layers, 2, tokens, K, E). begun: how many last tokens of each
        prompt are response already; they count in `max_tokens`."""
        prompt_of = [p for p, group in enumerate(seeds) for _ in group]
        starts = list(accumulate((len(p) for p in prompts), initial=0))
        self.spans = [(starts[p], len(prompts[p])) for p in prompt_of]  # of a sample's prompt in the store
        self.store, self.max_tokens, self.nobody, device = store, max_tokens, len(prompt_of), store.device
        seeds_and_nobody = torch.tensor([seed for group in seeds for seed in group] + [0], device=device)
        self.mixed_seeds = mix(seeds_and_nobody)  # (samples + 1,)
        self.begun, self.quota = [begun[p] for p in prompt_of], quota
        self.counts = torch.tensor(self.begun + [0], device=device)  # tokens drawn
        self.prompt_end = torch.tensor([n - 1 for _, n in self.spans] + [0], device=device) - self.counts
        self.done = torch.zeros_like(self.counts, dtype=torch.bool)
        self.ids = torch.zeros(self.nobody + 1, 1 + max_tokens, dtype=torch.int64, device=device)
        last, most = [prompts[p][-1 - begun[p] :] for p in prompt_of], max(begun)  # a prompt's last token, the response
        self.ids[:-1, : 1 + most] = torch.tensor([ids + [0] * (1 + most - len(ids)) for ids in last])
        self.logprobs = torch.zeros(self.nobody + 1, max_tokens, device=device)
        # positions that a row may come to have
        self.longest = max(len(p) - b for p, b in zip(prompts, begun, strict=True)) + max_tokens
        layers, _, _, kv_heads, head_dim = store.shape
        self.cache = store.new_zeros(layers, 2, slots, kv_heads, 0, head_dim)  # (layers, 2, slots, K, L, E)
        self.sample = torch.full((slots,), self.nobody, device=device)  # which one lives in a row
        self.live: list[int] = []  # the same on the host, of rows 0..N-1
        self.waiting = iter(range(self.nobody))
        self.steps = self.length = 0  # steps begun; cache positions that the longest row has with this one's
        self.birth: dict[int, int] = {}  # of a sample: its row has steps - birth positions
        self.graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}  # (rows, length): that step, captured

    def turn_over(self) -> bool:
        """Between two steps: finished samples leave, waiting ones enter. Returns whether anyone lives and is needed.
        The first line is the one host sync of a token, and enough: who is done is all that the host cannot count by
        itself."""
        over = self.done[self.sample[: len(self.live)]].tolist()
        self.steps += 1
        for s, end in zip(self.live, over, strict=True):
            if end:
                self.quota.finish(s)
        if self.quota.is_met:
            return False
        if any(over) or not self.live:
            self._reseat(over)
        if self.live:
            self.length = self.steps - min(self.birth[s] for s in self.live)
        return bool(self.live)

    def resize(self, rows: int, length: int) -> None:
        """A cache of this many positions, with what it held; of the first `rows` alone where nobody waits."""
        old, rows = self.cache, len(self.sample) if len(self.birth) < self.nobody else rows
        # zeros: what a row does not have yet is masked, but must be finite
        self.cache = old.new_zeros(*old.shape[:2], rows, old.shape[3], length, old.shape[5])
        self.cache[..., : old.shape[4], :] = old[:, :, :rows]

    def _reseat(self, over: list[bool]) -> None:
        """Waiting samples, with their prompts' keys and values, into free rows; last rows into holes that remain."""
        slots, device = len(self.sample), self.sample.device  # non_blocking: the host does not wait for its queue
        rows = self.live + [self.nobody] * (slots - len(over))
        free = [row for row, end in enumerate(over) if end] + list(range(len(over), slots))
        new = list(islice(self.waiting, len(free)))
        seats, free = free[: len(new)], free[len(new) :]
        for seat, s in zip(seats, new, strict=True):
            rows[seat], self.birth[s] = s, self.steps - self.spans[s][1]
        if new:
            spans = [self.spans[s] for s in new]
            row, start, length = torch.tensor([seats, *zip(*spans, strict=True)]).to(device, non_blocking=True)
            span = torch.arange(max(n for _, n in spans), device=device)
            source = start[:, None] + span.minimum(length[:, None] - 1)  # (new, L)
            prompts = self.store[:, :, source.flatten()].unflatten(2, source.shape)  # (layers, 2, new, L, K, E)
            self.cache[:, :, row, :, : len(span)] = prompts.transpose(3, 4)
        count = slots - len(free)  # live rows from here on
        holes, movers = [row for row in free if row < count], sorted({*range(count, slots)} - {*free})
        for hole, mover in zip(holes, movers, strict=True):
            rows[hole] = rows[mover]
        if holes:
            to, source = torch.tensor([holes, movers]).to(device, non_blocking=True)
            self.cache[:, :, to, :, : self.length] = self.cache[:, :, source, :, : self.length]
        self.live = rows[:count]
        self.sample.copy_(torch.tensor(self.live + [self.nobody] * len(free)), non_blocking=True)


class TorchSampler:
    """The embedded engine: plain PyTorch, continuous batching over `max_num_seqs` sequences, one device.

    On CUDA a step's rows and cache length are rounded up, so that few shapes come, and each is captured as a CUDA
    graph, since launching some 670 kernels takes longer than their work. This has never run on CUDA; tests on a CPU
    show that a step does not ask the host for anything, and that a recording of it can be replayed.
    """

    def __init__(
        self,
        path: str | Path,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        max_num_seqs: int = 256,
        stop_tokens: tuple[str, ...] = (),
        cuda_graphs: bool = True,  # on a CPU without meaning
    ) -> None:
        self.config, self.dtype, self.max_num_seqs = ModelConfig.from_folder(path), dtype, max_num_seqs
        self.device = torch.device(device)
        self.backend = attention_backend(self.device)
        cuda = self.device.type == "cuda"
        self.row_bucket, self.length_bucket = (32, 256) if cuda else (16, 32)
        # CUDA graphs want one cache for good; a CPU's products want it without gaps, so there it grows with the rows.
        self.static_cache = cuda
        # One stream for good: cuBLAS keeps a workspace for each that it ever worked on.
        self.capture_stream = torch.cuda.Stream(self.device) if cuda and cuda_graphs else None
        tokenizer = ChatTokenizer(path, stop_tokens)
        self.eos_ids = torch.tensor(tokenizer.eos_ids, device=self.device)
        self.vocab_size = min(tokenizer.size, self.config.vocab_size)
        self.name = f"torch, attention {self.backend}"
        self.cached_tokens = 0  # prompt tokens that the last `generate` did not compute again for each sample
        self.weights: dict[str, Tensor] = {}
        self.load_weights(stream_weights(path))

    def load_weights(self, named_tensors: Iterable[tuple[str, Tensor]]) -> int:
        """Take new weights under their Hugging Face names. Returns their bytes. Those of q, k, v and of gate, up are
        joined for one product each, and all of a layer are laid out (in, out), which is faster for few rows."""
        new = {name: tensor.to(self.device, self.dtype, copy=True) for name, tensor in named_tensors}
        size = sum(t.nbytes for t in new.values())
        kinds = ("weight", "bias") if self.config.qkv_bias else ("weight",)
        for i in range(self.config.num_hidden_layers):
            p = f"model.layers.{i}."
            for kind in kinds:
                new[f"{p}self_attn.qkv.{kind}"] = torch.cat([new.pop(f"{p}self_attn.{x}_proj.{kind}") for x in "qkv"])
            new[f"{p}mlp.gate_up.weight"] = torch.cat([new.pop(f"{p}mlp.{x}_proj.weight") for x in ("gate", "up")])
            for name in ("self_attn.qkv", "self_attn.o_proj", "mlp.gate_up", "mlp.down_proj"):
                new[f"{p}{name}.weight"] = new[f"{p}{name}.weight"].T.contiguous()
        if self.config.tie_word_embeddings:
            new["lm_head.weight"] = new["model.embed_tokens.weight"]
        shapes = {name: tensor.shape for name, tensor in (self.weights or new).items()}
        if {name: tensor.shape for name, tensor in new.items()} != shapes:
            raise ValueError("load_weights: names or shapes differ from the weights in use")
        self.weights = new
        return size

    def sleep(self) -> None:
        """No-op, as the next two: the cache lives only while `generate` runs."""

    wake = close = sleep

    def _forward(self, ids: Tensor, position_ids: Tensor, attend) -> Tensor:
        """Hidden states after the final norm (N, D) of tokens (N,); `attend(layer, q, k, v)` sees the cache.

        The same computation as model.Qwen2.forward, with joined products: change both.
        """
        c, w = self.config, self.weights
        heads, kv_heads = c.num_attention_heads, c.num_key_value_heads
        cos, sin = rotary_angles(position_ids, c.head_dim, c.rope_theta)

        def norm(x: Tensor, name: str) -> Tensor:
            return rms_norm(x, w[name + ".weight"], c.rms_norm_eps)

        x = F.embedding(ids, w["model.embed_tokens.weight"])
        for i in range(c.num_hidden_layers):
            p = f"model.layers.{i}."
            y = norm(x, p + "input_layernorm")
            qkv_weight = w[p + "self_attn.qkv.weight"]
            qkv = torch.addmm(w[p + "self_attn.qkv.bias"], y, qkv_weight) if c.qkv_bias else y @ qkv_weight
            qk, v = qkv.unflatten(-1, (-1, c.head_dim)).split((heads + kv_heads, kv_heads), dim=1)
            if c.qk_norm:
                q, k = norm(qk[:, :heads], p + "self_attn.q_norm"), norm(qk[:, heads:], p + "self_attn.k_norm")
                qk = torch.cat([q, k], dim=1)
            q, k = apply_rotary(qk, cos, sin).split((heads, kv_heads), dim=1)
            out = attend(i, q, k, v)  # (N, H, E)
            x = x + out.flatten(1) @ w[p + "self_attn.o_proj.weight"]
            y = norm(x, p + "post_attention_layernorm")
            gate, up = (y @ w[p + "mlp.gate_up.weight"]).chunk(2, dim=-1)
            x = x + (F.silu(gate) * up) @ w[p + "mlp.down_proj.weight"]
        return norm(x, "model.norm")

    def _prefill(self, prompts: list[list[int]], budget: int = 16384) -> Tensor:
        """Keys and values of all prompts, packed (layers, 2, tokens, K, E)."""
        stores, first = [], 0
        while first < len(prompts):
            last, total = first, 0
            while last < len(prompts) and (last == first or total + len(prompts[last]) <= budget):
                total, last = total + len(prompts[last]), last + 1
            part = prompts[first:last]
            lengths = torch.tensor([len(p) for p in part], device=self.device)
            cu_seqlens = F.pad(lengths.cumsum(0), (1, 0)).int()
            ids = torch.tensor([t for p in part for t in p], device=self.device)
            position_ids = torch.cat([torch.arange(len(p), device=self.device) for p in part])
            if self.device.type == "cpu":
                ids, position_ids, cu_seqlens = padded(ids, position_ids, cu_seqlens)
            layout, kept = attention_layout(cu_seqlens, self.backend, max(len(p) for p in part)), []

            def attend(layer, q, k, v, layout=layout, kept=kept):
                kept.append(torch.stack([k, v]))
                return attention(q, k, v, layout, self.backend)

            self._forward(ids, position_ids, attend)
            stores.append(torch.stack(kept)[:, :, :total])
            first = last
        return torch.cat(stores, dim=2)

    def generate(
        self, prompts: list[list[int]], seeds: list[list[int]], max_tokens: int, temperature: float, top_p: float
    ) -> list[list[Rollout]]:
        """len(seeds[p]) samples of each prompt, each of at most `max_tokens` tokens; seeds are 63-bit, one a sample.

        Temperature 0 is greedy. Raises UserError for an empty prompt or one that outgrows the model's positions.
        """
        groups = in_groups(prompts, seeds, [([], [], None)] * sum(len(group) for group in seeds))
        return self.generate_until(groups, seeds, len(groups), set(), max_tokens, temperature, top_p)

    @torch.inference_mode()
    @sdpa_kernel(NOT_CUDNN)
    def generate_until(
        self,
        groups: list[list[Rollout]],
        seeds: list[list[int]],
        num_groups: int,
        must_finish: set[int],
        max_tokens: int,
        temperature: float,
        top_p: float,
    ) -> list[list[Rollout]]:
        """The groups, their unfinished samples longer, as soon as `num_groups` groups are finished, those of the
        indices `must_finish` among them. Earlier groups go first. The rest is as in `generate`: a response is the same
        wherever it is cut, since random numbers depend on seed and position, and `max_tokens` is for all of it."""
        quota, (texts, begun, seeds) = Quota(groups, num_groups, must_finish), texts_to_go_on_with(groups, seeds)
        self.cached_tokens = sum(len(t) * (len(s) - 1) for t, s in zip(texts, seeds, strict=True))
        if not texts or quota.is_met:
            return groups
        prompts = [r.prompt_ids for group in groups for r in group]
        check_lengths(prompts, max_tokens, "max_position_embeddings", self.config.max_position_embeddings)
        slots = min(self.max_num_seqs, sum(len(s) for s in seeds))
        store = self._prefill(texts)
        # A CPU's attention computes in float32, and should not convert the cache for every token.
        store = store if self.static_cache else store.float()
        d = Decoding(store, texts, seeds, slots, max_tokens, begun, quota)
        d.resize(slots, d.longest if self.static_cache else max(len(t) for t in texts))
        while d.turn_over():
            # On a CPU few rows are rounded up less: each costs its attention.
            bucket = self.row_bucket if self.static_cache else min(self.row_bucket, 2 ** (len(d.live) - 1).bit_length())
            rows = min(math.ceil(len(d.live) / bucket) * bucket, slots)
            length = min(math.ceil(d.length / self.length_bucket) * self.length_bucket, d.longest)
            if length > d.cache.shape[-2]:
                d.resize(rows, length)
            elif not self.static_cache:
                length = d.cache.shape[-2]
            self._run_step(d, rows, length, temperature, top_p)
        if not d.logprobs.isfinite().all():
            raise SystemExit(
                "the sampler's log-probabilities are not finite: weights that are nan or inf, or a too high lr"
            )
        return joined(groups, self._samples(d))

    def _samples(self, d: Decoding) -> Iterator[tuple]:
        """(new tokens, their logprobs, finish_reason) of each of d's samples."""
        eos_ids, ids, logprobs, done = set(self.eos_ids.tolist()), d.ids.cpu(), d.logprobs.cpu(), d.done.tolist()
        for s, n in enumerate(d.counts[: d.nobody].tolist()):
            new = ids[s, 1 + d.begun[s] : n + 1].tolist()
            reason = None if not done[s] else "stop" if new[-1] in eos_ids else "length"
            yield new, logprobs[s, d.begun[s] : n].tolist(), reason

    def _run_step(self, d: Decoding, rows: int, length: int, temperature: float, top_p: float) -> None:
        """`_step`, on CUDA as a graph. The first step of a shape runs eagerly: a capture may not set libraries up;
        it is then captured, which computes nothing, for those to come. All graphs share one memory pool."""
        if self.capture_stream is None:
            return self._step(d, rows, length, temperature, top_p)
        if (rows, length) in d.graphs:
            return d.graphs[rows, length].replay()
        self.capture_stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(self.capture_stream):
                self._step(d, rows, length, temperature, top_p)
        finally:  # also where the step is given up: the memory that its kernels still write to is then free for others
            torch.cuda.current_stream().wait_stream(self.capture_stream)
        pool = next(iter(d.graphs.values())).pool() if d.graphs else None
        graph = torch.cuda.CUDAGraph()
        # thread_local: what NCCL's watchdog thread asks CUDA meanwhile must not end the capture
        with torch.cuda.graph(graph, pool, self.capture_stream, capture_error_mode="thread_local"):
            self._step(d, rows, length, temperature, top_p)
        d.graphs[rows, length] = graph

    def _step(self, d: Decoding, rows: int, length: int, temperature: float, top_p: float) -> None:
        """Feed the last token of each sample in the first `rows` rows, which then have at most `length` positions, and
        draw its next. Changes d's tensors in place; `rows` and `length` alone decide the shapes; nothing is asked of
        the host: so it can be captured."""
        c, sample, row = self.config, d.sample[:rows], torch.arange(rows, device=self.device)
        count = d.counts[sample]
        position_ids = d.prompt_end[sample] + count
        unseen = torch.arange(length, device=self.device) > position_ids[:, None, None, None]  # (N, 1, 1, L)
        bias = torch.zeros_like(unseen, dtype=d.cache.dtype).masked_fill(unseen, float("-inf"))

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            d.cache[layer][:, row, :, position_ids] = torch.stack([k, v], dim=1).to(d.cache.dtype)  # (N, 2, K, E)
            keys, values = d.cache[layer, :, :rows, :, :length]  # (N, K, L, E)
            q = q.unflatten(1, (c.num_key_value_heads, -1))  # (N, K, G, E): heads that share keys read them once
            if self.static_cache:
                return F.scaled_dot_product_attention(q, keys, values, attn_mask=bias).flatten(1, 2)
            return attend_cache(q, keys, values, bias).flatten(1, 2)  # (N, H, E)

        hidden = self._forward(d.ids[sample, count], position_ids, attend)
        logits = F.linear(hidden, self.weights["lm_head.weight"]).float()
        uniform = uniforms_of_mixed(d.mixed_seeds[sample], count)
        tokens, logprobs = sample_tokens(logits, uniform, temperature, top_p, self.vocab_size)
        d.ids[sample, count + 1], d.logprobs[sample, count] = tokens, logprobs
        d.done[sample] = (tokens[:, None] == self.eos_ids).any(-1) | (count + 1 == d.max_tokens)
        d.counts[sample] = count + 1  # nobody's too: rows are free only when no one waits, for max_tokens steps at most


# ---------------------------------------------------------------------------------------------------------------- vLLM


Sampler = TorchSampler | VLLMSampler


def make_sampler(cfg: Config, path: Path, device: torch.device, longest: int, beside_trainer: bool = True) -> Sampler:
    """The engine of `cfg.sampler`. longest: tokens of a prompt and its response. Beside a trainer it is asleep when it
    comes, and can be put to sleep again; else it is awake for good."""
    dtype = DTYPES[cfg.dtype]
    if cfg.sampler == "torch":
        return TorchSampler(path, dtype, device, cfg.max_num_seqs, cfg.stop_tokens)
    sleep_level = cfg.vllm_sleep_level if beside_trainer else None
    options = cfg.vllm_gpu_memory_utilization, sleep_level, cfg.stop_tokens
    engine = VLLMSampler(path, dtype, device, cfg.max_num_seqs, longest, *options)
    engine.sleep()
    return engine
