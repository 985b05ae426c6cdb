"""Run by test_vllm.py: train_grpo with the real vLLM and one thing broken. Arguments: what, then train_grpo's own."""

import sys

import train_grpo
from grader.pool import RewardPool
from rollout import VLLMSampler

what, argv = sys.argv[1], sys.argv[2:]
load_weights, generate, init = VLLMSampler.load_weights, VLLMSampler.generate, VLLMSampler.__init__
syncs = 0


def broken_load_weights(self, named_tensors):
    global syncs
    syncs += 1
    tensors = list(named_tensors)  # the collectives happen all the same
    if what == "sync_skipped" and syncs > 1:
        return 0
    if what == "layer_left_out":
        if syncs == 1:
            self.first = {name: tensor.clone() for name, tensor in tensors}
        tensors = [(name, self.first[name] if ".layers.1." in name else tensor) for name, tensor in tensors]
    return load_weights(self, iter(tensors))


def broken_generate(self, prompts, seeds, max_tokens, temperature, top_p):
    temperature = 1.0 if what == "temperature" else temperature
    return generate(self, prompts, seeds, max_tokens, temperature, 0.9 if what == "top_p" else top_p)


def without_reset(self, *args, **kwargs):
    init(self, *args, **kwargs)
    self.llm.reset_prefix_cache = lambda: True


VLLMSampler.load_weights, VLLMSampler.generate = broken_load_weights, broken_generate
if what == "prefix_cache":
    VLLMSampler.__init__ = without_reset
if "prefix_cache" in what:  # no problem of 128 tokens is solved in this world: reward something, so that weights move
    RewardPool.rewards = lambda self, problems, texts: [float(i % 2) for i in range(len(texts))]
train_grpo.main(argv)
