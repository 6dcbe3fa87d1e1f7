"""mmgpt data check on files."""

import io
import json
import tarfile

import pytest
from walls import wall_config, write_shards, write_walls

from mmgpt.cli.train import save_config


@pytest.fixture
def walls(tmp_path):
    """A configuration of whole data, to the folder of which more may be added."""
    save_config(wall_config(write_walls(tmp_path / "data"), tmp_path / "run"))
    return tmp_path / "run" / "config.yaml"


def test_whole_data_are_well_and_nothing_is_left_behind(mmgpt_command, walls):
    before = sorted(walls.parent.iterdir())
    told = mmgpt_command("data", "check", walls)
    assert told.code == 0, told.err
    assert "every sample is readable" in told.out
    assert ["samples", "9", "3"] in [line.split() for line in told.out.splitlines()]
    assert sorted(walls.parent.iterdir()) == before


def test_broken_data_are_told_in_full_as_json_and_end_with_1(mmgpt_command, tmp_path):
    folder = write_walls(tmp_path / "data", train=13)
    for number in range(12):
        (folder / f"{number}.png").write_text("no picture")
    save_config(wall_config(folder, tmp_path / "run"))
    told = mmgpt_command("data", "check", "--config", tmp_path / "run" / "config.yaml", "--json")
    assert told.code == 1
    found = json.loads(told.out)
    assert not found["sound"]
    assert [reason.partition(": ")[0] for reason in found["train"]["broken"]] == [
        f"{folder / 'captions.csv'}:{line}" for line in range(2, 14)
    ]
    assert found["train"]["documents"] == 1
    told = mmgpt_command("data", "check", "--config", tmp_path / "run" / "config.yaml")
    assert told.code == 1
    assert told.out.count(".png: is damaged") == 10
    assert "and 2 more" in told.out


@pytest.mark.filterwarnings("ignore:.*is cut off")
def test_a_shard_that_is_cut_off_is_a_fault(mmgpt_command, tmp_path):
    folder = write_walls(tmp_path / "data")
    write_shards(folder)
    shard = folder / "shards" / "train-0.tar"
    shard.write_bytes(shard.read_bytes()[:-10_000])
    config = wall_config(folder / "shards", tmp_path / "run")
    config.data.format = "webdataset"
    save_config(config)
    arguments = ("data", "check", tmp_path / "run" / "config.yaml")
    told = mmgpt_command(*arguments, "--json")
    assert told.code == 1
    found = json.loads(told.out)
    assert (found["sound"], found["val"]["broken"]) == (False, [])
    [reason] = found["train"]["broken"]
    assert reason.startswith(f"{shard}: it is cut off")
    assert 3 <= found["train"]["samples"] < 9
    told = mmgpt_command(*arguments)
    assert told.code == 1
    assert reason in told.out
    assert ["cannot", "be", "read", "1", "0"] in [line.split() for line in told.out.splitlines()]
    with tarfile.open(folder / "shards" / "train-1.tar", "a") as tar:
        text = tarfile.TarInfo("8.json")
        text.size = 2
        tar.addfile(text, io.BytesIO(b"[]"))
    found = json.loads(mmgpt_command(*arguments, "--json").out)
    assert found["malformed"] == [reason, f"{folder / 'shards' / 'train-1.tar'}: 8.json: not an object of named values"]


def test_all_of_the_validation_split_is_read_though_a_run_looks_at_a_few(mmgpt_command, tmp_path):
    save_config(wall_config(write_walls(tmp_path / "data", dev=5, broken=("dev",)), tmp_path / "run"))
    told = mmgpt_command("data", "check", tmp_path / "run" / "config.yaml", "--data.val_samples", 2, "--json")
    assert told.code == 1
    found = json.loads(told.out)
    assert found["val"]["samples"] == 6
    assert len(found["val"]["broken"]) == 1


def test_fields_on_the_command_line_count(mmgpt_command, walls):
    found = json.loads(mmgpt_command("data", "check", "--config", walls, "--model.gpt.context=16", "--json").out)
    assert found["train"]["too_long"]
    assert found["train"]["broken"] == []


def test_malformed_rows_and_missing_files_are_told_in_full_and_end_with_1(mmgpt_command, tmp_path):
    folder = write_walls(tmp_path / "data")
    with (folder / "captions.csv").open("a") as file:
        file.write("".join(f"{i}.png\n" for i in range(12)) + "no.png,a wall,dev\n")
    save_config(wall_config(folder, tmp_path / "run"))
    arguments = ("data", "check", "--config", tmp_path / "run" / "config.yaml")
    told = mmgpt_command(*arguments, "--json")
    assert told.code == 1, told.err
    found = json.loads(told.out)
    assert [reason.partition(": ")[0] for reason in found["malformed"]] == [
        f"{folder / 'captions.csv'}:{line}" for line in range(14, 26)
    ]
    assert [reason.partition(": ")[0] for reason in found["missing"]] == [f"{folder / 'captions.csv'}:26"]
    assert found["sound"] is False
    told = mmgpt_command(*arguments)
    assert (told.code, told.err) == (1, "")
    assert ["malformed", "12"] in [line.split() for line in told.out.splitlines()]
    assert ["files", "missing", "1"] in [line.split() for line in told.out.splitlines()]
    assert told.out.count("1 fields, where the header has 3") == 10
    assert "and 2 more" in told.out
    assert '"no.png" is not in the folder' in told.out


def test_what_ends_the_reader_is_the_one_thing_told(mmgpt_command, tmp_path):
    save_config(wall_config(tmp_path / "no", tmp_path / "run"))
    told = mmgpt_command("data", "check", "--config", tmp_path / "run" / "config.yaml", "--json")
    assert told.code == 1
    assert json.loads(told.out) == {
        "malformed": [f"{tmp_path / 'no'}: no such file or folder"], "missing": [], "sound": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "there is `mmgpt data check`"),
        (["chek"], "data chek: there is `mmgpt data check`"),
        (["check", "--batch_sise", "3"], "did you mean --batch_size?"),
        (["check", "--data.val_samples", "0"], "data.val_samples: must be"),
        (["check", "--data.format", "hf_stream", "--data.path", "x"], "a stream is not read to its end"),
    ],
)
def test_bad_usage_is_one_line_and_2(mmgpt_command, arguments, told):
    assert told in mmgpt_command("data", *arguments).error(2)
