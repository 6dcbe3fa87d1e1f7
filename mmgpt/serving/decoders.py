"""Processes that decode what clients sent: a hostile file costs one of them and some seconds, not the server."""

import asyncio
import contextlib
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, TypeVar

from mmgpt.content import Medium
from mmgpt.errors import MediaError
from mmgpt.serving.decoder import READY, BrokenError, Decoded, receive_medium, send_medium
from mmgpt.serving.settings import ENVIRONMENT
from mmgpt.threads import helpers

T = TypeVar("T")
PROCESSES = 2
log = logging.getLogger(__name__)


class Load(Protocol):
    """Decodes a medium that was Sent, as its `load` does with these settings. Raises MediaError."""

    def __call__(self, part: Medium, **settings: Any) -> Decoded: ...


class Decoders:
    """A few processes that decode media, each for one request at a time; `close` ends them.

    Args:
        seconds: For all media of a request; a process that takes longer is ended, and another one begun.
        memory: Bytes that a process may take.
    """

    def __init__(self, seconds: int, memory: int):
        self.seconds, self.memory = seconds, memory
        self.threads = helpers(PROCESSES, "decode")
        self.free: asyncio.Queue[Process | None] = asyncio.Queue()  # None: it could not be started
        self.busy: set[Process] = set()
        for _ in range(PROCESSES):
            self.free.put_nowait(Process(seconds, memory))

    async def run(self, work: Callable[[Load], T]) -> T:
        """What `work` returns, done in a thread with a process to decode with. To cancel this ends the process.

        Raises MediaError for what the process does not survive or cannot do in time, and what `work` raises.
        """
        process = await self.free.get()
        try:
            if process is None or process.ended:
                process = Process(self.seconds, self.memory)
            process.idle = False
            self.busy.add(process)
            await self._aside(process.begin)
            async with asyncio.timeout(self.seconds):
                return await self._aside(partial(process.run, work))
        except TimeoutError:
            raise MediaError(
                f"{process and process.at}: not decoded within {self.seconds} seconds; send a smaller or plainer file"
            ) from None
        finally:
            self.busy -= {process}
            self.free.put_nowait(self._kept(process))

    async def _aside(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.threads, work)

    def _kept(self, process: "Process | None") -> "Process | None":
        """The process, or another one if it is still at work."""
        if process is None or process.idle:
            return process
        process.kill()
        self.threads.submit(process.end)
        with contextlib.suppress(OSError):
            return Process(self.seconds, self.memory)
        return None

    def close(self) -> None:
        while not self.free.empty():
            if (process := self.free.get_nowait()) is not None:
                process.end()
        self.threads.shutdown(wait=False)


class Process:
    """One process that decodes. Its methods block and are for threads, but for `kill`.

    `idle`: it awaits the next medium. `at`: the place of the latest one.
    """

    def __init__(self, seconds: int, memory: int):
        self.seconds, self.idle, self.at = seconds, True, ""
        self._begun = self._answered = False
        # It finds the modules that are found here, and is not told the keys.
        environment = {name: value for name, value in os.environ.items() if name != ENVIRONMENT}
        environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
        self.popen = subprocess.Popen(
            [sys.executable, "-P", "-m", "mmgpt.serving.decoder", str(memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        assert self.popen.stdin is not None
        assert self.popen.stdout is not None
        self._asked, self._answers = self.popen.stdin, self.popen.stdout

    @property
    def ended(self) -> bool:
        return self.popen.poll() is not None

    def begin(self) -> None:
        """Wait until it has imported what it needs."""
        if not self._begun and self._answers.readline() != READY:
            raise RuntimeError("the process that decodes media does not start")
        self._begun = self._answered = True

    def run(self, work: Callable[[Load], T]) -> T:
        try:
            return work(self.load)
        finally:
            self.idle = self._answered

    def load(self, part: Medium, **settings: Any) -> Decoded:
        self.at, self._answered = str(part.source), False
        try:
            send_medium(self._asked, part, self.seconds, settings)
            decoded = receive_medium(self._answers, part, settings)
        except (BrokenError, OSError):
            self.end()
            code = self.popen.returncode
            how = f"signal {-code}" if code < 0 else f"status {code}"
            log.warning("a process that decoded media ended (%s)", how)
            raise MediaError(
                f"{self.at}: the process that decoded it ended ({how}); replace the file or save it again"
            ) from None
        except MediaError:
            self._answered = True
            raise
        self._answered = True
        return decoded

    def kill(self) -> None:
        self.popen.kill()

    def end(self) -> None:
        """Kill it, and leave nothing of it behind."""
        self.kill()
        self.popen.wait()
        for pipe in (self._asked, self._answers):
            with contextlib.suppress(OSError):  # what was not sent any more
                pipe.close()
