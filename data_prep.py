"""Builds the data. `python data_prep.py tiny [--out_dir=data/tiny]` makes the tiny task, tokenizer and base model."""

from configs import UserError, run
from tiny import make_tiny_world

USAGE = "usage: python data_prep.py tiny [--out_dir=data/tiny]"


def main(argv: list[str]) -> None:
    options = {"out_dir": "data/tiny"}
    if argv[:1] != ["tiny"]:
        raise UserError(USAGE)
    for flag in argv[1:]:
        name, equals, value = flag.removeprefix("--").partition("=")
        if not flag.startswith("--") or name not in options or not equals or not value:
            raise UserError(f"{flag}: not understood; {USAGE}")
        options[name] = value
    make_tiny_world(options["out_dir"])


if __name__ == "__main__":
    run(main)
