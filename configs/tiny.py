"""The tiny world on a CPU: DeepScaleR's loss, loop and schedule in minutes.

The loss is 8k.py's: two minibatches, clip 0.2, KL 0.001 against the frozen base, entropy bonus 0.001. What differs:
sizes (model, data, prompts, samples, lengths, budgets), the learning rate (200 times higher, for a model 5,000 times
smaller), the temperature (1.0: the base model is sure of itself), and the stages (three contexts in one run).
float32 because a CPU is no faster in bf16.
"""

from configs import Config

Config(
    run_name="tiny",
    model="data/tiny/base",
    train_data="data/tiny/train.jsonl",
    eval_data=("data/tiny/test.jsonl",),
    prompt_suffix="",
    prompts_per_step=32,
    group_size=(16, 16, 16),
    temperature=1.0,
    max_prompt_len=32,
    max_response_len=(48, 72, 104),
    stage_steps=(80, 40, 40),
    lr=2e-4,
    dtype="float32",
    token_budget=8192,
    logprob_chunk=8192,
    activation_checkpointing=False,
    sampler_slots=512,
    reward_workers=1,
    save_every=40,
    save_rollouts_every=40,
    eval_every=20,
    eval_k=4,
    eval_temperature=1.0,
)
