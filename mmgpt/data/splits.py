"""Which samples are trained on, and which are held out: one rule for every format."""

from collections.abc import Mapping

from mmgpt.errors import DataError, shown

_DEV = ("dev", "val", "valid", "validation")
SPLITS = ("train", *_DEV, "test")  # names by which files and folders tell their split


def split_name(split: str) -> str:
    """The name by which a split is known inside: "val", "valid" and "validation" are "dev"."""
    name = split.strip().lower()
    return "dev" if name in _DEV else name


def members(splits: Mapping[str, str | None], split: str, hold_out: bool = True) -> list[str]:
    """The names that belong to a split, in the order given.

    A data set that names its splits is taken at its word; a name without a split is "train". Where no name is "dev",
    every tenth training name in sorted order, beginning with the first, is "dev" and is not trained on.

    Args:
        splits: The split of each name, None where the data set does not say.
        split: The one that is wanted.
        hold_out: Make "dev" out of "train" where it is not named; False where it is in another file.

    Raises:
        DataError: There is nothing in it.
    """
    named = {name: split_name(own or "train") for name, own in splits.items()}
    if hold_out and "dev" not in named.values():
        training = sorted(name for name, own in named.items() if own == "train")
        named.update(dict.fromkeys(training[::10], "dev"))
    wanted = split_name(split)
    found = [name for name, own in named.items() if own == wanted]
    if not found:
        counts = ", ".join(f"{own} ({list(named.values()).count(own)})" for own in dict.fromkeys(named.values()))
        raise DataError(f"nothing is in the split {shown(split)}; there is {counts or 'nothing at all'}")
    return found
