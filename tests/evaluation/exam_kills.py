"""Evaluates in child processes that are killed at told moments, each going on where the one before it died; a script.

python exam_kills.py MODEL DATA OUT '[["step", 3], ["line", 5], ...]'

Each kill is a function and which of its calls is not survived; the last child is left alone. Prints how each ended.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import rich.progress
import timm  # noqa: F401  so that children need not import it
import torch

import mmgpt.files
from mmgpt.evaluation.exam import Exam, examine
from mmgpt.generation import Decoding, Engine

DECODING = Decoding(max_new_tokens=6, temperature=1.0, top_k=50)
PLACES = {
    "step": (Engine, "step"),
    "line": (rich.progress.Progress, "advance"),  # after each line
    "file": (mmgpt.files, "sync"),  # settings, results and report
}


def deadly(place: str, call: int) -> None:
    owner, name = PLACES[place]
    function, calls = getattr(owner, name), []

    def instead(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    setattr(owner, name, instead)


def child(model: str, data: str, out: str, place: str, call: int) -> int:
    process = os.fork()
    if process == 0:
        if place:
            deadly(place, call)
        examine(Exam(model, "captions", data, decoding=DECODING), Path(out))
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def main(model: str, data: str, out: str, kills: str) -> None:
    shutil.which = lambda *_: None  # METEOR's Java, as in the tests
    torch.set_num_threads(1)  # no pool of threads, which a fork would lose
    print([child(model, data, out, *kill) for kill in (*json.loads(kills), ("", 0))])


if __name__ == "__main__":
    main(*sys.argv[1:])
