import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as Pillow

from mmgpt.content import Audio, Image, Text
from mmgpt.data import parquet
from mmgpt.data.parquet import ParquetRows, read_parquet
from mmgpt.errors import ConfigError, DataError, MediaError


def picture(shade: int) -> bytes:
    import io

    buffer = io.BytesIO()
    Pillow.fromarray(np.full((4, 4, 3), shade, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, rows: list[dict[str, Any]], group: int = 3, metadata: dict[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows)
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=group)
    return path


def captions(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [
        {"image": {"bytes": picture(i), "path": f"{i}.png"}, "caption": f"number {i}"}
        for i in range(start, start + count)
    ]


def shade(sample) -> int:
    return sample.prompt[0].parts[0].load().getpixel((0, 0))[0]


def test_rows_are_samples_in_any_order_over_files_and_row_groups(tmp_path):
    write(tmp_path / "data/train-00000-of-00002.parquet", captions(7))
    write(tmp_path / "data/train-00001-of-00002.parquet", captions(6, 7))
    write(tmp_path / "data/validation-00000-of-00001.parquet", captions(2, 50))
    samples = read_parquet(tmp_path, "train")
    assert len(samples) == 13
    for i in (12, 0, 7, 6, 3, 3, 11):
        assert (samples[i].answers, shade(samples[i]), samples[i].task) == ((f"number {i}",), i, "caption")
    assert samples[8].where == f"{tmp_path}/data/train-00001-of-00002.parquet: row 1"
    assert [sample.answers[0] for sample in read_parquet(tmp_path, "dev")] == ["number 50", "number 51"]
    assert [sample.answers[0] for sample in samples[1:12:5]] == ["number 1", "number 6", "number 11"]


@pytest.mark.parametrize("nothing", [None, {"bytes": None, "path": None}])
def test_a_row_may_lack_what_others_have(tmp_path, nothing):
    """Of a table whose rows show a picture, or let a sound be heard, or neither."""
    shown, heard = {"bytes": picture(3), "path": None}, {"bytes": b"RIFF", "path": None}
    kinds = [(shown, nothing), (nothing, heard), (nothing, nothing)]
    rows = [{"image": i, "audio": a, "question": "What?", "answer": "It.", "split": "train"} for i, a in kinds * 2]
    rows.append(rows[0] | {"split": "dev"})
    samples = read_parquet(write(tmp_path / "a.parquet", rows, group=2), "train")
    parts = [[type(part) for part in sample.prompt[0].parts] for sample in samples]
    assert parts == [[Image, Text], [Audio, Text], [Text]] * 2
    assert {sample.task for sample in samples} == {"ask"}
    assert shade(samples[3]) == 3


def test_lists_of_pictures_and_texts_are_documents(tmp_path):
    rows = [
        {
            "images": [None, {"bytes": picture(i), "path": None}, None, {"bytes": picture(100 + i), "path": None}],
            "texts": [f"One {i}: ", None, "\nTwo: ", None],
            "metadata": f"{i}",
        }
        for i in range(20)
    ]
    samples = read_parquet(write(tmp_path / "train.parquet", rows), "train")
    assert len(samples) == 18
    for sample in samples:
        [(one, first, two, second)] = sample.answers
        number = int(one.text.split()[1][:-1])  # type: ignore[union-attr]
        shades = [part.load().getpixel((0, 0))[0] for part in (first, second)]  # type: ignore[union-attr]
        assert (one, two, shades) == (Text(f"One {number}: "), Text("\nTwo: "), [number, 100 + number])
        assert (sample.prompt, sample.task) == ((), "continue")


def test_one_row_in_ten_is_held_out_wherever_classes_take_turns(tmp_path):
    rows = [{"text": f"{i}", "label": i % 10} for i in range(200)]
    path = write(tmp_path / "a.parquet", rows)
    held = [sample.answers[0] for sample in read_parquet(path, "dev")]
    assert sorted(held) == sorted(str(i) for i in range(10) for _ in range(2))
    assert len(read_parquet(path, "train")) == 180


def test_a_split_column_is_obeyed(tmp_path):
    rows = [{"question": f"{i}", "answer": "a", "split": ("train", None, "val", "test")[i % 4]} for i in range(8)]
    path = write(tmp_path / "a.parquet", rows)
    asked = {s: [x.prompt[0].parts[0].text for x in read_parquet(path, s)] for s in ("train", "dev", "test")}  # type: ignore[union-attr]
    assert asked == {"train": ["0", "1", "4", "5"], "dev": ["2", "6"], "test": ["3", "7"]}


def test_classes_have_the_names_that_datasets_noted(tmp_path):
    noted = {"huggingface": '{"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}'}
    rows = [{"image": {"bytes": b"x", "path": None}, "label": i} for i in (1, 0, 2)]
    samples = read_parquet(write(tmp_path / "train.parquet", rows, metadata=noted), "train")
    assert (samples[0].answers, samples[0].task) == (("cat",), "classify")
    with pytest.raises(DataError, match=r"train\.parquet: row 2: the label is 2; its classes are numbered 0 to 1"):
        samples[1]


def test_conversations_take_the_pictures_of_their_row(tmp_path):
    def row(text: str, *pictures: bytes) -> dict[str, Any]:
        turns = [{"from": "human", "value": text}, {"from": "gpt", "value": "Yes."}]
        return {"images": [{"bytes": one, "path": None} for one in pictures], "conversations": turns}

    rows = [row("Hi.", b"x"), row("<image> or <image>?", picture(1), picture(2)), row("No <image>.")]
    with pytest.raises(DataError, match=r"a\.parquet: row 0: 0 × <image> in the turns, and 1 images named"):
        read_parquet(write(tmp_path / "a.parquet", rows), "dev")
    samples = read_parquet(write(tmp_path / "a.parquet", [row("Hi."), *rows[1:]]), "train")
    one, word, two, mark = samples[0].prompt[0].parts
    assert isinstance(one, Image)
    assert isinstance(two, Image)
    assert (one.source, two.source, word, mark) == (picture(1), picture(2), Text("or"), Text("?"))
    assert samples[1].prompt[0].parts == (Text("No <image>."),)


def test_a_conversation_without_its_picture_is_text(tmp_path):
    turns = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "A dog."}]
    rows = [{"image": {"bytes": picture(3), "path": None}, "messages": turns}, {"image": None, "messages": turns}]
    path = write(tmp_path / "a.parquet", rows)
    assert shade(read_parquet(path, "dev")[0]) == 3
    assert read_parquet(path, "train")[0].prompt[0].parts == (Text("<image>What?"),)


@pytest.mark.parametrize(("room", "fewest", "most"), [(0, 2, 2), (1000, 3, 29), (1 << 20, 30, 30)])
def test_row_groups_are_kept_while_there_is_room(tmp_path, monkeypatch, room, fewest, most):
    """At least two, the texts and the media of one."""
    monkeypatch.setattr(parquet, "_KEPT", room)
    rows = ParquetRows([write(tmp_path / "a.parquet", captions(30), group=2)])
    for i in [*range(30), *range(0, 30, 7)]:
        assert rows.values(i, ["caption"]) == {"caption": f"number {i}"}
        assert rows.values(i, ["image"])["image"]["path"] == f"{i}.png"
    sizes = [table.nbytes for table in rows._cache.values()]
    assert fewest <= len(sizes) <= most
    assert sum(sizes) <= room or len(sizes) == 2
    assert all(table.num_rows == 2 for table in rows._cache.values())


def test_pictures_are_read_when_they_are_decoded_and_a_bad_one_costs_its_sample(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "trapped",))

    rows = [{"image": {"bytes": data, "path": "b.png"}, "caption": "A."} for data in (pickle.dumps(Trap()), None, b"")]
    path = write(tmp_path / "train.parquet", rows)
    samples = [read_parquet(path, "dev")[0], *read_parquet(path, "train")]
    reasons = (
        r"is damaged or not a picture",
        r'names the file "b.png" and does not hold it',
        r"empty; give the content",
    )
    for i, (sample, reason) in enumerate(zip(samples, reasons, strict=True)):
        with pytest.raises(MediaError, match=rf"train\.parquet: row {i}: image: {reason}"):
            sample.prompt[0].parts[0].load()  # type: ignore[union-attr]
    assert not (tmp_path / "trapped").exists()


def test_what_cannot_be_read_is_told(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such file or folder"):
        read_parquet(tmp_path / "nowhere", "train")
    with pytest.raises(DataError, match=r"no \.parquet file is in this folder"):
        read_parquet(tmp_path, "train")
    (tmp_path / "a.parquet").write_text("image,caption\n")
    with pytest.raises(DataError, match=r"a\.parquet: cannot be read as Parquet \("):
        read_parquet(tmp_path, "train")
    write(tmp_path / "a.parquet", [{"width": 1, "height": 2}] * 2)
    with pytest.raises(DataError, match=r'no column is known by its name; there are "width, height"'):
        read_parquet(tmp_path, "train")
    write(tmp_path / "a.parquet", [{"image": {"bytes": b"x"}, "width": 2}] * 2)
    with pytest.raises(DataError, match=r'a\.parquet: row 1: nothing to learn from the columns "image"'):
        read_parquet(tmp_path, "train")
    write(tmp_path / "a.parquet", captions(2))
    write(tmp_path / "b.parquet", [{"image": "a.png", "text": "A."}])
    with pytest.raises(DataError, match=r'b\.parquet: the columns are "image, text", where a.parquet has "image, cap'):
        read_parquet(tmp_path, "train")
    write(tmp_path / "c/a.parquet", [{"text": "a", "split": 3}])
    with pytest.raises(DataError, match=r"a\.parquet: row 0 of row group 0: the split is 3; it is a string"):
        read_parquet(tmp_path / "c", "train")
    write(tmp_path / "d/a.parquet", [{"question": "Q", "answer": "a"}] * 3 + [{"question": "Q", "answer": None}])
    samples = read_parquet(tmp_path / "d", "train")
    with pytest.raises(DataError, match=r'd/a\.parquet: row 3: nothing to learn from the columns "question"'):
        samples[2]


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet", captions(2))
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(ConfigError, match=r"parquet needs pyarrow; install the extra: uv sync --extra parquet"):
        read_parquet(path, "train")
