import errno

import pytest

from mmgpt.errors import WriteError
from mmgpt.files import atomic_write


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_only_when_it_is_whole(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    with atomic_write(path) as draft:
        draft.write_text("half")
        assert not path.exists()
        draft.write_text("whole")
    assert path.read_text() == "whole"
    assert names(path.parent) == ["a.txt"]


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write():
        with atomic_write(path) as draft:
            draft.write_text("new")
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        write()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_full_device_is_told(tmp_path):
    with (
        pytest.raises(WriteError, match=r"a\.txt: No space left on device; free some"),
        atomic_write(tmp_path / "a.txt"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not names(tmp_path)


def test_a_folder_in_the_way_is_told(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(WriteError, match="cannot write"), atomic_write(tmp_path / "a") as draft:
        draft.write_text("x")
    assert names(tmp_path) == ["a"]
