"""Work that a second start goes on with: who may write, what it is of, and how far it is."""

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from mmgpt.errors import ConfigError
from mmgpt.files import atomic_write


def agree(path: Path, settings: Mapping[str, Any], answers: Path) -> None:
    """Write down the settings of what is in `answers`, or see that those that are written there are the same.

    Raises ConfigError naming those that differ, and where there are answers without settings.
    """
    if not path.exists():
        if answers.exists():
            raise ConfigError(f"{answers.parent}: {answers.name} is there without its {path.name}; name another --out")
        with atomic_write(path) as temporary:
            temporary.write_bytes(as_json(settings))
        return
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
        return Text("" if task.speed is None else f"{task.speed:.1f} a second", style="progress.data.speed")


def progress_bar() -> Progress:
    """Of work of many equal pieces: how many are done, how fast, and the time left. On stderr, gone when it is done."""
    told = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Speed(), TimeRemainingColumn())
    return Progress(*told, console=Console(stderr=True), transient=True)
