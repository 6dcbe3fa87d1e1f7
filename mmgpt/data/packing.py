"""Which documents share a batch: as many as fit its budget of tokens, so that every batch costs about the same."""

from bisect import bisect_left, insort
from collections.abc import Sequence

from mmgpt.batch import Example

# Documents wait until there are this many batches' worth to choose from: enough to fill 99 % of a batch where documents
# are a tenth of it, few enough to hold in memory.
WINDOW = 4


def cost(examples: Sequence[Example]) -> int:
    """Tokens that the GPT and the encoders see of documents that share their media.

    A token of a document is one of the GPT's, a slot that a medium fills like any other. To these come the encoders'
    tokens, each medium's once, as it is encoded once: by text alone a picture of 196 patches behind 49 slots, or beside
    the sequence, would seem to be a quarter of its work, or none, and a batch of many such would not fit the memory of
    one that has few.
    """
    media = {id(item): item.grid.count for example in examples for _, item in example.media}
    return sum(map(len, examples)) + sum(media.values())


def too_large(example: Example, budget: int) -> str | None:
    """Why a document cannot be in any batch of so many tokens; None if it can."""
    if (size := cost([example])) <= budget:
        return None
    return f"{example.where}: {size} tokens do not fit batch_tokens {budget}"


def pack(costs: Sequence[int], budget: int) -> list[int]:
    """The numbers of the waiting documents that make the next batch, in the order they wait in.

    The first is always among them, so that none waits for ever; then each time the largest that still fits (best-fit
    decreasing). A first one above the budget makes a batch alone.
    """
    chosen, room = [0], budget - costs[0]
    waiting: list[tuple[int, int]] = []  # by size; of equal ones the one that came first is the last
    for number in range(1, len(costs)):
        insort(waiting, (costs[number], -number))
    while waiting and (place := bisect_left(waiting, (room, 1))) > 0:
        size, number = waiting.pop(place - 1)
        chosen.append(-number)
        room -= size
    return sorted(chosen)
