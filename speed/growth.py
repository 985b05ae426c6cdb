"""How generation and training grow with the length of responses and with the size of groups.

Attention apart, both should take the same time a token at every length. Training's attention is timed alone, a layer at
a time; generation's is its share of the model's FLOPs. Weights come from the config's model folder, whose limit of
positions is raised in a temporary copy.
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import train_grpo
from configs import Config, UserError
from configs._model import read_object, resolve_model
from model import DTYPES, Qwen2
from rollout import Rollout, TorchSampler, sample_seed
from speed.kernels import attention_seconds
from speed.measure import Section, Spread, repeated
from speed.passes import process_group, random_ids, without_stop
from training import packing
from training.packing import packed_length
from training.plan import PROMPT

LENGTHS = tuple(128 * 2**i for i in range(8))  # tokens of a response: 128 to 16,384
SAMPLES = 8  # responses of each length, to one prompt
GROUPS = (2, 4, 8, 16, 32)  # responses to each prompt
PROMPTS = 4  # that groups of these sizes answer
CALLS = 4  # at least, of each phase: one to warm up and three repeats
CASE_SECONDS = 600  # that a case may take, as far as the case before it tells


@contextmanager
def longer_folder(path: Path, positions: int) -> Iterator[Path]:
    """A model folder that is this one, with a limit of at least so many positions."""
    config = read_object(path / "config.json")
    config["max_position_embeddings"] = max(positions, config.get("max_position_embeddings", 0))
    with tempfile.TemporaryDirectory(prefix="nanoscaler-bench-") as folder:
        for file in path.absolute().iterdir():
            if file.name != "config.json":
                (Path(folder) / file.name).symlink_to(file)
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        yield Path(folder)


def train_packs(model: Qwen2, rollouts: list[Rollout], cfg: Config, device: torch.device) -> list[list[int]]:
    """Forward and backward of all rollouts, in packs as the loop makes them; returns the packs' lengths."""
    longest = max(map(packed_length, rollouts))
    cfg = replace(cfg, minibatches=1, token_budget=max(cfg.token_budget, longest), kl_coef=0.0, mask_truncated=False)
    groups = [[replace(r, advantage=(-1.0) ** r.sample_id)] for r in rollouts]
    (minibatch,) = packing.plan_minibatches(groups, longest, cfg, world_size=1)
    batches = [packing.pack(m.rollouts, cfg.mask_truncated, device) for m in minibatch.micro_batches[0]]
    train_grpo.backward(model, batches, minibatch, cfg)
    model.zero_grad()
    return [[packed_length(r) for r in m.rollouts] for m in minibatch.micro_batches[0]]


def attention_time(packs: list[list[int]], model: Qwen2, cfg: Config, device: torch.device) -> float:
    """Seconds that attention and its gradients take on these packs, all layers: each measured alone, medians added."""
    total, dtype = 0.0, DTYPES[cfg.dtype]
    for lengths in packs:
        seconds = attention_seconds(tuple(lengths), model.config, dtype, model.backend, device)
        total += Spread.of(seconds["both"]).median
        if cfg.activation_checkpointing:  # its forward pass runs a second time
            total += Spread.of(seconds["forward"]).median
    return total * model.config.num_hidden_layers


def case(
    sampler: TorchSampler, model: Qwen2, shape: tuple[int, int, int], cfg: Config, device: torch.device
) -> dict[str, Any]:
    """The figures of `shape`: prompts, responses to each, tokens of each. Every rank has this work."""
    count, group, length = shape
    prompts = random_ids(sampler.vocab_size, count, min(PROMPT, cfg.max_prompt_len))
    seeds = [[sample_seed(i, j) for j in range(group)] for i in range(count)]
    rollouts: list[Rollout] = []

    def generate() -> None:
        groups = sampler.generate(prompts, seeds, length, cfg.temperature, 1.0)
        rollouts[:] = [r for responses in groups for r in responses]

    generating = Spread.of(repeated(generate, device))
    packs: list[list[int]] = []

    def train() -> None:
        packs[:] = train_packs(model, rollouts, cfg, device)

    training = Spread.of(repeated(train, device))
    attention, tokens = attention_time(packs, model, cfg, device), count * group * length
    lengths = [n for pack in packs for n in pack]
    attention_flops = attention_per_pair(model) * sum(n * n for n in lengths)
    return {
        "responses": f"{count} x {group} of {length:,} tokens",
        "generate, s": generating,
        "us/token": 1e6 * generating.median / tokens,
        "attention's FLOPs": f"{attention_flops / model.flops(lengths):.1%}",
        "train, s": training,
        "its attention, s": attention,
        "without, us/token": 1e6 * (training.median - attention) / tokens,
    }


def attention_per_pair(model: Qwen2) -> float:
    """FLOPs of attention in a forward pass over n tokens, divided by n squared."""
    one, two = model.flops([1]), model.flops([2])  # a + b and 2 a + 4 b
    return (two - 2 * one) / 2


def growth(cfg: Config) -> Section:
    """Cases of growing length, as far as the time allows, and then of growing groups. Raises UserError."""
    if cfg.sampler != "torch":
        raise UserError("sampler: the section growth measures the torch sampler: --sampler=torch")
    path, rows, notes = resolve_model(cfg.model), [], []
    context = cfg.max_response_len[0]
    by_length = [(1, SAMPLES, length) for length in LENGTHS]
    by_group = [(PROMPTS, group, context) for group in GROUPS]
    positions = cfg.max_prompt_len + max(context, LENGTHS[-1])
    with process_group(cfg, "growth") as device, longer_folder(path, positions) as folder:
        model = packing.load_model(cfg, folder, device, torch.float32)
        model.set_activation_checkpointing(cfg.activation_checkpointing)
        sampler = without_stop(TorchSampler(folder, DTYPES[cfg.dtype], device, cfg.max_num_seqs))
        for shapes, factor in ((by_length, 4), (by_group, 2)):  # from a case to the next: attention's square; as many
            last = 0.0  # seconds of one generation and one training, on rank 0's clock for all
            for shape in shapes:
                if factor * CALLS * last > CASE_SECONDS:
                    rest = f"{shape[0]} x {shape[1]} of {shape[2]:,} tokens and beyond"
                    notes.append(f"left out, since each would take more than {CASE_SECONDS} s: {rest}")
                    break
                rows.append(case(sampler, model, shape, cfg, device))
                print(f"growth: {rows[-1]['responses']}", file=sys.stderr, flush=True)
                last = packing.from_rank0(lambda row=rows[-1]: row["generate, s"].median + row["train, s"].median)
    title = f"growth: {cfg.dtype}, max_num_seqs={cfg.max_num_seqs}, compile={cfg.compile}"
    return Section(title, rows, tuple(notes))
