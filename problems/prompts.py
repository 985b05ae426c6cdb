"""Data rows in, prompts out: problem files, the tokenizer with its chat template, and stop tokens.

Reads problem files of any schema (`rows`) and a Hugging Face folder's tokenizer files; writes nothing.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from configs import Config, UserError, check_regular, dataset_name
from model import read_object
from problems.reading import read_all
from problems.rows import THE_TABLES, Fields
from problems.templates import MAX_RENDERED, compile_template, map_in_child
from reward import Problem, gold_problem

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
MAX_TOKEN = 4096  # characters that a token may stand for


def load_problems(path: str | Path, fields: Fields = THE_TABLES) -> tuple[list[Problem], list[str]]:
    """The problems of a file of any published schema, a folder, or a comma list, and a line on each thing that was done
    to them on the way. Raises UserError."""
    reading = read_all(path, fields)
    problems = [Problem(row.id, row.problem, row.gold) for row in reading.rows]
    return problems, [f"{path}: {note}" for note in reading.notes()]


class ChatTokenizer:
    """The tokenizer, the chat template and the stop tokens of a Hugging Face folder. `templates` runs what can be a
    program of a stranger."""

    def __init__(self, path: str | Path, stop_tokens: tuple[str, ...] = ()) -> None:
        """stop_tokens: texts or ids of further ones, as the setting has them. Raises UserError."""
        self.path = path = Path(path)
        try:
            self.tokenizer = Tokenizer.from_file(str(check_regular(path / "tokenizer.json")))
        except Exception as e:  # tokenizers raises bare Exception
            raise UserError(f"{path}/tokenizer.json: cannot read the tokenizer: {e}") from None
        self.tokenizer.no_truncation()  # which a folder may ask for
        self.tokenizer.no_padding()
        config = read_object(path / "tokenizer_config.json")
        self.template = self._template(config)
        self.special = self._special_tokens(config)
        bos_id = self.tokenizer.token_to_id(self.special.get("bos_token", ""))
        self.bos_id = None if config.get("add_bos_token") is False else bos_id  # put before a template without one
        vocab = self.tokenizer.get_vocab(with_added_tokens=True)
        self.size = max(vocab.values(), default=-1) + 1
        self._check_decoder(max(map(len, vocab), default=0))
        self.eos_ids = list(dict.fromkeys([*self._eos_ids(), *map(self._stop_id, stop_tokens)]))

    def _check_decoder(self, longest: int) -> None:
        """Raises UserError where a few tokens would decode to gigabytes: `longest` characters a token are too many, or
        replacements multiply them. (Nothing else in a decoder lengthens text.)"""
        state = json.loads(self.tokenizer.decoder.__getstate__()) if self.tokenizer.decoder else {}
        for step in state.get("decoders", [state]):
            pattern = step.get("pattern", {})  # {"String": text} or {"Regex": text}, of any length
            if step.get("type") == "Replace" and len(step["content"]) > max(1, len(pattern.get("String", ""))):
                longest *= len(step["content"])
        if longest > MAX_TOKEN:
            raise UserError(f"{self.path}/tokenizer.json: a token may decode to {longest:,} characters")

    def _template(self, config: dict[str, Any]) -> str:
        """chat_template.jinja, else tokenizer_config.json's; of several, by name, the one called default."""
        file = self.path / "chat_template.jinja"
        try:
            template = (
                check_regular(file).read_text(encoding="utf-8") if os.path.lexists(file) else config["chat_template"]
            )
            if isinstance(template, list):
                template = {entry["name"]: entry["template"] for entry in template}
            template = template["default"] if isinstance(template, dict) else template
            if not isinstance(template, str):
                raise TypeError("it is not text")
        except (OSError, ValueError, KeyError, TypeError) as e:
            problem = "no usable chat template in tokenizer_config.json or chat_template.jinja"
            raise UserError(f"{self.path}: {problem}: {type(e).__name__} {e}") from None
        return template

    def _special_tokens(self, config: dict[str, Any]) -> dict[str, str]:
        """The texts of bos_token, eos_token, ..., by name."""
        texts = {}
        for name in SPECIAL_TOKENS:
            token = config.get(name)
            text = token.get("content") if isinstance(token, dict) else token
            if token is not None and not isinstance(text, str):
                raise UserError(f"{self.path}/tokenizer_config.json: {name} is not text: {token!r:.60}")
            if text:
                texts[name] = text
        return texts

    def _eos_ids(self) -> list[int]:
        """The stop tokens: those of generation_config.json, config.json and the tokenizer together."""
        eos_ids: list[int] = []
        for file in ("generation_config.json", "config.json"):
            if os.path.lexists(self.path / file):
                config = read_object(self.path / file)
                eos_ids += self._checked_ids(config.get("eos_token_id"), self.path / file)
                if file == "config.json":
                    self._check_rows(config.get("vocab_size"))
        eos_id = self.tokenizer.token_to_id(self.special.get("eos_token", ""))
        eos_ids += [] if eos_id is None else [eos_id]
        if not eos_ids:
            files = "generation_config.json, config.json or tokenizer_config.json"
            raise UserError(f"{self.path}: no eos token in {files}")
        return list(dict.fromkeys(eos_ids))

    def _checked_ids(self, eos: Any, file: Path) -> list[int]:
        """What a file has as eos_token_id: nothing, an id, or a list of them."""
        if eos is None:
            return []
        eos_ids = eos if isinstance(eos, list) else [eos]
        for eos_id in eos_ids or [eos]:
            is_id = type(eos_id) is int and 0 <= eos_id < self.size
            if not is_id or self.tokenizer.id_to_token(eos_id) is None:
                raise UserError(f"{file}: eos_token_id {eos_id!r:.60} is no id of a token in tokenizer.json")
        return eos_ids

    def _stop_id(self, token: str) -> int:
        """The id of a stop token of the settings: digits are an id, all else is a text."""
        if token.isascii() and token.isdigit():
            stop_id = int(token) if len(token) < 19 else self.size
            is_id = stop_id < self.size and self.tokenizer.id_to_token(stop_id) is not None
        else:
            stop_id = self.tokenizer.token_to_id(token)
            is_id = stop_id is not None
        if not is_id:
            raise UserError(f"stop_tokens: {token!r:.60} is no token of {self.path}/tokenizer.json, nor the id of one")
        return stop_id

    def _check_rows(self, rows: Any) -> None:
        """Raises UserError where a token has no row in the embeddings."""
        if type(rows) is int and rows < self.size:
            token = f"{self.path}/tokenizer.json: {self.tokenizer.id_to_token(self.size - 1)!r:.60}"
            advice = "remove the token, or resize the embeddings"
            raise UserError(f"{token} has id {self.size - 1}, but config.json has vocab_size={rows}: {advice}")

    def prompts(self, texts: list[str]) -> list[tuple[list[int], str]]:
        """For each text: token ids of a user turn with the generation prompt, and what stands behind the text, where
        the template opens what the model goes on with (its `<think>`, in newer templates). At most one BOS: the
        template's, or ours if it writes none. Raises UserError."""
        return [(ids, opened) for ids, opened in map_in_child(self._encoder, texts)]

    def _encoder(self) -> Callable[[str], tuple[list[int], str]]:
        template = compile_template(self.template)
        variables = {**self.special, "tools": None, "documents": None, "add_generation_prompt": True}

        def encode(text: str) -> tuple[list[int], str]:
            rendered = template.render(messages=[{"role": "user", "content": text}], **variables)
            _, shown, opened = rendered.rpartition(text.strip())  # several templates strip it
            if len(rendered) > MAX_RENDERED:
                raise UserError(f"the chat template prints {len(rendered):,} characters; at most {MAX_RENDERED:,}")
            if not shown:
                raise UserError(f"the chat template does not show the problem's text: {text[:60]!a}")
            try:
                ids = self.tokenizer.encode(rendered, add_special_tokens=False).ids
            except TypeError:
                raise UserError(f"the prompt is no valid text (a lone surrogate?): {text[:60]!a}") from None
            if self.bos_id is not None and self.bos_id not in ids[:1]:
                ids = [self.bos_id, *ids]
            return ids, opened

        return encode

    def end_of_turn(self) -> str | None:
        """The first token of its own (special or added) that the template prints behind an assistant's text; None where
        there is none, or the template renders no assistant's turn."""
        try:
            return map_in_child(self._turn_ender, ["The answer is 7316."])[0]
        except UserError:  # many templates are never asked for this
            return None

    def _turn_ender(self) -> Callable[[str], str | None]:
        template = compile_template(self.template)
        variables = {**self.special, "tools": None, "documents": None, "add_generation_prompt": False}
        own = {i for i, token in self.tokenizer.get_added_tokens_decoder().items() if token.content.strip()}
        own |= set(self.eos_ids)

        def end(text: str) -> str | None:
            messages = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": text}]
            _, shown, behind = template.render(messages=messages, **variables).rpartition(text)
            if not shown or len(behind) > MAX_RENDERED:
                return None
            ids = self.tokenizer.encode(behind, add_special_tokens=False).ids
            return next((self.tokenizer.id_to_token(i) for i in ids if i in own), None)

        return end

    def stop_warning(self) -> str:
        """A line where responses would go on behind what the template ends an assistant's turn with; else ""."""
        end = self.end_of_turn()
        if end is None or self.tokenizer.token_to_id(end) in self.eos_ids:
            return ""
        stops = ", ".join(repr(self.tokenizer.id_to_token(eos_id)) for eos_id in self.eos_ids)
        reason = f"the chat template ends a turn with {end!r}, which is not among the stop tokens ({stops})"
        return f"{reason}: if the model does so too, give --stop_tokens={end!r}"

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
    encoded = tokenizer.prompts([problem.problem + suffix for problem in problems])
    return [Prompt(problem, ids, opened) for problem, (ids, opened) in zip(problems, encoded, strict=True)]


def unread_golds(prompts: list[Prompt]) -> list[str]:
    """The answers that the exact rule cannot read, with problem and reason: a response matches them as equal text or
    never."""
    unread = []
    for prompt in prompts:
        golds = [prompt.problem.answer] if isinstance(prompt.problem.answer, str) else prompt.problem.answer
        reasons = [gold_problem(gold) for gold in golds]
        if all(reasons):
            unread.append(f"{golds[0][:40]!a} of problem {prompt.problem.id} ({reasons[0]})")
    return unread


def unmatched_golds(prompts_by_name: dict[str, list[Prompt]]) -> str:
    """A line on the `unread_golds` of several files."""
    counts, examples = [], []
    for name, prompts in prompts_by_name.items():
        unread = unread_golds(prompts)
        counts.append(f"{len(unread)} of {len(prompts)} in {name}")
        examples += unread
    listed = f": {'; '.join(examples[:3])}" if examples else ""
    return f"answers that the exact rule cannot read: {', '.join(counts)}{listed}"


def load_stage_prompts(cfg: Config, tokenizer: ChatTokenizer) -> tuple[list[list[Prompt]], list[str]]:
    """`load_prompts` of every stage; stages with the same data share one list."""
    by_data: dict[str, list[Prompt]] = {}
    all_notes, data, sizes = [], cfg.entries("train_data"), cfg.entries("prompts_per_step")
    for name in dict.fromkeys(data):
        stages = [stage for stage, of_stage in enumerate(data) if of_stage == name]
        most = max(stages, key=lambda stage: sizes[stage])  # the stage that needs the most prompts
        by_data[name], notes = load_prompts(cfg.of_stage(most), tokenizer)
        all_notes += notes
    return [by_data[name] for name in data], all_notes


def load_prompts(cfg: Config, tokenizer: ChatTokenizer) -> tuple[list[Prompt], list[str]]:
    """The training prompts of a stage's config that fit `max_prompt_len`, and lines on what was left out or changed.
    Raises UserError if too few are left."""
    problems, notes = load_problems(cfg.train_data, Fields(cfg.problem_field, cfg.answer_field))
    prompts = encode_problems(problems, tokenizer, cfg.prompt_suffix)
    kept = [p for p in prompts if len(p.ids) <= cfg.max_prompt_len]
    if len(kept) < cfg.prompts_per_step:
        fitting = f"{len(kept)} prompts of at most max_prompt_len={cfg.max_prompt_len} tokens (of {len(prompts)})"
        raise UserError(f"train_data: {cfg.train_data} has {fitting}; prompts_per_step is {cfg.prompts_per_step}")
    too_long = f"{len(prompts) - len(kept)} longer than max_prompt_len={cfg.max_prompt_len} left out"
    return kept, [f"{len(kept)} prompts from {cfg.train_data}, {too_long}", *notes]


def load_benchmarks(cfg: Config, tokenizer: ChatTokenizer) -> tuple[dict[str, list[Prompt]], list[str]]:
    """What a run is validated on, by `dataset_name`, and lines as of `load_prompts`; nothing where it never is. Raises
    UserError."""
    benchmarks, notes = {}, []
    for path in cfg.eval_data if cfg.eval_every else ():
        problems, file_notes = load_problems(path, Fields(cfg.problem_field, cfg.answer_field, or_table=True))
        benchmarks[dataset_name(path)] = encode_problems(problems, tokenizer, cfg.prompt_suffix)
        notes += file_notes
    return benchmarks, notes
