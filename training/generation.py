"""The time that generation takes on GPUs, simulated: one engine's decode steps, and the ranks of a run over many steps
of training, synchronous or with partial rollouts. Arithmetic alone, for plan.py and simulate.py.

Synchronous generation ends with the longest response of a step. With partial rollouts more groups are in flight than a
step trains on: it ends when every rank has finished its share of `prompts_per_step` groups; the others go on in the
next step, under the new weights, and what they have so far is prefilled again. No group grows older than max_staleness.
"""

import heapq
import math
import random
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from statistics import NormalDist, fmean

from training.memory import Job, num_params

SIGMA = 0.7  # of the logarithm of response lengths
# Of the logarithm's variance, the share that lies between prompts: hard ones are longer. Assumed: nobody published it.
CORRELATION = 0.5
BANDWIDTH_SHARE = 0.9  # of the GPU's bandwidth: a copy on an H200 was measured by others at 4.3 of 4.8 TB/s
PRODUCT_SHARE = 0.8  # of the GPU's peak: a large product there at 788 of 989 TFLOP/s
DECODE_SHARE = 0.6  # of the GPU's FLOP/s, while decoding, and while a prefill runs
TORCH_STEP = 0.005  # seconds of a step of the torch sampler, whose steps are CUDA graphs, beyond reading and computing
WARM_UP, STEPS = 8, 32  # simulated steps that are left out, as the first ones begin with an empty engine; that count


# ------------------------------------------------------------------------------------------------------------ lengths


def response_lengths(mean: float, limit: int, count: int) -> list[int]:
    """Tokens of `count` responses, the longest first: quantiles of the log-normal distribution that has this mean after
    it is cut at `limit`."""
    quantiles = [(i + 0.5) / count for i in reversed(range(count))]
    factors = [math.exp(SIGMA * NormalDist().inv_cdf(q)) for q in quantiles]  # of the median
    medians = range(1, math.ceil(limit / factors[-1]) + 1)
    index = bisect_left(medians, mean, key=lambda median: fmean(min(limit, median * f) for f in factors))
    median = medians[min(index, len(medians) - 1)]
    return [min(limit, max(1, round(median * f))) for f in factors]


def group_lengths(median: float, limit: int, count: int, correlation: float, rng: random.Random) -> list[int]:
    """Tokens of the `count` responses to one prompt, drawn from the distribution of `response_lengths`; `correlation`
    is that of the logarithms of two of them."""
    of_prompt = math.sqrt(correlation) * rng.gauss()
    lengths = []
    for _ in range(count):
        z = of_prompt + math.sqrt(1 - correlation) * rng.gauss()
        lengths.append(min(limit, max(1, round(median * math.exp(SIGMA * z)))))
    return lengths


# --------------------------------------------------------------------------------------------------------- one engine


@dataclass(eq=False)
class Sample:
    """A response that is on its way."""

    wanted: int  # tokens that it will have
    group: "SimulatedGroup | None" = None
    made: int = 0  # tokens that it has
    made_in: list[tuple[int, int]] = field(default_factory=list)  # (step of training, tokens)


@dataclass(frozen=True)
class Engine:
    """What an engine holds, and how fast it is."""

    prompt: int  # tokens of a prompt
    slots: int  # responses that live at once
    capacity: float  # tokens of its cache
    # seconds of a step with so many live responses and cached tokens; must be linear in the second
    seconds_of_step: Callable[[int, float], float]
    prefill_seconds: Callable[[int], float]  # of a prompt with a response's beginning, of so many tokens together


def engine_of(job: Job, overhead: float) -> Engine:
    """A rank's engine. overhead: seconds of a vLLM engine's step beyond reading and computing."""
    model, gpu = job.model, job.gpu
    layers = model.config.num_hidden_layers * num_params(model.model.layers[0])
    bandwidth = BANDWIDTH_SHARE * gpu.bandwidth
    read_weights = job.size * (layers + num_params(model.lm_head)) / bandwidth  # seconds; of the embedding, a few rows
    read_token = job.kv_bytes / bandwidth
    products = model.flops([1]) / (DECODE_SHARE * gpu.peak)  # seconds a token
    overhead = overhead if job.cfg.sampler == "vllm" else TORCH_STEP
    head = 2 * num_params(model.lm_head)  # FLOPs a token, of which a prefill needs one

    def seconds_of_step(live: int, cached: float) -> float:
        return max(read_weights, products * live) + overhead + read_token * cached

    def prefill_seconds(tokens: int) -> float:
        return (model.flops([tokens]) - head * (tokens - 1)) / (DECODE_SHARE * gpu.peak)

    return Engine(job.prompt, job.cfg.max_num_seqs, job.cache_tokens, seconds_of_step, prefill_seconds)


class SimulatedDecoding:
    """An engine at work on these samples, in order: a token of every live one a step. A sample starts as soon as a slot
    is free and it fits, whole and with its prompt, into the cache beside the live ones (one always fits)."""

    def __init__(self, engine: Engine, samples: list[Sample]) -> None:
        self.engine, self.waiting = engine, deque(samples)
        self.live: list[tuple[int, int, Sample]] = []  # a heap: the step in which it ends, a number, the sample
        self.step = self.started = 0
        self.reserved = self.cached = 0  # tokens that the live ones will have in the cache, and those they have
        self.seconds = self.prefill = self.live_seconds = 0.0  # so far; for carried samples; times live samples
        self._start()

    def _start(self) -> None:
        engine = self.engine
        while self.waiting and len(self.live) < engine.slots:
            sample = self.waiting[0]
            if self.live and self.reserved + engine.prompt + sample.wanted > engine.capacity:
                break
            self.waiting.popleft()
            self.started += 1
            heapq.heappush(self.live, (self.step + sample.wanted - sample.made, self.started, sample))
            self.reserved += engine.prompt + sample.wanted
            self.cached += engine.prompt + sample.made
            if sample.made:
                self.prefill += engine.prefill_seconds(engine.prompt + sample.made)
                self.seconds += engine.prefill_seconds(engine.prompt + sample.made)

    def _seconds_of(self, steps: int) -> float:
        """Until the next sample ends, every step adds a token of each: the average step stands for all of them."""
        live = len(self.live)
        return steps * self.engine.seconds_of_step(live, self.cached + live * (steps + 1) / 2)

    def _go(self, steps: int) -> None:
        seconds = self._seconds_of(steps)
        self.seconds += seconds
        self.live_seconds += seconds * len(self.live)
        self.step += steps
        self.cached += steps * len(self.live)

    def next_end(self) -> float:
        """The second in which the next sample ends; infinity if none lives."""
        return self.seconds + self._seconds_of(self.live[0][0] - self.step) if self.live else math.inf

    def advance(self) -> list[Sample]:
        """Go on until a sample ends; returns those that end in that step."""
        self._go(self.live[0][0] - self.step)
        ended = []
        while self.live and self.live[0][0] == self.step:
            sample = heapq.heappop(self.live)[2]
            sample.made = sample.wanted
            self.reserved -= self.engine.prompt + sample.wanted
            self.cached -= self.engine.prompt + sample.wanted
            ended.append(sample)
        self._start()
        return ended

    def stop(self, second: float) -> None:
        """Go on until this second, which does not come after the next end, and leave what lives unfinished."""
        if self.live:
            steps = range(self.live[0][0] - self.step - 1)
            self._go(bisect_left(steps, second - self.seconds, key=self._seconds_of))
        for end, _, sample in self.live:
            sample.made = sample.wanted - (end - self.step)


def generate(job: Job, mean: float, limit: int, prompts: int, group: int, overhead: float) -> float:
    """Seconds of the rank with the longest response for its share of `prompts`, `group` responses each."""
    of_all_ranks = response_lengths(mean, limit, prompts * group)
    count = math.ceil(prompts / job.gpus) * group
    lengths = [of_all_ranks[i * len(of_all_ranks) // count] for i in range(count)]
    random.Random(0).shuffle(lengths)
    decoding = SimulatedDecoding(engine_of(job, overhead), [Sample(n) for n in lengths])
    while decoding.live:
        decoding.advance()
    return decoding.seconds


# ------------------------------------------------------------------------------------------------- many steps of a run


@dataclass(eq=False)
class SimulatedGroup:
    """The samples of a prompt."""

    samples: list[Sample] = field(default_factory=list)
    unfinished: int = 0  # samples
    began: int | None = None  # the step that made its first token

    def age(self, step: int) -> int:
        """Steps between the weights of `step` and those that made its oldest token."""
        return 0 if self.began is None else step - self.began


class SimulatedQuota:
    """Whether there is enough for a step: a number of finished groups, and all that may wait no longer."""

    def __init__(self, groups: list[SimulatedGroup], number: int, step: int, max_staleness: int) -> None:
        self.missing = number - sum(not group.unfinished for group in groups)
        self.due = {group for group in groups if group.unfinished and group.age(step) >= max_staleness}

    def is_met(self) -> bool:
        return self.missing <= 0 and not self.due

    def count(self, sample: Sample) -> None:
        """Count a sample that has ended."""
        sample.group.unfinished -= 1
        if not sample.group.unfinished:
            self.missing -= 1
            self.due.discard(sample.group)


def run_until(decodings: list[SimulatedDecoding], quota: SimulatedQuota) -> None:
    """Let these engines generate until the quota is met, then stop all of them."""
    second = 0.0
    while not quota.is_met():
        next_one = min(decodings, key=SimulatedDecoding.next_end)
        second = next_one.next_end()
        for sample in next_one.advance():
            quota.count(sample)
    for decoding in decodings:
        decoding.stop(second)


class Ranks:
    """The engines of all ranks, over many steps of training."""

    def __init__(self, job: Job, engine: Engine, in_flight: float, correlation: float, together: bool) -> None:
        self.engine, self.number, self.prompts = engine, job.gpus, job.cfg.prompts_per_step
        self.in_flight, self.together = round(in_flight * self.prompts), together
        self.limit, self.group_size = job.cfg.max_response_len[0], job.cfg.group_size[0]
        self.median = response_lengths(job.mean, self.limit, 1001)[500]
        self.correlation, self.rng = correlation, random.Random(0)
        self.groups: list[SimulatedGroup] = []  # in flight

    def draw(self, step: int) -> None:
        """Fill up what is in flight, and order it by age."""
        while len(self.groups) < self.in_flight:
            lengths = group_lengths(self.median, self.limit, self.group_size, self.correlation, self.rng)
            group = SimulatedGroup(unfinished=len(lengths))
            group.samples = [Sample(n, group) for n in lengths]
            self.groups.append(group)
        self.groups.sort(key=lambda group: -group.age(step))  # stable: of one age, in the order of their draws

    def generate(self, step: int, max_staleness: int) -> tuple[list[SimulatedDecoding], list[SimulatedGroup]]:
        """One step: the engines when they stop, and the groups to train on, which leave: the oldest finished ones."""
        shares = [self.groups[rank :: self.number] for rank in range(self.number)]
        if self.together:
            quotas = [SimulatedQuota(self.groups, self.prompts, step, max_staleness)]
        else:
            numbers = [len(range(rank, self.prompts, self.number)) for rank in range(self.number)]
            quotas = [SimulatedQuota(s, number, step, max_staleness) for s, number in zip(shares, numbers, strict=True)]
        decodings, before = [], []
        for rank, share in enumerate(shares):
            samples = [s for group in share for s in group.samples if s.made < s.wanted]
            before += [(s, s.made) for s in samples]
            is_met = quotas[0 if self.together else rank].is_met()
            decodings.append(SimulatedDecoding(self.engine, [] if is_met else samples))
        for i, quota in enumerate(quotas):
            run_until(decodings if self.together else [decodings[i]], quota)
        for sample, made in before:
            if sample.made > made:
                sample.made_in.append((step, sample.made - made))
                sample.group.began = step if sample.group.began is None else sample.group.began
        finished = [group for group in self.groups if not group.unfinished][: self.prompts]
        leaving = set(finished)
        self.groups = [group for group in self.groups if group not in leaving]
        return decodings, finished


@dataclass(frozen=True)
class Rollouts:
    """What a step's generation comes to, on average over many steps; seconds are a step's."""

    seconds: float  # until the last rank has its share
    waiting: float  # share of these in which a rank waits for another, on average over ranks
    empty: float  # share of these, and of the slots that a rank fills at most, in which nothing is generated
    prefill: float  # seconds that a rank spends on what it generated in an earlier step
    length: float  # mean tokens of a response that is trained on
    staleness: float  # mean steps between a token's weights and those it trains
    stale_tokens: float  # share of the tokens that older weights have made
    oldest: int  # the most such steps of any token
    carried: int  # groups of all ranks that go on in the next step, or wait for it


@cache
def simulate(
    job: Job,
    overhead: float,
    in_flight: float = 1.0,
    max_staleness: int = 0,
    correlation: float = CORRELATION,
    together: bool = False,
    steps: int = STEPS,
) -> Rollouts:
    """Generation over many steps of training. in_flight: groups in flight by those that a step trains on; 1 is
    synchronous: the groups are drawn, generated and trained on in the same step. together: all ranks stop when they
    have enough together, not each when it has its own share."""
    engine = engine_of(job, overhead)
    ranks = Ranks(job, engine, in_flight, correlation, together)
    decodings: list[list[SimulatedDecoding]] = []  # of all ranks, by step
    trained: list[tuple[int, SimulatedGroup]] = []  # in which step
    for step in range(WARM_UP + steps):
        ranks.draw(step)
        of_ranks, groups = ranks.generate(step, max_staleness)
        if step >= WARM_UP:
            decodings.append(of_ranks)
            trained += [(step, group) for group in groups]
    slots = min(engine.slots, round(in_flight * job.rank_prompts) * job.cfg.group_size[0])
    return summarized(decodings, trained, slots, len(ranks.groups))


def summarized(
    decodings: list[list[SimulatedDecoding]], trained: list[tuple[int, SimulatedGroup]], slots: int, carried: int
) -> Rollouts:
    """The averages of what a run's ranks did in each step, and of the groups it trained on."""
    seconds = [max(d.seconds for d in of_ranks) for of_ranks in decodings]
    total = sum(seconds)
    samples = [(step, sample) for step, group in trained for sample in group.samples]
    tokens = sum(sample.wanted for _, sample in samples)
    ages = [(step - made_in, count) for step, sample in samples for made_in, count in sample.made_in]
    return Rollouts(
        seconds=fmean(seconds),
        waiting=1 - sum(fmean(d.seconds for d in of_ranks) for of_ranks in decodings) / total,
        empty=1 - sum(fmean(d.live_seconds for d in of_ranks) for of_ranks in decodings) / (slots * total),
        prefill=fmean(d.prefill for of_ranks in decodings for d in of_ranks),
        length=tokens / len(samples),
        staleness=sum(age * count for age, count in ages) / tokens,
        stale_tokens=sum(count for age, count in ages if age) / tokens,
        oldest=max(age for age, _ in ages),
        carried=carried,
    )
