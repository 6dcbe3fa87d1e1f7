"""Captions of pictures by the workers of a Ray cluster, or of this machine alone where none runs.

Ray Data hands out shares of the pictures and gives those of a worker that died to another one. Pictures travel as
references, a path or a place in a tar or a table: workers read them, and the model, from a disk that all of them see
under the same paths. What they say comes back a few lines at a time, in no particular order.
"""

import json
import logging
import os
import pickle
import socket
from collections.abc import Generator, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

from mmgpt import checkpoint
from mmgpt.assistant import Assistant, load
from mmgpt.bulk.local import Picture, Record, described
from mmgpt.errors import ClusterError, ConfigError, MmgptError
from mmgpt.generation import Decoding
from mmgpt.media.source import one_line
from mmgpt.resumable import as_json

SHARE = (8, 512)  # pictures in one, at least and at most: between shares a worker's batch runs empty
TOGETHER = 8  # records that come back at once: more wait longer, fewer keep Ray busy

# Ray reads these when it is imported. By itself it would send `uv run`'s whole working directory to the workers.
ENVIRONMENT = {
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


@dataclass
class Worker:
    """A model, loaded once in each worker's process, and how pictures are captioned with it.

    Args:
        model: Its directory, or a Hub id.
        fingerprint: Of the model; a worker that finds another one there refuses.
        int8: Compute in int8.
        decoding: How captions are decoded.
        threads: That decode pictures.
        folder: Where relative paths begin.
    """

    model: str
    fingerprint: str
    int8: bool
    decoding: Decoding
    threads: int
    folder: Path = field(default_factory=Path.cwd)

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, list[bytes]]]:
        """The records of a share of pictures, as JSON, a row for some of them.

        As many in each row when the share is described again: Ray goes on with the first row that has not come.
        """
        [share] = batch["share"]
        pictures = pickle.loads(share)  # of our own driver: all that Ray sends is pickled
        records = described(self.assistant, pictures, self.decoding, self.threads)
        while some := list(islice(records, TOGETHER)):
            yield {"records": [as_json(some)]}

    @cached_property
    def assistant(self) -> Assistant:
        """Loaded with the first share: errors while Ray makes a worker would come back in its words, not in these."""
        try:
            os.chdir(self.folder)
            if checkpoint.fingerprint(self.model) != self.fingerprint:
                raise ClusterError(f"{self.model}: is another model there")
            return load(self.model, int8=self.int8)
        except (MmgptError, OSError) as error:
            where = f"worker on {socket.gethostname()}"
            raise ClusterError(f"{where}: {error}; workers need the same files under the same paths") from None


def described_on_ray(
    worker: Worker, pictures: Iterator[Picture], left: int, workers: int | None
) -> Generator[Record, None, None]:
    """The record of each picture, once, as workers send them.

    Args:
        worker: What each worker is; here it is not used.
        pictures: Each has a name of its own.
        left: How many they are, at most.
        workers: How many; None is one for each GPU, or for each core where there are none.

    Raises:
        ConfigError: Ray is not installed; the model answers nothing.
        ClusterError: There is no cluster where one is said to be, or workers do not see the files, or die for ever.
    """
    ray = _imported()
    import pyarrow

    with _connected(ray), _as_own_errors(ray):
        workers, resources = _resources(ray, workers, worker.int8)
        waiting, blocks = set[str](), []
        for share in _shares(pictures, left, workers):
            waiting.update(name for name, _ in share)
            blocks.append(pyarrow.table({"share": [pickle.dumps(share)]}))
        dataset = ray.data.from_blocks(blocks).map_batches(
            Worker,
            fn_constructor_kwargs=vars(worker),
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
            **resources,
        )
        context = dataset.context
        context.enable_progress_bars = False
        context.raise_original_map_exception = True
        context.max_consecutive_actor_init_deaths = 3  # of workers that have begun, any number are made anew
        context.target_max_block_size = 1  # byte: each row comes by itself, when it is there
        for batch in dataset.iter_batches(batch_size=None, prefetch_batches=0):
            for record in chain.from_iterable(map(json.loads, batch["records"])):
                if record["image"] in waiting:  # whatever Ray has described again
                    waiting.remove(record["image"])
                    yield record


def _shares(pictures: Iterator[Picture], left: int, workers: int) -> Iterator[list[Picture]]:
    """Ever smaller ones, so that workers end together (guided self-scheduling, Polychronopoulos & Kuck 1987)."""
    while share := list(islice(pictures, min(max(left // workers, SHARE[0]), SHARE[1]))):
        left -= len(share)
        yield share


def _imported() -> Any:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise ConfigError(f"--engine ray: needs {error.name}; install it with `uv sync --extra ray`") from None
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return ray


@contextmanager
def _connected(ray: Any) -> Iterator[None]:
    """To the cluster at RAY_ADDRESS, or one that runs on this machine, or one that is started and ended here."""
    if connect := not ray.is_initialized():
        try:
            host, _, port = os.environ.get("RAY_ADDRESS", "").rpartition(":")
            if host and "//" not in host:  # where nobody answers Ray would try for many minutes
                socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
            with _silent_stderr():  # else it says that it will be silent
                ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.CRITICAL)
        except (OSError, RuntimeError, ValueError) as error:
            raise ClusterError(f"Ray: {one_line(error)}; see RAY_ADDRESS and `ray status`") from None
    try:
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):  # where it tells of dead workers
            yield
    finally:
        if connect:
            ray.shutdown()


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Of the whole process: Ray's core writes there past Python."""
    kept = os.dup(2)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextmanager
def _as_own_errors(ray: Any) -> Iterator[None]:
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, MmgptError) else error from None
    except (ray.exceptions.RayError, ray.data.exceptions.ExecutionTimeoutError) as error:
        raise ClusterError(f"Ray: {one_line(error)}; start again to go on") from None


def _resources(ray: Any, asked: int | None, int8: bool) -> tuple[int, dict[str, int]]:
    """How many, and what each takes of the cluster: a GPU, or cores, of which all nodes together can give so many."""
    gpus = 0 if int8 else int(ray.cluster_resources().get("GPU", 0))
    if gpus:
        return asked or gpus, {"num_gpus": 1}
    cores = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    workers = asked or max(1, sum(cores))
    fitting = [each for each in range(1, max(cores, default=0) + 1) if sum(n // each for n in cores) >= workers]
    return workers, {"num_cpus": max(fitting, default=1)}
