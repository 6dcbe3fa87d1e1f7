import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread

import pytest
import torch

from mmgpt.threads import apart, compute_alone, helpers


def threads_of_torch(pool: ThreadPoolExecutor) -> int:
    return pool.submit(torch.get_num_threads).result()


@pytest.fixture(autouse=True)
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_helpers_compute_alone_and_leave_all_other_threads_as_they_are():
    with ThreadPoolExecutor(1) as earlier:
        assert threads_of_torch(earlier) == 3
        with helpers(1, "aside") as aside, ThreadPoolExecutor(1) as later:
            assert threads_of_torch(aside) == 1
            assert [torch.get_num_threads(), threads_of_torch(earlier), threads_of_torch(later)] == [3, 3, 3]


def test_work_is_done_apart_by_a_full_team_though_who_asks_computes_alone():
    with helpers(1, "aside") as aside, ThreadPoolExecutor(1) as later:
        compute_again = aside.submit(compute_alone)  # once more, which changes nothing
        assert compute_again.result() is None
        assert aside.submit(apart, torch.get_num_threads).result() == 3
        assert [threads_of_torch(aside), threads_of_torch(later)] == [1, 3]


def test_a_thread_may_be_told_to_compute_alone_while_others_are_being_told_so_too():
    told = [Thread(target=compute_alone) for _ in range(20)]
    for thread in told:
        thread.start()
    for thread in told:
        thread.join()
    with ThreadPoolExecutor(1) as later:
        assert [torch.get_num_threads(), threads_of_torch(later)] == [3, 3]


SCRIPT = """
import os, sys, torch
from concurrent.futures import ThreadPoolExecutor
from mmgpt.threads import helpers

def work(): return torch.rand(1000, 1000).exp().sum().item()
def running(): return len(os.listdir("/proc/self/task"))

torch.set_num_threads(2)
work()
before = running()
pool = helpers(1, "aside") if sys.argv[1] == "helpers" else ThreadPoolExecutor(1)
pool.submit(work).result()
print(running() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted as Linux tells them")
def test_a_helper_brings_no_team_of_threads_with_it():
    """A plain thread does, and all teams together are what slows the others down."""

    def brought(kind: str) -> int:
        return int(subprocess.run([sys.executable, "-c", SCRIPT, kind], capture_output=True, text=True).stdout)

    assert brought("helpers") == 1
    assert brought("plain") == 2
