"""DeepScaleR, stage 2 of 3: 16K context on 32 GPUs, from the 8K checkpoint of step 1,040 (published settings)."""

from configs import Config

Config(
    run_name="16k",
    model="out/8k/hf/step_001040",
    max_response_len=(16384,),
    sampler="vllm",
    max_num_seqs=256,
    group_size=(16,),
    stage_steps=(480,),
    save_every=10,
    eval_every=10,
)
