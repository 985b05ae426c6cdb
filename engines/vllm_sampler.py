"""`VLLMSampler`: vLLM in this process, one engine a rank, behind the interface of `rollout.TorchSampler`.

Written for vLLM 0.32. How an engine starts, and what it refuses, is in `vllm_engine`. Reads a model folder; writes
nothing.
"""

import atexit
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engines.samples import Quota, Rollout, check_lengths, in_groups, joined, sample_seed
from engines.vllm_engine import (
    check_engine,
    cpu_options,
    globals_kept,
    model_shapes,
    new_engine,
    run_until,
    starting,
)
from model import ModelConfig
from problems.prompts import ChatTokenizer


def as_sample(output: Any) -> tuple[list[int], list[float], str | None]:
    """(response_ids, logprobs, finish_reason) of vLLM's output; None for the reason of a request that was ended."""
    completion = output.outputs[0]
    ids, logprobs = list(completion.token_ids), list(completion.logprobs.logprobs)
    reason = None if completion.finish_reason == "abort" else completion.finish_reason
    assert len(ids) == len(logprobs) and (ids or reason is None)
    return ids, logprobs, reason


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
        self.cached_tokens = 0
        if not prompts:
            return []
        check_lengths(prompts, max_tokens, "max_model_len", self.max_model_len)
        self._wake_cache()
        params = [self._params(seed, max_tokens, temperature, top_p) for group in seeds for seed in group]
        requests = [{"prompt_token_ids": p} for p, group in zip(prompts, seeds, strict=True) for _ in group]
        with globals_kept():
            outputs = self.llm.generate(requests, params, use_tqdm=False)
        self.cached_tokens = sum(output.num_cached_tokens for output in outputs)
        return in_groups(prompts, seeds, list(map(as_sample, outputs)))

    def _params(self, seed: int, max_tokens: int, temperature: float, top_p: float) -> Any:
        """vLLM's SamplingParams of one sample."""
        from vllm import SamplingParams

        shared = {"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens, "logit_bias": self.logit_bias}
        shared |= {"logprobs": 0, "flat_logprobs": True, "detokenize": False, "stop_token_ids": self.eos_ids}
        return SamplingParams(seed=seed, **shared)

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
        """As TorchSampler.generate_until, but a response depends on where it was cut: vLLM's random numbers count from
        the beginning of a request, so each of a sample's segments has a seed of its own."""
        quota = Quota(groups, num_groups, must_finish)
        unfinished = []  # with their seeds
        for group, group_seeds in zip(groups, seeds, strict=True):
            unfinished += [(r, seed) for r, seed in zip(group, group_seeds, strict=True) if r.finish_reason is None]
        self.cached_tokens = 0
        if not unfinished or quota.is_met:
            return groups
        check_lengths([r.prompt_ids for r, _ in unfinished], max_tokens, "max_model_len", self.max_model_len)
        self._wake_cache()
        requests = []
        for r, seed in unfinished:
            seed = sample_seed(seed, len(r.segments)) if r.segments else seed
            left = max_tokens - len(r.response_ids)
            requests.append((r.prompt_ids + r.response_ids, self._params(seed, left, temperature, top_p)))

        def is_enough(sample: int) -> bool:
            quota.finish(sample)
            return quota.is_met

        with globals_kept():
            outputs = run_until(self.llm, requests, is_enough)
        self.cached_tokens = sum(output.num_cached_tokens or 0 for output in outputs)
        return joined(groups, map(as_sample, outputs))

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
            try:
                self.llm.wake_up()  # all that still sleeps
            except RuntimeError as e:  # the GPU is full, which has ended the run
                print(f"vLLM could not be woken, and is left as it is: {str(e).splitlines()[0]}", file=sys.stderr)
                return
            self.cache_awake = True
        self.llm.llm_engine.engine_core.shutdown()
