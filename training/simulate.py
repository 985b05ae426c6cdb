"""What partial rollouts would gain on GPUs, and what one-step-off training could gain beyond them: a simulation.

    python -m training.simulate configs/8k.py --gpu=a100-80 --gpus=8 [--mean_len=4500] [--key=value ...]

Takes the flags of `bench.py --plan`, loads nothing and needs no GPU. For every stage, and for good and poor software:
synchronous generation against partial rollouts with 1.25 to 3 times as many groups in flight as a step trains on; the
same for other correlations between the lengths of a prompt's responses; and a bound on one-step-off training. All of it
is a model: the assumptions are those of plan.py and generation.py.
"""

from dataclasses import replace

from configs import HELP, run, show_help
from training import plan
from training.generation import CORRELATION, Rollouts, simulate
from training.memory import IN_FLIGHT, Job

FLIGHTS = (1.0, 1.25, 1.5, 2.0, 3.0)  # groups in flight by those that a step trains on; 1 is synchronous
CORRELATIONS = (0.0, 0.25, 0.5, 0.75)
BOTH = (False, True)  # each rank stops when it has its own share, or all stop together
HEADER = (
    f"{'in flight, stop':<18}{'generate':>10}{'step':>8}{'GPU-hours':>11}{'gain':>7}{'waiting':>9}{'empty':>7}"
    f"{'prefill':>9}{'staleness':>11}{'most':>6}{'stale tokens':>14}"
)
LEGEND = """\
generate, step: seconds; gain: in GPU-hours against synchronous; stop: each rank when it has its own share of finished
groups, or all when they have the step's together; waiting: share of generation in which a rank waits for another;
empty: share of its slots in which nothing lives; prefill: seconds a step on what older weights began; staleness: steps
between a token's weights and those that it trains, on average, and the most"""


def table_row(name: str, job: Job, rollouts: Rollouts, rest: float, synchronous: float) -> str:
    """rest: seconds of a step beside generation; synchronous: seconds of a whole synchronous step."""
    step = rollouts.seconds + rest
    hours = job.cfg.stage_steps[0] * step * job.gpus / 3600
    return (
        f"{name:<18}{rollouts.seconds:>10.1f}{step:>8.1f}{hours:>11,.0f}{1 - step / synchronous:>7.0%}"
        f"{rollouts.waiting:>9.0%}{rollouts.empty:>7.0%}{rollouts.prefill:>9.1f}{rollouts.staleness:>11.2f}"
        f"{rollouts.oldest:>6}{rollouts.stale_tokens:>14.0%}"
    )


def seconds_beside_generation(job: Job, stack: plan.Stack) -> dict[str, float]:
    """phase -> seconds of a step, but for generation's."""
    phases = plan.step_seconds(job, stack)
    return {name: seconds for name, seconds in phases.items() if name != plan.GENERATION}


def print_partial(job: Job, name: str) -> None:
    """Synchronous against partial rollouts, one stack."""
    stack = plan.STACKS[name]
    rest = sum(seconds_beside_generation(job, stack).values())
    print(f"\n{name} software (model)\n{HEADER}")
    synchronous = 0.0
    for in_flight in FLIGHTS:
        for together in BOTH:
            staleness = job.cfg.max_staleness if in_flight > 1 else 0
            rollouts = simulate(job, stack.overhead, in_flight, staleness, together=together)
            synchronous = synchronous or rollouts.seconds + rest
            label = f"{in_flight:g}, {'together' if together else 'each'}" if in_flight > 1 else "synchronous"
            if in_flight > 1 or not together:
                print(table_row(label, job, rollouts, rest, synchronous))


def print_correlations(job: Job, name: str) -> None:
    """The same at other correlations of the lengths of a prompt's responses."""
    stack = plan.STACKS[name]
    rest = sum(seconds_beside_generation(job, stack).values())
    print(
        f"\n{name} software (model), {IN_FLIGHT:g} in flight; gain of a step by the correlation of a prompt's lengths"
    )
    print(f"{'correlation':<18}" + "".join(f"{c:>8g}" for c in CORRELATIONS))
    for together in BOTH:
        gains = []
        for correlation in CORRELATIONS:
            synchronous = simulate(job, stack.overhead, correlation=correlation)
            partial = simulate(job, stack.overhead, IN_FLIGHT, job.cfg.max_staleness, correlation, together)
            gains.append(1 - (partial.seconds + rest) / (synchronous.seconds + rest))
        print(f"{'stop together' if together else 'stop each':<18}" + "".join(f"{gain:>8.0%}" for gain in gains))


def split_step(job: Job, stack: plan.Stack, in_flight: float) -> tuple[float, int]:
    """Seconds of a step where some GPUs only generate, with their cache in 90% of the memory, while the others train on
    the step before; and how many generate. The best split. Grading costs nothing, evaluation is as on all GPUs."""
    phases = seconds_beside_generation(job, stack)
    training = phases.pop("train") + phases.pop("logprobs")
    in_turn = sum(phases.values()) - phases["reward"]
    staleness = job.cfg.max_staleness if in_flight > 1 else 0
    steps = []
    for gpus in range(max(1, job.gpus // 4), job.gpus * 3 // 4 + 1):
        engines = replace(job, gpus=gpus, cfg=replace(job.cfg, vllm_gpu_memory_utilization=0.9))
        generation = simulate(engines, stack.overhead, in_flight, staleness, together=True)
        steps.append((max(generation.seconds, training * job.gpus / (job.gpus - gpus)) + in_turn, gpus))
    return min(steps)


def print_one_step_off(job: Job, name: str) -> None:
    """What could be gained beyond partial rollouts if a step's rollouts came while the step before trains."""
    stack = plan.STACKS[name]
    phases = seconds_beside_generation(job, stack)
    rest = sum(phases.values())
    each, together = (simulate(job, stack.overhead, IN_FLIGHT, job.cfg.max_staleness, together=on) for on in BOTH)
    # On the same GPUs nothing gets faster, but no GPU waits for another, nor for the grader.
    busy = together.seconds * (1 - together.waiting) + rest - phases["reward"]
    print(f"\n{name} software (model), one step off: seconds of a step, bounds from below")
    print(f"partial rollouts with {IN_FLIGHT:g} in flight: stop each {each.seconds + rest:.1f}, stop together ", end="")
    print(f"{together.seconds + rest:.1f}")
    lines = [("one step off, same GPUs, never idle", busy)]
    for label, in_flight in (("synchronous batches", 1.0), ("partial rollouts too", float(IN_FLIGHT))):
        if job.gpus > 1:
            seconds, gpus = split_step(job, stack, in_flight)
            lines.append((f"one step off, {gpus} of {job.gpus} GPUs generate, {label}", seconds))
    for label, seconds in lines:
        gains = [1 - seconds / (partial.seconds + rest) for partial in (each, together)]
        print(f"{label:<62}{seconds:>7.1f}: {gains[0]:>4.0%} beyond stop each, {gains[1]:.0%} beyond stop together")


def main(argv: list[str]) -> None:
    """Print the tables of every stage. Raises UserError."""
    if HELP & set(argv):
        return show_help(__doc__, plan.Flags())
    for job in plan.stages(argv):
        job = replace(job, cfg=replace(job.cfg, partial_rollouts=False))
        context, group = job.cfg.max_response_len[0], job.cfg.group_size[0]
        samples = f"{job.cfg.prompts_per_step} prompts x {group} samples of {job.mean:,.0f} tokens"
        print(f"\ncontext {context}: {samples}, {job.gpus} x {job.gpu.name}, correlation {CORRELATION}")
        for name in plan.STACKS:
            print_partial(job, name)
            print_correlations(job, name)
            print_one_step_off(job, name)
    print(LEGEND)


if __name__ == "__main__":
    run(main)
