"""Files inside other things: what archives, tables and requests have in common for whoever decodes media."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class Stored(Protocol):
    """The bytes of a file that stays where it is until they are needed: in an archive, a table. str() is its name."""

    def read_bytes(self) -> bytes:
        """All of them. Raises MediaError."""
        ...
