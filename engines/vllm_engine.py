"""vLLM's engine for `rollout.VLLMSampler`: how it is started in a trainer's process, what it refuses, whether it is the
one that we want. Written for vLLM 0.32. Reads a model folder; writes nothing.
"""

import importlib.util
import math
import os
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from configs import UserError
from model import ModelConfig, Qwen2

Shapes = dict[str, tuple[int, ...]]  # Hugging Face name -> shape of a tensor


@contextmanager
def globals_kept() -> Iterator[None]:
    """vLLM reseeds and consumes every random generator, disables torch.set_num_threads and edits the environment that
    torchrun and child processes read; all of it is put back."""
    names = ("LOCAL_WORLD_SIZE", "LD_PRELOAD", "RANK", "LOCAL_RANK")
    environment = {name: os.environ.get(name) for name in names}
    threads, set_num_threads = torch.get_num_threads(), torch.set_num_threads
    generators = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        torch.set_num_threads = set_num_threads
        torch.set_num_threads(threads)
        random.setstate(generators[0])
        np.random.set_state(generators[1])
        torch.set_rng_state(generators[2])
        if cuda is not None:
            torch.cuda.set_rng_state(cuda)
        for name, value in environment.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def starting(path: str | Path) -> Iterator[None]:
    """The surroundings in which an engine starts and answers for the first time. Raises UserError where vLLM is not
    installed, and for what it refuses within."""
    if importlib.util.find_spec("vllm") is None:
        raise UserError("sampler: vllm is not installed: pip install -r requirements-gpu.txt, or --sampler=torch")
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine lives in this process, with its process group
    os.environ["VLLM_NO_USAGE_STATS"] = "1"  # no telemetry
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    with globals_kept(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        os.environ.setdefault("RANK", "0")  # it reads these where torchrun did not set them
        os.environ.setdefault("LOCAL_RANK", "0")
        try:
            yield
        except (ValueError, RuntimeError) as e:
            raise UserError(f"sampler: vLLM cannot run {path} here: {reason(e)}") from e


def reason(error: Exception) -> str:
    """Why vLLM refuses, in one line. The first line of pydantic's text only counts the errors."""
    from pydantic import ValidationError  # which vLLM's configs are checked with

    if not isinstance(error, ValidationError):
        return str(error).strip().splitlines()[0]
    reasons = []
    for refusal in error.errors():
        field = ".".join(map(str, refusal["loc"]))  # none where the values of several fields do not go together
        text = " ".join(refusal["msg"].removeprefix("Value error, ").split())
        reasons.append(f"{field}: {text}" if field else text)
    return "; ".join(reasons)


def new_engine(path: str | Path, options: dict[str, Any]) -> Any:
    """A `vllm.LLM`, whose engine is one of tensor parallel 1 on this rank. Only within `starting`."""
    import vllm

    return vllm.LLM(
        str(path),
        tensor_parallel_size=1,
        distributed_executor_backend="external_launcher",
        seed=dist.get_rank(),
        logprobs_mode="processed_logprobs",
        generation_config="vllm",
        skip_tokenizer_init=True,
        use_tqdm_on_load=False,
        **options,
    )


def cpu_options(
    config: ModelConfig, dtype: torch.dtype, max_num_seqs: int, max_model_len: int, memory_share: float
) -> dict[str, Any]:
    """What vLLM's CPU build needs to be told: a cache for `max_num_seqs` whole sequences, if that share of the memory
    suffices, and no chunked prefill, which dies there on seeded requests ("CPU Generator does not use offset")."""
    bytes_per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * dtype.itemsize
    blocks = max_num_seqs * math.ceil(max_model_len / 128)  # of 128 tokens
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "kv_cache_memory_bytes": int(min(blocks * 128 * bytes_per_token, memory_share * memory)),
        "enforce_eager": True,
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(8192, max_model_len),
    }


# ------------------------------------------------------------------------------------------------- one that has started


def run_until(llm: Any, requests: list[tuple[list[int], Any]], is_enough: Callable[[int], bool]) -> list[Any]:
    """The outputs of all (prompt_token_ids, SamplingParams), in order. is_enough: is told which request has finished,
    and says whether the others may end; these then have what has come so far, and the finish_reason "abort"."""
    from vllm.sampling_params import RequestOutputKind

    engine, index_of, outputs = llm.llm_engine, {}, {}
    for index, (prompt, params) in enumerate(requests):
        params.output_kind = RequestOutputKind.FINAL_ONLY  # an output a token would cost as much time as the token
        request_id = str(next(llm.request_counter))
        index_of[request_id] = index
        engine.add_request(request_id, {"prompt_token_ids": prompt}, params)
    enough = False
    while not enough and engine.has_unfinished_requests():
        for output in engine.step():
            outputs[output.request_id] = output
            enough |= is_enough(index_of[output.request_id])
    ended: SimpleQueue = SimpleQueue()
    for state in engine.output_processor.request_states.values():
        state.queue = ended  # where vLLM puts what an aborted request has, if it has such a queue (0.32)
    engine.abort_request([request_id for request_id in index_of if request_id not in outputs])
    while not ended.empty():
        output = ended.get()
        outputs[output.request_id] = output
    return [outputs[request_id] for request_id in index_of]


def check_engine(llm: Any, path: str | Path, shapes: Shapes, cuda: bool) -> str:
    """Returns what the engine is called. Raises UserError for one that is too slow for seeded requests, or whose model
    takes other tensors than `shapes`."""
    import vllm

    runner = llm.llm_engine.model_executor.driver_worker.worker.model_runner
    name = f"vllm {vllm.__version__}, {type(runner).__module__}.{type(runner).__name__}"
    if cuda and type(runner).__module__ != "vllm.v1.worker.gpu.model_runner":
        slow = "draws seeded requests in a Python loop a token, model runner V2 does not"
        raise UserError(f"sampler: {name} {slow}: install triton, and unset VLLM_USE_V2_MODEL_RUNNER")
    theirs = engine_shapes(runner.get_model())
    if theirs != shapes:
        tensor = min(n for n in {*theirs, *shapes} if theirs.get(n) != shapes.get(n))
        difference = f"{theirs.get(tensor)} there, {shapes.get(tensor)} here"
        raise UserError(f"{path}: vLLM reads this model differently: {tensor} is {difference}")
    return name


def model_shapes(config: ModelConfig) -> Shapes:
    """The shapes of our own model's tensors."""
    with torch.device("meta"):
        return {name: tuple(p.shape) for name, p in Qwen2(config).named_parameters()}


def engine_shapes(model: torch.nn.Module) -> Shapes:
    """The shape of every tensor vLLM's model takes; its fused products are split again. Read from the layers, since the
    CPU build packs weights away and leaves empty parameters."""
    shapes: Shapes = {}
    for name, p in model.named_parameters():
        path, _, kind = name.rpartition(".")
        layer, (parent, _, leaf) = model.get_submodule(path), path.rpartition(".")
        if hasattr(layer, "org_vocab_size"):
            shapes[name] = (layer.org_vocab_size, layer.embedding_dim)
        elif hasattr(layer, "input_size"):
            parts = model.packed_modules_mapping.get(leaf, [leaf])
            for part, size in zip(parts, getattr(layer, "output_sizes", [layer.output_size]), strict=True):
                shapes[f"{parent}.{part}.{kind}"] = (size, layer.input_size) if kind == "weight" else (size,)
        else:
            shapes[name] = tuple(p.shape)
    return shapes
