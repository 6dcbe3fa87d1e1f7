"""Media files and the texts that go with each, gathered row by row: what captions, COCO and sounds have in common."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmgpt.content import Audio, Image
from mmgpt.data.faults import Faults
from mmgpt.data.sample import Sample
from mmgpt.data.splits import members, split_name
from mmgpt.errors import DataError, shown
from mmgpt.folder import MediaFolder, MissingFileError
from mmgpt.tasks import TASKS


@dataclass
class _Annotated:
    where: str
    split: str | None
    texts: list[str] = field(default_factory=list)


class Annotations:
    """The texts of each media file of a folder, in the order in which the files are first named.

    Args:
        source: The file the rows come from, for messages.
        folder: Where the media lie.
        part: What they are: Image or Audio.
    """

    def __init__(self, source: Path, folder: MediaFolder, part: type[Image] | type[Audio]) -> None:
        self.source = source
        self.folder = folder
        self.part = part
        self.faults = Faults()
        self._media: dict[str, _Annotated] = {}
        self._missing: set[str] = set()

    def add(self, where: str, name: Any, text: Any, split: Any = None) -> None:
        """One row. What is wrong with it is remembered, so that all faults are told; a missing file once."""
        with self.faults.row():
            self._add(where, name, text, split)

    def _add(self, where: str, name: Any, text: Any, split: Any) -> None:
        kind = "picture" if self.part is Image else "sound"
        name = _stripped(where, name, f"name of the {kind}")
        text = _stripped(where, text, "text")
        if split is not None and not isinstance(split, str):
            raise DataError(f"{where}: the split is {shown(split)}; it is a string")
        try:
            path = str(self.folder.find(name))
        except MissingFileError as error:
            if name not in self._missing:
                self._missing.add(name)
                self.faults.missing.append(f"{where}: {error}; add the {kind} or remove the row")
            return
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        known = self._media.get(path)
        if known is None:
            known = self._media[path] = _Annotated(where, split)
        elif split_name(known.split or "train") != split_name(split or "train"):
            raise DataError(
                f"{where}: {shown(name)} is in the split {split} here, and in {known.split} at {known.where}"
            )
        known.texts.append(text)

    def samples(self, split: str, task: str, hold_out: bool = True) -> list[Sample]:
        """A sample for each file of the split: its texts are the answers.

        Training has all wordings of the task; every other split has the default. `hold_out` is that of splits.members.
        Raises RowsError where anything is wrong with a row, DataError where nothing is in the split.
        """
        self.faults.raise_all()
        try:
            paths = members({path: media.split for path, media in self._media.items()}, split, hold_out)
        except DataError as error:
            raise DataError(f"{self.source}: {error}") from None
        train = split_name(split) == "train"
        samples = []
        for index, path in enumerate(paths):
            media = self._media[path]
            prompt = TASKS[task].conversation(
                self.part(Path(path)), prompt=TASKS[task].wording(index if train else None)
            )
            samples.append(Sample(tuple(prompt), tuple(media.texts), task, media.where))
        return samples


def _stripped(where: str, value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: the {what} is {'missing' if value is None else shown(value)}; it is a string")
    if not (value := value.strip()):
        raise DataError(f"{where}: the {what} is empty; fill it in or remove the row")
    return value
