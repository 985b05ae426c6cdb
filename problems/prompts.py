"""Data rows in, prompts out: problem files, the tokenizer, and the chat template in a sandbox.

Reads rows {problem, answer, ...} and a Hugging Face folder's tokenizer files; writes nothing.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from configs import Config, UserError
from problems.rows import EmptyLine, objects
from reward import Problem


def load_problems(path: str | Path) -> list[Problem]:
    """Rows {problem, answer, id?} of a .jsonl, .json, .csv or .parquet file, all of them. Raises UserError."""
    path = Path(path)
    problems = []
    for number, row in objects(path, "cannot read the problems"):
        where = f"{path}:{number}" if path.suffix in (".jsonl", ".csv") else f"{path}: row {number}"
        if isinstance(row, EmptyLine):
            continue
        if isinstance(row, ValueError):
            raise UserError(f"{where}: not {'CSV' if path.suffix == '.csv' else 'JSON'}: {row}")
        if not isinstance(row, dict) or not isinstance(row.get("problem"), str) or not row["problem"].strip():
            raise UserError(f"{where}: a row needs a text 'problem'")
        answer = row.get("answer")
        answers = answer if isinstance(answer, list) else [answer]
        usable = [isinstance(a, (str, int, float)) and not isinstance(a, bool) and str(a).strip() for a in answers]
        if not answers or not all(usable):
            raise UserError(f"{where}: a row needs an 'answer' (a text, a number, or a list of them)")
        golds = [str(a) for a in answers]
        row_id = len(problems) if row.get("id") is None else row["id"]
        problems.append(Problem(str(row_id), row["problem"], golds if isinstance(answer, list) else golds[0]))
    if not problems:
        raise UserError(f"{path}: no rows")
    return problems


class ChatTokenizer:
    """tokenizer.json and the chat template of a Hugging Face folder. Templates run in jinja2's sandbox."""

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        try:
            self.tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
        except Exception as e:  # tokenizers raises bare Exception
            raise UserError(f"{path}/tokenizer.json: cannot read the tokenizer: {e}") from None
        try:
            config = dict(json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8")))
            template_file = path / "chat_template.jinja"
            template = template_file.read_text(encoding="utf-8") if template_file.is_file() else config["chat_template"]
            self.template = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(template)
        except (OSError, ValueError, KeyError, TypeError, TemplateError) as e:
            problem = "no usable chat template in tokenizer_config.json or chat_template.jinja"
            raise UserError(f"{path}: {problem}: {type(e).__name__} {e}") from None
        tokens = {name: config[name] for name in ("bos_token", "eos_token") if config.get(name)}
        self.special = {name: t["content"] if isinstance(t, dict) else t for name, t in tokens.items()}
        self.bos_id = self.tokenizer.token_to_id(self.special.get("bos_token", ""))
        self.eos_ids = self._eos_ids(path)
        self.size = self.tokenizer.get_vocab_size(with_added_tokens=True)  # ids at or beyond it mean nothing

    def _eos_ids(self, path: Path) -> list[int]:
        """The stop tokens: generation_config.json's, else config.json's, else the tokenizer's."""
        for file in ("generation_config.json", "config.json"):
            if (path / file).is_file():
                try:
                    eos = dict(json.loads((path / file).read_text(encoding="utf-8"))).get("eos_token_id")
                except (OSError, ValueError, TypeError) as e:
                    raise UserError(f"{path / file}: not a JSON object: {e}") from None
                if eos is not None:
                    return eos if isinstance(eos, list) else [eos]
        eos = self.tokenizer.token_to_id(self.special.get("eos_token", ""))
        if eos is None:
            raise UserError(f"{path}: no eos token in generation_config.json, config.json or tokenizer_config.json")
        return [eos]

    def _render(self, text: str, generate: bool) -> str:
        def raise_exception(message: str) -> None:
            raise TemplateError(message)

        messages = [{"role": "user", "content": text}]
        variables = {"add_generation_prompt": generate, "raise_exception": raise_exception, **self.special}
        try:
            return self.template.render(messages=messages, **variables)
        except Exception as e:  # the template is a program somebody else wrote: it can raise anything
            raise UserError(f"the chat template fails: {type(e).__name__}: {e}") from None

    def prompt(self, text: str) -> tuple[list[int], str]:
        """Token ids of a user turn with the generation prompt, and what the template opened for the model to go on
        from (its `<think>`, in newer templates). Exactly one BOS: the template's, or ours if it writes none."""
        rendered, without = self._render(text, True), self._render(text, False)
        user_turn = os.path.commonprefix([rendered, without])
        try:
            ids = self.tokenizer.encode(rendered, add_special_tokens=False).ids
        except TypeError:
            raise UserError(f"the prompt is no valid text (a lone surrogate?): {text[:60]!a}") from None
        if self.bos_id is not None and self.bos_id not in ids[:1]:
            ids = [self.bos_id, *ids]
        return ids, rendered[len(user_turn) :]

    def decode(self, ids: list[int]) -> str:
        """Text of a response, without its stop token; other special tokens stay visible (`</think>` may be one)."""
        ids = ids[:-1] if ids and ids[-1] in self.eos_ids else ids
        return self.tokenizer.decode(ids, skip_special_tokens=False)


@dataclass(frozen=True)
class Prompt:
    problem: Problem
    ids: list[int]
    opened: str  # what the chat template began for the model: graded together with what it wrote


def encode_problems(problems: list[Problem], tokenizer: ChatTokenizer, suffix: str) -> list[Prompt]:
    """Each problem as a user turn, `suffix` (the instruction) behind it."""
    return [Prompt(p, *tokenizer.prompt(p.problem + suffix)) for p in problems]


def load_prompts(cfg: Config, tokenizer: ChatTokenizer) -> tuple[list[Prompt], int]:
    """The training prompts that fit `max_prompt_len`, and how many did not. Raises UserError if too few are left."""
    prompts = encode_problems(load_problems(cfg.train_data), tokenizer, cfg.prompt_suffix)
    kept = [p for p in prompts if len(p.ids) <= cfg.max_prompt_len]
    if len(kept) < cfg.prompts_per_step:
        fitting = f"{len(kept)} prompts of at most max_prompt_len={cfg.max_prompt_len} tokens (of {len(prompts)})"
        raise UserError(f"train_data: {cfg.train_data} has {fitting}; prompts_per_step is {cfg.prompts_per_step}")
    return kept, len(prompts) - len(kept)


def load_benchmarks(cfg: Config, tokenizer: ChatTokenizer) -> dict[str, list[Prompt]]:
    """What a run is validated on, by the stem of its file; nothing where it never is. Raises UserError."""
    files = cfg.eval_data if cfg.eval_every else ()
    return {Path(f).stem: encode_problems(load_problems(f), tokenizer, cfg.prompt_suffix) for f in files}
