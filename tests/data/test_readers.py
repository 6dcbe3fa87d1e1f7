import subprocess
import sys
import tarfile
from typing import get_args

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmgpt.content import Text
from mmgpt.data.lazy import LazySamples
from mmgpt.data.mixture import Mixture
from mmgpt.data.readers import READERS, format_of, limited, read_samples
from mmgpt.data.sample import Sample
from mmgpt.errors import ConfigError, DataError
from mmgpt.run_config import DataConfig, FileFormat, SourceConfig

COCO = '{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1, "caption": "A."}]}'
QUESTIONS = '{"questions": [{"question_id": 1, "image_id": 1, "question": "What?"}]}'
ANSWERS = '{"annotations": [{"question_id": 1, "answers": [{"answer": "A."}]}]}'
LLAVA = '[{"conversations": [{"from": "human", "value": "Hi."}, {"from": "gpt", "value": "A."}]}]'
CHAT = '[{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "A."}]'


@pytest.mark.parametrize(
    ("format", "file", "text", "task"),
    [
        ("captions", "captions.csv", "image,caption\na,A.\n", "caption"),
        ("coco", "captions_val.json", COCO, "caption"),
        ("sounds", "transcripts.csv", "file,text\na,A.\n", "transcribe"),
        ("chat", "chat.jsonl", CHAT, "ask"),
        ("llava", "llava.json", LLAVA, "ask"),
        ("speech", "manifest.json", '{"audio_filepath": "a", "text": "A."}', "transcribe"),
        ("texts", "pairs.csv", "question,answer\nQ,A.\n", "ask"),
    ],
)
def test_each_format_has_its_reader(tmp_path, format, file, text, task):
    (tmp_path / file).write_text(text)
    (tmp_path / "a").touch()
    [sample] = read_samples(DataConfig(format=format, path=str(tmp_path / file)), "dev")
    assert format_of(tmp_path / file) == format
    if format != "chat":  # which is read from a file alone
        assert format_of(tmp_path) == format
    assert (sample.answers, sample.task, sample.prompt[-1].role) == (("A.",), task, "user")


def test_each_format_of_folders_has_its_reader(tmp_path):
    (tmp_path / "vqa").mkdir()
    (tmp_path / "vqa/val_questions.json").write_text(QUESTIONS)
    (tmp_path / "vqa/val_annotations.json").write_text(ANSWERS)
    (tmp_path / "vqa/000000000001.jpg").touch()
    (tmp_path / "folders/A.").mkdir(parents=True)
    (tmp_path / "folders/A./a.jpg").touch()
    (tmp_path / "parquet").mkdir()
    datasets.Dataset.from_dict({"question": ["Q"], "answer": ["A."]}).save_to_disk(tmp_path / "hf")
    datasets.Dataset.from_dict({"question": ["Q"], "answer": ["A."]}).to_parquet(tmp_path / "parquet/a.parquet")
    (tmp_path / "webdataset").mkdir()
    (tmp_path / "a.json").write_text('{"question": "Q", "answer": "A."}')
    with tarfile.open(tmp_path / "webdataset/a.tar", "w") as tar:
        tar.add(tmp_path / "a.json", "a.json")
    tested = ("vqa", "folders", "hf", "parquet", "webdataset")
    for format in tested:
        [sample] = read_samples(DataConfig(format=format, path=str(tmp_path / format)), "dev")
        assert sample.answers == ("A.",)
        assert format_of(tmp_path / format) == format
    one_file = {"captions", "coco", "sounds", "chat", "llava", "speech", "texts"}
    assert one_file | set(tested) == set(READERS) == set(get_args(FileFormat))


@pytest.mark.parametrize(
    ("files", "format"),
    [
        (["Flickr8k.token.txt", "Flicker8k_Dataset/a.jpg"], "captions"),
        (["annotations/captions_train2017.json", "train2017/a.jpg"], "coco"),
        (["rows.json", "images/a.jpg"], "llava"),
        (["rows.csv", "images/a.jpg"], "texts"),
        (["dog/a.jpg", "README.txt"], "folders"),
        (["train/dog/A.WAV"], "folders"),
        (["more/a.txt"], "texts"),
        (["dev-clean/19/198/19-198.trans.txt", "dev-clean/19/198/19-198-0000.flac"], "speech"),
        (["data/train-00000-of-00001.parquet", "README.md"], "parquet"),
        (["train/state.json", "train/dataset_info.json", "dataset_dict.json"], "hf"),
    ],
)
def test_the_format_is_told_by_the_names_of_the_files(tmp_path, files, format):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert format_of(tmp_path) == format


@pytest.mark.parametrize(
    ("row", "format"),
    [
        (CHAT, "chat"),
        (f'{{"messages": {CHAT}}}', "chat"),
        (f'{{"messages": {CHAT}, "images": ["a.jpg"]}}', "llava"),
        (f'{{"conversations": {CHAT}}}', "llava"),
        ('{"audio_filepath": "a", "text": "A."}', "speech"),
        ('{"question": "Q", "answer": "A."}', "texts"),
    ],
)
def test_the_format_of_json_lines_is_told_by_the_first(tmp_path, row, format):
    (tmp_path / "a.jsonl").write_text(f"\n{row}\n")
    assert format_of(tmp_path / "a.jsonl") == format


def test_shards_may_be_a_pattern_and_what_tells_no_format_is_told(tmp_path):
    assert format_of(tmp_path / "train-*.tar") == "webdataset"
    (tmp_path / "a.jpg").touch()
    with pytest.raises(ConfigError, match=r"tell no format; say which: captions, coco, "):
        format_of(tmp_path)
    with pytest.raises(DataError, match=r"nowhere: no such file or folder"):
        format_of(tmp_path / "nowhere")


def test_a_mixture_is_drawn_by_weight_and_validates_on_each_source(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.csv").write_text("question,answer\n" + "".join(f"{name},{i}\n" for i in range(20)))
    mix = {
        "much": SourceConfig("texts", str(tmp_path / "a.csv"), weight=3.0),
        "less": SourceConfig("texts", str(tmp_path / "b.csv"), split="dev", val_split="train"),
    }
    config = DataConfig(format="mix", mix=mix)
    mixture = read_samples(config, "train", seed=1)
    assert isinstance(mixture, Mixture)
    assert [(share.source, share.samples, share.weight) for share in mixture.shares()] == [
        ("much", 18, 0.75),
        ("less", 2, 0.25),
    ]
    assert [sample.answers for sample in read_samples(config, "train", seed=1)] == [s.answers for s in mixture]
    assert [sample.answers for sample in read_samples(config, "train", seed=2)] != [s.answers for s in mixture]
    held_out = read_samples(config, "dev")
    assert [sample.prompt[0].parts[0] for sample in held_out] == [Text("a")] * 2 + [Text("b")] * 18
    with pytest.raises(ConfigError, match=r"data\.mix: format mix needs the data sets to mix"):
        read_samples(DataConfig(format="mix"), "train")


@pytest.mark.parametrize("lazy", [True, False])
@given(count=st.integers(1, 60), most=st.integers(1, 60))
def test_a_limit_is_spread_over_all(lazy, count, most):
    samples = [Sample((), (str(i),), "continue", str(i)) for i in range(count)]
    some = limited(LazySamples(range(count), samples.__getitem__) if lazy else samples, most)
    places = [int(sample.where) for sample in some]
    assert len(places) == min(most, count)
    steps = [after - before for before, after in zip(places, [*places[1:], count + places[0]], strict=True)]
    assert max(steps) - min(steps) <= 1  # no end is left out


def test_the_length_of_texts_is_the_configurations(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n\n" * 20)
    lengths = {n: len(read_samples(DataConfig("texts", str(tmp_path), text_length=n), "train")) for n in (5, 10)}
    assert lengths == {5: 36, 10: 18}


def test_a_format_without_files_and_a_missing_path_are_told():
    with pytest.raises(ConfigError, match=r"data.format: world is not read from files; those are captions, coco, "):
        read_samples(DataConfig(format="world"), "train")
    with pytest.raises(ConfigError, match=r"data.path: format captions needs the folder or file"):
        read_samples(DataConfig(format="captions"), "train")


def test_readers_load_no_torch_and_no_extra():
    heavy = "{'torch', 'PIL', 'pyarrow', 'datasets'}"
    code = f"import sys, mmgpt.data.readers; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
