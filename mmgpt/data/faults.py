"""What is wrong with the rows of a data set, gathered so that all of it is told, and not the first alone."""

from collections.abc import Iterator
from contextlib import contextmanager

from mmgpt.errors import DataError


class RowsError(DataError):
    """Rows are malformed, or name files that are not there.

    Args:
        malformed: Why rows cannot be read, a line each.
        missing: Which files are missing, a line each.
    """

    def __init__(self, malformed: list[str], missing: list[str]) -> None:
        self.malformed, self.missing = malformed, missing
        first, *_ = *malformed, *missing
        kinds = [*["malformed"] * len(malformed), *["missing"] * len(missing)][1:]
        more = [f"{kinds.count(kind):,} more are {kind}" for kind in ("malformed", "missing") if kind in kinds]
        super().__init__(first + (f" ({', '.join(more)})" if more else ""))


class Faults:
    """The faults of a reader's rows. It goes on after each, and raises all of them together at the end."""

    def __init__(self) -> None:
        self.malformed: list[str] = []
        self.missing: list[str] = []

    @contextmanager
    def row(self) -> Iterator[None]:
        """What reads one row, or rows with faults of their own: a DataError ends that alone."""
        try:
            yield
        except RowsError as error:
            self.malformed += error.malformed
            self.missing += error.missing
        except DataError as error:
            self.malformed.append(str(error))

    def raise_all(self) -> None:
        """Raises RowsError if there were any."""
        if self.malformed or self.missing:
            raise RowsError(self.malformed, self.missing)
