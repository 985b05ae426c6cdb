"""DAPO's settings (2503.14476, section 4.1, and its released script) on this model: one stage of 20K tokens.

Of those the last 4,096 are paid for by the soft penalty. 512 prompts x 16 samples a step in 16 minibatches, clip 0.2 /
0.28, dual clip 10, no KL, no entropy bonus, uniform groups replaced, temperature 1. Unlike there: a constant learning
rate without warm-up, at most two rounds of refills a step, and rewards of 1 and 0 instead of 1 and -1, beside which the
penalty weighs twice as much.
"""

from configs import Config

Config(
    run_name="dapo",
    model="deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
    max_response_len=(20480,),
    max_prompt_len=2048,
    prompts_per_step=512,
    group_size=(16,),
    minibatches=16,
    stage_steps=(500,),
    temperature=1.0,
    clip_eps_high=0.28,
    dual_clip=10.0,
    kl_coef=0.0,
    entropy_coef=0.0,
    weight_decay=0.1,
    overlong_buffer=4096,
    drop_uniform_groups=True,
    refill_attempts=2,
    sampler="vllm",
    max_num_seqs=256,
)
