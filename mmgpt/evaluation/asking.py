"""Asking a model many things: answers in order as they come, and what could not be asked."""

import dataclasses
import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, tee
from typing import Any, TypeAlias

from rich.progress import track

from mmgpt import checkpoint
from mmgpt.assistant import Assistant
from mmgpt.batch import Example
from mmgpt.content import Message
from mmgpt.data.sample import Sample
from mmgpt.errors import MediaError
from mmgpt.evaluation.metrics.likelihood import Cost
from mmgpt.generation import Decoding, Engine, Request
from mmgpt.processor import TooLongError
from mmgpt.resumable import as_json
from mmgpt.threads import helpers

GROUP = 64  # samples under way at once
TOKENS = 4096  # or more, that are looked at together where nothing is said


@dataclass(frozen=True)
class Answered:
    """A sample and what the model said to it, or, where likelihood is measured, what its right answers cost."""

    sample: Sample
    prediction: str
    cost: Cost | None = None

    @property
    def told(self) -> str:
        """What is shown of it."""
        return self.prediction if self.cost is None else str(self.cost)


@dataclass(frozen=True)
class Lost:
    """A sample that could not be asked, and why, beginning with where it is."""

    sample: Sample
    reason: str


@dataclass(frozen=True)
class Answers:
    """All answers, and the reasons for which samples could not be asked."""

    answered: list[Answered]
    broken: list[str]


Asked: TypeAlias = tuple[str, Sequence[Message]]  # where it comes from, and the conversation


def settings_of(model: str, int8: bool, decoding: Decoding) -> dict[str, dict[str, Any]]:
    """What answers depend on but for what is asked, as JSON: other settings may make other answers."""
    return {
        "model": {"name": model, "sha256": checkpoint.fingerprint(model), "int8": int8},
        "decoding": json.loads(as_json(dataclasses.asdict(decoding))),
    }


def said(
    assistant: Assistant, asked: Iterable[Asked], decoding: Decoding, threads: int = 0
) -> Iterator[str | MediaError | TooLongError]:
    """The model's answer to each conversation, in order, as they come, or why it could not be asked.

    At most GROUP of them are in the engine at a time, and as many decoded ahead of it.

    Args:
        assistant: The model.
        asked: The conversations.
        decoding: How answers are decoded.
        threads: Decode media in so many threads, ahead of the model; 0: in this one, between its steps.

    Raises:
        ConfigError: The model answers nothing.
    """
    assistant.require_answers()
    engine, waiting = assistant.engine, _encoded(assistant, asked, threads)
    under_way: deque[Request | MediaError | TooLongError] = deque()
    try:
        while True:
            while len(under_way) < GROUP and (prompt := next(waiting, None)) is not None:
                under_way.append(_submitted(engine, prompt, decoding) if isinstance(prompt, Example) else prompt)
            if not under_way:
                return
            first = under_way[0]
            if isinstance(first, Request) and not first.done:
                engine.step()
                continue
            under_way.popleft()
            if not isinstance(first, Request):
                yield first
            elif first.error is not None:
                raise first.error
            else:
                yield first.answers[0].text.strip()
    finally:  # whoever is interrupted leaves nothing behind
        for request in under_way:
            if isinstance(request, Request):
                engine.cancel(request)


def replies(assistant: Assistant, samples: Iterable[Sample], decoding: Decoding) -> Iterator[Answered | Lost]:
    """The model's answer to each sample, as `said` tells them; broken media cost their own sample."""
    samples, again = tee(samples)
    for sample, answer in zip(samples, said(assistant, map(_asked, again), decoding), strict=False):
        yield Answered(sample, answer) if isinstance(answer, str) else Lost(sample, _reason(sample.where, answer))


def choices(assistant: Assistant, samples: Iterable[Sample], answers: Sequence[str]) -> Iterator[Answered | Lost]:
    """The likeliest of some answers to each sample, in order, as they come; broken media cost their own sample.

    Raises ConfigError for a model that answers nothing.
    """
    assistant.require_answers()
    samples, again = tee(samples)
    for sample, prompt in zip(samples, _encoded(assistant, map(_asked, again)), strict=False):
        if isinstance(prompt, Example):
            yield Answered(sample, answers[int(assistant.likelihoods(prompt, answers).argmax())])
        else:
            yield Lost(sample, _reason(sample.where, prompt))


def costs(assistant: Assistant, samples: Iterable[Sample]) -> Iterator[Answered | Lost]:
    """What the right answers to each sample cost the model, in order, as they come; broken media cost their own sample.

    Raises ConfigError for a model that answers nothing.
    """
    assistant.require_answers()
    samples, again = tee(samples)
    waiting: list[tuple[Sample, list[Example] | MediaError | TooLongError]] = []
    tokens = 0
    for sample, prompt in zip(samples, _encoded(assistant, map(_asked, again)), strict=False):
        found = _answers_of(assistant, sample, prompt)
        waiting.append((sample, found))
        tokens += sum(map(len, found)) if isinstance(found, list) else 0
        if tokens >= TOKENS:
            yield from _paid(assistant, waiting)
            waiting, tokens = [], 0
    yield from _paid(assistant, waiting)


def _answers_of(
    assistant: Assistant, sample: Sample, prompt: Example | MediaError | TooLongError
) -> list[Example] | MediaError | TooLongError:
    if not isinstance(prompt, Example):
        return prompt
    try:
        return [assistant.processor.encode_answer(prompt, answer) for answer in sample.answers]
    except (MediaError, TooLongError) as error:
        return error


def _paid(
    assistant: Assistant, waiting: Sequence[tuple[Sample, list[Example] | MediaError | TooLongError]]
) -> Iterator[Answered | Lost]:
    examples = [one for _, found in waiting if isinstance(found, list) for one in found]
    nats = iter((-assistant.log_likelihoods(examples)).tolist() if examples else ())
    for sample, found in waiting:
        if isinstance(found, list):
            tokens = sum(sum(one.supervised) for one in found)
            yield Answered(sample, "", Cost(sum(islice(nats, len(found))), tokens))
        else:
            yield Lost(sample, _reason(sample.where, found))


def _asked(sample: Sample) -> Asked:
    return sample.where, sample.prompt


def _reason(where: str, error: MediaError | TooLongError) -> str:
    return str(error) if isinstance(error, TooLongError) else f"{where}: {error}"  # the former names the sample itself


def _encoded(
    assistant: Assistant, asked: Iterable[Asked], threads: int = 0
) -> Iterator[Example | MediaError | TooLongError]:
    """The encoded prompts of conversations, in order; GROUP of them at most are made ahead."""

    def encode(one: Asked) -> Example | MediaError | TooLongError:
        where, conversation = one
        try:
            return assistant.processor.encode_prompt(conversation, where=where)
        except (MediaError, TooLongError) as error:
            return error

    if not threads:
        yield from map(encode, asked)
        return
    pool, waiting = helpers(threads, "decode"), iter(asked)
    try:
        ahead = deque(pool.submit(encode, one) for one in islice(waiting, GROUP))
        while ahead:
            yield ahead.popleft().result()
            ahead.extend(pool.submit(encode, one) for one in islice(waiting, 1))
    finally:
        pool.shutdown(cancel_futures=True)


def _submitted(engine: Engine, prompt: Example, decoding: Decoding) -> Request | TooLongError:
    try:
        return engine.submit(prompt, decoding)
    except TooLongError as error:
        return error


def answer_all(assistant: Assistant, samples: Sequence[Sample], decoding: Decoding, progress: str = "") -> Answers:
    """All that `replies` gives, the answers and the reasons apart."""
    found = replies(assistant, samples, decoding) if samples else iter(())
    if progress:
        found = track(found, description=progress, total=len(samples), transient=True)
    every = list(found)
    return Answers(
        [one for one in every if isinstance(one, Answered)], [one.reason for one in every if isinstance(one, Lost)]
    )
