import subprocess
import sys

import pytest

from mmgpt.config import DataConfig
from mmgpt.data.readers import read_samples
from mmgpt.errors import ConfigError

COCO = '{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1, "caption": "A."}]}'
CHAT = '[{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "A."}]'


@pytest.mark.parametrize(
    ("format", "file", "text", "task"),
    [
        ("captions", "captions.csv", "image,caption\na,A.\n", "caption"),
        ("coco", "captions_val.json", COCO, "caption"),
        ("sounds", "transcripts.csv", "file,text\na,A.\n", "transcribe"),
        ("chat", "chat.jsonl", CHAT, "ask"),
    ],
)
def test_each_format_has_its_reader(tmp_path, format, file, text, task):
    (tmp_path / file).write_text(text)
    (tmp_path / "a").touch()
    [sample] = read_samples(DataConfig(format=format, path=str(tmp_path / file)), "dev")
    assert (sample.answers, sample.task, sample.prompt[-1].role) == (("A.",), task, "user")


def test_a_format_without_files_and_a_missing_path_are_told():
    with pytest.raises(ConfigError, match=r"data.format: world is not read from files; those are captions, coco, "):
        read_samples(DataConfig(format="world"), "train")
    with pytest.raises(ConfigError, match=r"data.path: format captions needs the folder or file"):
        read_samples(DataConfig(format="captions"), "train")


def test_readers_load_no_torch():
    code = "import sys, mmgpt.data.readers; sys.exit('torch' in sys.modules or 'PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
