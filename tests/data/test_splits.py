import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgpt.data.splits import members
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
