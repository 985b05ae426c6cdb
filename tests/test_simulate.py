"""The simulation of many steps' generation: who is trained on when, what is generated how often, and what it gains."""

import math
import re
from statistics import fmean

import pytest

import bench
from configs import UserError
from training import generation, plan
from training import simulate as command

SMALL = "configs/8k.py --gpus=2 --prompts_per_step=8 --max_response_len=600 --token_budget=8192 --mean_len=250".split()


def ranks_of(in_flight: float, together: bool, *flags: str) -> generation.Ranks:
    (job,) = plan.stages([*SMALL, *flags])
    return generation.Ranks(job, generation.engine_of(job, 0.002), in_flight, 0.5, together)


@pytest.mark.parametrize("in_flight, max_staleness", [(1, 0), (1.25, 1), (2, 1), (2, 4)])
@pytest.mark.parametrize("together, slots", [(False, 20), (False, 256), (True, 256)])
def test_each_group_is_trained_on_once_while_it_is_young_and_generated_once(in_flight, max_staleness, together, slots):
    ranks, trained, drawn = ranks_of(in_flight, together, f"--max_num_seqs={slots}"), [], set()
    for step in range(40):
        ranks.draw(step)
        drawn |= set(ranks.groups)
        assert len(ranks.groups) == 8 * in_flight
        _, groups = ranks.generate(step, max_staleness)
        ages = [g.age(step) for g in groups]
        assert len(groups) == 8 and ages == sorted(ages, reverse=True)
        assert ages[0] <= max_staleness
        trained += groups
    assert len(set(trained)) == len(trained) == 40 * 8 and not set(trained) & set(ranks.groups)
    assert set(trained) | set(ranks.groups) == drawn
    for group in trained:
        for s in group.samples:
            assert s.made == s.wanted == sum(tokens for _, tokens in s.made_in)
            assert [step for step, _ in s.made_in] == sorted({step for step, _ in s.made_in})
            assert s.made_in[0][0] >= group.began
    in_progress = [s for group in ranks.groups for s in group.samples]
    assert all(s.made == sum(tokens for _, tokens in s.made_in) <= s.wanted for s in in_progress)


def test_a_stopped_engine_finishes_its_step_and_leaves_no_sample_at_its_end():
    engine = generation.Engine(5, 2, math.inf, lambda live, cached: 1.0, lambda tokens: float(tokens))
    samples = [generation.Sample(4), generation.Sample(10), generation.Sample(3)]
    decoding = generation.SimulatedDecoding(engine, samples)
    assert decoding.advance() == samples[:1] and decoding.seconds == 4  # the third one takes its slot
    decoding.stop(5.5)
    assert [s.made for s in samples] == [4, 6, 2] and decoding.seconds == 6
    carried = generation.SimulatedDecoding(engine, samples[1:])
    assert carried.prefill == 11 + 7 and carried.next_end() == 18 + 1
    carried.stop(19.0)  # another engine has ended in the same second: it may not end unseen
    assert [s.made for s in samples] == [4, 6, 2]


def test_there_is_nothing_to_gain_where_all_responses_are_equally_long(monkeypatch):
    """With no more slots than samples of a step: else a larger batch would read the weights for more of them."""
    monkeypatch.setattr(generation, "SIGMA", 0.0)
    (job,) = plan.stages([*SMALL, "--max_num_seqs=32"])
    for together in (False, True):
        synchronous, partial = (generation.simulate(job, 0.002, n, 4, 0, together) for n in (1, 2))
        assert partial.seconds == pytest.approx(synchronous.seconds, rel=1e-9) and partial.waiting < 1e-9
        assert (synchronous.staleness, synchronous.oldest, synchronous.carried) == (0, 0, 0)
        assert (partial.staleness, partial.carried) == (0, 8)  # each group waits a step, then is made within one


@pytest.mark.parametrize("in_flight", [2, 3])
def test_an_engine_loses_no_more_than_what_it_prefills_again(in_flight):
    (job,) = plan.stages(["configs/8k.py", "--gpus=1", "--prompts_per_step=16", "--max_num_seqs=128"])
    synchronous, partial = generation.simulate(job, 0.014), generation.simulate(job, 0.014, in_flight, 4)
    assert partial.seconds - partial.prefill <= 1.01 * synchronous.seconds
    assert synchronous.prefill == 0 < partial.prefill


def test_in_the_long_run_no_length_is_preferred():
    """Those that end first are trained on first, and the others later."""
    (job,) = plan.stages([*SMALL, "--group_size=2"])
    means = [generation.simulate(job, 0.002, n, 4, together=True, steps=500).length for n in (1, 2, 3)]
    assert means == pytest.approx([250] * 3, rel=0.025)


def test_lengths_of_a_prompt_are_alike_and_have_the_distribution_of_all():
    rng = generation.random.Random(0)
    expected = generation.response_lengths(4500, 16_384, 2001)
    for correlation in (0.0, 0.5, 1.0):
        groups = [generation.group_lengths(expected[1000], 16_384, 2, correlation, rng) for _ in range(4000)]
        assert fmean(n for group in groups for n in group) == pytest.approx(4500, rel=0.03)
        logs = [
            [math.log(n / expected[1000]) / generation.SIGMA for n in group] for group in groups if max(group) < 16_384
        ]
        assert fmean(a * b for a, b in logs) == pytest.approx(correlation, abs=0.12)


def test_ranks_that_stop_together_wait_less():
    (job,) = plan.stages(["configs/16k.py", "--gpus=4", "--prompts_per_step=32"])
    each, together = (generation.simulate(job, 0.0025, 2, 4, together=on, steps=12) for on in (False, True))
    assert together.waiting < 0.02 < 0.1 < each.waiting
    assert together.seconds < 0.9 * each.seconds


def test_the_plan_takes_partial_rollouts_into_account(capsys):
    flags = ["configs/8k.py", "--plan", "--gpus=4", "--prompts_per_step=32"]
    (job,), (partial_job,) = (
        plan.stages([flags[0], *flags[2:], *more])
        for more in ([], ["--partial_rollouts=true", "--rollout_correction=truncate"])
    )
    partial = generation.simulate(partial_job, plan.POOR.overhead, 2, 4)
    assert plan.step_seconds(partial_job, plan.POOR)[plan.GENERATION] == partial.seconds
    assert partial.seconds < plan.step_seconds(job, plan.POOR)[plan.GENERATION]
    assert partial_job.rank_samples == 2 * job.rank_samples == 128  # the torch sampler's cache
    bench.main([*flags, "--partial_rollouts=true", "--rollout_correction=truncate"])
    printed = capsys.readouterr().out
    assert "partial rollouts (model): 64 groups in flight, 32 carried over" in printed
    poor = re.search(r"^poor: generation ([\d.]+) s a step synchronous, ([\d.]+) partial", printed, re.MULTILINE)
    assert float(poor[2]) == pytest.approx(partial.seconds, abs=0.06) and float(poor[1]) > float(poor[2])
    assert f"tokens {partial.staleness:.2f} steps stale" in printed
    bench.main(flags)
    assert "partial rollouts" not in capsys.readouterr().out


def test_the_command_compares_and_bounds_one_step_off(capsys):
    command.main([*SMALL, "--group_size=2"])
    printed = capsys.readouterr().out
    rows = re.findall(r"^(synchronous|[\d.]+, \w+) +([\d.]+) +([\d.]+)", printed, re.MULTILINE)
    assert [name for name, *_ in rows[:3]] == ["synchronous", "1.25, each", "1.25, together"] and len(rows) == 18
    assert len(re.findall(r"^one step off, ", printed, re.MULTILINE)) == 6
    assert max(map(len, printed.splitlines())) <= 132
    with pytest.raises(UserError, match="--gpu"):
        command.main([*SMALL, "--gpu=abacus"])
