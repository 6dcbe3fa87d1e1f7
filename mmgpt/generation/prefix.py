"""What was computed before and may be of use again: features of media, keys and values of prompts' beginnings."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor

from mmgpt.batch import Example

BLOCK = 16  # tokens; a prefix is kept, found and used again in blocks of so many


class Store:
    """Tensors by key, up to so many bytes; those not used for longest go first."""

    def __init__(self, most_bytes: int):
        self.most_bytes, self.bytes = most_bytes, 0
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()

    def __contains__(self, key: bytes) -> bool:
        return key in self._kept

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: bytes) -> Tensor | None:
        if (found := self._kept.get(key)) is not None:
            self._kept.move_to_end(key)
        return found

    def put(self, key: bytes, tensor: Tensor) -> None:
        """Keep a tensor, which must own its memory. One larger than all the room is not kept."""
        size = tensor.numel() * tensor.element_size()
        if key in self._kept or size > self.most_bytes:
            return
        self._kept[key] = tensor
        self.bytes += size
        while self.bytes > self.most_bytes:
            _, old = self._kept.popitem(last=False)
            self.bytes -= old.numel() * old.element_size()

    def clear(self) -> None:
        self._kept.clear()
        self.bytes = 0


def block_keys(prompt: Example) -> list[bytes]:
    """A key for each whole block of a prompt's tokens, chained over all that precedes: tokens, and media by content.

    The last token is in no block, since it must be computed anew for its logits.
    """
    media = sorted(prompt.media, key=lambda place: place[0])
    keys: list[bytes] = []
    chain = b""
    for end in range(BLOCK, len(prompt), BLOCK):
        block = hashlib.blake2b(chain, digest_size=16)
        block.update(_bytes(prompt.ids[end - BLOCK : end]))
        while media and media[0][0] < end:  # its place in the chain says where it stands
            first, item = media.pop(0)
            block.update(_bytes([first]) + item.digest)
        chain = block.digest()
        keys.append(chain)
    return keys


def _bytes(numbers: Sequence[int]) -> bytes:
    return b"".join(number.to_bytes(8, "little") for number in numbers)
