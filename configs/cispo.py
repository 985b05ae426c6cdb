"""CISPO's loss (MiniMax-M1, 2506.13585; ScaleRL, 2510.13786) on the 8K stage: no token loses its gradient to a clip.

The ratio is a weight without a gradient, held to at most 5 and with no lower bound. Tokens that sampler and trainer
disagree on by more than a factor (0.5 to 5, IcePop's) count nothing.
"""

from configs import Config

Config(
    run_name="cispo",
    model="deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
    policy_loss="cispo",
    clip_eps_low=1.0,
    clip_eps_high=4.0,
    kl_coef=0.0,
    entropy_coef=0.0,
    rollout_correction="mask",
    rollout_correction_low=0.5,
    rollout_correction_high=5.0,
    temperature=1.0,
    sampler="vllm",
    max_num_seqs=256,
)
