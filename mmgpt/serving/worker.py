"""The thread that owns the engine, and the way from the event loop to it and back."""

import asyncio
import concurrent.futures
import contextlib
import logging
import queue
import threading
import time
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeAlias, TypeVar

import torch

from mmgpt.generation import Answer, Engine, Request

T = TypeVar("T")
log = logging.getLogger(__name__)


class EngineError(Exception):
    """The engine failed, through no fault of the request's."""


@dataclass(eq=False)
class Job:
    """Requests that are asked for together, on their way. The fields belong to the event loop.

    Args:
        requests: Made ready by the engine's `prepare`.
        growing: Tell of the answers whenever they have grown, else only once all of them are done.
    """

    requests: Sequence[Request]
    growing: bool
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    answers: list[Answer] = field(default_factory=list)
    error: Exception | None = None
    done: bool = False
    first_token: float | None = None  # when it came, by time.monotonic()

    def tell(self, answers: list[Answer], error: Exception | None, done: bool) -> None:
        if self.first_token is None and any(answer.tokens for answer in answers):
            self.first_token = time.monotonic()
        self.answers, self.error, self.done = answers, error, done
        self.news.set()


News: TypeAlias = tuple[Job, list[Answer], Exception | None, bool]


class Worker:
    """Owns an engine in a thread of its own, and steps it while there is work: who came first is let in first.

    Args:
        build: Makes the engine, in that thread; called again should it fail, since what it holds is then of no use.
    """

    def __init__(self, build: Callable[[], Engine]):
        self._build = build
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        # The thread's own: jobs with how many tokens were told of each, and other work that waits for its turn.
        self._jobs: dict[Job, int] = {}
        self._calls: deque[Callable[[], None]] = deque()
        built: concurrent.futures.Future[Engine] = concurrent.futures.Future()
        self._thread = threading.Thread(target=self._run, args=(built,), name="engine", daemon=True)
        self._thread.start()
        self.engine = built.result()

    @property
    def waiting(self) -> int:
        """Answers that wait for a row of the engine."""
        return len(self.engine.waiting)

    async def follow(self, job: Job) -> AsyncGenerator[list[Answer]]:
        """How the answers to a job's requests, one after the other, stand; at last when they are done.

        Who reads slowly misses states in between. To leave before the end (to be closed, to close this) cancels the
        requests. Raises ConfigError for an answer too complex for its constraint, EngineError if the engine fails.
        """
        self._inbox.put(partial(self._enter, job))
        try:
            while not job.done:
                await job.news.wait()
                job.news.clear()
                if job.error is not None:
                    raise job.error
                yield job.answers
        finally:
            if not job.done:
                self._inbox.put(partial(self._drop, job))

    async def call(self, work: Callable[[], T]) -> T:
        """What some other work with the model returns, done between two steps of the engine, where no other is."""
        future: concurrent.futures.Future[T] = concurrent.futures.Future()

        def command() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except Exception as error:
                    future.set_exception(error)

        self._inbox.put(partial(self._calls.append, command))
        return await asyncio.wrap_future(future)

    def stop(self) -> None:
        """End the thread, after the step that it is at."""
        self._inbox.put(None)
        self._thread.join()

    # What runs in the thread

    def _run(self, built: concurrent.futures.Future[Engine]) -> None:
        torch.get_num_threads()  # which settles it, before any other thread is told to compute alone
        try:
            built.set_result(self._build())
        except Exception as error:
            built.set_exception(error)
            return
        while True:
            while not (self._jobs or self._calls) or not self._inbox.empty():
                if (command := self._inbox.get()) is None:
                    return
                command()
            if self._calls:  # one alone, so that answers go on however many there are
                self._calls.popleft()()
            if not self._jobs:
                continue
            error: Exception | None = None
            try:
                self.engine.step()
            except Exception as failure:
                log.exception("the engine failed; those whom it served are told so, and it begins anew")
                error = EngineError(f"the engine failed ({type(failure).__name__}); ask again")
                self.engine = self._build()
            self._tell(error)

    def _enter(self, job: Job) -> None:
        self._jobs[job] = 0
        for request in job.requests:
            self.engine.enter(request)

    def _drop(self, job: Job) -> None:
        if self._jobs.pop(job, None) is not None:
            for request in job.requests:
                self.engine.cancel(request)

    def _tell(self, error: Exception | None) -> None:
        """Tell the event loops what is new of the jobs; each is woken once."""
        told: defaultdict[asyncio.AbstractEventLoop, list[News]] = defaultdict(list)
        for job in list(self._jobs):
            if (news := self._news(job, error)) is not None:
                told[job.loop].append(news)
        for loop, news in told.items():
            with contextlib.suppress(RuntimeError):  # the loop has ended, and with it whoever asked
                loop.call_soon_threadsafe(_deliver, news)

    def _news(self, job: Job, error: Exception | None) -> News | None:
        error = error or next((request.error for request in job.requests if request.error is not None), None)
        done = error is not None or all(request.done for request in job.requests)
        before, length = self._jobs[job], sum(request.length for request in job.requests)
        if done:
            self._drop(job)
        elif length == before or (before and not job.growing):
            return None
        else:
            self._jobs[job] = length
        # Copies, since the lists of those under way grow on in this thread.
        answers = [
            replace(answer, tokens=[*answer.tokens], choices=None if answer.choices is None else [*answer.choices])
            for request in ([] if error else job.requests)
            for answer in request.answers
        ]
        return job, answers, error, done


def _deliver(news: list[News]) -> None:
    for job, answers, error, done in news:
        job.tell(answers, error, done)
