"""Prompts in, sampled responses out: the two sampling engines, one interface.

`TorchSampler` is embedded: its own copy of the weights, a KV cache and a fixed number of slots; whenever a sequence
ends, the next one takes its slot (continuous batching). `VLLMSampler` is vLLM in this process, one engine a rank. The
random numbers of a sequence depend on its seed and the position only. Reads model folders; writes nothing.

Dimensions: N live sequences, L cache positions, V vocabulary; H, K, E as in model.py.
"""

import atexit
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from configs import Config, UserError
from engines.vllm_engine import check_engine, cpu_options, globals_kept, model_shapes, new_engine, starting
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


@dataclass
class Rollout:
    """One sampled response. Plain Python: no tensors."""

    prompt_id: int  # index of the prompt: among the run's prompts; as a sampler returns it, in generate's argument
    sample_id: int  # 0 .. group_size - 1
    prompt_ids: list[int]
    response_ids: list[int]  # with the stop token, where there is one
    logprobs: list[float]  # the sampler's, of each response token, at the sampling temperature
    finish_reason: str  # "stop" | "length"
    reward: float = 0.0
    advantage: float = 0.0
    thought: bool = False  # are both <think> and </think> there, with what the chat template opened?
    answer: str | None = None  # in the response, right or wrong; None where it has none that could be graded


def sample_seed(*parts: int | str) -> int:
    """One 63-bit seed: a hash of (run seed, stage, step, attempt, prompt, sample), or of whatever names a sample."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little") >> 1


def response_text(prompt: Prompt, rollout: Rollout, tokenizer: ChatTokenizer) -> str:
    """What the chat template opened (`<think>`), and the response. (`reward.graded_text`: what the grader reads of
    it.)"""
    return prompt.opened + tokenizer.decode(rollout.response_ids)


# ------------------------------------------------------------------------------------------------------------ sampling


def uniforms(seeds: Tensor, positions: Tensor) -> Tensor:
    """One float64 in [0, 1) for each (seed, position), both (N,) int64.

    Counter-based: SplitMix64's mixing function (Steele, Lea, Flood 2014, figure 16) over seed and counter, top 53 bits.
    """

    def mix(z: Tensor) -> Tensor:  # int64 products wrap; >> is arithmetic, so the sign bits are masked off
        z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * (0xBF58476D1CE4E5B9 - (1 << 64))
        z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * (0x94D049BB133111EB - (1 << 64))
        return z ^ ((z >> 31) & ((1 << 33) - 1))

    bits = mix(mix(seeds) + (positions + 1) * (0x9E3779B97F4A7C15 - (1 << 64)))
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


def check_lengths(prompts: list[list[int]], max_tokens: int, name: str, limit: int) -> None:
    """Raises UserError if a prompt is empty, or with `max_tokens` exceeds the `limit`, a setting called `name`."""
    longest = max(len(p) for p in prompts)
    if min(len(p) for p in prompts) == 0 or max_tokens < 1:
        raise UserError("generate: a prompt without tokens, or max_tokens under 1")
    if longest + max_tokens > limit:
        raise UserError(f"generate: {longest} prompt + {max_tokens} response tokens exceed {name}={limit}")


def in_groups(prompts: list[list[int]], seeds: list[list[int]], samples: list[tuple]) -> list[list[Rollout]]:
    """The rollouts of each prompt, from (response_ids, logprobs, finish_reason) of all samples in order."""
    groups, first = [], 0
    for prompt_id, prompt in enumerate(prompts):
        own = samples[first : first + len(seeds[prompt_id])]
        groups.append([Rollout(prompt_id, sample_id, prompt, *sample) for sample_id, sample in enumerate(own)])
        first += len(own)
    return groups


class TorchSampler:
    """The embedded engine: plain PyTorch, continuous batching over `max_num_seqs` sequences, one device.

    The prompts' keys and values are computed once for the whole group and copied into a slot when a sample starts
    there. Live sequences always fill rows 0..N-1 of the cache, so no work is done for finished ones.
    """

    def __init__(
        self,
        path: str | Path,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        max_num_seqs: int = 256,
        stop_tokens: tuple[str, ...] = (),
    ) -> None:
        self.config, self.dtype, self.max_num_seqs = ModelConfig.from_folder(path), dtype, max_num_seqs
        self.device = torch.device(device)
        self.backend = attention_backend(self.device)
        tokenizer = ChatTokenizer(path, stop_tokens)
        self.eos_ids = torch.tensor(tokenizer.eos_ids, device=self.device)
        self.vocab_size = min(tokenizer.size, self.config.vocab_size)
        self.name = f"torch, attention {self.backend}"
        self.cached_tokens = 0  # prompt tokens that the last `generate` did not compute again for each sample
        self.weights: dict[str, Tensor] = {}
        self.load_weights(stream_weights(path))

    def load_weights(self, named_tensors: Iterable[tuple[str, Tensor]]) -> int:
        """Take new weights under their Hugging Face names; q, k, v and gate, up are joined into one product each.
        Returns their bytes."""
        new = {name: tensor.to(self.device, self.dtype, copy=True) for name, tensor in named_tensors}
        size = sum(t.nbytes for t in new.values())
        kinds = ("weight", "bias") if self.config.qkv_bias else ("weight",)
        for i in range(self.config.num_hidden_layers):
            p = f"model.layers.{i}."
            for kind in kinds:
                new[f"{p}self_attn.qkv.{kind}"] = torch.cat([new.pop(f"{p}self_attn.{x}_proj.{kind}") for x in "qkv"])
            new[f"{p}mlp.gate_up"] = torch.cat([new.pop(f"{p}mlp.{x}_proj.weight") for x in ("gate", "up")])
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
            return F.rms_norm(x, x.shape[-1:], w[name + ".weight"], c.rms_norm_eps)

        x = F.embedding(ids, w["model.embed_tokens.weight"])
        for i in range(c.num_hidden_layers):
            p = f"model.layers.{i}."
            y = norm(x, p + "input_layernorm")
            qkv = F.linear(y, w[p + "self_attn.qkv.weight"], w[p + "self_attn.qkv.bias"] if c.qkv_bias else None)
            qk, v = qkv.unflatten(-1, (-1, c.head_dim)).split((heads + kv_heads, kv_heads), dim=1)
            if c.qk_norm:
                q, k = norm(qk[:, :heads], p + "self_attn.q_norm"), norm(qk[:, heads:], p + "self_attn.k_norm")
                qk = torch.cat([q, k], dim=1)
            q, k = apply_rotary(qk, cos, sin).split((heads, kv_heads), dim=1)
            out = attend(i, q, k, v)  # (N, H, E)
            x = x + F.linear(out.flatten(1), w[p + "self_attn.o_proj.weight"])
            y = norm(x, p + "post_attention_layernorm")
            gate, up = F.linear(y, w[p + "mlp.gate_up"]).chunk(2, dim=-1)
            x = x + F.linear(F.silu(gate) * up, w[p + "mlp.down_proj.weight"])
        return norm(x, "model.norm")

    def _prefill(self, prompts: list[list[int]], budget: int = 16384) -> tuple[Tensor, Tensor]:
        """Keys and values of all prompts, packed (layers, 2, tokens, K, E), and each prompt's last hidden state."""
        stores, hidden, first = [], [], 0
        while first < len(prompts):
            last, total = first, 0
            while last < len(prompts) and (last == first or total + len(prompts[last]) <= budget):
                total, last = total + len(prompts[last]), last + 1
            part = prompts[first:last]
            lengths = torch.tensor([len(p) for p in part], device=self.device)
            cu_seqlens = F.pad(lengths.cumsum(0), (1, 0)).int()
            ids = torch.tensor([t for p in part for t in p], device=self.device)
            position_ids = torch.cat([torch.arange(len(p), device=self.device) for p in part])
            layout, kept = attention_layout(cu_seqlens, self.backend), []

            def attend(layer, q, k, v, layout=layout, kept=kept):
                kept.append(torch.stack([k, v]))
                return attention(q, k, v, layout, self.backend)

            hidden.append(self._forward(ids, position_ids, attend)[cu_seqlens[1:].long() - 1])
            stores.append(torch.stack(kept))
            first = last
        return torch.cat(stores, dim=2), torch.cat(hidden)

    @torch.inference_mode()
    def generate(
        self, prompts: list[list[int]], seeds: list[list[int]], max_tokens: int, temperature: float, top_p: float
    ) -> list[list[Rollout]]:
        """len(seeds[p]) samples of each prompt, each of at most `max_tokens` tokens; seeds are 63-bit, one a sample.

        Temperature 0 is greedy. Raises UserError for an empty prompt or one that outgrows the model's positions.
        """
        self.cached_tokens = sum(len(p) * (len(s) - 1) for p, s in zip(prompts, seeds, strict=True) if s)
        if not prompts:
            return []
        check_lengths(prompts, max_tokens, "max_position_embeddings", self.config.max_position_embeddings)
        ids, logprobs, counts = self._decode(prompts, seeds, max_tokens, temperature, top_p)
        if not logprobs.isfinite().all():
            raise SystemExit(
                "the sampler's log-probabilities are not finite: weights that are nan or inf, or a too high lr"
            )
        eos_ids, samples = set(self.eos_ids.tolist()), []
        for row_ids, row_logprobs, n in zip(ids, logprobs, counts.tolist(), strict=True):
            response = row_ids[:n].tolist()
            samples.append((response, row_logprobs[:n].tolist(), "stop" if response[-1] in eos_ids else "length"))
        return in_groups(prompts, seeds, samples)

    def _decode(
        self, prompts: list[list[int]], seeds: list[list[int]], max_tokens: int, temperature: float, top_p: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The engine's loop: ids and logprobs (samples, max_tokens) and counts (samples,), on the CPU."""
        c, dev = self.config, self.device
        store, prompt_hidden = self._prefill(prompts)
        prompt_len = torch.tensor([len(p) for p in prompts], device=dev)
        prompt_start = F.pad(prompt_len.cumsum(0), (1, 0))[:-1]
        prompt_of = torch.tensor([p for p, s in enumerate(seeds) for _ in s], device=dev)  # of each sample, in order
        seed_of = torch.tensor([s for group in seeds for s in group], dtype=torch.int64, device=dev)
        total = prompt_of.numel()
        slots = min(self.max_num_seqs, total)
        head = self.weights["lm_head.weight"]
        length = int(prompt_len.max()) + max_tokens
        shape = (c.num_hidden_layers, 2, slots, length, c.num_key_value_heads, c.head_dim)  # 2: keys, values
        cache = torch.zeros(shape, dtype=self.dtype, device=dev)
        out_ids = torch.zeros(total, max_tokens, dtype=torch.int64, device=dev)
        out_logprobs = torch.zeros(total, max_tokens, device=dev)
        counts = torch.zeros(total, dtype=torch.int64, device=dev)
        sample = torch.empty(0, dtype=torch.int64, device=dev)  # (N,) which sample lives in row n
        hidden = prompt_hidden[:0]  # (N, D) what its next token is sampled from
        admitted = 0
        while admitted < total or sample.numel():
            free = min(slots - sample.numel(), total - admitted)
            if free:  # refill: copy the prompts' keys and values into the rows behind the live ones
                new = torch.arange(admitted, admitted + free, device=dev)
                p, rows = prompt_of[new], torch.arange(sample.numel(), sample.numel() + free, device=dev)
                span = torch.arange(int(prompt_len[p].max()), device=dev)
                source = prompt_start[p, None] + span.minimum(prompt_len[p, None] - 1)  # (free, L)
                cache[:, :, rows, : span.numel()] = store[:, :, source.flatten()].unflatten(2, source.shape)
                sample, hidden = torch.cat([sample, new]), torch.cat([hidden, prompt_hidden[p]])
                admitted += free
            count = counts[sample]
            logits, uniform = F.linear(hidden, head).float(), uniforms(seed_of[sample], count)
            tokens, logprob = sample_tokens(logits, uniform, temperature, top_p, self.vocab_size)
            out_ids[sample, count] = tokens
            out_logprobs[sample, count] = logprob
            count = count + 1
            counts[sample] = count
            done = torch.isin(tokens, self.eos_ids) | (count == max_tokens)
            sample, tokens = self._retire(cache, done, sample, tokens)
            if sample.numel():
                hidden = self._decode_step(cache, tokens, prompt_len[prompt_of[sample]] + counts[sample] - 1)
            else:
                hidden = prompt_hidden[:0]
        return out_ids.cpu(), out_logprobs.cpu(), counts.cpu()

    @staticmethod
    def _retire(cache: Tensor, done: Tensor, sample: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Drop finished rows: the last live rows move into the holes, caches included, so that rows stay dense."""
        live = int((~done).sum())
        if live == done.numel():
            return sample, tokens
        holes, movers = done[:live].nonzero().squeeze(-1), (~done[live:]).nonzero().squeeze(-1) + live
        cache[:, :, holes] = cache[:, :, movers]
        sample, tokens = sample.clone(), tokens.clone()
        sample[holes], tokens[holes] = sample[movers], tokens[movers]
        return sample[:live], tokens[:live]

    def _decode_step(self, cache: Tensor, tokens: Tensor, position_ids: Tensor) -> Tensor:
        """Feed one token (N,) a live row at its position; returns hidden (N, D) and extends the cache in place."""
        n, c = tokens.numel(), self.config
        rows, length = torch.arange(n, device=self.device), int(position_ids.max()) + 1
        visible = torch.arange(length, device=self.device) <= position_ids[:, None]  # (N, L)
        bias = torch.zeros(n, 1, 1, length, dtype=self.dtype, device=self.device)
        bias = bias.masked_fill(~visible[:, None, None], float("-inf"))

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            cache[layer, 0, rows, position_ids], cache[layer, 1, rows, position_ids] = k, v
            keys, values = (cache[layer, i, :n, :length].transpose(1, 2) for i in (0, 1))  # (N, K, L, E)
            q = q.unflatten(1, (c.num_key_value_heads, -1))  # (N, K, H/K, E): heads that share keys read them once
            out = F.scaled_dot_product_attention(q, keys, values, attn_mask=bias)
            return out.flatten(1, 2)

        return self._forward(tokens, position_ids, attend)


# ---------------------------------------------------------------------------------------------------------------- vLLM


class VLLMSampler:
    """vLLM beside the trainer: one engine a rank, tensor parallel 1, in this process, asleep while the trainer works.

    The process group must exist. On CUDA the order is `wake`, `load_weights`, `generate`, `sleep`. Written for vLLM
    0.32; its CPU build neither sleeps nor captures graphs.
    """

    def __init__(
        self,
        path: str | Path,
        dtype: torch.dtype,
        device: torch.device | str,
        max_num_seqs: int,
        max_model_len: int,
        gpu_memory_utilization: float = 0.6,
        sleep_level: int | None = 1,
        stop_tokens: tuple[str, ...] = (),
    ) -> None:
        """sleep_level: None where no trainer wants the memory: `sleep` and `wake` then do nothing. Raises UserError
        where vLLM is not installed or cannot run this model. (The engine is asked for one token, since some refusals
        come only then.)"""
        cuda = torch.device(device).type == "cuda"
        self.sleep_level, self.max_model_len = sleep_level if cuda else None, max_model_len
        config, tokenizer = ModelConfig.from_folder(path), ChatTokenizer(path, stop_tokens)
        self.shapes = model_shapes(config)
        self.tied, self.eos_ids = config.tie_word_embeddings, tokenizer.eos_ids
        self.cached_tokens = 0  # prompt tokens the last `generate` took from the prefix cache: the engine's own counter
        # rows that pad the checkpoint's vocabulary are no tokens: e^-100 leaves them no probability
        self.logit_bias = dict.fromkeys(range(tokenizer.size, config.vocab_size), -100.0) or None
        if cuda:
            can_sleep = sleep_level is not None
            options = {"gpu_memory_utilization": gpu_memory_utilization, "enable_sleep_mode": can_sleep}
        else:
            options = cpu_options(config, dtype, max_num_seqs, max_model_len, gpu_memory_utilization)
        options |= {"dtype": str(dtype).removeprefix("torch."), "max_model_len": max_model_len}
        with starting(path):
            self.llm = new_engine(path, {**options, "max_num_seqs": max_num_seqs})
            self.cache_awake = True
            self.generate([[0]], [[0]], 1, 1.0, 1.0)
        atexit.register(self.close)  # should nobody call it: handlers of vLLM's, which come later, would not wake it
        self.name = check_engine(self.llm, path, self.shapes, cuda)

    def generate(
        self, prompts: list[list[int]], seeds: list[list[int]], max_tokens: int, temperature: float, top_p: float
    ) -> list[list[Rollout]]:
        """As TorchSampler.generate. Each sample is a request with its own seed, all submitted at once (vLLM would seed
        child i of an n > 1 request with seed + i); samples of a prompt share its cached blocks."""
        from vllm import SamplingParams

        self.cached_tokens = 0
        if not prompts:
            return []
        check_lengths(prompts, max_tokens, "max_model_len", self.max_model_len)
        self._wake_cache()
        shared = {"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens, "logit_bias": self.logit_bias}
        shared |= {"logprobs": 0, "flat_logprobs": True, "detokenize": False, "stop_token_ids": self.eos_ids}
        params = [SamplingParams(seed=seed, **shared) for group in seeds for seed in group]
        requests = [{"prompt_token_ids": p} for p, group in zip(prompts, seeds, strict=True) for _ in group]
        with globals_kept():
            outputs = self.llm.generate(requests, params, use_tqdm=False)
        self.cached_tokens = sum(output.num_cached_tokens for output in outputs)
        completions = [output.outputs[0] for output in outputs]
        assert all(len(c.token_ids) == len(c.logprobs.logprobs) > 0 for c in completions)
        samples = [(list(c.token_ids), list(c.logprobs.logprobs), c.finish_reason) for c in completions]
        return in_groups(prompts, seeds, samples)

    def load_weights(self, named_tensors: Iterable[tuple[str, Tensor]]) -> int:
        """Stream new weights into the engine's own storage, one tensor at a time; returns their bytes.

        Every name and shape is checked against the engine's before vLLM sees the tensor (it silently keeps a missing
        weight and accepts an oversized one). A tied head is given too: the engine packs a copy of its own. The
        prefix cache is emptied: its keys and values are the old weights'. Raises ValueError.
        """
        received: dict[str, int] = {}  # name: bytes

        def checked() -> Iterator[tuple[str, Tensor]]:
            for name, tensor in named_tensors:
                shape = tuple(tensor.shape)
                if name in received or self.shapes.get(name) != shape:
                    expected = self.shapes.get(name)
                    raise ValueError(f"load_weights: {name} {shape} came twice, or the engine has it as {expected}")
                received[name] = tensor.nbytes
                yield name, tensor
                if self.tied and name == "model.embed_tokens.weight":
                    yield "lm_head.weight", tensor

        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": checked()})
        missing = set(self.shapes) - set(received)
        if missing:
            raise ValueError(f"load_weights: {len(missing)} tensors are missing, the first is {min(missing)}")
        self._wake_cache()
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM did not reset its prefix cache: it would answer from the old weights")
        return sum(received.values())

    def sleep(self) -> None:
        """Give the GPU's memory away: KV cache dropped, weights waiting in RAM (level 1) or dropped too (level 2)."""
        if self.sleep_level is not None and self.cache_awake:
            self.llm.sleep(level=self.sleep_level)
            self.cache_awake = False

    def wake(self) -> None:
        """Take the weights' memory back; the KV cache's comes back with `load_weights` or `generate`."""
        if not self.cache_awake:
            torch.cuda.empty_cache()  # what torch keeps for later, vLLM cannot have
            self.llm.wake_up(tags=["weights"])

    def _wake_cache(self) -> None:
        if not self.cache_awake:
            self.llm.wake_up(tags=["kv_cache"])
            self.cache_awake = True

    def close(self) -> None:
        """End the engine, and with it the process group: the last thing to do.

        One that sleeps is woken before: vLLM's allocator (CuMemAllocator, 0.32) releases all that it frees on CUDA,
        also what it has released to sleep (github.com/vllm-project/vllm/issues/36651).
        """
        atexit.unregister(self.close)
        if not self.cache_awake:
            torch.cuda.empty_cache()
            self.llm.wake_up()  # all that still sleeps
            self.cache_awake = True
        self.llm.llm_engine.engine_core.shutdown()


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
