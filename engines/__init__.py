"""What stands behind `rollout.py`. Read `samples` first (`Rollout`, seeds, what both engines share), then
`vllm_sampler` (vLLM behind the samplers' interface), then `vllm_engine` from its top: the surroundings in which an
engine starts, its options, what it refuses, the checks of one that has started, and a generation that ends early.
"""
