"""JustRL (arXiv 2512.16649 and its released script): one stage of 16K, fixed settings, nothing adaptive.

256 prompts x 8 samples in four updates, clip 0.2 / 0.28, dual clip 10, no KL, no entropy bonus, temperature 1, ten
steps of warm-up, 4,380 steps on 32 A800. Unlike there: the token mean is the minibatch's (theirs is each micro-batch's,
then averaged by sequences and ranks); rewards of 1 and 0 instead of 1 and -1, which a group's comparison does not
notice; an answer is equal text once both are normalized and stands behind `</think>` (theirs: the very text, in a box
within the last 100 characters). The data, DAPO's 17K problems with integer answers, without their copies and without
the tests:

    hf download BytedTsinghua-SIA/DAPO-Math-17k --repo-type=dataset --local-dir=data/dapo17k
    python data_prep.py bench
    tests=$(echo data/{aime24,amc23,math500,minerva,olympiad,aime25,hmmt25,brumo25,cmimc25}.jsonl | tr ' ' ,)
    python data_prep.py curate --input=data/dapo17k --against=$tests --out_dir=data/dapo
"""

from configs import Config

Config(
    run_name="justrl",
    model="deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
    train_data="data/dapo/train.jsonl",
    prompt_suffix="\n\nPlease reason step by step, and put your final answer within \\boxed{}.",
    max_response_len=(15360,),
    prompts_per_step=256,
    group_size=(8,),
    minibatches=4,
    stage_steps=(4380,),
    temperature=1.0,
    lr_warmup_steps=10,
    weight_decay=0.1,
    clip_eps_high=0.28,
    dual_clip=10.0,
    kl_coef=0.0,
    entropy_coef=0.0,
    reward="strict",
    sampler="vllm",
    max_num_seqs=256,
    eval_every=50,
)
