"""Pictures are found wherever they lie."""

import io
import os
import tarfile

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmgpt.content import Audio, Image
from mmgpt.data.pictures import find_media, find_pictures
from mmgpt.errors import DataError


def encoded(shade: int) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(np.full((4, 4, 3), shade, np.uint8)).save(file, "PNG")
    return file.getvalue()


def shades(sources) -> list[tuple[str, int]]:
    return [(name, image.load().getpixel((0, 0))[0]) for source in sources for name, image in source]


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos" / "below").mkdir(parents=True)
    for i, name in enumerate(("b.png", "a.JPEG", "below/c.png")):
        (tmp_path / "photos" / name).write_bytes(encoded(10 * i))
    (tmp_path / "photos" / "notes.txt").write_text("no picture")
    return tmp_path / "photos"


def test_folders_patterns_lists_and_files_in_the_order_given(photos):
    all_of = [(str(photos / name), shade) for name, shade in (("a.JPEG", 10), ("b.png", 0), ("below/c.png", 20))]
    assert shades(find_pictures([str(photos)])) == all_of
    assert shades(find_pictures([f"{photos}/**"])) == all_of
    assert shades(find_pictures([f"{photos}/*.png"])) == all_of[1:2]
    odd = os.fsdecode(b"\xff.png")  # which is no UTF-8
    (photos / odd).write_bytes(encoded(30))
    listed = io.BytesIO(os.fsencode(f"{photos}/b.png\n\n{photos}/a.JPEG\r\n{photos}/{odd}\n"))
    assert shades(find_pictures(["-"], listed)) == [all_of[1], all_of[0], (f"{photos}/{odd}", 30)]
    assert shades(find_pictures([str(photos / "below"), str(photos / "b.png")])) == [all_of[2], all_of[1]]


def test_tars_and_tables(photos, tmp_path):
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for name in ("b.png", "notes.txt", "below/c.png"):
            tar.add(photos / name, name)
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    shard = str(tmp_path / "shard.tar")
    assert shades(find_pictures([shard])) == [(f"{shard}: b.png", 0), (f"{shard}: below/c.png", 20)]
    rows = [{"photo": {"bytes": encoded(i), "path": None}, "id": i} for i in (3, 5)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    table = str(tmp_path / "rows.parquet")
    assert shades(find_pictures([table])) == [(f"{table}: row 0: photo", 3), (f"{table}: row 1: photo", 5)]


def test_other_media_are_found_like_pictures_each_as_what_its_name_says(photos, tmp_path):
    (photos / "d.wav").write_bytes(b"")
    (photos / "e.mp4").write_bytes(b"")
    known = {".png": Image, ".wav": Audio}
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        tar.add(photos / "d.wav", "d.wav")
    pq.write_table(pa.table({"sound": [{"bytes": b"", "path": None}]}), tmp_path / "rows.parquet")

    def kinds(*sources: object) -> list[type]:
        return [type(medium) for found in find_media(list(map(str, sources)), known, Image) for _, medium in found]

    assert kinds(photos, f"{photos}/*.wav") == [Image, Image, Audio, Audio]
    assert kinds(photos / "d.wav", photos / "a.JPEG") == [Audio, Image]
    assert kinds(tmp_path / "shard.tar", tmp_path / "rows.parquet") == [Audio, Audio]
    with pytest.raises(DataError, match=r"\*\.gif: no media; known are \.png, \.wav"):
        kinds(f"{photos}/*.gif")


def test_where_there_are_no_pictures_it_is_told(photos, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.tar").write_bytes(b"no tar" * 200)
    with tarfile.open(tmp_path / "cut.tar", "w") as tar:
        tar.add(tmp_path / "bad.tar", "a.jpg")
        last = tar.offset
    (tmp_path / "cut.tar").write_bytes((tmp_path / "cut.tar").read_bytes()[:last])
    pq.write_table(pa.table({"id": [1]}), tmp_path / "none.parquet")
    for source, told in (
        (str(tmp_path / "empty"), "empty: no pictures"),
        (f"{tmp_path}/*.gif", r"\*.gif: no pictures"),
        (str(tmp_path / "bad.tar"), r"bad\.tar: cut off, compressed or no tar"),
        (str(tmp_path / "cut.tar"), r"cut\.tar: it is cut off, or damaged"),
        (str(tmp_path / "none.parquet"), r"no column of pictures; there are .id."),
    ):
        with pytest.raises(DataError, match=told):
            find_pictures([source])
