"""How much memory there is, and how much of it processes have."""

import multiprocessing
import os
import resource
import sys
from pathlib import Path

import torch


def peak_memory() -> int:
    """Bytes that this process has had at most: on its GPU if it has one, else in RAM."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # unlike ru_maxrss, this does not begin with the memory of the process that started us
        return _fields(status)["VmHWM"]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def workers_memory() -> int:
    """Bytes that data workers have for themselves; 0 where the system does not tell."""
    total = 0
    for worker in multiprocessing.active_children():
        maps = Path(f"/proc/{worker.pid}/smaps_rollup")
        if maps.exists():
            total += sum(size for name, size in _fields(maps).items() if name.startswith("Private_"))
    return total


def available_memory() -> int:
    """Bytes that a new process can have: what is free on the machine, or in its container if that is less."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free = _fields(meminfo)["MemAvailable"]
    limit, used = (Path("/sys/fs/cgroup", name) for name in ("memory.max", "memory.current"))
    if limit.exists() and (most := limit.read_text().strip()).isdigit():
        free = min(free, int(most) - int(used.read_text()))
    return free


def _fields(path: Path) -> dict[str, int]:
    """The sizes in a file of /proc, in bytes."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0].rstrip(":"): 1024 * int(words[1]) for words in lines if words[-1] == "kB"}
