"""Skywork-OR1 (arXiv 2505.22312 and its released 7B scripts) on this model: an entropy bonus that follows a target.

256 prompts x 16 samples in one update, temperature 1, no KL; uniform groups are dropped, problems that were solved at
their last visit are drawn no more, and the entropy bonus rises by 1e-4 a step, up to 0.005, while the entropy is under
0.2 nats a token. 8K, 16K, 32K. Unlike there: mathematics alone; entropy is the mean over the vocabulary (theirs is that
of the sampled tokens' -log p); solved problems leave at once, not when a stage begins; and the steps are ours.
"""

from configs import Config

Config(
    run_name="skywork",
    model="deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
    max_prompt_len=2048,
    max_response_len=(8192, 16384, 32768),
    prompts_per_step=256,
    group_size=(16, 16, 16),
    minibatches=1,
    stage_steps=(700, 700, 300),
    stage_data_order="keep",
    temperature=1.0,
    kl_coef=0.0,
    entropy_coef=0.0,
    entropy_target=0.2,
    entropy_coef_step=1e-4,
    entropy_coef_max=0.005,
    drop_uniform_groups=True,
    skip_solved=1,
    token_budget=36864,
    sampler="vllm",
    max_num_seqs=256,
    eval_max_len=32768,
)
