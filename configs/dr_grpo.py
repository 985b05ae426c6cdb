"""Dr. GRPO's loss (2503.20783) on the 8K stage: no division by the group's standard deviation, nor by the length.

Every sequence's token sum counts, over the context's length; neither KL nor entropy bonus.
"""

from configs import Config

Config(
    run_name="dr_grpo",
    model="deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
    loss_agg="dr_grpo",
    normalize_advantage_std=False,
    kl_coef=0.0,
    entropy_coef=0.0,
    sampler="vllm",
    max_num_seqs=256,
)
