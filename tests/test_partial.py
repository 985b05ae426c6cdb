"""Partial rollouts: nothing is lost, nothing is drawn twice, no length is favoured, and a run can be resumed."""

import random
import shutil
import signal
import statistics
from collections import Counter
from dataclasses import replace
from functools import partial as bind
from types import SimpleNamespace

import pytest
import torch

from configs import PREEMPTED_STATUS, UserError, load_config
from engines.samples import Quota
from rollout import Rollout, TorchSampler, sample_seed
from runs import flags, metrics, responses, run_ranks, train, weights_hash
from test_preemption import signalled_main
from train_grpo import with_advantages
from training import checkpoint, partial, watch
from training.checkpoint import RunState
from training.metrics import Timer
from training.packing import fixed_logprobs, load_model, pack
from training.preemption import Preemption

RIGHT, LONG, SHORT = 0.1, 23, 5  # a policy that is right with this probability, after LONG tokens, or else wrong
SETTINGS = dict(partial_rollouts=True, rollout_correction="truncate", max_staleness=2, stage_steps="3,2")


class TwoLengths:
    """A sampler whose policy is known. It stands for an engine, whose answers have no known gradient."""

    cached_tokens = 0

    def __init__(self, right=RIGHT):
        self.right = right

    def is_right(self, seed):
        return random.Random(seed).random() < self.right

    def generate_until(self, groups, seeds, num_groups, must_finish, max_tokens, temperature, top_p):
        quota, groups = Quota(groups, num_groups, must_finish), [list(group) for group in groups]
        where = [(g, i) for g, group in enumerate(groups) for i, r in enumerate(group) if r.finish_reason is None]
        while not quota.is_met:  # a token for each
            assert any(quota.unfinished), "there are not as many groups"
            for sample, (g, i) in enumerate(where):
                r, is_right = groups[g][i], self.is_right(seeds[g][i])
                if r.finish_reason is None:
                    ids = [*r.response_ids, int(is_right)]
                    reason = "stop" if len(ids) >= (LONG if is_right else SHORT) else None
                    groups[g][i] = replace(r, response_ids=ids, logprobs=[0.0] * len(ids), finish_reason=reason)
                    if reason:
                        quota.finish(sample)
        return groups


def known_run(right=RIGHT, **changes):
    """What partial.sample needs of a run whose sampler is TwoLengths; ten prompts, of which a step takes four."""
    values = dict(prompts_per_step=4, group_size="4,5", max_response_len="24,32", stage_steps="7,5", eval_every=0)
    values = SETTINGS | values | changes
    cfg = load_config(["configs/tiny.py", *(f"--{k}={v}" for k, v in values.items())])
    prompts = [SimpleNamespace(ids=[1, 2]) for _ in range(10)]
    return SimpleNamespace(cfg=cfg, prompts=prompts, sampler=TwoLengths(right), preemption=Preemption(0))


def trained_groups(run, state, steps):
    """The groups that these steps train on, as (step, group); and the state after them."""
    groups = []
    for _ in range(steps):
        rollouts, indices, state = partial.sample(run, state, Timer(torch.device("cpu")))
        of_step = partial.in_groups(rollouts)
        assert [group[0].prompt_id for group in of_step] == indices
        state = replace(state, step=state.step + 1)
        groups += [(state.step, group) for group in of_step]
    return groups, state


# -------------------------------------------------------------------------------------------------------- what is drawn


def estimates(groups):
    """Of each group: the policy gradient, in the parameter whose sigmoid RIGHT is; its mean reward; its mean length."""
    rows = []
    for group in groups:
        rewards = [r.response_ids[0] for r in group]
        advantages = [reward - statistics.mean(rewards) for reward in rewards]
        gradient = statistics.mean(a * (reward - RIGHT) for a, reward in zip(advantages, rewards, strict=True))
        rows.append((gradient, statistics.mean(rewards), statistics.mean(len(r.response_ids) for r in group)))
    return rows


def distances(rows, group_size=4):
    """Of the means from the truth, in standard errors."""
    length = RIGHT * LONG + (1 - RIGHT) * SHORT
    truth = ((1 - 1 / group_size) * RIGHT * (1 - RIGHT), RIGHT, length)
    found = []
    for values, expected in zip(zip(*rows, strict=True), truth, strict=True):
        error = statistics.stdev(values) / len(values) ** 0.5
        found.append(abs(statistics.mean(values) - expected) / error)
    return found


def test_no_length_is_favoured_and_dropping_what_is_unfinished_would(group_of_one):
    run = known_run(stage_steps="200,1")
    groups, state = trained_groups(run, RunState(), 200)
    assert not state.carried and max(distances(estimates(group for _, group in groups))) < 4
    kept = []  # the naive cut: of twice as many groups those that are finished first, and nothing goes on
    for step in range(200):
        drawn, _ = partial.in_flight(replace(state, step=step, stage_began=step, carried=()), run.prompts, run.cfg)
        seeds = [[hash((step, g, s)) for s in range(4)] for g in range(8)]
        drawn = run.sampler.generate_until(drawn, seeds, 4, set(), 24, 1.0, 1.0)
        kept += [group for group in drawn if all(r.finish_reason for r in group)]
    assert min(distances(estimates(kept))) > 10


def test_every_group_that_is_drawn_is_trained_on_once_before_it_is_too_old(group_of_one):
    """Over a stage's end, with prompts that are in flight twice, and where a resumed run lowers the limit."""
    run, early = known_run(0.03, max_staleness=3), known_run(0.03, max_staleness=1)
    first, state = trained_groups(run, RunState(), 4)
    assert max(partial.age(group, 4) for group in state.carried) > 1
    second, state = trained_groups(early, state, 3)
    assert not state.carried
    third, state = trained_groups(early, replace(state, stage=1, stage_began=7, epoch=0, position=0), 5)
    assert not state.carried
    for limit, groups in ((3, first), (1, second + third)):
        ages = [partial.age(group, step) for step, group in groups]
        assert max(ages) == limit
    draws = Counter((step > 7, group[0].draw, group[0].prompt_id) for step, group in first + second + third)
    assert set(draws.values()) == {1} and Counter(draw for _, draw, _ in draws) == dict.fromkeys(range(1, 13), 4)
    for step, group in first + second + third:
        assert [r.sample_id for r in group] == list(range(5 if step > 7 else 4))
        for r in group:
            is_right = run.sampler.is_right(sample_seed(0, int(step > 7), r.draw, 0, r.prompt_id, r.sample_id))
            assert r.response_ids == [is_right] * (LONG if is_right else SHORT)  # also where it was begun anew
            assert sum(tokens for _, tokens in r.segments) == len(r.response_ids)


def test_a_stage_that_ends_unforeseen_begins_with_the_prompts_in_flight_or_with_a_new_order(group_of_one):
    run = known_run(stage_data_order="keep", stage_policy="auto")
    groups, state = trained_groups(run, RunState(), 3)
    in_flight = [(group[0].draw, group[0].prompt_id) for group in state.carried]
    state = replace(state, stage=1, stage_began=3)
    begun = partial.for_next_stage(state, run.prompts, run.cfg)
    assert [(group[0].draw, group[0].prompt_id) for group in begun] == in_flight
    assert all(not r.response_ids and r.finish_reason is None for group in begun for r in group)
    later, _ = trained_groups(run, replace(state, carried=begun), 5)
    assert {len(group) for _, group in later} == {5}
    draws = Counter((group[0].draw, group[0].prompt_id) for _, group in groups + later)
    assert set(draws.values()) == {1} and len(draws) == 8 * 4
    assert partial.for_next_stage(state, run.prompts, known_run(stage_data_order="reset").cfg) == ()


def test_groups_of_one_prompt_from_two_draws_are_compared_apart():
    cfg = known_run().cfg
    rewards = {(1, 7): (0.0, 1.0), (2, 7): (1.0, 1.0), (2, 3): (0.0, 0.0)}
    rollouts = []
    for (draw, prompt_id), values in rewards.items():
        rollouts += [Rollout(prompt_id, s, [1], [2], [0.0], "stop", r, draw=draw) for s, r in enumerate(values)]
    groups = with_advantages(rollouts, [7, 3, 7], 24, cfg)
    assert sorted((g[0].draw, g[0].prompt_id) for g in groups) == sorted(rewards)
    for group in groups:
        assert tuple(r.reward for r in group) == rewards[group[0].draw, group[0].prompt_id]
        assert any(r.advantage for r in group) == (len({r.reward for r in group}) > 1)


# ------------------------------------------------------------------------------------------------------------ samplers


def test_a_response_is_the_same_wherever_it_is_cut(tiny_model_dir):
    sampler = TorchSampler(tiny_model_dir, torch.float32, "cpu", 5)
    sampler.eos_ids = torch.arange(6)
    prompts = [[0, 2, 11, 18], [0, 2, 12], [0, 2, 9, 18, 15, 19, 50, 3], [0, 7]]
    seeds = [[10 * p + s for s in range(4)] for p in range(4)]
    whole = sampler.generate(prompts, seeds, 30, 1.0, 1.0)
    groups = [[Rollout(p, s, prompts[p], [], [], None) for s in range(4)] for p in range(4)]
    cuts = 0
    for finished in range(1, 5):
        groups = sampler.generate_until(groups, seeds, finished, set(), 30, 1.0, 1.0)
        assert sum(all(r.finish_reason for r in group) for group in groups) >= finished
        cuts += sum(r.finish_reason is None and len(r.response_ids) > 0 for group in groups for r in group)
    assert cuts > 3
    for one, other in zip(sum(whole, []), sum(groups, []), strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=2e-5)
        assert replace(other, logprobs=one.logprobs) == one


def test_generation_waits_for_the_groups_that_must_finish(tiny_model_dir):
    sampler = TorchSampler(tiny_model_dir, torch.float32, "cpu", 8)
    groups = [[Rollout(0, 0, [0, 2], [7] * n, [-1.0] * n, None)] for n in (0, 10, 18)]  # of 20 tokens
    sampler.eos_ids = torch.tensor([], dtype=torch.int64)
    lengths = []
    for must_finish in (set(), {1}):
        new = sampler.generate_until(groups, [[1], [2], [3]], 1, must_finish, 20, 1.0, 1.0)
        lengths.append([len(r.response_ids) for (r,) in new])
    assert lengths == [[2, 12, 20], [10, 20, 20]]


# ------------------------------------------------------------------------------------------------------------ the watch


def test_tokens_of_older_weights_do_not_stop_a_run_and_a_fault_in_fresh_ones_does(tiny_model_dir, group_of_one):
    cfg = load_config(["configs/tiny.py", f"--model={tiny_model_dir}"])
    model = load_model(cfg, tiny_model_dir, group_of_one, torch.float32)
    sampler = TorchSampler(tiny_model_dir, torch.float32, "cpu", 8)
    ((r,),) = sampler.generate([[0, 2, 7, 16]], [[1]], 30, 1.0, 1.0)
    n = len(r.response_ids)
    for wrong in (0, 9, 10, n - 1):  # at step 5; steps 3 and 4 have sampled the first ten tokens
        logprobs = [logprob - (i == wrong) for i, logprob in enumerate(r.logprobs)]
        sampled = replace(r, logprobs=logprobs, segments=((3, 4), (4, 6), (5, n - 10)))
        b = pack([sampled], False, group_of_one, step=5)
        sums = watch.mismatch(fixed_logprobs(model, [b], cfg)[0], b)
        if wrong < 10:
            figures = watch.check(sums, "step 5", model, [b], cfg)
            assert figures.k3 < 1e-9 and figures.stale_k3 == pytest.approx((torch.e - 2) / 10, rel=1e-4)
        else:
            with pytest.raises(SystemExit, match="sampler and trainer disagree"):
                watch.check(sums, "step 5", model, [b], cfg)
    b = pack([replace(r, segments=((3, n),))], False, group_of_one, step=5)  # no token is fresh: no figure, not zero
    figures = watch.check(watch.mismatch(fixed_logprobs(model, [b], cfg)[0], b), "step 5", model, [b], cfg)
    row = watch.columns(figures, replace(cfg, partial_rollouts=True, rollout_correction="truncate"))
    assert row.pop("mismatch_stale_k3") < 1e-9 and set(row.values()) == {None}


# ----------------------------------------------------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def whole_run(world, tmp_path_factory):
    """Five steps in two stages of three and two."""
    out = tmp_path_factory.mktemp("partial")
    train(flags(world, out, **SETTINGS))
    return out / "run"


def test_a_run_says_how_old_its_tokens_are(whole_run):
    rows = metrics(whole_run)
    assert [row["carried_groups"] for row in rows] == [8, 8, 0, 8, 0]
    assert [row["groups_trained"] for row in rows] == [8] * 5
    assert rows[0]["staleness_max"] == rows[3]["staleness_max"] == 0 and rows[0]["mismatch_stale_k3"] is None
    for row in (rows[1], rows[2], rows[4]):
        assert 0 < row["staleness_mean"] < row["staleness_max"] <= 2
        assert row["mismatch_k3"] < 1e-9 < row["mismatch_stale_k3"]
    for first, last in ((1, 3), (4, 5)):
        lengths = [row["length"] for step in range(first, last + 1) for row in responses(whole_run, step)]
        assert sum(lengths) == sum(row["tokens_generated"] for row in rows[first - 1 : last])


def test_a_run_that_is_cut_in_the_middle_of_its_answers_resumes_exactly(world, tmp_path, whole_run):
    argv = flags(world, tmp_path, preempt_seconds=0, **SETTINGS)
    moment = ("train_grpo.add_fixed_logprobs", 3, signal.SIGUSR1)  # what generation has carried over is given up too
    run_ranks(1, argv, PREEMPTED_STATUS, bind(signalled_main, moment))
    state_dir = tmp_path / "run/ckpt/step_000002"
    copy = shutil.copytree(state_dir, tmp_path / "copy")
    train([*argv, "--resume=true", "--max_staleness=3"])
    assert metrics(tmp_path / "run") == metrics(whole_run)
    assert weights_hash(tmp_path / "run", 5) == weights_hash(whole_run, 5)
    assert all(responses(tmp_path / "run", step) == responses(whole_run, step) for step in range(1, 6))
    for name in ("carried.json", "carried.safetensors"):
        assert checkpoint.damage(copy) is None
        content = (copy / name).read_bytes()
        (copy / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert checkpoint.damage(copy) == f"{name} does not match its hash"
        (copy / name).write_bytes(content)


@pytest.mark.parametrize(
    "flag, refusal",
    [
        ("--rollout_correction=none", "partial_rollouts: tokens of older weights must be weighed"),
        ("--rollout_correction=sequence_mask", "partial_rollouts: .* none left out"),
        ("--refill_attempts=1", "refill_attempts: partial_rollouts draws no groups"),
        ("--max_staleness=0", "max_staleness: 0 is under its minimum 1"),
        ("--top_p=0.9", "top_p: rollout_correction compares whole distributions"),
    ],
)
def test_what_does_not_go_together_is_refused(flag, refusal):
    known = ["--partial_rollouts=true", "--rollout_correction=truncate", "--drop_uniform_groups=true"]
    with pytest.raises(UserError, match=refusal):
        load_config(["configs/tiny.py", *(f for f in known if f.split("=")[0] != flag.split("=")[0]), flag])
