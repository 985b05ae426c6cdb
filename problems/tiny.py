"""The tiny world: a task, a tokenizer and a base model small enough to train on a CPU, made from nothing, offline.

The task is to add one-digit numbers, written out step by step. The base model is a real Qwen2 taught on traces that
overthink as DeepSeek-R1-Distill does: it slips, redoes its work after a "wait", and is long when it is wrong, so a
short context cuts off much of what it could solve. `data_prep.py tiny` calls `make_tiny_world`. Writes
`train.jsonl`, `test.jsonl` and the model folder `base/`.
"""

import json
import math
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from tqdm import tqdm

from configs import UserError
from model import ModelConfig, Qwen2, token_logprobs

MIN_NUMBERS, MAX_NUMBERS = 2, 12
SLIP = 0.02  # chance that a partial sum in a trace is off by one
REDO = (0.8, 0.3)  # chance that a trace does the whole sum again after "wait", and then once more
SPECIAL = ["<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>", "<think>", "</think>"]
CHARACTERS = "\n 0123456789+=;\\{}abcdefghijklmnopqrstuvwxyz?"
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}<|user|>{{ m['content'] }}"
    "{% else %}<|assistant|>{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)
MODEL = dict(architectures=["Qwen2ForCausalLM"], model_type="qwen2", hidden_size=96, intermediate_size=256,
             num_hidden_layers=3, num_attention_heads=3, num_key_value_heads=1, hidden_act="silu", rms_norm_eps=1e-6,
             rope_theta=10_000.0, max_position_embeddings=512, tie_word_embeddings=True,
             use_sliding_window=False)  # fmt: skip


def problem_text(numbers: Sequence[int]) -> str:
    return "+".join(map(str, numbers)) + "=?"


def draw_numbers(rng: random.Random) -> list[int]:
    """A problem: each number is 1..9; 16 to 6 in favour of the fewest numbers over the most."""
    counts = range(MIN_NUMBERS, MAX_NUMBERS + 1)
    weights = [MAX_NUMBERS + 6 - n for n in counts]
    return [rng.randint(1, 9) for _ in range(rng.choices(counts, weights)[0])]


def trace(numbers: list[int], rng: random.Random) -> str:
    """What the base model imitates, from after `<think>\\n` to the boxed answer: slips and second thoughts included."""
    text = ""
    for attempt in range(1 + len(REDO)):
        total = numbers[0]
        text += f"{total}"
        for n in numbers[1:]:
            total += n + (rng.choice((-1, 1)) if rng.random() < SLIP else 0)
            text += f"+{n}={total}"
        if attempt == len(REDO) or rng.random() >= REDO[attempt]:
            break
        text += " wait "
    return f"{text}</think>\\boxed{{{total}}}"


def make_tokenizer(path: Path) -> Tokenizer:
    """A character-level tokenizer in Hugging Face format, with a chat template that opens the think tag. It is
    byte-level BPE without merges, the only kind that transformers and vLLM take from a folder of a Qwen2 model."""
    byte_level = CHARACTERS.translate({ord("\n"): "Ċ", ord(" "): "Ġ"})  # how it spells these two bytes
    vocab = {token: i for i, token in enumerate([*SPECIAL, *byte_level])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL[:4]])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in SPECIAL[4:]])
    path.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": SPECIAL[0], "eos_token": SPECIAL[1]}
    config |= {"pad_token": SPECIAL[1], "chat_template": TEMPLATE, "clean_up_tokenization_spaces": False}
    (path / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return tokenizer


def write_problems(out_dir: Path, train_rows: int, test_rows: int, seed: int) -> set[tuple[int, ...]]:
    """Disjoint `train.jsonl` and `test.jsonl`; returns the problems of the test set, which no trace may use."""
    rng = random.Random(seed)
    test: dict[tuple[int, ...], None] = {}  # a dict keeps the order and drops repeats
    while len(test) < test_rows:
        test[tuple(draw_numbers(rng))] = None
    train: list[tuple[int, ...]] = []
    used = set(test)
    while len(train) < train_rows:
        numbers = tuple(draw_numbers(rng))
        if numbers not in used:
            train.append(numbers)
            if len(numbers) >= 4:  # shorter sums are few: they may repeat
                used.add(numbers)
    for name, problems in (("train", train), ("test", test)):
        lines = []
        for i, numbers in enumerate(problems):
            row = {"id": f"tiny-{name}-{i}", "source": "tiny", "problem": problem_text(numbers)}
            lines.append(json.dumps({**row, "answer": str(sum(numbers))}) + "\n")
        (out_dir / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return set(test)


def new_model(tokenizer: Tokenizer, seed: int) -> Qwen2:
    raw = dict(MODEL, vocab_size=tokenizer.get_vocab_size(), bos_token_id=0, eos_token_id=1)
    torch.manual_seed(seed)
    model = Qwen2(ModelConfig.from_dict(raw))
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(p)
        elif p.dim() == 2:
            residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            nn.init.normal_(p, std=0.04 / (math.sqrt(2 * MODEL["num_hidden_layers"]) if residual else 1))
    return model


def supervised_loss(model: Qwen2, tokenizer: Tokenizer, held_out: set, rng: random.Random, size: int) -> Tensor:
    """The mean loss a response token of `size` packed traces, none of a problem that is held out."""
    inputs, targets, positions, mask, cu_seqlens = [], [], [], [], [0]
    while len(cu_seqlens) <= size:
        numbers = draw_numbers(rng)
        if tuple(numbers) in held_out:
            continue
        prompt = tokenizer.encode(f"<|bos|><|user|>{problem_text(numbers)}<|assistant|><think>\n").ids
        ids = prompt + tokenizer.encode(trace(numbers, rng) + "<|eos|>").ids
        inputs += ids[:-1]
        targets += ids[1:]
        positions += range(len(ids) - 1)
        mask += [0.0] * (len(prompt) - 1) + [1.0] * (len(ids) - len(prompt))
        cu_seqlens.append(len(inputs))
    hidden = model(torch.tensor(inputs), torch.tensor(positions), torch.tensor(cu_seqlens, dtype=torch.int32))  # (T, D)
    logprobs, _ = token_logprobs(hidden, model.lm_head.weight, torch.tensor(targets), 1.0, 16384)  # (T,)
    response_mask = torch.tensor(mask)
    return -(logprobs * response_mask).sum() / response_mask.sum()


def train_base(tokenizer: Tokenizer, held_out: set, updates: int, seed: int, size: int = 64) -> Qwen2:
    """Next-token prediction on traces; AdamW, linear warm-up, cosine to a tenth."""
    model, rng = new_model(tokenizer, seed), random.Random(seed + 1)
    peak = 4e-3  # learning rate after the warm-up
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    progress = tqdm(range(updates), desc="base model", unit="update", mininterval=2)
    for update in progress:
        warm_up = min(1.0, (update + 1) / 50)
        optimizer.param_groups[0]["lr"] = peak * warm_up * (0.55 + 0.45 * math.cos(math.pi * update / updates))
        loss = supervised_loss(model, tokenizer, held_out, rng, size)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if update % 20 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")
    return model


def make_tiny_world(out_dir: str | Path, updates: int = 900, seed: int = 0) -> None:
    """Write train.jsonl, test.jsonl and base/ under `out_dir`. An existing base model is kept. Raises UserError."""
    out_dir = Path(out_dir)
    if (out_dir / "base" / "model.safetensors").is_file():
        print(f"{out_dir}/base is there already; remove {out_dir} to make it again")
        return
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        held_out = write_problems(out_dir, train_rows=4000, test_rows=250, seed=seed)
        aside = out_dir / "base.tmp"
        tokenizer = make_tokenizer(aside)
        model = train_base(tokenizer, held_out, updates, seed)
        model.save_pretrained(aside)
        shutil.rmtree(out_dir / "base", ignore_errors=True)
        aside.rename(out_dir / "base")
    except OSError as e:
        raise UserError(f"{out_dir}: cannot write the tiny world: {e}") from None
    print(f"wrote {out_dir}/train.jsonl, {out_dir}/test.jsonl and {out_dir}/base")
