import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgpt.data.splits import hold_out_tails, members, row_numbers, split_in_name
from mmgpt.errors import DataError


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.text(max_size=4), unique=True, min_size=2, max_size=60))
def test_train_and_dev_part_the_names_whatever_their_order(names):
    splits = dict.fromkeys(names, None)
    train, dev = members(splits, "train"), members(splits, "dev")
    assert sorted(train + dev) == sorted(names)
    assert len(dev) == -(-len(names) // 10)
    assert set(members(dict.fromkeys(reversed(names), None), "dev")) == set(dev)


@pytest.mark.parametrize("word", ["dev", "val", "valid", "validation", "Validation"])
def test_validation_has_many_names(word):
    splits = {"a": "train", "b": word, "c": None}
    assert members(splits, "dev") == members(splits, "val") == ["b"]
    assert members(splits, "train") == ["a", "c"]


def test_dev_is_held_out_of_training_names_alone():
    splits = {"a": "test", "b": "train", "c": "train"}
    assert [members(splits, split) for split in ("test", "dev", "train")] == [["a"], ["b"], ["c"]]


def test_an_empty_split_is_told_with_those_there_are():
    with pytest.raises(DataError, match=r'nothing is in the split "trian"; there is dev \(1\), train \(1\)'):
        members({"a": None, "b": None}, "trian")


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from([0, 1]), min_size=11, max_size=300))
def test_rows_are_parted_one_of_every_ten_of_training(codes):
    codes = np.array([0] * 11 + codes)
    found = {split: row_numbers(["train", "test"], codes, split) for split in ("train", "dev")}
    training = np.flatnonzero(codes == 0)
    assert sorted([*found["train"], *found["dev"]]) == list(training)
    for start in range(0, len(training) - 9, 10):
        assert len(set(training[start : start + 10]) & set(found["dev"])) == 1


def test_rows_that_take_turns_between_ten_classes_are_all_held_out():
    held_out = row_numbers([None], np.zeros(100, dtype=int), "dev")
    assert sorted(held_out % 10) == list(range(10))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from([None, "train", "test"]), st.integers(0, 40)), min_size=1, max_size=20))
def test_of_files_that_name_no_dev_the_tails_of_training_are_held_out(files):
    names, counts = [*zip(*files, strict=True)]
    total = sum(count for name, count in files if name != "test")
    splits, codes = hold_out_tails(names, counts)
    held, start = [], 0
    for (name, _), end in zip(files, np.cumsum(counts), strict=True):
        here = codes[start:end] == len(names)
        assert not np.any(here[:-1] > here[1:])  # after a held-out row of a file all are
        assert name != "test" or not here.any()
        held, start = [*held, *here], end
    assert sum(held) == -(-total // 10)
    if held.count(True):
        assert list(row_numbers(splits, codes, "dev")) == list(np.flatnonzero(held))


def test_where_a_file_is_dev_nothing_else_is_held_out():
    splits, codes = hold_out_tails([None, "val"], [20, 3])
    assert list(row_numbers(splits, codes, "dev")) == [20, 21, 22]
    assert len(row_numbers(splits, codes, "train")) == 20


def test_rows_are_of_the_split_their_file_names():
    codes = np.array([0, 1, 2, 0, 1])
    assert list(row_numbers(["train", "valid", None], codes, "val")) == [1, 4]
    assert list(row_numbers(["train", "valid", None], codes, "train")) == [0, 2, 3]
    with pytest.raises(DataError, match=r'nothing is in the split "test"; there is train \(2\), dev \(2\)'):
        row_numbers(["train", "valid"], codes[codes < 2], "test")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("data/train-00000-of-00002.parquet", "train"),
        ("Validation/0.tar", "dev"),
        ("val_1.tar", "dev"),
        ("train/test-0.tar", "test"),
        ("training.tar", None),
        ("a/b.txt", None),
    ],
)
def test_names_tell_splits_by_their_first_word(name, split):
    assert split_in_name(name) == split
