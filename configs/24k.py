"""DeepScaleR, stage 3 of 3: 24K context on 32 GPUs, from the 16K checkpoint of step 480 (published settings)."""

from configs import Config

Config(
    run_name="24k",
    model="out/16k/hf/step_000480",
    max_response_len=(24576,),
    sampler="vllm",
    max_num_seqs=256,
    group_size=(16,),
    stage_steps=(200,),
    save_every=10,
    eval_every=10,
)
