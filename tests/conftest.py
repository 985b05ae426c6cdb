"""Shared fixtures: a random tiny model folder, and a small world whose model is right now and then."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from model import ModelConfig, Qwen2
from problems import tiny
from runs import flags, make_world, train

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes the tests start; two threads may fight over a core
torch.set_num_threads(1)
SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(autouse=True)
def torchs_own_products():
    """After each test, whatever a run in this process has chosen: others compare with processes that choose nothing."""
    yield
    torch.backends.mkldnn.matmul.fp32_precision = "none"


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory) -> Path:
    """A random model of the tiny architecture with its tokenizer."""
    path = tmp_path_factory.mktemp("model")
    tiny.new_model(tiny.make_tokenizer(path), seed=0).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def qwen3_dir(tmp_path_factory) -> Path:
    """A random Qwen3 with the tiny tokenizer; its heads are wider than hidden / heads, its norms far from 1."""
    path = tmp_path_factory.mktemp("qwen3")
    size = tiny.make_tokenizer(path).get_vocab_size()
    torch.manual_seed(0)
    shape = dict(model_type="qwen3", vocab_size=size, head_dim=64, rope_theta=1e6)
    model = Qwen2(ModelConfig.from_dict(tiny.MODEL | shape))
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.06) if p.dim() == 2 else p.normal_(1, 0.3)
    model.save_pretrained(path)
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
    """What `runs.make_world` makes. Tests only read it."""
    return make_world(tmp_path_factory.mktemp("world"))


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
