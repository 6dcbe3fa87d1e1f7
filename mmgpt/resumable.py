"""Work that a second start goes on with: who may write, what it is of, and how far it is."""

import fcntl
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from mmgpt.errors import ConfigError
from mmgpt.files import atomic_write

TELLING = 30.0  # seconds from one line of progress to the next, where there is no terminal


def agree(path: Path, settings: Mapping[str, Any], answers: Path) -> None:
    """Write down the settings of what will be in `answers`, or see that those of what is there are the same.

    Raises ConfigError naming those that differ, and where there are answers without settings.
    """
    if not answers.exists():
        with atomic_write(path) as temporary:
            temporary.write_bytes(as_json(settings))
        return
    if not path.exists():
        raise ConfigError(f"{answers.parent}: {answers.name} is there without its {path.name}; name another --out")
    try:
        before = json.loads(path.read_bytes())
    except ValueError:
        raise ConfigError(f"{path}: not the settings of what is beside it; name another --out") from None
    now, then = dict(_flat(settings)), dict(_flat(before))
    differing = [name for name in now | then if now.get(name) != then.get(name) and name != "model.name"]
    if differing:
        told = "; ".join(f"{name} was {then.get(name)} and is {now.get(name)}" for name in differing)
        raise ConfigError(
            f"{answers.parent}: holds answers made with other settings ({told}); name another --out, or remove this one"
        )


def _flat(values: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield from _flat(value, f"{name}.{key}" if name else key)
    else:
        yield name, values


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Nobody else holds this file meanwhile; it is made if need be. Raises ConfigError if somebody does."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{path.parent}: another process is writing there; wait for it or name another --out"
            ) from None
        yield


def as_json(value: Any) -> bytes:
    """On one line. Names of files that are no UTF-8 are escaped as JSON escapes."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace")


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(_speed(task), style="progress.data.speed")


def _speed(task: Task) -> str:
    return "" if task.speed is None else f"{task.speed:.1f} a second"


@contextmanager
def progress(what: str, total: int, done: int) -> Iterator[Callable[[], None]]:
    """Tells on stderr how many of `total` equal pieces of work are done, how fast it goes, and the time left.

    On a terminal it is a bar, which is gone at the end; elsewhere a line now and then. What it gives is to be called
    after each piece.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Speed(), TimeRemainingColumn())
    settings = {"transient": True, "disable": not console.is_terminal, "get_time": time.monotonic}
    told = time.monotonic()
    with Progress(*columns, console=console, **settings) as bar:
        bar.add_task(what, total=total, completed=done)
        [task] = bar.tasks

        def advance() -> None:
            nonlocal told
            bar.advance(task.id)
            if not console.is_terminal and (now := time.monotonic()) - told >= TELLING:
                told, left = now, timedelta(seconds=round(task.time_remaining or 0))
                print(f"{what}: {task.completed:,.0f} of {total:,}, {_speed(task)}, {left} left", file=sys.stderr)

        yield advance
