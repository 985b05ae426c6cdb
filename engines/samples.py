"""What a sampler returns, and what both engines share: `Rollout`, seeds, and for partial rollouts when a generation may
end (`Quota`) and how it goes on. No tensors, no engine.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

from configs import UserError


@dataclass
class Rollout:
    """One sampled response. Plain Python: no tensors."""

    prompt_id: int  # index of the prompt: among the run's prompts; as a sampler returns it, in generate's argument
    sample_id: int  # 0 .. group_size - 1
    prompt_ids: list[int]
    response_ids: list[int]  # with the stop token, where there is one
    logprobs: list[float]  # the sampler's, of each response token, at the sampling temperature
    finish_reason: str | None  # "stop" | "length"; None: it goes on in the next step (partial_rollouts)
    reward: float = 0.0
    advantage: float = 0.0
    thought: bool = False  # are both <think> and </think> there, with what the chat template opened?
    answer: str | None = None  # in the response, right or wrong; None where it has none that could be graded
    draw: int = 0  # the step whose draw it belongs to, where several are in flight (partial_rollouts)
    # (step, tokens) in order: whose weights sampled the response; none: those of the step that trains on it
    segments: tuple[tuple[int, int], ...] = ()


def sample_seed(*parts: int | str) -> int:
    """One 63-bit seed: a hash of (run seed, stage, step, attempt, prompt, sample), or of whatever names a sample."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little") >> 1


def check_lengths(prompts: list[list[int]], max_tokens: int, name: str, limit: int) -> None:
    """Raises UserError if a prompt is empty, or with `max_tokens` exceeds the `limit`, a setting called `name`."""
    longest = max(len(p) for p in prompts)
    if min(len(p) for p in prompts) == 0 or max_tokens < 1:
        raise UserError("generate: a prompt without tokens, or max_tokens under 1")
    if longest + max_tokens > limit:
        raise UserError(f"generate: {longest} prompt + {max_tokens} response tokens exceed {name}={limit}")


def in_groups(prompts: list[list[int]], seeds: list[list[int]], samples: list[tuple]) -> list[list[Rollout]]:
    """The rollouts of each prompt, from (response_ids, logprobs, finish_reason) of all samples in order."""
    groups, first = [], 0
    for prompt_id, prompt in enumerate(prompts):
        own = samples[first : first + len(seeds[prompt_id])]
        groups.append([Rollout(prompt_id, sample_id, prompt, *sample) for sample_id, sample in enumerate(own)])
        first += len(own)
    return groups


# -------------------------------------------------------------------------------------------------- partial rollouts


class Quota:
    """When a `generate_until` call may end. Its samples, those that are not finished yet, count from 0 in order."""

    def __init__(self, groups: list[list[Rollout]], num_groups: int, must_finish: set[int]) -> None:
        """num_groups: that must be finished, those of the indices `must_finish` among them."""
        self.num_groups, self.must_finish = num_groups, must_finish
        self.group_of = [g for g, group in enumerate(groups) for r in group if r.finish_reason is None]  # of a sample
        self.unfinished = [sum(r.finish_reason is None for r in group) for group in groups]  # samples of each group

    def finish(self, sample: int) -> None:
        self.unfinished[self.group_of[sample]] -= 1

    @property
    def is_met(self) -> bool:
        enough = self.unfinished.count(0) >= self.num_groups
        return enough and not any(self.unfinished[g] for g in self.must_finish)


def texts_to_go_on_with(
    groups: list[list[Rollout]], seeds: list[list[int]]
) -> tuple[list[list[int]], list[int], list[list[int]]]:
    """What the unfinished samples go on from, in order: texts, how many last tokens of each are response already, and
    the seeds of the samples that share it, which are those of a prompt that have no token yet."""
    texts: list[list[int]] = []
    begun: list[int] = []
    seeds_of_text: list[list[int]] = []
    for group, group_seeds in zip(groups, seeds, strict=True):
        shares_last_text = False
        for r, seed in zip(group, group_seeds, strict=True):
            if r.finish_reason is None and shares_last_text and not r.response_ids:
                seeds_of_text[-1].append(seed)
            elif r.finish_reason is None:
                texts.append(r.prompt_ids + r.response_ids)
                begun.append(len(r.response_ids))
                seeds_of_text.append([seed])
                shares_last_text = not r.response_ids
    return texts, begun, seeds_of_text


def joined(groups: list[list[Rollout]], samples: Iterator[tuple]) -> list[list[Rollout]]:
    """The groups with what has come to their unfinished samples: (new tokens, their logprobs, finish_reason) each."""
    new_groups = []
    for group in groups:
        new_groups.append([])
        for r in group:
            if r.finish_reason is None:
                ids, logprobs, reason = next(samples)
                ids, logprobs = r.response_ids + ids, r.logprobs + logprobs
                r = replace(r, response_ids=ids, logprobs=logprobs, finish_reason=reason)
            new_groups[-1].append(r)
    return new_groups
