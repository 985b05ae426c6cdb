"""--help of every script lists every setting as the source has it, and runs nothing; Windows and another Python get one
line."""

import dataclasses
import re
import runpy
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest

import bench
import configs
import data_prep
import eval as evaluation
import plot
import reward
import schedule
import train_grpo
from configs import Config, load_config, parse_flag, show_help

ROOT = Path(__file__).parents[1]
SCRIPTS = {"train_grpo": train_grpo, "eval": evaluation, "data_prep": data_prep, "bench": bench, "plot": plot,
           "schedule": schedule, "reward": reward}  # fmt: skip


def help_of(capsys, main, *argv: str) -> str:
    main([*argv, "--help"])
    output = capsys.readouterr()
    assert output.err == ""
    return output.out


def listed(text: str) -> dict[str, tuple[str, str]]:
    """{name: (default, type and meaning)} of the settings in a help text."""
    text = text.partition("settings: --name=default, its type, its meaning")[2]
    text = re.sub(r"\n {20,}", " ", text)  # continued lines
    lines = re.findall(r'^  --(\w+)=(".*?"|\S*) +(\(.*)$', text, re.MULTILINE)
    assert len(lines) == text.count("\n  --"), "a setting that is not in the form of the others"
    return {name: (default.strip('"'), " ".join(rest.split())) for name, default, rest in lines}


def comments_behind(cls: type) -> dict[str, str]:
    """{field: comment on its line}, from the file's text."""
    text = Path(sys.modules[cls.__module__].__file__).read_text(encoding="utf-8")
    body = text[text.index(f"class {cls.__name__}") :].partition("\n    def ")[0]
    return dict(re.findall(r"^    (\w+): .*?  # (.*)$", body, re.MULTILINE))


def check_fields(shown: dict[str, tuple[str, str]], settings) -> None:
    """Names, defaults and meanings in a help text are those of the dataclass object, whose order it keeps."""
    comments = comments_behind(type(settings))
    fields = [field for field in dataclasses.fields(settings) if field.name in shown]
    assert list(shown) == [field.name for field in fields]
    for field in fields:
        default, meaning = shown[field.name]
        assert parse_flag(field.name, field.type, default) == getattr(settings, field.name), field.name
        assert meaning.endswith(comments.get(field.name, "")), field.name
        if get_origin(field.type) is Literal:
            assert meaning.startswith(f"({'|'.join(get_args(field.type))})"), field.name


@pytest.mark.parametrize("columns", [80, 120])
def test_every_setting_is_listed_with_its_default_type_and_comment(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    text = help_of(capsys, train_grpo.main)
    assert set(listed(text)) == {field.name for field in dataclasses.fields(Config)}
    check_fields(listed(text), Config())
    options = listed(help_of(capsys, evaluation.main))
    assert set(options) == {field.name for field in dataclasses.fields(evaluation.Options)}
    check_fields(options, evaluation.Options())
    meaning = listed(text)["stage_policy"][1]  # its comment stands above it
    assert meaning.startswith("(fixed|auto) auto = a stage ends at its turning point (schedule.py)")
    assert listed(text)["resume"][1].startswith("(true|false) ") and listed(text)["lr"][1].startswith("(float) ")
    assert listed(text)["group_size"] == ("8", "(int,...) samples a prompt, one entry a stage")
    sections = ["the run", "model and data", "rollouts", "the context schedule", "the optimizer", "the loss"]
    assert re.findall(r"^\n(\w.*)\n  --", text, re.MULTILINE) == [*sections, "the machine", "evaluation"]


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("name", SCRIPTS)
def test_help_fits_the_terminal_and_begins_with_the_docstring(name, columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    text, doc = help_of(capsys, SCRIPTS[name].main), SCRIPTS[name].__doc__
    assert max(map(len, text.splitlines())) <= columns
    assert text.split()[: len(doc.split())] == doc.split()
    if columns == 120:  # the commands are left as they are
        assert all(line in text.splitlines() for line in doc.splitlines() if line.startswith("    "))


def test_a_config_file_s_values_are_the_defaults(capsys):
    for argv in (["configs/16k.py", "--lr=3", "--model=x.py"], ["--seed", "-h", "configs/16k.py"]):
        check_fields(listed(help_of(capsys, train_grpo.main, *argv)), load_config(["configs/16k.py"]))


def test_a_command_of_data_prep_lists_its_own_flags(capsys):
    every = listed(help_of(capsys, data_prep.main))
    assert set(every) == {field.name for field in dataclasses.fields(data_prep.Settings)}
    check_fields(every, data_prep.Settings())
    for command, flags in data_prep.FLAGS.items():
        shown = listed(help_of(capsys, data_prep.main, command, "--out_dir=x"))
        assert set(shown) == set(flags)
        check_fields(shown, data_prep.settings(command, []))


def test_the_bench_s_flags_and_the_plan_s_are_listed(capsys):
    text = help_of(capsys, bench.main, "--plan")
    assert "\nof the plan\n  --gpu=" in text
    check_fields(listed(text), bench.plan.Flags())
    assert len(listed(text)) == len(dataclasses.fields(bench.plan.Flags))
    own = listed(help_of(capsys, bench.main))
    assert len(own) == len(dataclasses.fields(bench.Flags))
    check_fields(own, bench.Flags())


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_wins_anywhere_and_runs_and_writes_nothing(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands = {"data_prep": ["tiny"], "plot": ["run"], "schedule": ["run/metrics.jsonl"], "reward": ["--explain"]}
    before = commands.get(name, ["configs/tiny.py", "--lr"])
    for flag in ("-h", "--help"):
        for argv in ([flag], [*before, flag], [flag, *before], [*before, "--no_such_flag", flag, "--out_dir=x"]):
            monkeypatch.setattr(sys, "argv", [f"{name}.py", *argv])
            configs.run(SCRIPTS[name].main)  # would raise SystemExit for any status but 0
            output = capsys.readouterr()
            assert output.out.startswith(SCRIPTS[name].__doc__.split("\n")[0][:40]) and output.err == "", argv
    assert not list(tmp_path.iterdir())


def test_an_answer_may_be_called_minus_h(capsys):
    reward.main(["--explain", "-h", "-h"])
    assert capsys.readouterr().out.endswith("verdict equal\n")


def test_the_command_prints_it_and_ends_with_status_0():
    for script in ("schedule.py", "reward.py"):  # those that start at once
        done = subprocess.run([sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "") and f"python {script}" in done.stdout


@dataclass
class Example:
    # how it is read
    # The comment above,
    # on two lines.
    size: int = 3  # and behind
    name: str = ""  # only words behind
    flag: bool = True
    # the end of it
    pair: tuple[str, ...] = (
        "a",  # one
        "b",
    )  # two


def test_comments_go_to_their_fields_and_sections_to_headings(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    show_help("What.", Example())
    assert capsys.readouterr().out.splitlines() == [
        "What.",
        "",
        "settings: --name=default, its type, its meaning",
        "",
        "how it is read",
        f"{'  --size=3':<34}(int) The comment above, on two lines. and behind",
        f"{'  --name=':<34}(str) only words behind",
        f"{'  --flag=true':<34}(true|false)",
        "",
        "the end of it",
        f"{'  --pair=a,b':<34}(str,...) one two",
    ]


@pytest.mark.parametrize("name", SCRIPTS)
def test_windows_is_told_to_use_wsl(name, capsys, monkeypatch):
    """In one line, before an import of what only Unix has."""
    wings = ["grader", "problems", "engines", "training", "evaluation", "speed"]
    ours = ["configs", "losses", "model", "rollout", *SCRIPTS, *wings]
    for module in list(sys.modules):
        if module.split(".")[0] in ours:
            monkeypatch.delitem(sys.modules, module)  # and comes back at the end
    monkeypatch.setattr(sys, "platform", "win32")
    for module in ("fcntl", "resource"):
        monkeypatch.setitem(sys.modules, module, None)  # an import raises
    with pytest.raises(SystemExit) as e:
        runpy.run_path(str(ROOT / f"{name}.py"), run_name="__main__")
    output = capsys.readouterr()
    assert e.value.code == 2 and output.out == ""
    assert output.err.startswith("Windows: run this in WSL (") and output.err.count("\n") == 1


def test_make_refuses_a_python_that_the_pins_have_no_wheels_for(monkeypatch):
    """Before it makes anything; and the README names the same ones."""
    (code,) = re.findall(r"\$\(PYTHON\) -c '(import sys.*)'\n", (ROOT / "Makefile").read_text(encoding="utf-8"))
    for minor in range(9, 17):
        monkeypatch.setattr(sys, "version_info", (3, minor, 1, "final", 0))
        if 11 <= minor <= 14:
            exec(code)
        else:
            with pytest.raises(SystemExit, match=r"3.11 to 3.14 is needed: make tiny PYTHON=python3\.1[1-4]"):
                exec(code)
    assert "Both need Python 3.11 to 3.14 on Linux or macOS" in (ROOT / "README.md").read_text(encoding="utf-8")
