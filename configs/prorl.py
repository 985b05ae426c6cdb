"""ProRL (arXiv 2505.24864), its mathematics: a long run whose KL reference and optimizer are reset again and again.

Eight runs of 256 prompts in updates of 64: 16 samples at 8K (32 in the sixth and seventh), 16K in the last; clip 0.2 /
0.4, dynamic sampling, temperature 1.2, learning rate 2e-6, KL coefficient 1e-4 (this one second hand, from summaries of
2507.12507). About 2,450 steps by JustRL's account. Unlike there: they reset by hand, when validation stalled or fell,
and published no steps; here each run but the last, of 200 steps, has 320. The data are DeepScaleR's 40K problems alone,
of their 136K from five domains, and responses that do not end are not punished (they were in the fourth and fifth run).
V2 has other resets (every 200 to 500 steps, the optimizer kept), and advantages normalized over the whole batch.
"""

from configs import Config

Config(
    run_name="prorl",
    model="deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
    max_response_len=(8192, 8192, 8192, 8192, 8192, 8192, 8192, 16384),
    prompts_per_step=256,
    group_size=(16, 16, 16, 16, 16, 32, 32, 16),
    minibatches=4,
    stage_steps=(320, 320, 320, 320, 320, 320, 320, 200),
    stage_reference="reset",
    stage_optimizer="reset",
    stage_data_order="keep",
    temperature=1.2,
    lr=2e-6,
    clip_eps_high=0.4,
    kl_coef=1e-4,
    entropy_coef=0.0,
    drop_uniform_groups=True,
    refill_attempts=2,
    sampler="vllm",
    max_num_seqs=256,
    eval_max_len=16384,
)
