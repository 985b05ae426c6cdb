"""How fast a config runs here: `python bench.py configs/tiny.py [--key=value ...]`, or the same under torchrun.

    python bench.py configs/tiny.py                                  # whole steps: tokens/s, share of each phase
    python bench.py configs/tiny.py --sections=gemm,attention,head   # one part after the other (speed/)
    python bench.py --against=trl --trl_python=.venv-trl/bin/python  # beside TRL's GRPOTrainer, on this machine
    python bench.py configs/16k.py --plan --gpu=a100-80 --gpus=32    # what it would need elsewhere (training/plan.py)

What is measured says "measured"; what the plan computes says "model". Every figure is a median over repeats, with the
least and the most; `--json` prints one object with all of them instead of tables. docs/speed.md says how to read them.

By default it runs a few real steps of train_grpo in a temporary run folder (nothing is saved or evaluated), and prints
tokens/s of generation and of training, the share of each phase, peak memory, and the FLOP rate against this machine's
own matrix product, measured in the same run. The first step warms up and is left out. `python train_grpo.py --help`
lists the config's settings, `python bench.py --plan --help` the plan's.
"""

import contextlib
import dataclasses
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from configs import HELP, Config, UserError, load_config, parse_flags, run, show_help
from kernels import cpu
from model import ModelConfig
from speed import against, growth, passes, steps
from speed import kernels as kernel_sections
from speed.measure import Section, machine_facts, section_text
from training import plan
from training.preflight import check_machine

KERNELS = {"gemm": kernel_sections.gemm, "attention": kernel_sections.attention_section, "head": kernel_sections.head}
PASSES = {"train": passes.train, "generate": passes.generate, "growth": growth.growth}
STEPS = {"sync": steps.sync, "reward": steps.reward, "step": steps.step, "predict": steps.predict}
SECTIONS = (*KERNELS, *PASSES, *STEPS)


@dataclass(frozen=True)
class Flags:
    """The bench's own flags, beside the config's settings."""

    # of the bench
    sections: tuple[str, ...] = ("step",)  # gemm, attention, head, train, generate, growth, sync, reward, step, predict
    json: bool = False  # print one JSON object instead of tables; --json alone is enough
    # of the comparison
    against: str = ""  # trl: the same job in train_grpo and in TRL's GRPOTrainer
    trl_python: str = ".venv-trl/bin/python"  # the Python of an environment made from requirements-trl.txt
    rounds: int = 3  # of four runs each: ours, TRL's, TRL's, ours
    jobs: tuple[str, ...] = ("full", "ragged", "large")  # see JOBS in speed/against.py


def check_flags(flags: Flags, given: set[str]) -> None:
    """`given`: the names of those that were. Raises UserError."""
    if flags.against and "sections" in given:
        raise UserError("--sections: --against=trl has none; leave one of the two out")
    for name in given & {"trl_python", "rounds", "jobs"}:
        if not flags.against:
            raise UserError(f"--{name}: only --against=trl has it; add that")
    for name, values, known in (("sections", flags.sections, SECTIONS), ("jobs", flags.jobs, tuple(against.JOBS))):
        unknown = [value for value in values if value not in known]
        if unknown or not values:
            raise UserError(f"--{name}: {','.join(unknown)!r} is not among {', '.join(known)}")
    if flags.against not in ("", "trl"):
        raise UserError(f"--against: {flags.against!r} is not known, only trl")
    if flags.rounds < 1:
        raise UserError(f"--rounds: {flags.rounds} is under its minimum 1")
    if flags.against and not Path("/proc/stat").exists():
        raise UserError("--against: it reads from /proc who else uses the machine, which only Linux has")


def shape_of(cfg: Config) -> ModelConfig:
    """The model's sizes, from its folder or the plan's table. Raises UserError."""
    shape = plan.known_shape(cfg.model)
    if shape is None:
        raise UserError(f"model: no config.json in {cfg.model} (`python data_prep.py tiny` makes data/tiny/base)")
    return shape


def measure_section(name: str, cfg: Config, argv: list[str]) -> Section | None:
    """One section; None on ranks that do not report. Raises UserError."""
    if name in STEPS:
        return STEPS[name](cfg, argv)
    check_machine(cfg, (cfg.dtype,), trains=True)
    cuda = cfg.device == "auto"
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    return PASSES[name](cfg) if name in PASSES else KERNELS[name](cfg, shape_of(cfg), device)


def measure_sections(flags: Flags, cfg: Config, argv: list[str]) -> None:
    """Measure and print one section after the other; with --json all of them together, at the end."""
    is_first, found = os.environ.get("RANK", "0") == "0", {}
    device = torch.device("cuda" if cfg.device == "auto" else "cpu")
    if device.type == "cpu":
        cpu.prepare(cfg.threads)
    for name in dict.fromkeys(flags.sections):
        with contextlib.redirect_stdout(sys.stderr) if flags.json else contextlib.nullcontext():
            section = measure_section(name, cfg, argv)
        if section is not None and is_first:
            found[name] = dataclasses.asdict(section)
            if not flags.json:
                print(step_text(section) if name == "step" else section_text(section), flush=True)
    if is_first and not flags.json:
        print(f"\n{facts_text(machine_facts(device))}")
    if is_first and flags.json:
        print(json.dumps({"machine": machine_facts(device), "config": dataclasses.asdict(cfg), "sections": found}))


def facts_text(facts: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def step_text(section: Section) -> str:
    return "\n".join([f"\n{section.title}", steps.table(section.rows), *section.notes])


def compare_with_trl(flags: Flags, others: list[str]) -> None:
    """Raises UserError before anything runs."""
    python = Path(flags.trl_python).absolute()  # a link's target would be a Python without TRL
    versions = against.trl_versions(python)
    machine = machine_facts(torch.device("cpu")) | {"trl_side": versions}
    found = against.compare(python, flags.rounds, flags.jobs, others, machine["threads"])
    if flags.json:
        print(json.dumps({"machine": machine, "settings": others, "against": found}))
        return
    for name, figures in found.items():
        print(section_text(against.section_of(name, figures)))
    print(f"\n{facts_text(machine_facts(torch.device('cpu')))}\nTRL's side: {facts_text(versions)}")


def main(argv: list[str]) -> None:
    if HELP & set(argv):
        return show_help(__doc__, plan.Flags() if "--plan" in argv else Flags())
    if "--plan" in argv:
        return plan.main([a for a in argv if a != "--plan"])
    values, others = parse_flags(["--json=true" if a == "--json" else a for a in argv], Flags)
    flags = Flags(**values)
    check_flags(flags, set(values))
    if flags.against:
        return compare_with_trl(flags, others)
    measure_sections(flags, load_config(others).of_stage(0), others)


if __name__ == "__main__":
    run(main)
