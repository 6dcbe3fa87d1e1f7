"""Captions by workers of a Ray cluster are those of one process, whoever is killed meanwhile."""

import io
import os
import socket
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

if sys.version_info >= (3, 15):
    pytest.skip("Ray has no wheels for this Python", allow_module_level=True)

import ray
from psutil import Process  # Ray brings it

from mmgpt import checkpoint
from mmgpt.bulk.captions import Captioned, caption_all
from mmgpt.bulk.ray import Worker, _shares, described_on_ray
from mmgpt.cli.caption import main
from mmgpt.content import Image
from mmgpt.data.pictures import find_pictures
from mmgpt.errors import ClusterError, ConfigError
from mmgpt.generation import Decoding

pytestmark = pytest.mark.cluster
DRAWN = Decoding(max_new_tokens=40, temperature=1.0, seed=3)
PHOTOS = 200
SOURCES = ["shard.tar", "rows.parquet", os.fsdecode(b"missing-\xff.png"), "photos"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One with room for two workers."""
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def place(tmp_path_factory, model, tokenizer) -> Iterator[Path]:
    """The folder that all are in: a model, pictures of all kinds, of which four are none, and all their captions."""
    place = tmp_path_factory.mktemp("ray")
    checkpoint.save(place / "model", model, tokenizer)
    (place / "photos").mkdir()
    for i in range(PHOTOS):
        (place / "photos" / f"{i:03}.png").write_bytes(encoded(i))
    (place / "photos" / "broken.jpg").write_text("no picture")
    with tarfile.open(place / "shard.tar", "w") as tar:
        for name, data in (("a.png", encoded(1)), ("b.png", b"no picture")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    pq.write_table(pa.table({"image": pa.array([encoded(2), None], pa.binary())}), place / "rows.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)  # where Ray's workers do not begin
        assert caption(place / "local.jsonl", engine="local") == Captioned(PHOTOS + 2, 4, 0)
        yield place


def encoded(seed: int) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def caption(out: Path, engine="ray", workers: int | None = None) -> Captioned:
    return caption_all("model", find_pictures(SOURCES), out, DRAWN, engine=engine, workers=workers)


def assert_same(out: Path, expected: Path) -> None:
    for suffix in (".jsonl", ".failed.jsonl"):
        lines = out.with_suffix(suffix).read_text("utf-8").splitlines()
        assert sorted(lines) == sorted(expected.with_suffix(suffix).read_text("utf-8").splitlines())


def wait_for_lines(path: Path, count: int) -> int:
    """How many there are, once there are so many."""
    deadline = time.monotonic() + 120
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return path.read_bytes().count(b"\n")


def test_a_cluster_that_is_not_there_is_told(place, tmp_path, monkeypatch):  # before there is one
    with socket.create_server(("127.0.0.1", 0)) as gone:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{gone.getsockname()[1]}")
    with pytest.raises(ClusterError, match="refused; see RAY_ADDRESS"):
        caption(tmp_path / "captions.jsonl")


def test_a_worker_killed_in_mid_run_costs_no_picture_and_doubles_none(cluster, place, tmp_path, capfd):
    out, told = tmp_path / "captions.jsonl", []
    for suffix in (".settings.json", ".jsonl"):  # what a start before has done: the settings, and five captions
        lines = (place / "local").with_suffix(suffix).read_bytes().splitlines(keepends=True)
        out.with_suffix(suffix).write_bytes(b"".join(lines[:5]))

    def kill() -> None:
        told.append(wait_for_lines(out, 20))
        next(child for child in Process().children(recursive=True) if ").submit" in child.cmdline()[0]).kill()

    killer = threading.Thread(target=kill)
    killer.start()
    assert caption(out, workers=2) == Captioned(PHOTOS + 2, 4, 5)
    killer.join()
    assert told[0] < PHOTOS // 2
    assert_same(out, place / "local.jsonl")
    assert "killed" not in "".join(capfd.readouterr())  # of which Ray would tell


def test_a_worker_that_finds_another_model_refuses(cluster, place):
    worker, picture = Worker("model", "of another", False, DRAWN, threads=1), "photos/000.png"
    with pytest.raises(ClusterError, match=r"worker on .*model: is another model there; workers need the same"):
        list(described_on_ray(worker, iter([(picture, Image(picture))]), 1, 1))


def test_shares_shrink_so_that_workers_end_together():
    pictures = [(str(i), Image(str(i))) for i in range(5000)]
    shares = list(_shares(iter(pictures), 5000, 4))
    assert list(chain.from_iterable(shares)) == pictures
    sizes = [len(share) for share in shares]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 512
    assert sizes[-2] == 8
    assert list(_shares(iter(pictures[:3]), 3, 4)) == [pictures[:3]]


def test_without_ray_it_is_told_how_to_install_it(place, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match="needs ray; install it with `uv sync --extra ray`"):
        caption(tmp_path / "captions.jsonl")


def test_workers_are_those_of_ray(tmp_path):
    with pytest.raises(ConfigError, match="goes with --engine ray"):
        main(["a.png", "--out", str(tmp_path / "c.jsonl"), "--workers", "2"])
