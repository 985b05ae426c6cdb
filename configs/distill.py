"""On-policy distillation: the model samples, and learns from what a better one thinks of each token; no reward.

The loss is half the squared difference of log-probabilities, k2, whose gradient on the policy's own samples is that of
the reverse KL divergence: policy gradient with log pi_teacher - log pi as each token's advantage (Thinking Machines'
on-policy distillation; also verl's k2). One update a step: a second one would learn from samples that are no longer the
policy's own. 64 prompts x 4 samples of 7K tokens, 279 steps, the open JustRL model as teacher: geometry and teacher of
2607.29494, second hand; learning rate and warm-up are ours. Rewards are measured, and not learned from. Both models see
the teacher's instruction. Needs the data of 8k.py.
"""

from configs import Config

Config(
    run_name="distill",
    model="deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
    reference="hbx/JustRL-DeepSeek-1.5B",
    reward="none",
    kl_coef=1.0,
    kl_estimator="k2",
    entropy_coef=0.0,
    prompt_suffix="\n\nPlease reason step by step, and put your final answer within \\boxed{}.",  # the teacher's
    max_response_len=(7168,),
    prompts_per_step=64,
    group_size=(4,),
    minibatches=1,
    stage_steps=(279,),
    temperature=1.0,
    lr=2e-6,
    lr_warmup_steps=10,
    sampler="vllm",
    max_num_seqs=256,
    save_every=20,
    eval_every=20,
    eval_max_len=32768,
)
