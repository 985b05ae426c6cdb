"""modern.py's loss, and prompts drawn by the model's own pass rate instead of refills. Not a published recipe.

What was solved twice in a row is drawn no more in its stage, and each epoch keeps a prompt that was seen with
probability 4 p (1 - p), where p is its smoothed pass rate: the variance of its reward over the most it could be
(2502.12272). Uniform groups are dropped but not replaced: the curriculum is to make them rare. Stages have the
published steps, since the controller judges rewards, which fall when prompts get harder.
"""

from configs import Config

Config(
    run_name="curriculum",
    model="deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
    max_response_len=(8192, 16384, 24576),
    group_size=(8, 16, 16),
    stage_steps=(1040, 480, 200),
    stage_optimizer="keep",
    skip_solved=2,
    weigh_draw=True,
    temperature=1.0,
    clip_eps_high=0.28,
    kl_coef=0.0,
    entropy_coef=0.0,
    rollout_correction="truncate",
    drop_uniform_groups=True,
    mask_truncated=True,
    sampler="vllm",
    max_num_seqs=256,
    save_every=10,
    eval_every=10,
    eval_max_len=24576,
)
