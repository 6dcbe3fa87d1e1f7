from pathlib import Path

import pytest

from mmgpt.content import Audio, Image, Text, Video
from mmgpt.data.folders import read_folders
from mmgpt.errors import DataError
from mmgpt.tasks import TASKS


def files(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_the_folder_is_the_class_and_the_suffix_the_kind(tmp_path):
    files(
        tmp_path,
        "train/cat/a.JPG",
        "train/grey dog/deep/b.flac",
        "train/run/c.mp4",
        "train/cat/notes.txt",
        "val/x/d.png",
    )
    samples = read_folders(tmp_path, "train")
    assert [(type(s.prompt[0].parts[0]), s.answers, s.task) for s in samples] == [
        (Image, ("cat",), "classify"),
        (Audio, ("grey dog",), "classify"),
        (Video, ("run",), "classify"),
    ]
    assert samples[0].prompt[0].parts[0].source == tmp_path / "train/cat/a.JPG"  # type: ignore[union-attr]
    assert {s.prompt[0].parts[1] for s in samples[:2]} == {Text(prompt) for prompt in TASKS["classify"].prompts}
    assert samples[0].where == str(tmp_path / "train/cat/a.JPG")
    [held] = read_folders(tmp_path, "dev")
    assert (held.answers, held.prompt[0].parts[1]) == (("x",), Text(TASKS["classify"].prompts[0]))


def test_splits_are_known_however_they_are_cased_and_what_stands_beside_them_is_told(tmp_path):
    files(tmp_path, "Train/cat/a.jpg", "Train/dog/b.jpg", "TEST/cat/c.jpg")
    assert [sample.references for sample in read_folders(tmp_path, "test")] == [("cat",)]
    files(tmp_path, "extra/cat/d.jpg")
    with pytest.raises(DataError, match=r'holds folders, as a split does, but "extra" beside it is no split'):
        read_folders(tmp_path, "train")


def test_a_class_may_be_called_train(tmp_path):
    files(tmp_path, "train/a.jpg", "train/b.jpg", "car/c.jpg", "car/old/d.jpg")
    found = [sample.references[0] for split in ("train", "dev") for sample in read_folders(tmp_path, split)]
    assert sorted(found) == ["car", "car", "train", "train"]


def test_a_class_whose_name_is_no_text_is_told(tmp_path):
    files(tmp_path, "caf\udce9/a.jpg", "dog/b.jpg")
    with pytest.raises(DataError, match="has a name that is no UTF-8; rename it"):
        read_folders(tmp_path, "train")


def test_without_named_splits_every_tenth_file_is_held_out(tmp_path):
    files(tmp_path, *(f"{name}/{i}.png" for name in "ab" for i in range(10)))
    assert [sample.where for sample in read_folders(tmp_path, "dev")] == [f"{tmp_path}/a/0.png", f"{tmp_path}/b/0.png"]
    assert len(read_folders(tmp_path, "train")) == 18
    files(tmp_path, "train/0.png")  # among other classes, a class like any other
    assert ("train",) in {sample.answers for sample in read_folders(tmp_path, "dev")}


def test_what_cannot_be_classified_is_told(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such folder"):
        read_folders(tmp_path / "nowhere", "train")
    with pytest.raises(DataError, match=r"no picture, sound or clip is in the folders here; known are \.jpg, "):
        read_folders(files(tmp_path, "dog/a.txt", ".hidden/a.jpg", "dog/.a.jpg"), "train")
    with pytest.raises(DataError, match=r"a\.png: is in no class's folder"):
        read_folders(files(tmp_path / "one", "dog/b.png", "a.png"), "train")
    with pytest.raises(DataError, match=r"train/a\.png: is in no class's folder"):
        read_folders(files(tmp_path / "two", "train/dog/b.png", "train/a.png"), "train")
    with pytest.raises(DataError, match=r'three: nothing is in the split "test"'):
        read_folders(files(tmp_path / "three", "train/dog/b.png"), "test")


def test_links_out_of_the_folder_are_refused_and_linked_folders_not_followed(tmp_path):
    files(tmp_path, "elsewhere/secret.png", "data/dog/a.png")
    (tmp_path / "data/cat").symlink_to(tmp_path / "elsewhere")
    assert [sample.answers for sample in read_folders(tmp_path / "data", "dev")] == [("dog",)]
    (tmp_path / "data/dog/b.png").symlink_to(tmp_path / "elsewhere/secret.png")
    with pytest.raises(DataError, match=r"b\.png is a link out of the folder"):
        read_folders(tmp_path / "data", "dev")
