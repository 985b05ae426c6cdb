"""The recipes after DeepScaleR: their configs run, settings change from stage to stage, the curriculum leaves out what
is solved and resumes exactly, a teacher's gradient is policy gradient's, and formulas give their authors' numbers.
"""

import json
import os
import shutil
import signal
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from configs import Config, UserError, load_config
from losses import aggregate, clipped, is_high_entropy, kl_penalty, next_entropy_coef, policy_loss
from model import Qwen2, token_logprobs
from rollout import Rollout
from runs import (
    assert_same_run,
    flags,
    metrics,
    responses,
    rows_of,
    start_ranks,
    status_of,
    train,
)
from test_checkpoint import stopped_after
from train_grpo import clip_and_kl_coef, with_advantages
from training import entropy, memory, plan, run_folder, smoke, stages
from training.checkpoint import RunState
from training.groups import (
    after_visits,
    curriculum_columns,
    draw_prompts,
    groups_to_train_on,
    is_left_out,
    refill_prompts,
)

ROOT = Path(__file__).parents[1]
GOLDEN = json.loads((Path(__file__).parent / "golden" / "recipes.json").read_text())
SIZES = ("16k", "24k", "single_stage")  # 8k.py's algorithm at other sizes, which the tests' world does not have
CONFIGS = [path for path in sorted((ROOT / "configs").glob("[!_]*.py")) if path.stem not in SIZES]


def small(path, world, teacher, folder):
    """The arguments of a step of every stage of a config, of three in all at least, in the world of conftest.py: sizes
    and contexts shrink, the algorithm is the config's."""
    cfg = load_config([str(path)])
    contexts = [n if n < 100 else max(24, n // 512) for n in cfg.max_response_len]
    prompts = [8 if n == max(cfg.entries("prompts_per_step")) else 6 for n in cfg.entries("prompts_per_step")]
    lists = dict(max_response_len=contexts, group_size=[4] * len(contexts), prompts_per_step=prompts)
    lists |= dict(minibatches=[min(4, n) for n in cfg.entries("minibatches")])
    lists |= dict(stage_steps=[1] * len(contexts) if len(contexts) >= 3 else [3, 1][: len(contexts)])
    values = dict(model=world / "base", train_data=world / "train.jsonl", eval_data=world / "test.jsonl")
    values |= dict(out_dir=folder, run_name="run", max_prompt_len=16, prompt_suffix="", max_num_seqs=64)
    values |= dict(sampler="torch", device="cpu", dtype="float32", token_budget=256, stage_policy="fixed")
    values |= dict(stage_gpus="", overlong_buffer=cfg.overlong_buffer // 512, reward_workers=1, eval_every=0)
    values |= dict(save_every=0, stage_from="last", activation_checkpointing=False)
    values |= {name: ",".join(map(str, entries)) for name, entries in lists.items()}
    values |= dict(reference=teacher) if cfg.reference else {}
    return [str(path), *(f"--{k}={v}" for k, v in values.items())]


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_algorithm_of_a_config_trains(world, tmp_path, tiny_model_dir, path):
    train(small(path, world, tiny_model_dir, tmp_path))
    rows, cfg = rows_of(tmp_path / "run"), load_config([str(path)])
    stages_of = [row["stage"] for row in rows]
    assert len(rows) >= 3 and set(stages_of) == set(range(len(cfg.max_response_len)))
    updated = [row for row in rows if row["loss"] is not None]
    assert updated and all(row["grad_norm"] > 0 for row in updated) and rows[-1]["updates_skipped"] == 0
    assert all((row["kl"] == 0) or cfg.entries("kl_coef")[row["stage"]] for row in updated)
    if cfg.reference:
        assert all(row["kl"] > 0 and row["pg_loss"] == 0 for row in rows)


def test_each_recipe_says_what_its_paper_does():
    """The settings that make it that recipe; sources stand in each file."""
    justrl, fastcurl, prorl, archer, skywork, distill = (
        load_config([f"configs/{name}.py"]) for name in "justrl fastcurl prorl archer skywork distill".split()
    )
    assert (justrl.prompts_per_step, justrl.minibatches, justrl.group_size, justrl.temperature) == (256, 4, (8,), 1.0)
    assert (justrl.clip_eps_high, justrl.kl_coef, justrl.entropy_coef, justrl.reward) == (0.28, 0, 0, "strict")
    assert fastcurl.max_response_len == (8192, 16384, 24576, 16384, 16384)
    assert [fastcurl.of_stage(i).kl_coef for i in range(5)] == [0.001] * 4 + [0.0]
    assert [Path(data).stem for data in fastcurl.train_data] == ["short", "train", "long", "train", "train"]
    assert (prorl.clip_eps_high, prorl.temperature, prorl.lr, prorl.minibatches) == (0.4, 1.2, 2e-6, 4)
    assert {prorl.stage_reference, prorl.stage_optimizer} == {"reset"} and prorl.drop_uniform_groups
    assert (archer.high_entropy_quantile, archer.high_entropy_clip_eps, archer.kl_coef) == (0.8, 0.5, 0.001)
    assert (skywork.entropy_target, skywork.entropy_coef_step, skywork.entropy_coef_max) == (0.2, 1e-4, 0.005)
    assert (distill.reward, distill.kl_estimator, distill.kl_coef, distill.minibatches) == ("none", "k2", 1.0, 1)


# ------------------------------------------------------------------------------------------------ from stage to stage


@pytest.mark.slow
def test_settings_change_from_stage_to_stage_and_contexts_shrink(world, tmp_path):
    rows = (world / "train.jsonl").read_text().splitlines()
    (tmp_path / "few.jsonl").write_text("\n".join(rows[:12]) + "\n")
    (tmp_path / "run.py").write_text(
        f"Config(train_data=({str(world / 'train.jsonl')!r}, {str(tmp_path / 'few.jsonl')!r}), stage_data_order='keep')"
    )
    changes = dict(max_response_len="32,24", stage_steps="2,2", prompts_per_step="8,6", minibatches="2,1")
    changes |= dict(temperature="1.0,0.7", lr="1e-3,5e-4", lr_warmup_steps=2, kl_coef="0.001,0", entropy_coef="0,0.01")
    argv = [str(tmp_path / "run.py"), *flags(world, tmp_path, device="cpu", dtype="float32", **changes)[1:]]
    argv = [a for a in argv if not a.startswith("--train_data=")] + ["--prompt_suffix="]
    output = train(argv)
    assert "temperature: 0.7, minibatches: 1, lr: 0.0005" in output
    rows = rows_of(tmp_path / "run")
    assert [row["max_response_len"] for row in rows] == [32, 32, 24, 24]
    assert [row["groups_drawn"] for row in rows] == [8, 8, 6, 6]
    assert [row["lr"] for row in rows] == [5e-4, 1e-3, 2.5e-4, 5e-4]  # the optimizer begins anew in each stage
    assert rows[1]["kl"] > 0 and rows[3]["kl"] == 0
    assert all(row["mismatch_k3"] < 1e-9 for row in rows)  # sampled at the temperature that the trainer divides by
    few = {json.loads(line)["problem"] for line in (tmp_path / "few.jsonl").read_text().splitlines()}
    drawn = [{row["prompt"] for row in responses(tmp_path / "run", step)} for step in (1, 2, 3, 4)]
    assert drawn[2] | drawn[3] <= few and not drawn[0] | drawn[1] <= few


def test_warm_up_is_transformers_without_its_first_step_of_zero():
    from transformers import get_constant_schedule_with_warmup

    parameter = torch.nn.Parameter(torch.zeros(1))
    schedule = get_constant_schedule_with_warmup(torch.optim.SGD([parameter], lr=2e-6), num_warmup_steps=10)
    cfg = load_config(["--lr=2e-6", "--lr_warmup_steps=10"])
    for step in range(15):
        schedule.optimizer.step()
        schedule.step()
        got = stages.learning_rate(RunState(step=7 + step, stage_began=7), cfg)
        assert got == pytest.approx(schedule.get_last_lr()[0], rel=1e-12)
    kept = replace(cfg, stage_optimizer="keep")
    assert stages.learning_rate(RunState(step=3, stage_began=3), kept) == pytest.approx(0.8e-6)


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--temperature=1,0.6"], "temperature: 2 entries for 1 stages"),
        (["--minibatches=2,9"], "minibatches: 2 entries for 1 stages"),
        (["--temperature=0"], "temperature: 0.0 must be greater than 0"),
        (["--lr=1e-6,x"], "lr: 'x' is not a float"),
        (["--kl_coef=0", "--reference=x"], "reference: nothing is learned from it with kl_coef=0"),
        (["--kl_coef=0", "--reward=none"], "reward: with none there is nothing to learn but a teacher's"),
        (["--reward=none"], "reward: with none there is nothing to learn but a teacher's"),
        (["--reward=none", "--reference=x", "--drop_uniform_groups=true"], "drop_uniform_groups: goes by rewards"),
        (["--reward=none", "--reference=x", "--skip_solved=1"], "skip_solved: goes by rewards"),
        (["--skip_solved=1", "--stage_policy=auto"], "skip_solved: the controller would take"),
        (["--group_size=1"], "group_size: 1 is under its minimum 2"),
        (["--skip_solved=-1"], "skip_solved: -1 is under its minimum 0"),
        (["--entropy_target=0.2", "--entropy_coef=0.01"], "entropy_coef: 0.01 is not in 0 .. entropy_coef_max=0.005"),
        (["--high_entropy_quantile=1"], "high_entropy_quantile: 1.0 is not a share"),
        (["--high_entropy_quantile=0.8", "--policy_loss=gspo"], "it is for policy_loss=ppo, not gspo"),
    ],
)
def test_what_cannot_be_is_refused(argv, words):
    with pytest.raises(UserError) as e:
        load_config(argv)
    assert words in str(e.value)
    assert load_config(["--reward=none", "--reference=x", "--group_size=1"]).group_size == (1,)


def test_a_validation_may_be_longer_than_every_training_context():
    jobs = plan.stages(["configs/fastcurl.py"])
    assert [job.cfg.max_response_len for job in jobs] == [(8192,), (16384,), (24576,), (16384,), (16384,)]
    assert {job.eval_len for job in jobs} == {32768} and [job.cfg.prompts_per_step for job in jobs] == [128, *[64] * 4]


def test_a_stage_without_kl_needs_no_teacher_and_each_stage_s_bonus_begins_as_it_says(capsys, group_of_one):
    cfg = load_config(
        ["--max_response_len=24,32", "--group_size=4,4", "--stage_steps=2,2", "--reference=x", "--kl_coef=0.1,0"]
        + ["--entropy_target=0.2", "--entropy_coef=0.001,0.004", "--kl_estimator=k2"]
    )
    assert (cfg.of_stage(0).reference, cfg.of_stage(1).reference) == ("x", "")
    assert smoke.settings(replace(cfg, kl_coef=(0.0, 0.1))).reference == "x"
    state = entropy.after_step(RunState(), 0.1, cfg.of_stage(0))
    assert entropy.with_bonus(cfg.of_stage(0), state).entropy_coef == pytest.approx(0.0011)
    model = SimpleNamespace(state={})
    state = stages.begin_next(replace(cfg, save_every=0), replace(state, step=2), None, None, model)
    assert entropy.with_bonus(cfg.of_stage(1), state).entropy_coef == 0.004
    assert "entropy_coef: 0.004" in capsys.readouterr().out


def test_a_resume_knows_a_setting_written_otherwise_and_other_data_of_a_stage(tmp_path):
    paths = [tmp_path / name for name in ("a.jsonl", "b.jsonl")]
    for path in paths:
        path.write_text(f'{{"problem": "{path.name}", "answer": "1"}}')
    a, b = map(str, paths)
    many = dict(max_response_len=(24, 32, 24), group_size=(4,) * 3, stage_steps=(1,) * 3, out_dir=str(tmp_path))
    cfg = Config(**many, temperature=0.6, train_data=(a, b, a), eval_every=0)
    info = {"config": json.loads(json.dumps(asdict(cfg))), "identity": {}}
    run_folder.check_same_run(info, replace(cfg, temperature=(0.6, 0.6, 0.6)))
    with pytest.raises(UserError, match="temperature was 0.6"):
        run_folder.check_same_run(info, replace(cfg, temperature=(0.6, 0.6, 0.7)))
    hashes = [run_folder.data_hashes(replace(cfg, train_data=data)) for data in ((a, b, a), (a, b, b))]
    assert hashes[0] != hashes[1] and len(hashes[0]) == 3


# --------------------------------------------------------------------------------------------------------- curriculum


def group(index, rewards, size=None):
    return [Rollout(index, s, [1], [2], [-1.0], "stop", float(r)) for s, r in enumerate(rewards)]


def curriculum(**changes):
    values = dict(prompts_per_step=4, group_size=4, skip_solved=2, max_response_len=24, stage_steps=9)
    values |= dict(stage_policy="fixed") | changes
    return load_config(["configs/tiny.py", *(f"--{k}={v}" for k, v in values.items())])


def test_what_was_solved_in_its_last_visits_is_drawn_no_more_and_comes_back_to_fill_a_step():
    cfg, state = curriculum(), RunState()
    for _ in range(2):
        state = after_visits(state, [group(3, [1, 1, 1, 1]), group(5, [1, 1, 1, 0]), group(7, [0, 0, 0, 0])], cfg)
    assert state.visits == {3: (1.0, 2), 5: (0.75, 0), 7: (0.0, 0)}
    drawn = []
    for _ in range(4):  # two epochs of ten prompts, of which nine are left: twice two steps
        indices, state = draw_prompts(state, 10, cfg)
        drawn += indices
    assert 3 not in drawn and len(set(drawn[:8])) == len(set(drawn[8:])) == 8
    again = after_visits(state, [group(3, [1, 0, 1, 1])], cfg)
    assert not is_left_out(3, 0, again, cfg) and is_left_out(3, 0, state, cfg)
    solved = replace(state, epoch=5, position=0, visits={i: (1.0, 2) for i in range(8)})
    indices, after = draw_prompts(solved, 10, cfg)
    assert {8, 9} < set(indices) and len(set(indices)) == 4 and after.left_out == 6
    assert curriculum_columns(after, cfg) == {"prompts_left_out": 6, "prompts_solved": 8}
    assert draw_prompts(after, 10, cfg)[1].epoch == 6


def test_the_draw_is_a_function_of_seed_and_state_and_as_it_was_without_a_curriculum():
    cfg = curriculum(weigh_draw=True)
    state = RunState(visits={i: (i / 10, 0) for i in range(10)})
    assert draw_prompts(state, 10, cfg) == draw_prompts(replace(state), 10, cfg)
    plain = curriculum(skip_solved=0)
    assert draw_prompts(state, 10, plain)[0] == draw_prompts(RunState(), 10, plain)[0]
    assert after_visits(RunState(), [group(1, [1, 1])], plain).visits == {}


def test_a_prompt_is_drawn_with_four_times_the_variance_of_its_reward():
    cfg = curriculum(weigh_draw=True, skip_solved=0, group_size=8)
    for right, expected in ((0, 0.36), (4, 1.0), (7, 0.64), (8, 0.36)):
        state = RunState(visits={0: (right / 8, 0)})
        stays = sum(not is_left_out(0, epoch, state, cfg) for epoch in range(2000)) / 2000
        assert stays == pytest.approx(expected, abs=4 * (expected * (1 - expected) / 2000) ** 0.5 + 1e-9)


def test_refills_are_not_among_what_the_curriculum_leaves_out():
    cfg = curriculum(drop_uniform_groups=True, refill_attempts=1)
    state = RunState(visits={i: (1.0, 2) for i in range(4, 8)})
    drawn = refill_prompts([group(i, [1, 1, 1, 1]) for i in range(4)], state, 1, 10, cfg)
    assert set(drawn) == {8, 9}


CURRICULUM = dict(skip_solved=1, weigh_draw=True, stage_policy="fixed", stage_steps="4,1", prompts_per_step=24)
CURRICULUM |= dict(save_every=3, eval_every=7, lr=1e-5, token_budget=1024)


@pytest.fixture(scope="module")
def with_curriculum(world, tmp_path_factory):
    """A run whose epochs have two steps at most; {ranks: its folder}."""
    folders = {}
    for ranks in (1, 2):
        folder = tmp_path_factory.mktemp(f"curriculum{ranks}")
        train(flags(world, folder, **CURRICULUM), ranks)
        folders[ranks] = folder / "run"
    return folders


@pytest.mark.slow
@pytest.mark.xdist_group("curriculum")
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_resume_in_the_middle_of_an_epoch_is_exact(world, tmp_path, with_curriculum, ranks):
    argv = flags(world, tmp_path, **CURRICULUM)
    if ranks == 1:
        stopped_after(with_curriculum[1], tmp_path, 3)
    else:
        started = start_ranks(ranks, argv)
        for line in started[0][1]:
            if line.startswith("step 4/"):
                for process, _ in started:
                    os.kill(process.pid, signal.SIGKILL)  # after step 3's checkpoint
        assert [status_of(process) for process, _ in started] == [-9] * ranks
    state = json.loads((tmp_path / "run/ckpt/step_000003/state.json").read_text())
    assert 0 < state["position"] < 64 and state["visits"]
    assert "resuming after step 3" in train([*argv, "--resume=true"], ranks)
    assert_same_run(tmp_path / "run", with_curriculum[ranks])
    assert sum(row["prompts_left_out"] for row in metrics(tmp_path / "run")) > 0


@pytest.mark.slow
@pytest.mark.xdist_group("curriculum")
def test_two_ranks_draw_what_one_draws(with_curriculum):
    one, two = ([row["prompts_left_out"] for row in metrics(with_curriculum[ranks])][:3] for ranks in (1, 2))
    assert one == two and one[2] > 0  # the second epoch begins with step 3
    for step in (1, 2, 3):
        prompts = [[row["prompt"] for row in responses(with_curriculum[ranks], step)] for ranks in (1, 2)]
        assert prompts[0] == prompts[1]


# ------------------------------------------------------------------------------------------------------- distillation


def test_the_gradient_of_k2_is_policy_gradient_with_the_teacher_s_log_ratio():
    """Of k3 it is not (it follows the forward KL's)."""
    torch.manual_seed(0)
    hidden, head = torch.randn(40, 8, dtype=torch.float64), torch.randn(11, 8, dtype=torch.float64, requires_grad=True)
    teacher, targets = torch.randn(11, 8, dtype=torch.float64), torch.randint(11, (40,))
    ref = token_logprobs(hidden, teacher, targets, 0.7, 16)[0].detach()

    def gradient(loss_of):
        logprobs = token_logprobs(hidden, head, targets, 0.7, 16)[0]
        return torch.autograd.grad(loss_of(logprobs).sum(), head)[0]

    wanted = gradient(lambda p: policy_loss(p, p.detach(), (ref - p).detach(), 0.2, 0.2))
    torch.testing.assert_close(gradient(lambda p: kl_penalty(p, ref, "k2")), wanted, rtol=1e-6, atol=1e-9)
    other = gradient(lambda p: kl_penalty(p, ref, "k3"))
    assert (other - wanted).norm() > 0.1 * wanted.norm()


def test_without_a_reward_nothing_is_compared_and_every_group_is_learned_from():
    cfg = load_config(["--reward=none", "--reference=x", "--kl_estimator=k2"])
    (with_zeros,) = with_advantages(group(0, [1, 0, 0, 1]), [0], 24, cfg)
    assert {r.advantage for r in with_zeros} == {0.0} and [r.reward for r in with_zeros] == [1, 0, 0, 1]
    assert groups_to_train_on([with_zeros], cfg) == [with_zeros]
    assert groups_to_train_on([with_zeros], load_config([])) == []


@pytest.fixture(scope="module")
def taught(world, tmp_path_factory):
    """The world's model after two rewarded steps, as a teacher."""
    folder = tmp_path_factory.mktemp("teacher")
    train(flags(world, folder, stage_steps="3,1"))
    return folder / "run/hf/step_000004"


DISTILL = dict(reward="none", kl_coef=1, kl_estimator="k2", entropy_coef=0, minibatches=1, group_size="2,2")


@pytest.mark.slow
def test_a_teacher_stays_the_reference_of_every_stage_and_is_told_apart_on_a_resume(world, tmp_path, taught):
    argv = flags(world, tmp_path, **DISTILL, reference=taught, stage_steps="5,3", save_every=4, lr=2e-4)
    output = train([*argv, "--max_steps=6"])
    rows = rows_of(tmp_path / "run")
    assert "KL reference: " + str(taught) in output and all(row["pg_loss"] == 0 for row in rows)
    train([*argv, "--resume=true"])
    other = [a for a in argv if not a.startswith("--reference=")] + [f"--reference={world / 'base'}", "--resume=true"]
    assert "reference: model.safetensors is not what the run began with" in train(other, status=2)
    kl = [row["kl"] for row in rows_of(tmp_path / "run")]
    assert len(kl) == 8 and kl[-2] + kl[-1] < 0.5 * kl[0]


def test_a_teacher_with_other_tokens_is_refused(world, tmp_path):
    teacher = shutil.copytree(world / "base", tmp_path / "teacher")
    tokenizer = json.loads((teacher / "tokenizer.json").read_text())
    ids = tokenizer["model"]["vocab"]
    ids["1"], ids["2"] = ids["2"], ids["1"]
    (teacher / "tokenizer.json").write_text(json.dumps(tokenizer))
    output = train(flags(world, tmp_path, **DISTILL, reference=teacher), status=2)
    assert (
        f"has another tokenizer: 2 tokens have other ids ('1' is {ids['2']} in the model, {ids['1']} in it)" in output
    )
    assert "take a teacher of the model's family" in output
    tiny = Qwen2.from_pretrained(world / "base", torch.float32)
    tiny.model.embed_tokens.weight.data[3] = torch.nan
    tiny.save_pretrained(teacher)
    shutil.copy(world / "base/tokenizer.json", teacher)
    output = train(flags(world, tmp_path, **DISTILL, reference=teacher, run_name="nan"), status=2)
    assert f"reference: {teacher} has weights that are not finite" in output
    output = train(flags(world, tmp_path, **DISTILL, reference=tmp_path / "none"), status=2)
    assert "error: reference: no such folder" in output


def test_the_plan_counts_a_teacher_s_weights_and_its_passes():
    (own,) = plan.stages(["configs/distill.py"])
    (larger,) = plan.stages(["configs/distill.py", "--reference=Qwen/Qwen3-1.7B"])
    assert larger.reference.config != larger.model.config
    a, b = (plan.step_seconds(job, plan.GOOD)["logprobs"] for job in (own, larger))
    assert b > 1.05 * a and not plan.stages(["configs/justrl.py"])[0].reference
    assert memory.teacher_peak(own) == 0 < memory.teacher_peak(larger)
    without = larger.model.config.vocab_size * min(larger.cfg.logprob_chunk, larger.cfg.token_budget) * 8 / 2**30
    assert memory.teacher_peak(larger) > without + memory.CONTEXT  # its logits and more
    small_gpu = replace(larger, gpu=replace(larger.gpu, memory=memory.teacher_peak(larger)))
    assert any("the teacher's pass takes" in line for line in memory.misfits(small_gpu))


# ------------------------------------------------------------------------------------------------------------ entropy


@pytest.mark.parametrize("case", GOLDEN["skywork_or1 EntController"], ids=("script", "bounds"))
def test_the_entropy_bonus_moves_as_skywork_s_controller(case):
    settings = {name: value for name, value in case.items() if name.startswith("entropy_")}
    cfg = load_config([f"--{name}={value}" for name, value in settings.items()])
    state, coef = RunState(), case["entropy_coef"]
    assert entropy.with_bonus(cfg, state).entropy_coef == coef
    for nats, (value, enabled) in zip(case["entropy"], case["after"], strict=True):
        coef = next_entropy_coef(coef, nats, cfg.entropy_target, cfg.entropy_coef_step, cfg.entropy_coef_max)
        assert coef == pytest.approx(value, abs=1e-15)
        state = entropy.after_step(state, nats, cfg)
        assert entropy.with_bonus(cfg, state).entropy_coef == pytest.approx(value * enabled, abs=1e-15)
    assert RunState.from_json(state.to_json()) == state
    assert entropy.with_bonus(load_config([]), state) == load_config([])


def test_archer_s_tokens_clips_and_gradients_are_its_code_s():
    case = GOLDEN["archer compute_policy_loss, dp_actor"]

    def flat(name):
        return torch.tensor([value for row in case[name] for value in row], dtype=torch.float64)

    lengths = torch.tensor([len(row) for row in case["entropy"]])
    cu_seqlens = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).int()
    mask = torch.ones(int(lengths.sum()))
    high = is_high_entropy(flat("entropy"), mask, cu_seqlens, case["quantile"])
    assert torch.equal(high.double(), flat("high_entropy"))
    logprobs, old = flat("logprobs").requires_grad_(), flat("old_logprobs")
    advantages = torch.tensor(case["advantages"], dtype=torch.float64).repeat_interleave(lengths)
    clip = torch.where(high, case["high_entropy_clip"], case["clip"])
    losses = policy_loss(logprobs, old, advantages, clip, clip, case["dual_clip"])
    loss = aggregate(losses, mask, cu_seqlens, "token", mask.sum(), 4, 11)
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-7)  # their mean adds 1e-8 to the count
    torch.testing.assert_close(logprobs.grad, flat("grad"), rtol=1e-7, atol=1e-12)
    cfg = load_config(["configs/archer.py"])
    (low, up), kl_coef = clip_and_kl_coef(
        flat("entropy"), SimpleNamespace(response_mask=mask, cu_seqlens=cu_seqlens), cfg
    )
    assert torch.equal(low.double(), clip.double()) and torch.equal(up, low)
    assert torch.equal(kl_coef > 0, ~high) and kl_coef.max().item() == pytest.approx(0.001)
    share = clipped(logprobs, old, advantages, clip, clip).mean()
    assert float(share) == pytest.approx(case["clip_frac"], rel=1e-6)


def test_high_entropy_is_torch_s_quantile_of_each_sequence():
    generator = torch.Generator().manual_seed(0)
    for quantile in (0.0, 0.33, 0.5, 0.8) * 10:
        lengths = torch.randint(1, 20, (5,), generator=generator)
        cu_seqlens = torch.tensor([0, *lengths.cumsum(0)], dtype=torch.int32)
        values = torch.rand(int(cu_seqlens[-1]), generator=generator)
        mask = (torch.rand(values.shape, generator=generator) > 0.3).float()
        wanted = []
        for first, end in zip(cu_seqlens[:-1], cu_seqlens[1:], strict=True):
            counted = torch.where(mask[first:end] > 0, values[first:end], torch.nan)
            wanted.append(counted > torch.nanquantile(counted, quantile))
        assert torch.equal(is_high_entropy(values, mask, cu_seqlens, quantile), torch.cat(wanted))


def test_entropy_is_reported_by_position_and_its_collapse_once(capsys, group_of_one):
    first = [replace(r, response_ids=[5] * 10, logprobs=[-1.0] * 4 + [-3.0] * 6) for r in group(0, [1, 0])]
    cfg, state = load_config([]), entropy.after_step(RunState(), 1.0, load_config([]))
    columns = entropy.columns([first], 32, state)
    by_position = dict(zip((f"entropy_part_{i}" for i in range(1, 9)), [1.0, 3.0, 3.0] + [None] * 5, strict=True))
    assert columns == {**by_position, "entropy_collapsed": 0}
    low = entropy.after_step(state, 0.19, cfg)
    row = {"step": 9, "entropy": 0.19, **entropy.columns([first], 32, low)}
    entropy.warn_if_it_collapses(row, state)
    entropy.warn_if_it_collapses({**row, "step": 10}, low)  # said already
    assert row["entropy_collapsed"] == 1
    assert capsys.readouterr().out.count("the entropy has collapsed: 0.19 nats a token, 1 at first") == 1
    assert entropy.after_step(state, None, cfg) == state
