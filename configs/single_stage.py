"""The control: deepscaler.py at its longest context from the first step on, for as many steps as the published stages.

JustRL (2512.16649) took the same base model further than DeepScaleR in one stage with fixed settings. Compare at equal
`tokens`, not at equal steps: `python plot.py out/deepscaler out/single_stage` draws both.
"""

from configs import Config

Config(
    run_name="single_stage",
    model="deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
    max_response_len=(24576,),
    group_size=(16,),
    stage_steps=(1720,),
    sampler="vllm",
    max_num_seqs=256,
    save_every=10,
    eval_every=10,
    eval_max_len=24576,
)
