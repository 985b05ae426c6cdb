"""What DeepScaleR's code really did, where it differs from its text; compare with 8k.py, 16k.py and 24k.py.

Micro-batch token means, summed, and averaged over ranks (the released dp_actor.py); a KL coefficient of -0.001 (an
author's word on the published 8K run, taken for all stages here; the released script has +0.001); an entropy bonus of
0.001; answers graded by their normalized text, then by sympy (the model card's and the paper's "LaTeX/sympy checks");
Adam's state, the data order and the KL reference started afresh in every stage; 8, 32 and 32 GPUs, by hand after 1,040
and 480 steps. Where the run stops between stages it prints the next command. `token_budget` and the number of
GPUs are part of the arithmetic here: the gradient is about as many times a token mean as a GPU has micro-batches.
"""

from configs import Config

Config(
    run_name="faithful",
    model="deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
    max_response_len=(8192, 16384, 24576),
    group_size=(8, 16, 16),
    stage_steps=(1040, 480, 200),
    stage_gpus=(8, 32, 32),
    stage_optimizer="reset",
    stage_data_order="reset",
    stage_reference="reset",
    loss_agg="deepscaler",
    kl_coef=-0.001,
    kl_estimator="k3_clamped",
    entropy_coef=0.001,
    reward="deepscaler",
    token_budget=32768,
    sampler="vllm",
    max_num_seqs=256,
    save_every=10,
    eval_every=10,
)
