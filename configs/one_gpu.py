"""One 24 GB card (RTX 3090 or 4090, A10): Qwen2.5-0.5B-Instruct learns GSM8K's 7,473 problems, twice over.

Of verl's GRPO example on GSM8K (a 7B model) are lengths (512 and 1024 tokens), learning rate, clip, KL coefficient, no
entropy bonus, temperature 1. Ours are the sizes, for one card: 64 prompts of 8 samples in two updates (there 1,024
prompts of 5 in four), two epochs (there 15: about as many updates), and half of the memory for vLLM. Not run yet: no
GPU was at hand. The data, from the hub (requirements-data.txt has what reads it):

    hf download openai/gsm8k --repo-type=dataset --local-dir=data/gsm8k
    python bench.py configs/one_gpu.py --plan --gpu=rtx4090 --gpus=1
    python train_grpo.py configs/one_gpu.py
"""

from configs import Config

Config(
    run_name="one_gpu",
    model="Qwen/Qwen2.5-0.5B-Instruct",
    train_data="data/gsm8k/main/train-00000-of-00001.parquet",
    eval_data=("data/gsm8k/main/test-00000-of-00001.parquet",),
    sampler="vllm",
    max_num_seqs=256,
    vllm_gpu_memory_utilization=0.5,
    prompts_per_step=64,
    group_size=(8,),
    temperature=1.0,
    max_prompt_len=512,
    max_response_len=(1024,),
    think="optional",  # it answers without tags
    stage_steps=(232,),
    entropy_coef=0.0,
    token_budget=16384,
    save_every=58,
    keep_checkpoints=2,
    save_rollouts_every=20,
    eval_every=29,
    eval_k=1,
    eval_temperature=1.0,
)
