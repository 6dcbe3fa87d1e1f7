"""Names written in data, looked up among the files of the one folder that the user gave."""

import os
from collections.abc import Collection
from pathlib import Path

from mmgpt.errors import DataError, shown


class MissingFileError(DataError):
    """A name in the data has no file. Told apart from other errors because readers count all that are missing."""


class MediaFolder:
    """The files of one folder. No name leads out of it: not `..`, an absolute path, a URL or a link.

    Directories are listed once and remembered, so that looking up many names is quick.

    Args:
        root: The folder.
        places: Sub-folders where a name is looked for too, in this order, after the folder itself.
    """

    def __init__(self, root: str | Path, places: tuple[str, ...] = ()) -> None:
        self.root = Path(root)
        self.places = ("", *places)
        self._real_root = os.path.realpath(self.root)
        self._listings: dict[str, dict[str, bool]] = {}
        self._found: dict[str, Path] = {}

    def find(self, name: str) -> Path:
        """The path of a file of this folder. Raises MissingFileError if there is none, DataError if it is elsewhere."""
        if name not in self._found:
            self._found[name] = self._look_for(name)
        return self._found[name]

    def has(self, name: str) -> bool:
        """Whether there is such a file. Raises DataError as `find` does for a name that leads elsewhere."""
        try:
            self.find(name)
        except MissingFileError:
            return False
        return True

    def files(self, suffixes: Collection[str]) -> list[str]:
        """The names of all files below the root with one of these suffixes (".jpg", in any case), sorted.

        Hidden files and folders are left out, and links to folders are not followed. Raises DataError for a link to a
        file elsewhere.
        """
        found = []
        for directory, folders, names in os.walk(self.root):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            below = os.path.relpath(directory, self.root)
            for name in names:
                if not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes:  # noqa: PTH122
                    path = os.path.normpath(os.path.join(below, name))  # noqa: PTH118  a Path for each file is slow
                    if os.path.islink(os.path.join(directory, name)):  # noqa: PTH114, PTH118
                        self._refuse_outside(path)
                    found.append(path)
        return sorted(found)

    def _look_for(self, name: str) -> Path:
        if "://" in name:
            raise DataError(f"{shown(name)} is a URL, and nothing is fetched; download it and name the file")
        if name.startswith("/") or "\0" in name or ".." in name.split("/"):
            raise DataError(f"{shown(name)} leads out of the folder {self.root}; name a file inside it")
        for place in self.places:
            path = os.path.normpath(os.path.join(place, name))  # noqa: PTH118  a Path for each row is slow
            directory, _, base = path.rpartition("/")
            is_link = self._list(directory).get(base)
            if is_link is not None:
                if is_link:
                    self._refuse_outside(path)
                return self.root / path
        likely = next((place for place in self.places[1:] if self._list(place)), "")
        raise MissingFileError(f"{shown(name)} is not in the folder {self.root / likely}")

    def _list(self, directory: str) -> dict[str, bool]:
        """The files of a directory inside the root, by name: is it a link?"""
        if directory not in self._listings:
            self._refuse_outside(directory)
            try:
                with os.scandir(self.root / directory) as entries:
                    listing = {entry.name: entry.is_symlink() for entry in entries if entry.is_file()}
            except PermissionError as error:
                raise DataError(f"{self.root / directory}: cannot be read: {error.strerror}") from None
            except OSError:  # there is no such directory
                listing = {}
            self._listings[directory] = listing
        return self._listings[directory]

    def _refuse_outside(self, path: str) -> None:
        real = os.path.realpath(self.root / path)
        if not Path(real).is_relative_to(self._real_root):
            raise DataError(f"{self.root / path} is a link out of the folder {self.root}; put a copy in its place")
