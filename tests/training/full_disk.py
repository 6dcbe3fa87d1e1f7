"""Runs commands in child processes that cannot write files beyond a size, as if the disk were full; a script.

python full_disk.py '[["all", LIMIT, ["train", "CONFIG.yaml", ...]], ...]'

The limit holds for all files, or for those of the feature cache alone. Prints how each ended: its exit code, and what
it said on stderr. Forking is quicker than importing torch again for each.
"""

import json
import os
import resource
import shutil
import sys

import timm  # noqa: F401  so that children need not import it
import torch

import mmgpt.training.report
from mmgpt.cli.main import main as mmgpt
from mmgpt.feature_cache import FeatureCache


def limit_files(limit: int) -> None:
    """What is written beyond fails: Python lets no signal come of it (SIGXFSZ)."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


def limit_cache(limit: int) -> None:
    put = FeatureCache.put

    def limited(*arguments) -> None:
        limit_files(limit)
        put(*arguments)
        limit_files(resource.RLIM_INFINITY)

    FeatureCache.put = limited


def ended(limited: str, limit: int, arguments: list[str]) -> tuple[int, str]:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(writer, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        {"all": limit_files, "cache": limit_cache}[limited](limit)
        sys.argv = ["mmgpt", *arguments]
        try:
            mmgpt()
        except SystemExit as end:
            os._exit(end.code)  # type: ignore[arg-type]
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as said:
        told = said.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), told


def main(runs: str) -> None:
    shutil.which = lambda *_: None  # METEOR's Java, as in the tests
    torch.set_num_threads(1)  # no pool of threads, which a fork would lose
    print(json.dumps([ended(*run) for run in json.loads(runs)]))


if __name__ == "__main__":
    main(*sys.argv[1:])
