"""The same schedule with what later recipes agree on (DAPO 2503.14476, Skywork-OR1 2505.22312, ScaleRL 2510.13786).

Loss over all tokens alike, a wider clip upwards, neither KL nor entropy bonus (so no reference model), each token
weighed by trainer over sampler, at most 2 (truncated importance sampling), uniform groups dropped and replaced, cut-off
responses without a gradient, and sampling at temperature 1. Between stages Adam's state and the data order go on.
"""

from configs import Config

Config(
    run_name="modern",
    model="deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
    max_response_len=(8192, 16384, 24576),
    group_size=(8, 16, 16),
    stage_policy="auto",
    stage_steps=(1560, 720, 300),
    stage_from="best",
    stage_optimizer="keep",
    stage_data_order="keep",
    temperature=1.0,
    loss_agg="token",
    clip_eps_low=0.2,
    clip_eps_high=0.28,
    kl_coef=0.0,
    entropy_coef=0.0,
    rollout_correction="truncate",
    rollout_correction_high=2.0,
    drop_uniform_groups=True,
    refill_attempts=2,
    mask_truncated=True,
    sampler="vllm",
    max_num_seqs=256,
    save_every=10,
    eval_every=10,
    eval_max_len=24576,
)
