"""GSPO's loss (2507.18071, section 5.1) on the 8K stage: one ratio a sequence, clipped to 1 - 0.0003 .. 1 + 0.0004.

Each step in 4 minibatches, all sequences alike, neither KL nor entropy bonus. No rollout correction: the product over a
sequence of thousands of tokens (`sequence_mask`) is nearly 0 or far above 1 at a bfloat16 engine's usual rounding.
"""

from configs import Config

Config(
    run_name="gspo",
    model="deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
    policy_loss="gspo",
    clip_eps_low=0.0003,
    clip_eps_high=0.0004,
    loss_agg="sequence",
    minibatches=4,
    kl_coef=0.0,
    entropy_coef=0.0,
    sampler="vllm",
    max_num_seqs=256,
)
