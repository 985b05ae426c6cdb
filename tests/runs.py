"""How the tests run train_grpo.py, with the flags of a small run, and read its run folder.

One rank runs in the tests' own process, and several are forked from a server that has imported everything once: Python
and torch take two seconds to start, and the suite has some hundred runs.
"""

import contextlib
import hashlib
import io
import json
import multiprocessing
import os
import random
import socket
import sys
from pathlib import Path

import torch
import torch.distributed as dist

import configs
import train_grpo
from model import token_logprobs
from problems import tiny

ROOT = Path(__file__).parents[1]
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
UNSTEADY = ("time_", "memory_", "tokens_per_second", "mfu", "gpu_hours")  # columns that measure the machine
FORKS = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
FORKS.set_forkserver_preload(["train_grpo", "torch._dynamo"])  # which the first optimizer imports, for a second


def flags(world, folder, **changes):
    """The arguments of a run of six steps in two stages, in the world of conftest.py."""
    values = dict(model=world / "base", train_data=world / "train.jsonl", eval_data=world / "test.jsonl")
    values |= dict(out_dir=folder, run_name="run", prompts_per_step=8, group_size="4,4", max_prompt_len=16, lr=1e-3)
    values |= dict(max_response_len="24,32", stage_steps="4,2", token_budget=128, save_every=3, save_rollouts_every=1)
    values |= dict(eval_every=0, eval_k=1, max_num_seqs=16)
    return ["configs/tiny.py", *(f"--{k}={v}" for k, v in (values | changes).items())]


def make_world(path, tags=True):
    """In a folder: base/ answers sums of two digits in the right form and rarely with the right digit; train.jsonl and
    test.jsonl have such sums. tags: the template opens <think> and the model closes it; else neither writes them."""
    think, end = ("<think>\n", "</think>") if tags else ("", "")
    tokenizer, rng = tiny.make_tokenizer(path / "base"), random.Random(0)
    model = tiny.new_model(tokenizer, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        ids, lengths, targets = [], [], []
        for _ in range(16):
            a, b = rng.randint(1, 4), rng.randint(1, 4)
            text = f"<|bos|><|user|>{a}+{b}=?<|assistant|>{think}" + "wait " * rng.randint(0, 2)
            row = tokenizer.encode(text + f"{end}\\boxed{{{max(1, a + b + rng.randint(-1, 1))}}}<|eos|>").ids
            ids, targets, lengths = ids + row[:-1], targets + row[1:], [*lengths, len(row) - 1]
        positions = torch.cat([torch.arange(n) for n in lengths])
        cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
        hidden = model(torch.tensor(ids), positions, cu_seqlens)
        token_logprobs(hidden, model.lm_head.weight, torch.tensor(targets), 1.0, 4096)[0].mean().neg().backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(path / "base")
    if not tags:
        change_template(path / "base", "<think>\n", "")
    for name, size in (("train", 64), ("test", 6)):
        pairs = [(rng.randint(1, 4), rng.randint(1, 4)) for _ in range(size)]
        rows = [{"problem": f"{a}+{b}=?", "answer": str(a + b)} for a, b in pairs]
        (path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


def change_template(folder, old, new):
    """Replace a part of a model folder's chat template."""
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    assert old in config["chat_template"]
    config["chat_template"] = config["chat_template"].replace(old, new)
    path.write_text(json.dumps(config))


# ---------------------------------------------------------------------------------------------- in the tests' process


def run_here(main, argv):
    """What `python script.py *argv` does with this `main`, in this process: (exit status, what it printed)."""
    output, folder, arguments, status = io.StringIO(), os.getcwd(), sys.argv, 0
    sys.argv = ["script.py", *map(str, argv)]
    os.chdir(ROOT)
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            configs.run(main)
    except SystemExit as e:
        status = e.code if isinstance(e.code, int) else 1
        if isinstance(e.code, str):  # the interpreter would print it
            output.write(e.code + "\n")
    finally:
        os.chdir(folder)
        sys.argv = arguments
        if dist.is_initialized():  # a run that is refused or stopped leaves it behind
            dist.destroy_process_group()
    return status, output.getvalue()


# ---------------------------------------------------------------------------------------------- in processes of its own


def rank_main(main, argv, environment, writer):
    """The whole life of a process of `start_ranks`."""
    os.environ.update(environment)
    os.chdir(ROOT)
    sys.argv = ["script.py", *argv]
    os.dup2(writer.fileno(), 1)
    os.dup2(writer.fileno(), 2)
    writer.close()
    configs.run(main)


def start_ranks(ranks, argv, main=train_grpo.main):
    """What torchrun does, without its parent process: each rank can be killed for good. Returns [(process, stream of
    what it prints)], the streams to be read to their end."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    started = []
    for rank in range(ranks):
        environment = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        reader, writer = FORKS.Pipe(duplex=False)
        arguments = (main, [str(a) for a in argv], environment, writer)
        process = FORKS.Process(target=rank_main, args=arguments, daemon=True)
        process.start()
        writer.close()
        started.append((process, open(os.dup(reader.fileno()), encoding="utf-8")))
        reader.close()
    return started


def status_of(process):
    """Waits for the end of a process."""
    process.join()
    return process.exitcode


def run_ranks(ranks, argv, status=0, main=train_grpo.main):
    """A run of `main` on several ranks, all of which must end with `status`. Returns what they printed."""
    started = start_ranks(ranks, argv, main)
    output = "".join(stream.read() for _, stream in started)
    assert [status_of(process) for process, _ in started] == [status] * ranks, output[-5000:]
    return output


def train(argv, ranks=1, status=0):
    """A run of train_grpo.py that must end with `status`. Returns what it printed, errors too."""
    if ranks > 1:
        return run_ranks(ranks, argv, status)
    ended_with, output = run_here(train_grpo.main, argv)
    assert ended_with == status, output[-5000:]
    return output


# ------------------------------------------------------------------------------------------------------ the run folder


def rows_of(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def metrics(run_dir):
    """The rows without what measures the machine."""
    return [{k: v for k, v in row.items() if not k.startswith(UNSTEADY)} for row in rows_of(run_dir)]


def weights_hash(run_dir, step):
    return hashlib.sha256((run_dir / "hf" / f"step_{step:06d}" / "model.safetensors").read_bytes()).hexdigest()


def responses(run_dir, step):
    lines = (run_dir / "rollouts" / f"step_{step:06d}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def summary_of(run_dir):
    return json.loads((run_dir / "summary.json").read_text())


def assert_same_run(ours, theirs):
    """Bitwise: metrics, responses, weights and the summary, but for what measures the machine."""
    assert metrics(ours) == metrics(theirs)
    last = metrics(ours)[-1]["step"]
    assert weights_hash(ours, last) == weights_hash(theirs, last)
    for step in range(1, last + 1):
        assert responses(ours, step) == responses(theirs, step)
    summaries = [summary_of(ours), summary_of(theirs)]
    for summary in summaries:
        for name in [n for n in summary if n.startswith(("wall_time", "gpu_hours"))]:
            assert summary.pop(name) >= 0
    assert summaries[0] == summaries[1]
