"""What is put comes back or is a miss, whoever else writes, dies or fills the folder."""

import itertools
import multiprocessing
import os
import resource
import time
from dataclasses import replace
from multiprocessing.context import ForkProcess
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from tiny import some_audio, some_image, some_video
from torch import Tensor

from mmgpt.config import TokenGrid
from mmgpt.content import Audio, Image, Video
from mmgpt.errors import ConfigError, MediaError
from mmgpt.feature_cache import EncoderCache, FeatureCache

GB = 10**9
GRID = TokenGrid(2, 3, prefix=1, suffix=2)


def tokens_of(number: int, count: int = GRID.count, width: int = 16) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(number))


def key_of(number: int) -> bytes:
    return (number * 0x9E3779B97F4A7C15 % 2**64).to_bytes(16, "big")[::-1]


def files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


def holds(cache: FeatureCache, number: int) -> bool:
    """Whether it is there; what is there must be right."""
    found = cache.get(key_of(number))
    assert found is None or torch.equal(found[0], tokens_of(number))
    return found is not None


# Keeping and finding


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tokens_and_their_grid_come_back_bit_for_bit(tmp_path, dtype):
    tokens = tokens_of(0).to(dtype)
    FeatureCache(tmp_path, GB).put(key_of(0), tokens, GRID)
    found = FeatureCache(tmp_path, GB).get(key_of(0))
    assert found is not None
    assert found[0].dtype == dtype
    assert torch.equal(found[0], tokens)
    assert found[1] == GRID


def test_rows_of_a_padded_batch_are_kept_without_the_rest(tmp_path):
    batch = torch.stack([tokens_of(i, count=9) for i in range(2)])
    cache = FeatureCache(tmp_path, GB)
    cache.put(key_of(0), batch[1, :4], TokenGrid(4))
    found = cache.get(key_of(0))
    assert found is not None
    assert torch.equal(found[0], batch[1, :4])
    assert files(tmp_path)[0].stat().st_size < 4 * 16 * 4 + 100


def test_an_unknown_key_is_a_miss(tmp_path):
    cache = FeatureCache(tmp_path, GB)
    assert cache.get(key_of(0)) is None
    cache.put(key_of(0), tokens_of(0), GRID)
    assert cache.get(key_of(1)) is None


def test_what_is_written_to_found_tokens_does_not_reach_the_file(tmp_path):
    cache = FeatureCache(tmp_path, GB)
    cache.put(key_of(0), tokens_of(0), GRID)
    found = cache.get(key_of(0))
    assert found is not None
    found[0].zero_()
    assert holds(cache, 0)


def test_found_tokens_outlive_their_file(tmp_path):
    cache = FeatureCache(tmp_path, GB)
    cache.put(key_of(0), tokens_of(0), GRID)
    found = cache.get(key_of(0))
    files(tmp_path)[0].unlink()
    assert found is not None
    assert torch.equal(found[0], tokens_of(0))
    assert not holds(cache, 0)


def test_a_file_in_place_of_the_folder_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"^cache: .*file: File exists; name a folder"):
        FeatureCache(tmp_path / "file", GB)


# Damage


def damage(path: Path, kind: str) -> None:
    content = path.read_bytes()
    half = len(content) // 2
    flipped = bytearray(content)
    flipped[{"header": 9, "tokens": half}.get(kind, 0)] ^= 1
    path.write_bytes(
        {
            "empty": b"",
            "a part of the header": content[:10],
            "the header alone": content[:64],
            "half": content[:half],
            "half, then zeros": content[:half] + bytes(len(content) - half),
            "zeros": bytes(len(content)),
            "too long": content + content,
        }.get(kind, bytes(flipped))
    )


KINDS = (
    "empty", "a part of the header", "the header alone", "half", "half, then zeros", "zeros", "too long", "header",
    "tokens", "checksum",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_torn_or_changed_file_is_a_miss_and_is_replaced(tmp_path, kind):
    cache = FeatureCache(tmp_path, GB)
    cache.put(key_of(0), tokens_of(0), GRID)
    (path,) = files(tmp_path)
    damage(path, kind)
    assert cache.get(key_of(0)) is None
    cache.put(key_of(0), tokens_of(0), GRID)
    assert holds(cache, 0)
    assert files(tmp_path) == [path]


# Several processes, and their sudden death

FORK = multiprocessing.get_context("fork")


def write(directory: Path, first: int, last: int | None, begun: Event) -> None:
    cache = FeatureCache(directory, GB)
    begun.set()
    for number in itertools.count(first) if last is None else range(first, last):
        cache.put(key_of(number), tokens_of(number), GRID)


def writer(directory: Path, first: int, last: int | None = None) -> ForkProcess:
    """A process that has begun to write; without `last` it never ends."""
    begun = FORK.Event()
    process = FORK.Process(target=write, args=(directory, first, last, begun))
    process.start()
    begun.wait()
    return process


def test_a_writer_killed_at_any_moment_leaves_what_it_kept_readable(tmp_path):
    kept = 0
    for round_ in range(6):
        process = writer(tmp_path, 10_000 * round_)
        time.sleep(0.02 + 0.037 * round_)
        process.kill()
        process.join()
        cache = FeatureCache(tmp_path, GB)
        number = 10_000 * round_
        while holds(cache, number):
            number += 1
        kept += number - 10_000 * round_
        assert not any(holds(cache, later) for later in range(number, number + 20))
    assert kept > 5
    assert kept <= len(files(tmp_path)) <= kept + 6  # a draft of each death at most


def test_two_writers_and_a_reader_at_once(tmp_path):
    writers = [writer(tmp_path, 0, 300), writer(tmp_path, 100, 400)]
    cache = FeatureCache(tmp_path, GB)
    while any(process.is_alive() for process in writers):
        for number in range(0, 400, 20):
            holds(cache, number)
    assert [process.exitcode for process in writers] == [0, 0]
    assert all(holds(cache, number) for number in range(400))
    assert len(files(tmp_path)) == 400


# The limit

SIZE = 64 + GRID.count * 16 * 4  # of a file


def set_age(directory: Path, number: int, hours: float) -> None:
    name = key_of(number).hex()
    then = time.time() - 3600 * hours
    os.utime(directory / name[:2] / name[2:], (then, then))


def test_the_least_recently_used_go_first(tmp_path):
    cache = FeatureCache(tmp_path, 20 * SIZE)
    for number in range(16):
        cache.put(key_of(number), tokens_of(number), GRID)
        set_age(tmp_path, number, hours=100 - number)
    assert holds(cache, 0)  # the oldest is used once more
    assert holds(cache, 3)
    for number in range(16, 24):
        cache.put(key_of(number), tokens_of(number), GRID)
    left = {number for number in range(24) if holds(cache, number)}
    assert {0, 3} | set(range(16, 24)) <= left
    assert left == {0, 3} | set(range(min(left - {0, 3}), 24))


def test_a_use_is_noted_once_an_hour(tmp_path):
    cache = FeatureCache(tmp_path, GB)
    cache.put(key_of(0), tokens_of(0), GRID)
    for hours, noted in ((0.5, False), (2, True)):
        set_age(tmp_path, 0, hours)
        assert holds(cache, 0)
        age = time.time() - files(tmp_path)[0].stat().st_mtime
        assert (age < 60) == noted


@pytest.mark.parametrize("entries", [1, 2, 20, 40])
def test_one_writer_never_passes_the_limit(tmp_path, entries):
    limit = entries * SIZE + 10
    cache = FeatureCache(tmp_path, limit)
    for number in range(60):
        cache.put(key_of(number), tokens_of(number), GRID)
        assert sum(path.stat().st_size for path in files(tmp_path)) <= limit
        assert holds(cache, number)
    assert len(files(tmp_path)) >= entries * 0.8


def test_what_is_larger_than_the_limit_is_not_kept_and_nothing_goes_for_it(tmp_path):
    cache = FeatureCache(tmp_path, 2 * SIZE)
    cache.put(key_of(0), tokens_of(0), GRID)
    cache.put(key_of(1), tokens_of(1, count=90), TokenGrid(90))
    assert cache.get(key_of(1)) is None
    assert holds(cache, 0)


def test_a_lower_limit_holds_from_the_start(tmp_path):
    cache = FeatureCache(tmp_path, GB)
    for number in range(40):
        cache.put(key_of(number), tokens_of(number), GRID)
    FeatureCache(tmp_path, 10 * SIZE)
    assert 8 <= len(files(tmp_path)) <= 10


def test_drafts_of_the_dead_go_and_files_of_others_stay(tmp_path):
    cache = FeatureCache(tmp_path, GB)
    cache.put(key_of(0), tokens_of(0), GRID)
    (path,) = files(tmp_path)
    others = [tmp_path / "model.safetensors", path.parent / "photo.jpg", path.parent / ".hidden.tmp"]
    young, old = (path.with_name(f".{path.name}.{pid}.tmp") for pid in (7, 8))
    for file in (*others, young, old):
        file.write_bytes(bytes(100))
    for file in (*others, old):
        os.utime(file, (0, 0))
    FeatureCache(tmp_path, 1)  # for which nothing has room
    assert sorted(files(tmp_path)) == sorted([*others, young])


# What cannot be written


def fill(directory: Path) -> None:
    cache = FeatureCache(directory, GB)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # what is written beyond fails, as on a full disk
    for number, count in enumerate((9, 90, 90, 9)):
        cache.put(key_of(number), tokens_of(number, count), TokenGrid(count))
    raise SystemExit(
        [holds(cache, 0), *(cache.get(key_of(number)) for number in (1, 2, 3))] != [True, None, None, None]
    )


def test_a_write_that_stops_half_way_is_told_once_and_leaves_nothing(tmp_path, capfd):
    process = FORK.Process(target=fill, args=(tmp_path,))
    process.start()
    process.join()
    told = capfd.readouterr().err
    assert process.exitcode == 0, told
    assert told.startswith(f"feature cache: cannot write {tmp_path}")
    assert told.endswith("File too large; no more features are kept\n")
    assert told.count("\n") == 1
    assert len(files(tmp_path)) == 1


# Keys


@pytest.fixture
def encoder(tmp_path) -> EncoderCache:
    return EncoderCache(FeatureCache(tmp_path / "cache", GB), b"weights")


def test_the_key_is_that_of_the_content_wherever_it_lies(encoder, tmp_path):
    picture = PIL.Image.fromarray(some_image(0).source)
    for name in ("a.png", "b.png"):
        picture.save(tmp_path / name)
    content = (tmp_path / "a.png").read_bytes()
    keys = {encoder.key(Image(source)) for source in (tmp_path / "a.png", str(tmp_path / "b.png"), content)}
    assert len(keys) == 1
    array = np.asarray(picture)
    assert encoder.key(Image(picture)) == encoder.key(Image(array)) == encoder.key(Image(array[::-1][::-1]))


def test_all_that_decides_the_tokens_changes_the_key(encoder, tmp_path):
    array, sound, clip = some_image(0).source, some_audio(0), some_video(0)
    changed = array.copy()
    changed[39, 39, 2] ^= 1
    track = sound.source.copy()
    track[-1] += 1e-3
    parts = [
        *map(Image, (array, changed, array[:20], array.reshape(20, 80, 3), array.tobytes(), array.tobytes()[:-1])),
        *(sound, Audio(sound.source, 8001), Audio(track, 8000), Audio(track.astype(np.float64), 8000)),
        *(clip, replace(clip, frame_rate=5.0), replace(clip, sound=None), replace(clip, sound=Audio(track, 8000))),
        Video(clip.source[:2], 4.0),
    ]
    keys = [encoder.key(part) for part in parts]
    keys += [EncoderCache(encoder.cache, b"others").key(part) for part in parts]
    assert len(set(keys)) == 2 * len(parts)


def test_what_cannot_be_read_is_told_as_without_a_cache(encoder, tmp_path):
    with pytest.raises(MediaError, match=r"none\.png: no such file"):
        encoder.key(Image(tmp_path / "none.png"))
    with pytest.raises(MediaError, match="addresses are not fetched"):
        encoder.key(Image("https://example.org/a.png"))
