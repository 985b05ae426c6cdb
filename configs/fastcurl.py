"""FastCuRL-V3 (arXiv 2503.17287; scripts and README of its repository): short prompts first, then longer, then all.

8K on the short prompts, 16K on all, 24K on the long ones, 16K on all with 16 samples (this is their Preview), and 16K
without KL and entropy bonus. The split is at the mean length in characters, 247 for DeepScaleR's data. Steps of the
first four stages are the README's, the last one's is worked out from its totals. Eight A100 in all stages. Unlike
there: the token mean is the minibatch's, and answers are compared by the exact rule. The data:

    python data_prep.py train --source=deepscaler
    python data_prep.py split --input=data/train.jsonl --by=prompt_len --out_dir=data/split
"""

from configs import Config

Config(
    run_name="fastcurl",
    model="deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
    max_response_len=(8192, 16384, 24576, 16384, 16384),
    train_data=(
        "data/split/short.jsonl",
        "data/train.jsonl",
        "data/split/long.jsonl",
        "data/train.jsonl",
        "data/train.jsonl",
    ),
    prompts_per_step=(128, 64, 64, 64, 64),
    minibatches=(2, 1, 1, 1, 1),
    group_size=(8, 8, 8, 16, 16),
    stage_steps=(160, 590, 230, 580, 3520),
    kl_coef=(0.001, 0.001, 0.001, 0.001, 0.0),
    entropy_coef=(0.001, 0.001, 0.001, 0.001, 0.0),
    sampler="vllm",
    max_num_seqs=256,
    save_every=10,
    eval_every=10,
    eval_max_len=32768,
)
