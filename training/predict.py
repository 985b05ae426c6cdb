"""The plan's time model held to this machine: rates measured here, and the seconds of a step that follow from them.

    python bench.py configs/tiny.py --sections=predict

For a CPU and one process. The formulas are those of plan.py and generation.py; in place of a GPU's data sheet stand
rates of matrix products, of attention and of elementwise operations, and the time of a decode step with one response
(rates.py).
"""

import math
import os
import random
from statistics import fmean
from typing import Any

import torch

from configs import Config, UserError
from configs._model import resolve_model
from model import DTYPES, ModelConfig, Qwen2
from training.generation import Engine, Sample, SimulatedDecoding, response_lengths
from training.plan import Work, kernel_work, without_weights
from training.rates import Rates, measured_rates


def seconds_of_work(work: Work, rates: Rates, dtype: torch.dtype, training: bool) -> float:
    """Of one kind of work after the other, as in plan.kernel_seconds."""
    traffic = (work.layer_traffic + work.logit_traffic) * dtype.itemsize / 2
    products = work.products / (rates.backward if training else rates.forward)
    return products + work.attention / rates.attention + traffic / rates.traffic


def engine_on(cfg: Config, model: Qwen2, prompt: int, rates: Rates) -> Engine:
    """The embedded sampler's."""
    response = seconds_of_work(kernel_work(model, cfg, [1], training=False), rates, DTYPES[cfg.dtype], training=False)

    def seconds_of_step(live: int, cached: float) -> float:
        return rates.decode_step + response * (live - 1) + rates.cached_token * cached

    return Engine(prompt, cfg.max_num_seqs, math.inf, seconds_of_step, lambda tokens: math.nan)


def predicted(
    cfg: Config, model: Qwen2, rates: Rates, prompt: int, lengths: list[int], trained: int
) -> dict[str, float]:
    """phase -> seconds of a step with responses of these lengths, in order, the first `trained` of which are trained
    on."""
    decoding = SimulatedDecoding(engine_on(cfg, model, prompt, rates), [Sample(n) for n in lengths])
    while decoding.live:
        decoding.advance()
    packed = [prompt + n - 1 for n in lengths[:trained]]
    passes = 1 - 1 / cfg.minibatches + bool(cfg.kl_coef)  # as in plan.step_seconds
    scoring, training = (
        seconds_of_work(kernel_work(model, cfg, packed, backward), rates, DTYPES[cfg.dtype], backward)
        for backward in (False, True)
    )
    return {"rollout": decoding.seconds, "logprobs": passes * scoring, "train": training}


def check(cfg: Config) -> None:
    """Raises UserError for a run that this time model is not for."""
    if cfg.device != "cpu" or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("predict: the rates are those of one process on a CPU: --device=cpu, without torchrun")
    if cfg.sampler != "torch" or cfg.partial_rollouts:
        raise UserError("predict: only of the embedded sampler: --sampler=torch --partial_rollouts=false")


def compared(cfg: Config, rows: list[dict]) -> tuple[list[dict[str, Any]], str]:
    """Measured and predicted seconds of the steps in `rows` of metrics.jsonl, a row a phase; and the rates, measured
    now. Raises UserError."""
    rows = [row for row in rows if row["groups_trained"]]
    if not rows:
        raise UserError("predict: no step had anything to train on: all rewards of each group were equal")
    samples = cfg.prompts_per_step * cfg.group_size[0]
    prompt_tokens = fmean(row["prompt_tokens_cached"] for row in rows) / (cfg.group_size[0] - 1)  # of each once
    prompt = max(1, round(prompt_tokens / cfg.prompts_per_step))
    mean = fmean(row["response_len_mean"] for row in rows)
    lengths = response_lengths(mean, cfg.max_response_len[0], samples)
    random.Random(0).shuffle(lengths)
    trained = round(fmean(row["groups_trained"] for row in rows) * cfg.group_size[0])
    model = without_weights(ModelConfig.from_folder(resolve_model(cfg.model)))
    rates = measured_rates(cfg, model.config, prompt, lengths)
    table = []
    for phase, seconds in predicted(cfg, model, rates, prompt, lengths, trained).items():
        measured = fmean(row[f"time_{phase}"] for row in rows)
        ratio = seconds / max(measured, 1e-9)
        table.append({"phase": phase, "measured s": measured, "predicted s": seconds, "ratio": ratio})
    note = (
        f"predicted: a model, from {samples} responses of {mean:.0f} tokens to prompts of {prompt}, and rates measured "
        f"here, just now: products {rates.forward / 1e9:,.1f} GFLOP/s forward, {rates.backward / 1e9:,.1f} with their "
        f"backward; attention {rates.attention / 1e9:,.1f}; elementwise {rates.traffic / 1e9:,.1f} GB/s; decoding "
        f"{1000 * rates.decode_step:.2f} ms a step with one response, and {1e9 * rates.cached_token:.0f} ns a cached "
        "token"
    )
    return table, note
