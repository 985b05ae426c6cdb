"""What the loop in train_grpo.py stands on. Read `begin` first (what a run works with; `end`, how it leaves), then
`groups` (which prompts a step draws, which groups count), `packing` (who computes what, and packed batches), `partial`
(answers that take several steps; `carried`, their files), `watch` (do sampler and trainer still agree?), `stages`
(where a run stands in its context schedule), `checkpoint` (save, find, load), `run_folder` (one run in a folder, and
what a resume may change), `preemption` (how a run leaves when a scheduler wants its machine), `metrics` (what a step
reports), `entropy` (of the policy, and a bonus that follows it), `loss_scale` (what float16 needs), `ledger` (what the
run has cost), `hardware` (how fast the machine is) and `preflight` (what is refused before anything loads). `smoke` is
the trial run before a long one, `plan` what a config would cost on GPUs that are not rented yet, `memory` whether it
fits there, `generation` how long its engines take, `simulate` what partial rollouts would gain; `predict` holds the
time model to the machine that it runs on, at `rates` measured there."""
