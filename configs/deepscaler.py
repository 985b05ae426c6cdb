"""DeepScaleR in one run: 8K -> 16K -> 24K, each stage ended by the controller (schedule.py) instead of by eye.

Contexts and samples a prompt are the published ones; the limits are one and a half times the published 1,040, 480 and
200 steps, since the controller sees a turning point some time after it (20 to 110 steps on the labelled curves of its
test). It goes back to the best checkpoint before.
With `--stage_gpus=8,32,32` the run stops at the first switch and prints the command for 32 GPUs.
"""

from configs import Config

Config(
    run_name="deepscaler",
    model="deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
    max_response_len=(8192, 16384, 24576),
    group_size=(8, 16, 16),
    stage_policy="auto",
    stage_steps=(1560, 720, 300),
    stage_from="best",
    sampler="vllm",
    max_num_seqs=256,
    save_every=10,
    eval_every=10,
    eval_max_len=24576,
)
