"""Archer (arXiv 2507.15778), mathematics: tokens at which the policy is unsure may move further, and freely.

Of each response the fifth of the tokens with the highest entropy has a clip of 0.5 and no KL penalty, the others 0.2
and 0.001. 64 prompts x 16 samples in updates of 32, 32K tokens, temperature 1, 520 steps, about 1,900 H800-hours. Dual
clip, weight decay and warm-up are those of the released script for code (none for mathematics was released), but not
its three passes over each batch. Unlike in that script, each token's KL penalty weighs as much as its loss (there it is
averaged over the penalized tokens alone). Data: DeepScaleR's instead of their 51,800 problems from three sets.
"""

from configs import Config

Config(
    run_name="archer",
    model="deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
    max_prompt_len=2048,
    max_response_len=(32768,),
    prompts_per_step=64,
    group_size=(16,),
    minibatches=2,
    stage_steps=(520,),
    temperature=1.0,
    lr_warmup_steps=10,
    weight_decay=0.1,
    dual_clip=10.0,
    high_entropy_quantile=0.8,
    high_entropy_clip_eps=0.5,
    kl_coef=0.001,
    kl_estimator="k3_clamped",
    entropy_coef=0.0,
    loss_agg="sequence",
    drop_uniform_groups=True,
    token_budget=36864,
    sampler="vllm",
    max_num_seqs=128,
)
