"""Threads that do not slow down the one that computes.

Each thread that runs a large operation of torch gets a team of OpenMP threads of its own. As soon as all teams together
have more threads than the machine has cores, libgomp lets none of them wait actively any more, and every operation pays
for waking its team: a GPT's token took 14 ms instead of 6 on two cores, though all other teams were idle.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock, Thread
from typing import TypeVar

import torch

T = TypeVar("T")
_lock = Lock()


def compute_alone() -> None:
    """From now on, what this thread asks of torch is done by this thread alone; others are left as they are."""
    with _lock:
        if (before := torch.get_num_threads()) == 1:
            return
        torch.set_num_threads(1)  # for this thread, but also for threads that have not asked torch for anything yet
        restoring = Thread(target=torch.set_num_threads, args=(before,))  # so that they get what they would have got
        restoring.start()
        restoring.join()


def apart(work: Callable[[], T]) -> T:
    """What work returns, done in a thread of its own by a full team, which ends with it."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def helpers(count: int, name: str) -> ThreadPoolExecutor:
    """So many threads for work beside the model's, each of which computes alone."""
    return ThreadPoolExecutor(count, name, initializer=compute_alone)
