"""What `rollout.VLLMSampler` needs of vLLM and what knows nothing of rollouts. Read `vllm_engine` from its top: the
surroundings in which an engine starts, its options, what it refuses, and the checks of one that has started.
"""
