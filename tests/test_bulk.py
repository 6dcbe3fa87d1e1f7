"""Captions into files: each picture once, whatever happens in between."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmgpt import checkpoint
from mmgpt.bulk.captions import Captioned, caption_all
from mmgpt.cli.main import main
from mmgpt.data.pictures import find_pictures
from mmgpt.errors import ConfigError
from mmgpt.generation import Decoding

DRAWN = Decoding(max_new_tokens=5, temperature=1.0, seed=3)  # the likeliest tokens of an untrained model are no text


@pytest.fixture(scope="module")
def place(tmp_path_factory, model, tokenizer) -> Path:
    """A model, and ten pictures of which one is broken."""
    place = tmp_path_factory.mktemp("bulk")
    checkpoint.save(place / "model", model, tokenizer)
    (place / "photos").mkdir()
    for i in range(9):
        pixels = np.random.default_rng(i).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(place / "photos" / f"{i}.png")
    (place / "photos" / "4broken.jpg").write_text("no picture")
    return place


def caption(place: Path, out: Path, *sources: object, decoding: Decoding = DRAWN) -> Captioned:
    return caption_all(str(place / "model"), find_pictures(list(map(str, sources))), out, decoding)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_each_picture_has_the_caption_it_has_alone(place, assistant, tmp_path):
    out = tmp_path / "new" / "captions.jsonl"
    assert caption(place, out, place / "photos") == Captioned(9, 1, 0)
    names = [str(place / "photos" / f"{i}.png") for i in range(9)]
    assert [line["image"] for line in lines(out)] == names
    for line in lines(out)[::3]:
        assert line["caption"] == assistant.caption(line["image"], max_new_tokens=5, temperature=1.0, seed=3)
    [failed] = lines(tmp_path / "new" / "captions.failed.jsonl")
    assert failed["image"] == str(place / "photos" / "4broken.jpg")
    assert failed["reason"].startswith(failed["image"])


def test_a_second_start_does_what_is_left_and_a_torn_line_again(place, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "captions.jsonl"
    caption(place, whole, place / "photos")
    caption(place, out, place / "photos")
    raw = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(raw[:3]) + raw[3].rstrip(b"\n"))
    out.with_suffix(".failed.jsonl").write_bytes(b'{"image": "')
    assert caption(place, out, place / "photos") == Captioned(9, 1, 3)
    assert out.read_bytes() == whole.read_bytes()
    assert len(lines(out.with_suffix(".failed.jsonl"))) == 1
    monkeypatch.setattr("mmgpt.bulk.captions.load", None)  # what is whole needs no model
    assert caption(place, out, place / "photos") == Captioned(9, 1, 10)


def test_a_line_that_was_not_written_there_is_told_and_nothing_behind_it_is_lost(place, tmp_path):
    out = tmp_path / "captions.jsonl"
    caption(place, out, place / "photos")
    raw = out.read_bytes().splitlines(keepends=True)
    for spoilt in (b"\n", b"[]\n", b'{"image": 1}\n', b"\xff\n"):
        out.write_bytes(b"".join([*raw[:2], spoilt, *raw[2:]]))
        with pytest.raises(ConfigError, match=r"captions.jsonl:3: is not what was written there; mend"):
            caption(place, out, place / "photos")
        assert out.read_bytes().splitlines(keepends=True)[3:] == raw[2:]


def test_what_is_given_twice_is_described_once(place, tmp_path):
    assert caption(place, tmp_path / "c.jsonl", f"{place}/photos/1.png", f"{place}/photos/1.p*") == Captioned(1, 0, 0)


def test_captions_of_other_settings_are_not_mixed(place, tmp_path):
    out = tmp_path / "captions.jsonl"
    caption(place, out, f"{place}/photos/1.png")
    before = out.read_bytes()
    with pytest.raises(ConfigError, match=r"other settings .*seed was 3 and is 4"):
        caption(place, out, place / "photos", decoding=Decoding(max_new_tokens=5, temperature=1.0, seed=4))
    assert out.read_bytes() == before


def test_pictures_of_a_table_and_one_of_its_rows_that_is_none(place, assistant, tmp_path):
    data = [(place / "photos" / f"{i}.png").read_bytes() for i in (0, 1)] + [b"no picture", None]
    pq.write_table(pa.table({"image": pa.array(data, pa.binary())}), tmp_path / "rows.parquet")
    out = tmp_path / "captions.jsonl"
    assert caption(place, out, tmp_path / "rows.parquet") == Captioned(2, 2, 0)
    alone = assistant.caption(place / "photos" / "1.png", max_new_tokens=5, temperature=1.0, seed=3)
    assert lines(out)[1] == {"image": f"{tmp_path}/rows.parquet: row 1: image", "caption": alone}
    assert "holds no bytes" in lines(tmp_path / "captions.failed.jsonl")[1]["reason"]


DYING = """
import os, signal
import mmgpt.bulk.captions
from mmgpt.cli.main import main

written, as_json = [], mmgpt.bulk.captions.as_json

def dying(value):
    written.append(value)
    if len(written) == 23:  # of the settings twice, then of pictures
        os.kill(os.getpid(), signal.SIGKILL)
    return as_json(value)

mmgpt.bulk.captions.as_json = dying
main()
"""


def test_killed_in_the_middle_and_started_again_is_never_killed(place, tmp_path, monkeypatch, capsys):
    for i in range(40):
        (tmp_path / f"{i:02}.png").write_bytes((place / "photos" / f"{i % 9}.png").read_bytes())
    caption(place, tmp_path / "whole.jsonl", f"{tmp_path}/*.png")
    out = tmp_path / "captions.jsonl"
    arguments = ["caption", f"{tmp_path}/*.png", "--out", str(out), "--model", str(place / "model")]
    arguments += ["--max-new-tokens", "5", "--temperature", "1", "--seed", "3"]
    killed = subprocess.run([sys.executable, "-c", DYING, *arguments], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert 0 < out.read_bytes().count(b"\n") < 40
    monkeypatch.setattr(sys, "argv", ["mmgpt", *arguments])
    main()
    assert capsys.readouterr().out.startswith(f"{out}: 40 described, 0 could not be, ")
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
