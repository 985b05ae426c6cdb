"""Files and flags, DeepScaleR's values, one clear line for every mistake, and no config text is ever executed."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest

import data_prep
from configs import PER_STAGE, RENAMED, Config, UserError, load_config, parse_flag, parse_flags
from reward import RULES

ROOT = Path(__file__).parents[1]


def load(tmp_path: Path, text: str, *flags: str) -> Config:
    path = tmp_path / "run.py"
    path.write_text(text, encoding="utf-8")
    return load_config([str(path), *flags])


def refusal(*argv: str) -> str:
    with pytest.raises(UserError) as e:
        load_config(list(argv))
    message = str(e.value)
    assert message and "\n" not in message
    return message


def file_refusal(tmp_path: Path, text: str) -> str:
    path = tmp_path / "run.py"
    path.write_text(text, encoding="utf-8")
    message = refusal(str(path))
    assert message.startswith(str(path)), message
    return message.removeprefix(str(path))


# ------------------------------------------------------------------------------------------------------ files and flags


def test_the_rules_of_the_reward_are_those_of_the_setting():
    assert get_args(next(f.type for f in dataclasses.fields(Config) if f.name == "reward")) == (*RULES, "none")


def test_no_arguments_give_the_defaults():
    assert load_config([]) == Config()


def test_flags_win_over_the_file_and_the_file_over_the_defaults(tmp_path):
    text = '"""Docstring."""\nfrom configs import Config\n\nConfig(lr=2e-6, seed=3, group_size=(4,))  # comment\n'
    cfg = load(tmp_path, text, "--seed=4", "--run_name=mine")
    assert (cfg.lr, cfg.seed, cfg.group_size, cfg.run_name) == (2e-6, 4, (4,), "mine")
    changed = {f.name for f in dataclasses.fields(cfg) if getattr(cfg, f.name) != getattr(Config(), f.name)}
    assert changed == {"lr", "seed", "group_size", "run_name"}


def test_flags_may_stand_before_the_file():
    assert load_config(["--seed=4", "configs/8k.py"]) == load_config(["configs/8k.py", "--seed=4"])


@pytest.mark.parametrize(
    "flag, name, value",
    [
        ("--lr=2e-6", "lr", 2e-6),
        ("--lr=1", "lr", 1.0),
        ("--kl_coef=-0.001", "kl_coef", -0.001),  # the published 8K run's
        ("--resume=true", "resume", True),
        ("--wandb=False", "wandb", False),
        ("--loss_agg=deepscaler", "loss_agg", "deepscaler"),
        ("--eval_data=a.jsonl,b.jsonl", "eval_data", ("a.jsonl", "b.jsonl")),
        ("--group_size=16", "group_size", (16,)),
        ("--prompt_suffix=", "prompt_suffix", ""),
        ("--model=a=b", "model", "a=b"),
    ],
)
def test_flags_are_read_as_the_type_of_their_field(flag, name, value):
    got = getattr(load_config([flag]), name)
    assert got == value and type(got) is type(value)


def test_a_value_may_stand_behind_its_flag():
    cfg = load_config(["--lr", "2e-6", "configs/8k.py", "--kl_coef", "-0.001"])
    assert (cfg.lr, cfg.kl_coef, cfg.run_name) == (2e-6, -0.001, "8k")
    assert refusal("--lr", "--seed=1") == "--lr: write --lr=VALUE"


def test_paths_begin_at_home_and_configs_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    cfg = load_config(["--out_dir=~/runs", "--model=~/m", "--train_data=~/t.jsonl", "--eval_data=~/a.jsonl,b.jsonl"])
    assert cfg.run_dir == tmp_path / "runs" / "8k" and cfg.model == f"{tmp_path}/m"
    assert cfg.train_data == f"{tmp_path}/t.jsonl" and cfg.eval_data == (f"{tmp_path}/a.jsonl", "b.jsonl")
    monkeypatch.chdir(tmp_path)
    assert load_config(["configs/8k.py"]).run_name == "8k"
    (tmp_path / "own.py").write_text("Config(train_data='tests/runs.py', eval_data=('tests/storm.py',))")
    beside = load_config(["own.py"])  # a config's data may lie beside the scripts, as the configs do
    assert beside.train_data == f"{ROOT}/tests/runs.py" and beside.eval_data == (f"{ROOT}/tests/storm.py",)
    assert load_config(["--train_data=tests/runs.py"]).train_data == "tests/runs.py"  # a flag's is where it says
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/runs.py").write_text("")
    assert load_config(["own.py"]).train_data == "tests/runs.py"
    assert parse_flags(["--out_dir=~/x", "--raw_dir", "~/y"], data_prep.Settings)[0] == {
        "out_dir": f"{tmp_path}/x",
        "raw_dir": f"{tmp_path}/y",
    }


def test_stages_come_as_comma_separated_flags():
    cfg = load_config(["--max_response_len=64,96,144", "--group_size=8,8,16", "--stage_steps=5,6,7"])
    assert (cfg.max_response_len, cfg.group_size, cfg.stage_steps) == ((64, 96, 144), (8, 8, 16), (5, 6, 7))
    assert cfg.total_steps == 18
    assert dataclasses.replace(cfg, max_steps=10).total_steps == 10
    assert dataclasses.replace(cfg, max_steps=100).total_steps == 18


def test_an_int_serves_as_a_float_and_a_scalar_or_list_as_a_tuple(tmp_path):
    cfg = load(tmp_path, "Config(max_grad_norm=2, group_size=4, max_response_len=[64], stage_steps=[3])")
    assert (cfg.max_grad_norm, cfg.group_size, cfg.max_response_len, cfg.stage_steps) == (2.0, (4,), (64,), (3,))
    assert type(cfg.max_grad_norm) is float


def test_every_default_can_be_given_as_a_flag():
    for field in dataclasses.fields(Config):
        value = field.default
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        assert getattr(load_config([f"--{field.name}={text}"]), field.name) == value, field.name
        if field.name not in PER_STAGE:  # one value or a tuple
            assert (get_origin(field.type) is tuple) == isinstance(value, tuple), field.name


def test_config_is_frozen_and_keyword_only():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().lr = 1.0
    with pytest.raises(TypeError):
        Config("8k")
    hash(Config())  # every value is immutable


def test_run_dir_is_out_dir_and_run_name():
    assert load_config(["--out_dir=elsewhere", "--run_name=a"]).run_dir == Path("elsewhere/a")


# ----------------------------------------------------------------------------------------------------------- DeepScaleR

SHARED_SETTINGS = dict(
    prompts_per_step=128,
    minibatches=2,
    lr=1e-6,
    adam_beta1=0.9,
    adam_beta2=0.999,
    adam_eps=1e-8,
    weight_decay=0.01,
    max_grad_norm=1.0,
    clip_eps_low=0.2,
    clip_eps_high=0.2,
    kl_coef=0.001,
    kl_estimator="k3_clamped",
    entropy_coef=0.001,
    loss_agg="token",
    normalize_advantage_std=True,
    temperature=0.6,
    top_p=1.0,
    max_prompt_len=1024,
    token_budget=32768,
    activation_checkpointing=True,
    dtype="bfloat16",
    mask_truncated=False,
    drop_uniform_groups=False,
    rollout_correction="none",
    prompt_suffix=" Let's think step by step and output the final answer within \\boxed{}.",
)
STAGES = {  # of notes/deepscaler.md: response tokens, samples a prompt, save and test every, steps, start
    "8k": (8192, 8, 20, 1040, "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"),
    "16k": (16384, 16, 10, 480, "out/8k/hf/step_001040"),
    "24k": (24576, 16, 10, 200, "out/16k/hf/step_000480"),
}


@pytest.mark.parametrize("name", STAGES)
def test_stage_configs_hold_the_published_values(name):
    cfg = load_config([str(ROOT / "configs" / f"{name}.py")])
    response_len, group_size, every, steps, start = STAGES[name]
    assert (cfg.max_response_len, cfg.group_size, cfg.stage_steps) == ((response_len,), (group_size,), (steps,))
    assert (cfg.save_every, cfg.eval_every, cfg.model, cfg.run_name) == (every, every, start, name)
    for key, value in SHARED_SETTINGS.items():
        assert getattr(cfg, key) == value, key


def test_a_stage_starts_from_the_export_of_the_stage_before():
    before, after = (load_config([f"configs/{name}.py"]) for name in ("8k", "16k"))
    assert after.model == str(before.run_dir / "hf" / f"step_{before.total_steps:06d}")
    assert before.export_dtype == "float32"


def test_defaults_are_the_first_stage():
    machine = ["--sampler=torch", f"--max_num_seqs={Config.max_num_seqs}"]  # the engine is no part of the recipe
    assert load_config(["configs/8k.py", *machine]) == Config()


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("[!_]*.py")), ids=lambda p: p.stem)
def test_every_shipped_config_loads_and_is_importable_python(path):
    cfg = load_config([str(path)])
    assert cfg.run_name == path.stem
    done = subprocess.run([sys.executable, str(path)], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_every_choice_of_an_algorithm_is_some_config_s():
    """A switch that no config uses does not exist. (The KL estimators are those of DeepScaleR, verl and TRL.)"""
    configs = [load_config([str(path)]) for path in (ROOT / "configs").glob("[!_]*.py")]
    for field in dataclasses.fields(Config):
        others = ("kl_estimator", "export_dtype", "stage_reference", "attention", "compile")  # the last two: how fast
        if get_origin(field.type) is Literal and field.name not in others:
            used = {getattr(c, field.name) for c in configs}
            # TRL's correction; GPUs without bfloat16
            without_config = {"sequence_mask", "float16"}
            assert used == set(get_args(field.type)) - without_config, field.name
    switches = "dual_clip overlong_buffer refill_attempts stage_gpus eval_max_len lr_warmup_steps"
    for name in f"{switches} skip_solved weigh_draw reference entropy_target high_entropy_quantile".split():
        assert any(getattr(c, name) for c in configs), name


def test_faithful_is_what_the_code_did_and_modern_what_later_recipes_do():
    faithful, modern = (load_config([f"configs/{name}.py"]) for name in ("faithful", "modern"))
    assert (faithful.loss_agg, faithful.kl_coef, faithful.entropy_coef) == ("deepscaler", -0.001, 0.001)
    assert (faithful.reward, modern.reward) == ("deepscaler", "exact")
    assert {faithful.stage_optimizer, faithful.stage_data_order, faithful.stage_reference} == {"reset"}
    assert (faithful.max_response_len, faithful.stage_steps) == ((8192, 16384, 24576), (1040, 480, 200))
    assert (modern.loss_agg, modern.clip_eps_low, modern.clip_eps_high) == ("token", 0.2, 0.28)
    assert modern.kl_coef == modern.entropy_coef == 0 and modern.rollout_correction == "truncate"
    assert modern.drop_uniform_groups and modern.refill_attempts > 0 and modern.mask_truncated


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "flag, words",
    [
        ("--learning_rate=1e-6", "no such setting"),
        ("--l=1e-6", "no such setting"),  # no abbreviations
        ("--LR=1e-6", "no such setting"),
        ("--lr", "--lr=VALUE"),
        ("--lr=abc", "'abc' is not a float"),
        ("--lr=", "'' is not a float"),
        ("--lr=nan", "nan"),
        ("--lr=inf", "inf"),
        ("--temperature=nan", "nan"),
        ("--kl_coef=-inf", "-inf"),
        ("--seed=1.5", "'1.5' is not an int"),
        ("--seed=true", "'true' is not an int"),
        ("--seed=-1", "minimum 0"),
        ("--resume=1", "'1' is not true or false"),
        ("--resume=yes", "'yes' is not true or false"),
        ("--dtype=fp16", "float32, bfloat16, float16"),
        ("--loss_agg=mean", "token, sequence, dr_grpo, deepscaler"),
        ("--group_size=1", "a group of one has no advantage"),
        ("--group_size=8,8", "2 entries for 1 stages"),
        ("--group_size=8,x", "'x' is not an int"),
        ("--group_size=", "at least one entry"),
        ("--stage_steps=1,2", "2 entries for 1 stages"),
        ("--stage_steps=0", "minimum 1"),
        ("--max_response_len=0", "minimum 1"),
        ("--temperature=0", "greater than 0"),
        ("--top_p=0", "(0, 1]"),
        ("--top_p=1.01", "(0, 1]"),
        ("--lr=-1e-6", "minimum 0"),
        ("--clip_eps_low=1", "under 1"),
        ("--clip_eps_high=-0.1", "minimum 0"),
        ("--max_grad_norm=0", "greater than 0"),
        ("--adam_beta2=1.0", "under 1"),
        ("--minibatches=0", "minimum 1"),
        ("--minibatches=129", "prompts_per_step=128"),
        ("--token_budget=9215", "raise it to 9216"),
        ("--keep_checkpoints=0", "minimum 1"),
        ("--save_every=-1", "minimum 0"),
        ("--rollout_correction_low=2.0", "rollout_correction_high=2.0"),
        ("--stage_policy=never", "fixed, auto"),
        ("--stage_window=7", "minimum 8"),
        ("--stage_patience=0", "minimum 1"),
        ("--stage_from=first", "best, last"),
        ("--stage_gpus=8,32", "2 entries for 1 stages"),
        ("--policy_loss=reinforce", "ppo, gspo, cispo"),
        ("--dual_clip=0.5", "above 1"),
        ("--overlong_buffer=9000", "longer than max_response_len"),
        ("--refill_attempts=1", "drop_uniform_groups=true"),
        ("--shard_size=-1", "minimum 0"),
        ("--gpu_dollars_per_hour=-1", "minimum 0"),
        ("--reward_workers=100000", "maximum 256"),
        ("--reward_timeout=1e300", "maximum 3600"),
        ("--reward=lenient", "exact, strict, deepscaler"),
        ("--out_dir=a\0b", "is no path"),
        ("--run_name=a\0b", "is no path"),
        ("--model=" + "a" * 300, "is no path"),
        ("--eval_data=" + "a/" * 3000, "is no path"),
        ("--clip_eps_high=1e39", "above its maximum 1e+30"),
        ("--entropy_coef=1e31", "above its maximum 1e+30"),
        ("--model=", "is no path: empty"),
        ("--model=\udcff" + "x" * 300, "is no path"),
        ("--run_name=../up", "plain folder name"),
        ("--run_name=", "is no path: empty"),
        ("--run_name=..", "plain folder name"),
    ],
)
def test_a_bad_flag_is_refused_in_one_line_naming_it(flag, words):
    message = refusal("configs/8k.py", flag)
    assert message.startswith(flag.partition("=")[0] + ":") and words in message, message


def test_an_old_name_is_refused_with_the_new_one(tmp_path):
    for old, new in RENAMED.items():
        assert refusal("configs/8k.py", f"--{old}=1") == f"--{old}: is now called {new}"
        assert file_refusal(tmp_path, f"Config({old}=1)") == f": {old}: is now called {new}"
        assert hasattr(Config, new)


def test_settings_that_exclude_each_other_are_refused():
    assert "temperature: vllm takes none above 2" in refusal("--sampler=vllm", "--temperature=2.5")
    assert "group_size: 1 entries for 2 stages" in refusal("--max_response_len=64,96")
    assert "stage_steps: 1 entries for 2 stages" in refusal("--max_response_len=64,96", "--group_size=8,8")
    assert "token_budget" in refusal("--max_response_len=32768")
    assert "top_p" in refusal("--top_p=0.9", "--rollout_correction=truncate")
    assert "dual_clip" in refusal("--policy_loss=cispo", "--dual_clip=3")
    assert "stage_from" in refusal("--stage_from=best", "--save_every=0")
    two = ["--max_response_len=64,96", "--group_size=8,8", "--stage_steps=1,1"]
    assert "stage_gpus" in refusal(*two, "--stage_gpus=8,32", "--save_every=0")
    load_config([*two, "--stage_gpus=8,8", "--save_every=0"])
    assert load_config(["--policy_loss=cispo", "--clip_eps_low=1"]).clip_eps_low == 1  # no lower bound
    load_config(["--token_budget=9216"])  # exactly one longest sequence


@pytest.mark.parametrize(
    "text, words",
    [
        ("Config(learning_rate=1e-6)", ": learning_rate: no such setting"),
        ("Config(lr='1e-6')", ": lr: '1e-6' is not a float"),
        ("Config(lr=True)", ": lr: True is not a float"),
        ("Config(lr=None)", ": lr: None is not a float"),
        ("Config(lr=1e999)", ": lr: inf"),
        ("Config(lr=1" + "0" * 400 + ")", ": lr: 1000"),
        ("Config(seed=1.0)", ": seed: 1.0 is not a"),
        ("Config(seed=True)", ": seed: True is not a"),
        ("Config(resume=1)", ": resume: 1 is not a bool"),
        ("Config(resume='true')", ": resume: 'true' is not a bool"),
        ("Config(run_name=3)", ": run_name: 3 is not a str"),
        ("Config(dtype=32)", ": dtype: 32 is not one of"),
        ("Config(group_size=(8.0,))", ": group_size: 8.0 is not a"),
        ("Config(group_size=((8,),))", ": group_size: (8,) is not a"),
        ("Config(group_size={8: 1})", ": group_size: {8: 1} is not a"),
        ("Config(group_size=())", ": group_size: at least one entry"),
        ("Config(eval_data=(1,))", ": eval_data: 1 is not a str"),
        ("Config(group_size=1)", ": group_size: 1 is under its minimum 2"),
        ("Config(1e-6)", "key=value"),
        ("Config(**{'lr': 1e-6})", "key=value"),
        ("Config(lr=1e-6, lr=1e-5)", ": lr: given twice"),
    ],
)
def test_a_bad_value_in_a_file_is_refused_in_one_line_naming_it(text, words, tmp_path):
    assert words in file_refusal(tmp_path, text)


NOT_ONE_EXPRESSION = ["", "Config(", "x = 1", "Config(lr=1e-6)\nConfig(lr=1e-5)", "cfg = Config(lr=1e-6)"]
NOT_ONE_EXPRESSION += ["config(lr=1e-6)", "def f(): pass", "\0", "Config"]


@pytest.mark.parametrize("text", NOT_ONE_EXPRESSION)
def test_a_file_that_is_not_one_expression_is_refused(text, tmp_path):
    file_refusal(tmp_path, text)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    assert "no.py" in refusal(str(tmp_path / "no.py"))
    assert str(tmp_path) in refusal(str(tmp_path))
    (tmp_path / "binary.py").write_bytes(b"\xff\xfe\x00")
    assert "binary.py" in refusal(str(tmp_path / "binary.py"))
    assert "one config file" in refusal("configs/8k.py", "configs/16k.py")
    assert "-lr=1" in refusal("-lr=1")


@pytest.mark.parametrize(
    "text",
    [
        "import os\nConfig(lr=1e-6)",
        "import configs\nConfig()",
        "from os import system\nConfig()",
        "open({marker!r}, 'w').write('x')\nConfig()",
        "Config(run_name=open({marker!r}, 'w').name)",
        "Config(run_name=__import__('pathlib').Path({marker!r}).touch() or 'a')",
        "Config(seed=[open({marker!r}, 'w') for _ in '1'])",
        "Config(run_name=f'{{open({marker!r}, \"w\")}}')",
        "Config(run_name=(lambda: open({marker!r}, 'w'))())",
        "Config((open({marker!r}, 'w')), lr=1e-6)",
        "Config(**dict(run_name=open({marker!r}, 'w')))",
        "open({marker!r}, 'w') and Config()",
        "Config(lr=1e-6) if open({marker!r}, 'w') else 0",
        "Config()(open({marker!r}, 'w'))",
        "(open({marker!r}, 'w'), Config)[1](lr=1e-6)",
    ],
)
def test_config_text_is_never_executed(text, tmp_path):
    marker = tmp_path / "executed"
    file_refusal(tmp_path, text.format(marker=str(marker)))
    assert not marker.exists()


def test_flag_text_is_never_executed(tmp_path):
    text = f"__import__('pathlib').Path({str(tmp_path / 'executed')!r}).touch()"
    for field in dataclasses.fields(Config):
        try:
            parse_flag(field.name, field.type, text)
        except UserError:
            pass
    assert not (tmp_path / "executed").exists()


def test_the_command_ends_with_status_2_and_one_line():
    argv, words = ["configs/8k.py", "--tokens=1"], "--tokens: no such setting"
    done = subprocess.run([sys.executable, "train_grpo.py", *argv], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines() == [f"error: {words}" + done.stderr.strip().partition(words)[2]]
