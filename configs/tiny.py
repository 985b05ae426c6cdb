"""The tiny world on a CPU: DeepScaleR's loss, loop and schedule in minutes.

The loss is 8k.py's: two minibatches, clip 0.2, KL 0.001 against the frozen base, entropy bonus 0.001. What differs:
sizes (model, data, prompts, samples, lengths, budgets, evaluation), the learning rate (70 times higher, for a model
some 6,000 times smaller), the temperature (1.0, in evaluation too: the base model is sure of itself), and the stages:
three contexts in one run, each ended by the controller, which here looks at windows of 16 steps. Problems carry no
instruction, since the model knows only one task. It runs on the CPU even where there is a GPU, in float32, where a
resumed run is bitwise the uninterrupted one.
"""

from configs import Config

Config(
    run_name="tiny",
    model="data/tiny/base",
    train_data="data/tiny/train.jsonl",
    eval_data=("data/tiny/test.jsonl",),
    prompt_suffix="",
    prompts_per_step=64,
    group_size=(8, 8, 8),
    temperature=1.0,
    max_prompt_len=40,
    max_response_len=(44, 54, 74),
    stage_policy="auto",
    stage_steps=(50, 40, 40),
    stage_window=16,
    stage_patience=3,
    lr=7e-5,
    device="cpu",
    dtype="float32",
    token_budget=8192,
    logprob_chunk=8192,
    activation_checkpointing=False,
    max_num_seqs=512,
    reward_workers=1,
    save_every=20,
    save_rollouts_every=20,
    eval_every=10,
    eval_k=2,
    eval_temperature=1.0,
)
