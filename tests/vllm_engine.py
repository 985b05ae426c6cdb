"""Run by test_vllm.py in a process of its own: one engine, asked everything. Prints one JSON object of findings.

Arguments: model folder, then `padded` for only what concerns padding rows.
"""

import json
import os
import random
import sys
import weakref

import numpy as np
import torch
import torch.distributed as dist

from configs import UserError
from model import Qwen2, token_logprobs
from rollout import TorchSampler, VLLMSampler

path, padded = sys.argv[1], "padded" in sys.argv
PROMPT_LEN, BLOCK = 200, 128


def surroundings():
    """What an engine must leave as it was."""
    environment = {k: os.environ.get(k) for k in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LD_PRELOAD")}
    generators = [hash(random.getstate()), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]
    return json.dumps([environment, generators, torch.get_num_threads(), torch.set_num_threads.__name__])


def flat(groups):
    return [r for group in groups for r in group]


def largest_difference(model, rollouts, temperature):
    """Between the sampler's log-probabilities and those of a plain forward, over all response tokens."""
    worst = 0.0
    for r in rollouts:
        ids = torch.tensor(r.prompt_ids + r.response_ids)
        n = len(ids) - 1
        with torch.no_grad():
            hidden = model(ids[:-1], torch.arange(n), torch.tensor([0, n], dtype=torch.int32))
            logprobs, _ = token_logprobs(hidden, model.lm_head.weight, ids[1:], temperature, 4096)
        worst = max(worst, float((logprobs[len(r.prompt_ids) - 1 :] - torch.tensor(r.logprobs)).abs().max()))
    return worst


def refusal(call, *errors):
    try:
        call()
    except errors as e:
        return f"{type(e).__name__}: {e}"
    return None


def main():
    torch.manual_seed(7)
    found = {}
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    before = surroundings()
    vllm = VLLMSampler(path, torch.float32, "cpu", slots=64, max_model_len=256)
    found["engine_keeps_globals"] = surroundings() == before
    torch_sampler, model = TorchSampler(path, torch.float32, "cpu", 64), Qwen2.from_pretrained(path)
    rng = random.Random(0)
    short = [[0, 2, *(rng.randrange(6, 50) for _ in range(rng.randrange(1, 30))), 3, 4] for _ in range(12)]
    long = [[rng.randrange(6, 50) for _ in range(PROMPT_LEN)] for _ in range(3)]
    seeds = [[1000 * p + s for s in range(4)] for p in range(12)]
    before = surroundings()
    hot = flat(vllm.generate(short, seeds, 50, 1.0, 1.0))
    found["generate_keeps_globals"] = surroundings() == before
    found["largest_id"], found["tokenizer_size"] = max(max(r.response_ids) for r in hot), torch_sampler.vocab_size
    if padded:  # without the bias they are sampled
        vllm.logit_bias = None
        found["largest_id_without_bias"] = max(max(r.response_ids) for r in flat(vllm.generate(short, seeds, 50, 1, 1)))
    else:
        found["finish_reasons"] = sorted({r.finish_reason for r in hot})
        found["finish_reasons_are_right"] = all(
            (r.finish_reason == "stop") == (r.response_ids[-1] == 1) and (r.finish_reason == "stop" or
                                                                          len(r.response_ids) == 50)
            and 1 not in r.response_ids[:-1] and len(r.logprobs) == len(r.response_ids) for r in hot)  # fmt: skip
        found["order"] = [(r.prompt_id, r.sample_id, r.prompt_ids == short[r.prompt_id]) for r in hot]
        found["samples_of_a_prompt_differ"] = len({tuple(r.response_ids) for r in hot[:4]}) > 1
        greedy = [flat(s.generate(short + long, [[0]] * 15, 50, 0.0, 1.0)) for s in (vllm, torch_sampler)]
        found["greedy_equal"] = [r.response_ids for r in greedy[0]] == [r.response_ids for r in greedy[1]]
        cold = flat(vllm.generate(short, seeds, 50, 0.6, 1.0))
        found["differences"] = [largest_difference(model, r, t) for r, t in ((greedy[0], 1.0), (hot, 1.0), (cold, 0.6))]
        alone = flat(vllm.generate(short[5:6], [seeds[5][2:3]], 50, 1.0, 1.0))[0]
        found["alone_equals_in_batch"] = alone.response_ids == hot[5 * 4 + 2].response_ids
        # prompt caching: nothing is known of a prompt after a sync, then the group shares its whole blocks
        vllm.load_weights((n, p.detach()) for n, p in model.named_parameters())
        vllm.generate(long, [[1]] * 3, 4, 1.0, 1.0)
        found["cached_after_a_sync"] = vllm.cached_tokens
        vllm.load_weights((n, p.detach()) for n, p in model.named_parameters())
        vllm.generate(long, [list(range(8))] * 3, 4, 1.0, 1.0)
        found["cached_in_groups"] = vllm.cached_tokens
        # what a sync costs in memory: tensors of the stream that are alive at once
        alive, peak = {}, 0

        def stream():
            nonlocal peak
            for i, (name, p) in enumerate(model.named_parameters()):
                tensor = p.detach() * 1.1
                alive[i] = tensor.nbytes
                weakref.finalize(tensor, alive.pop, i)
                peak = max(peak, sum(alive.values()))
                yield name, tensor
                del tensor

        found["bytes"] = vllm.load_weights(stream())
        found["bytes_expected"] = sum(p.nbytes for p in model.parameters())
        found["largest_layer"] = 2 * model.model.layers[0].mlp.gate_proj.weight.nbytes
        found["peak_bytes"] = peak
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1.1)
        synced = flat(vllm.generate(short, seeds, 50, 1.0, 1.0))
        found["difference_after_a_sync"] = largest_difference(model, synced, 1.0)
        found["tokens_after_a_sync_differ"] = [r.response_ids for r in synced] != [r.response_ids for r in hot]
        named = [(n, p.detach()) for n, p in model.named_parameters()]
        wrong = {"missing": named[:-1], "twice": named[:1] + named, "unknown": [("model.extra.weight", named[0][1])],
                 "larger": [(named[0][0], torch.zeros(99, 96)), *named[1:]]}  # fmt: skip
        found["refusals"] = {k: refusal(lambda v=v: vllm.load_weights(iter(v)), ValueError) for k, v in wrong.items()}
        found["too_long"] = refusal(lambda: vllm.generate(long, [[1]] * 3, 57, 1.0, 1.0), UserError)
    vllm.close()
    print("FOUND " + json.dumps(found), flush=True)


main()
