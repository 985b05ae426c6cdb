"""DeepScaleR, stage 1 of 3: 8K context on 8 GPUs (published settings; all other values are the defaults).

The turning point, 1,040 steps, and the cadence of saving and testing are the blog post's and the released script's.
"""

from configs import Config

Config(
    run_name="8k",
    model="deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
    max_response_len=(8192,),
    sampler="vllm",
    max_num_seqs=256,
    group_size=(8,),
    stage_steps=(1040,),
    save_every=20,
    eval_every=20,
)
