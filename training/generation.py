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
DECODE_SHARE = 0.6  # of the GPU's FLOP/s, while decoding
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
    group: "Group | None" = None
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


class Decoding:
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
    decoding = Decoding(engine_of(job, overhead), [Sample(n) for n in lengths])
    while decoding.live:
        decoding.advance()
    return decoding.seconds


# ------------------------------------------------------------------------------------------------- many steps of a run


@dataclass(eq=False)
class Group:
    """The samples of a prompt, which stay with one engine."""

    drawn: int  # the step in which it was drawn
    engine: int
    samples: list[Sample] = field(default_factory=list)
    unfinished: int = 0  # samples


class Quota:
    """Whether there is enough for a step: a number of finished groups, and all that may wait no longer."""

    def __init__(self, groups: list[Group], quota: int, step: int, max_staleness: int) -> None:
        self.oldest = step - max_staleness  # drawn then or before: due
        self.groups_missing = quota - sum(not group.unfinished for group in groups)
        self.due = sum(group.unfinished > 0 and group.drawn <= self.oldest for group in groups)

    def is_met(self) -> bool:
        return self.groups_missing <= 0 and not self.due

    def count(self, sample: Sample) -> None:
        """Count a sample that has ended."""
        group = sample.group
        group.unfinished -= 1
        if not group.unfinished:
            self.groups_missing -= 1
            self.due -= group.drawn <= self.oldest


class Pool:
    """Engines that share a quota of groups a step and stop together, over many steps of training.

    max_staleness holds where at most twice the quota is in flight: then no more groups than a quota become due in one
    step. With more, those of the first draw may be trained on later.
    """

    def __init__(self, job: Job, engine: Engine, engines: int, quota: int, in_flight: float, seed: int) -> None:
        self.engine, self.engines, self.quota, self.rng = engine, engines, quota, random.Random(seed)
        self.limit, self.group_size = job.cfg.max_response_len[0], job.cfg.group_size[0]
        self.median = response_lengths(job.mean, self.limit, 1001)[500]
        self.in_flight = round(in_flight * quota)
        self.groups: list[Group] = []  # in flight, in the order in which they were drawn

    def draw(self, step: int, correlation: float) -> None:
        """Fill up what is in flight; each group goes to the engine with the fewest unfinished samples."""
        unfinished = [0] * self.engines
        for group in self.groups:
            unfinished[group.engine] += group.unfinished
        while len(self.groups) < self.in_flight:
            lengths = group_lengths(self.median, self.limit, self.group_size, correlation, self.rng)
            group = Group(step, unfinished.index(min(unfinished)), unfinished=len(lengths))
            group.samples = [Sample(n, group) for n in lengths]
            unfinished[group.engine] += len(lengths)
            self.groups.append(group)

    def generate(self, step: int, max_staleness: int) -> tuple[list[Decoding], list[Group]]:
        """One step: its engines when they stop, and the groups to train on, which leave; the oldest draws first."""
        quota = Quota(self.groups, self.quota, step, max_staleness)
        unfinished: list[list[Sample]] = [[] for _ in range(self.engines)]
        for group in self.groups:
            unfinished[group.engine] += [s for s in group.samples if s.made < s.wanted]
        before = [(s, s.made) for samples in unfinished for s in samples]
        decodings = [Decoding(self.engine, [] if quota.is_met() else samples) for samples in unfinished]
        second = 0.0
        while not quota.is_met():
            next_one = min(decodings, key=Decoding.next_end)
            second = next_one.next_end()
            for sample in next_one.advance():
                quota.count(sample)
        for decoding in decodings:
            decoding.stop(second)
        for sample, made in before:
            if sample.made > made:
                sample.made_in.append((step, sample.made - made))
        finished = [group for group in self.groups if not group.unfinished][: self.quota]
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
    oldest: int  # most steps between the draw of a group and its training
    carried: float  # groups of all ranks that go on in the next step, or wait for it


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
    engine, prompts = engine_of(job, overhead), job.cfg.prompts_per_step
    shares = [prompts] if together else [len(range(rank, prompts, job.gpus)) for rank in range(job.gpus)]
    engines = job.gpus // len(shares)
    pools = [Pool(job, engine, engines, share, in_flight, rank) for rank, share in enumerate(shares)]
    decodings: list[list[Decoding]] = []  # of all ranks, by step
    trained: list[tuple[int, Group]] = []  # in which step
    carried = 0
    for step in range(WARM_UP + steps):
        of_ranks: list[Decoding] = []
        for pool in pools:
            pool.draw(step, correlation)
            of_pool, groups = pool.generate(step, max_staleness)
            of_ranks += of_pool
            trained += [(step, group) for group in groups if step >= WARM_UP]
        if step >= WARM_UP:
            decodings.append(of_ranks)
            carried += sum(len(pool.groups) for pool in pools)
    slots = min(engine.slots, round(in_flight * shares[0] / engines) * job.cfg.group_size[0])
    return summarized(decodings, trained, slots, carried / steps)


def summarized(
    decodings: list[list[Decoding]], trained: list[tuple[int, Group]], slots: int, carried: float
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
        oldest=max(step - group.drawn for step, group in trained),
        carried=carried,
    )
