import io
import json
import re
import tarfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from mmgpt.content import Audio, Image, Text, Video
from mmgpt.data.mixture import Mixture, chained
from mmgpt.data.webdataset import read_webdataset
from mmgpt.errors import DataError, MediaError


def picture(shade: int) -> bytes:
    buffer = io.BytesIO()
    Pillow.fromarray(np.full((4, 4, 3), shade, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, *members: tuple[str, Any], mode: str = "w", form: int = tarfile.GNU_FORMAT) -> Path:
    """A tar of files; a member's content is bytes, text, an object for JSON, or a TarInfo of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, format=form) as tar:  # type: ignore[call-overload]
        for name, content in members:
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
                continue
            data = content if isinstance(content, bytes) else (
                content if isinstance(content, str) else json.dumps(content)
            ).encode()  # fmt: skip
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def captions(start: int, count: int) -> list[tuple[str, Any]]:
    return [
        pair for i in range(start, start + count) for pair in ((f"{i:04}.png", picture(i)), (f"{i:04}.txt", f"n{i}"))
    ]


def shade(sample) -> int:
    return sample.prompt[0].parts[0].load().getpixel((0, 0))[0]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_samples_are_found_in_any_order_over_shards(tmp_path, form):
    write(tmp_path / "train-0.tar", *captions(0, 5), form=form)
    write(tmp_path / "train-1.tar", *captions(5, 4), form=form)
    write(tmp_path / "val-0.tar", *captions(90, 2), form=form)
    samples = read_webdataset(tmp_path, "train")
    assert len(samples) == 9
    for i in (8, 0, 5, 4, 4, 7):
        assert (samples[i].answers, shade(samples[i]), samples[i].task) == ((f"n{i}",), i, "caption")
    assert samples[6].where == f"{tmp_path}/train-1.tar: 0006"
    assert [sample.answers[0] for sample in read_webdataset(tmp_path, "dev")] == ["n90", "n91"]
    assert len(read_webdataset(tmp_path / "train-*.tar", "train")) == 8  # one is held out where no shard is "dev"
    assert [sample.answers[0] for sample in read_webdataset(tmp_path / "val-0.tar", "dev")] == ["n90"]


def test_suffixes_tell_what_members_are(tmp_path):
    path = write(
        tmp_path / "a.tar",
        ("./d/first.jpg", b"i"), ("./d/first.cls", "dog\n"), ("./d/first.seg.bin", b"mask"),
        ("b.flac", b"a"), ("b.transcript", "Hello."),
        ("c.mp4", b"v"), ("c.caption", "A run."),
        ("e.jpg", b"i"), ("e.png", b"j"), ("e.json", {"Question": "Same?", "answer": "no", "image": "path.jpg"}),
        ("f.wav", b"a"), ("f.txt", "\ufeffGo."),
        ("g.json", {"question": "1 + 1?", "answer": 2}),
    )  # fmt: skip
    samples = [*read_webdataset(path, "dev"), *read_webdataset(path, "train")]
    told = [
        ([type(part) for part in s.prompt[0].parts if not isinstance(part, Text)], s.answers, s.task) for s in samples
    ]
    assert told == [
        ([Image], ("dog",), "classify"),
        ([Audio], ("Hello.",), "transcribe"),
        ([Video], ("A run.",), "describe"),
        ([Image, Image], ("no",), "ask"),
        ([Audio], ("Go.",), "transcribe"),
        ([], ("2",), "ask"),
    ]


def test_names_of_any_length_and_folders_are_read(tmp_path):
    folder = tarfile.TarInfo("x")
    folder.type = tarfile.DIRTYPE
    long = "é" * 90 + "/" + "k" * 150
    path = write(tmp_path / "a.tar", ("x", folder), (f"{long}.txt", "A."), (f"{long}.png", picture(7)))
    [sample] = read_webdataset(path, "dev")
    assert (sample.answers, shade(sample)) == (("A.",), 7)


def broken_link(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (("b.png", broken_link("b.png", tarfile.SYMTYPE)), r'"b.png" is a link or no ordinary file'),
        (("b.png", broken_link("b.png", tarfile.LNKTYPE)), r'"b.png" is a link or no ordinary file'),
        (("b.png", broken_link("b.png", tarfile.FIFOTYPE)), r'"b.png" is a link or no ordinary file'),
        (("../b.png", b"x"), r'"../b.png" leads out of it'),
        (("/b.png", b"x"), r'"/b.png" leads out of it'),
    ],
)
def test_a_member_that_is_none_costs_the_rest_of_its_shard_and_is_told(tmp_path, member, reason):
    write(tmp_path / "train-0.tar", *captions(0, 3), member, *captions(3, 3))
    write(tmp_path / "train-1.tar", *captions(6, 2))
    with pytest.warns(UserWarning, match=rf"train-0\.tar: {reason}; all samples after 0002 are lost"):
        samples = read_webdataset(tmp_path, "train")
    assert [sample.answers[0] for sample in samples] == ["n1", "n2", "n6", "n7"]  # n0 is held out
    [lost] = samples.lost
    assert re.search(rf"^{tmp_path}/train-0\.tar: {reason}; all samples after 0002 are lost$", lost)
    for some in (samples[1:], chained([samples, [], samples]), Mixture({"a": samples}, {"a": 1.0})):
        assert some.lost == [lost]


def test_a_shard_cut_off_anywhere_keeps_the_samples_that_are_whole(tmp_path):
    whole = write(tmp_path / "whole.tar", *captions(0, 4)).read_bytes()
    ends = 4 * 2 * 1024  # each member is a header and one block; after them comes the end mark
    for size in (*range(0, ends + 1, 256), 100, 513, ends - 1):
        (tmp_path / "cut").mkdir(exist_ok=True)
        (tmp_path / "cut/train-a.tar").write_bytes(whole[:size])
        write(tmp_path / "cut/train-b.tar", *captions(50, 2))
        with pytest.warns(UserWarning, match=r"train-a\.tar: it is cut off.* are lost") as seen:
            samples = [*read_webdataset(tmp_path / "cut", "dev"), *read_webdataset(tmp_path / "cut", "train")]
        assert len(seen) == 2
        kept = [sample.answers[0] for sample in samples]
        # A sample is known to be whole once the header of the next is there.
        assert kept == [f"n{i}" for i in range(max(0, size - 512) // 2048)] + ["n50", "n51"]
        assert [shade(sample) for sample in samples] == [int(text[1:]) for text in kept]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        samples = read_webdataset(tmp_path / "whole.tar", "train")
    assert (len(samples), samples.lost) == (3, [])


def test_a_tar_behind_another_in_one_file_is_told(tmp_path):
    first, second = (write(tmp_path / f"{i}.tar", *captions(10 * i, 3)).read_bytes() for i in (0, 1))
    (tmp_path / "both.tar").write_bytes(first + second)
    with pytest.warns(UserWarning, match=r"both\.tar: another tar follows its end; unpack and pack them anew"):
        samples = [*read_webdataset(tmp_path / "both.tar", "train"), *read_webdataset(tmp_path / "both.tar", "dev")]
    assert {sample.answers[0] for sample in samples} == {"n0", "n1"}


@pytest.mark.filterwarnings("ignore:.*is cut off")
def test_what_is_lost_is_told_of_the_split_whose_shard_it_is(tmp_path):
    for name in ("train", "val"):
        path = write(tmp_path / f"{name}.tar", *captions(0, 3))
    path.write_bytes(path.read_bytes()[:5000])
    assert read_webdataset(tmp_path, "train").lost == []
    [lost] = read_webdataset(tmp_path, "dev").lost
    assert lost == f"{path}: it is cut off, damaged or no tar (unexpected end of data); all samples after 0001 are lost"
    assert read_webdataset(path, "train").lost == read_webdataset(path, "dev").lost == [lost]  # may be of either
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match=r'nothing is in the split "dev".*; .*val\.tar: it is cut off.* of it are lost'):
        read_webdataset(tmp_path, "dev")


def test_damage_in_the_middle_is_told(tmp_path):
    data = bytearray(write(tmp_path / "a.tar", *captions(0, 4)).read_bytes())
    data[2 * 2048 : 2 * 2048 + 512] = b"\xaa" * 512
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.warns(UserWarning, match=r"a\.tar: it is cut off, or damaged; all samples after 0000 are lost"):
        assert [sample.answers[0] for sample in read_webdataset(tmp_path / "a.tar", "dev")] == ["n0"]


@pytest.mark.parametrize("name", ["a.pkl", "a.pickle", "a.pyd", "a.features.pth"])
def test_pickles_are_refused(tmp_path, name):
    write(tmp_path / "a.tar", *captions(0, 1), (name, b"x"))
    with pytest.raises(DataError, match=rf'a\.tar: "{name}" is a pickle, which could run code'):
        read_webdataset(tmp_path, "train")


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.tar"])
def test_compressed_shards_are_refused(tmp_path, name):
    write(tmp_path / name, *captions(0, 1), mode="w:gz")
    with pytest.raises(DataError, match=rf"{name}: is compressed, .*; gunzip it"):
        read_webdataset(tmp_path, "train")


def test_samples_that_lack_text_or_media_are_counted(tmp_path):
    write(tmp_path / "a.tar", *captions(0, 1), ("b.png", b"x"), ("c.png", b"x"), ("d.txt", "alone"))
    with pytest.raises(DataError, match=r"a\.tar: b has no \.txt, .*; add one or remove the sample \(2 more are miss"):
        read_webdataset(tmp_path, "train")
    write(tmp_path / "a.tar", *captions(0, 1), ("d.txt", "alone"))
    with pytest.raises(DataError, match=r"a\.tar: d has no picture, sound or video; add it or remove the sample"):
        read_webdataset(tmp_path, "train")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("b.json", "{", r"a\.tar: b\.json:1: not JSON"),
        ("b.json", "[1]", r"a\.tar: b\.json: not an object of named values"),
        ("b.json", {"width": 5}, r'a\.tar: b: nothing to learn from the columns "width, image"'),
        ("b.txt", b"\xff", r"a\.tar: b\.txt: not UTF-8 \(byte 0\)"),
        ("b.txt", " ", r'a\.tar: b: the text is " "; it is a text that is not empty'),
        ("b.txt", b"x" * ((1 << 24) + 1), r"a\.tar: b\.txt: 16,777,217 bytes are no text to learn from"),
    ],
)
def test_a_malformed_text_is_told_with_its_name(tmp_path, name, content, message):
    path = write(tmp_path / "a.tar", *captions(0, 2), ("b.png", b"x"), (name, content))
    samples = read_webdataset(path, "train")
    with pytest.raises(DataError, match=message):
        samples[1]


def test_a_bad_picture_costs_its_sample_and_is_named(tmp_path):
    samples = read_webdataset(write(tmp_path / "a.tar", ("a.png", b"no picture"), ("a.txt", "A.")), "dev")
    with pytest.raises(MediaError, match=r"a\.tar: a\.png: is damaged or not a picture"):
        samples[0].prompt[0].parts[0].load()  # type: ignore[union-attr]
    (tmp_path / "a.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.tar: a\.txt: the shard became shorter since it was indexed; start again"):
        _ = samples[0]


def test_where_there_are_no_shards_is_told(tmp_path):
    with pytest.raises(DataError, match=r"nowhere/a\.tar: no such file or folder"):
        read_webdataset(tmp_path / "nowhere/a.tar", "train")
    with pytest.raises(DataError, match=r"no \.tar is here; give a shard"):
        read_webdataset(tmp_path, "train")
    write(tmp_path / "a.tar", *captions(0, 1))
    with pytest.raises(DataError, match=r"b\*\.tar: no \.tar is here"):
        read_webdataset(tmp_path / "b*.tar", "train")
    with pytest.raises(DataError, match=r'nothing is in the split "test"; there is train \(1\)'):
        read_webdataset(tmp_path, "test")
