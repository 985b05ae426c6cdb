"""Shared fixtures: a random tiny model folder, and a small world whose model is right now and then."""

import json
import os
import random
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from model import ModelConfig, Qwen2, token_logprobs
from problems import tiny
from runs import flags, train

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes the tests start; two threads may fight over a core
torch.set_num_threads(1)
SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory) -> Path:
    """A random model of the tiny architecture with its tokenizer."""
    path = tmp_path_factory.mktemp("model")
    tiny.new_model(tiny.make_tokenizer(path), seed=0).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def padded_dir(tmp_path_factory) -> Path:
    """A random model with fifty rows more than its tokenizer has ids: each is as likely as any other, so they have
    about half of the probability."""
    path = tmp_path_factory.mktemp("padded")
    size = tiny.make_tokenizer(path).get_vocab_size()
    torch.manual_seed(0)
    model = Qwen2(ModelConfig.from_dict({**tiny.MODEL, "vocab_size": size + 50}))
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(0.02)
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    """base/ answers sums of two digits in the right form and rarely with the right digit; train.jsonl, test.jsonl."""
    path = tmp_path_factory.mktemp("world")
    tokenizer, rng = tiny.make_tokenizer(path / "base"), random.Random(0)
    model = tiny.new_model(tokenizer, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        ids, lengths, targets = [], [], []
        for _ in range(16):
            a, b = rng.randint(1, 4), rng.randint(1, 4)
            text = f"<|bos|><|user|>{a}+{b}=?<|assistant|><think>\n" + "wait " * rng.randint(0, 2)
            row = tokenizer.encode(text + f"</think>\\boxed{{{max(1, a + b + rng.randint(-1, 1))}}}<|eos|>").ids
            ids, targets, lengths = ids + row[:-1], targets + row[1:], [*lengths, len(row) - 1]
        positions = torch.cat([torch.arange(n) for n in lengths])
        cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
        hidden = model(torch.tensor(ids), positions, cu_seqlens)
        token_logprobs(hidden, model.lm_head.weight, torch.tensor(targets), 1.0, 4096)[0].mean().neg().backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(path / "base")
    for name, size in (("train", 64), ("test", 6)):
        pairs = [(rng.randint(1, 4), rng.randint(1, 4)) for _ in range(size)]
        rows = [{"problem": f"{a}+{b}=?", "answer": str(a + b)} for a, b in pairs]
        (path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def six_steps(world, tmp_path_factory) -> Path:
    """The folder of a run of six steps in two stages, four and two. Tests only read it."""
    out = tmp_path_factory.mktemp("six")
    train(flags(world, out, eval_every=3))
    return out / "run"


@pytest.fixture(scope="session")
def two_ranks(world, tmp_path_factory) -> Path:
    """The folder of the run `six_steps` on two ranks. Tests only read it, all of them in xdist_group("two_ranks")."""
    out = tmp_path_factory.mktemp("two")
    train(flags(world, out, eval_every=3), ranks=2)
    return out / "run"


@pytest.fixture
def group_of_one():
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield torch.device("cpu")
    dist.destroy_process_group()
