import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgpt.gpt.documents import MOST_PADDING, Documents

LENGTHS = st.lists(st.integers(0, 70), min_size=1, max_size=30)


def test_positions_restart_with_each_document():
    documents = Documents([3, 1, 0, 2])
    assert documents.positions.tolist() == [0, 1, 2, 0, 0, 1]
    assert documents.numbers.tolist() == [0, 0, 0, 1, 3, 3]
    assert (documents.total, documents.longest, len(documents)) == (6, 3, 4)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(LENGTHS)
def test_every_token_comes_back_from_its_bucket_to_its_place(lengths: list[int]):
    documents = Documents(lengths)
    tokens = torch.randn(documents.total, 2, dtype=torch.float64, requires_grad=True)
    parts = documents.pad(tokens)
    for part, bucket in zip(parts, documents.buckets, strict=True):
        assert part.shape == (len(bucket.documents), bucket.longest, 2)
        for row, number in zip(part, bucket.documents, strict=True):
            start = sum(lengths[:number])
            assert torch.equal(row[: lengths[number]], tokens[start : start + lengths[number]])
    if documents.total:
        flat = documents.flatten(parts)
        assert torch.equal(flat, tokens)
        (flat * 3).sum().backward()
        assert tokens.grad is not None
        assert torch.equal(tokens.grad, torch.full_like(tokens, 3))


@settings(derandomize=True, deadline=None, max_examples=60)
@given(LENGTHS)
def test_buckets_hold_every_document_once_and_waste_little(lengths: list[int]):
    buckets = Documents(lengths).buckets
    assert sorted(i for bucket in buckets for i in bucket.documents) == [i for i, n in enumerate(lengths) if n]
    for bucket in buckets:
        assert bucket.longest == max(bucket.lengths)
        assert bucket.slots <= (1 + MOST_PADDING) * sum(bucket.lengths)


def test_documents_of_nearly_equal_length_share_one_bucket():
    assert len(Documents([20, 21, 19, 22, 20]).buckets) == 1
    assert len(Documents([100, 100, 2, 2]).buckets) == 2


def test_documents_of_equal_length_are_not_copied():
    tokens = torch.randn(12, 5)
    (part,) = Documents([4, 4, 4]).pad(tokens)
    assert part.data_ptr() == tokens.data_ptr()


def test_key_masks_cover_the_pads_alone():
    documents = Documents([4, 5, 5])
    (mask,) = documents.masks
    assert mask is not None
    assert mask.shape == (3, 1, 1, 5)
    assert mask.sum(-1).flatten().tolist() == [5, 5, 4]
    assert Documents([5, 5]).masks == [None]


@pytest.mark.parametrize("lengths", [[], [0], [0, 0]])
def test_a_batch_without_tokens_has_no_buckets(lengths: list[int]):
    documents = Documents(lengths)
    assert documents.total == 0
    assert documents.buckets == []
    assert documents.positions.shape == (0,)
