import pytest
import torch
from tiny import some_audio, some_image

from mmgpt.content import Image, Message
from mmgpt.data.dataset import ExampleDataset, LoadedBatch, load_batch, make_loader
from mmgpt.data.sample import Sample
from mmgpt.errors import DataError


def sample(number: int, *answers: str, medium=None, prompt: str = "What?") -> Sample:
    return Sample((Message.of("user", medium or some_image(number), prompt),), answers or ("a",), "ask", f"x:{number}")


@pytest.fixture
def broken_picture(tmp_path) -> Image:
    (tmp_path / "no.jpg").write_text("no picture")
    return Image(tmp_path / "no.jpg")


def documents(loaded: LoadedBatch, tokenizer) -> list[str]:
    """The text of each document of a batch."""
    assert loaded.batch is not None
    return [tokenizer.decode(ids.tolist()) for ids in loaded.batch.ids.split(loaded.batch.lengths)]


def test_each_answer_is_a_document_and_they_share_one_picture(processor, tokenizer):
    dataset = ExampleDataset([sample(0, "a red circle", "a circle")], processor)
    loaded = load_batch([dataset[0]])
    assert documents(loaded, tokenizer) == ["What?a red circle", "What?a circle"]
    assert loaded.batch is not None
    assert len(loaded.batch.media["image"].inputs) == 1


def test_a_broken_picture_costs_its_own_sample_and_is_named(processor, tokenizer, broken_picture):
    dataset = ExampleDataset([sample(0), sample(1, medium=broken_picture), sample(2, "c")], processor)
    loaded = load_batch([dataset[i] for i in range(len(dataset))])
    assert documents(loaded, tokenizer) == ["What?a", "What?c"]
    (lost,) = loaded.broken
    assert lost.reason.startswith("x:1: ")
    assert "no.jpg: is damaged or not a picture" in lost.reason


def test_a_prompt_longer_than_the_context_costs_its_sample_once_and_is_named(processor, tokenizer):
    long = sample(1, "short", "shorter", prompt="zebra? " * 50)
    loaded = load_batch([ExampleDataset([long, sample(2)], processor)[i] for i in range(2)])
    assert documents(loaded, tokenizer) == ["What?a"]
    (lost,) = loaded.broken
    assert lost.reason.startswith("x:1: ")
    assert "more than the context of 160" in lost.reason


def test_an_answer_longer_than_the_context_is_dropped_alone_and_named(processor, tokenizer):
    some = [sample(1, "short", "zebra? " * 50, "last"), sample(2)]
    loaded = load_batch([ExampleDataset(some, processor)[i] for i in range(2)])
    assert documents(loaded, tokenizer) == ["What?short", "What?last", "What?a"]
    (lost,) = loaded.broken
    assert lost.reason.startswith("x:1: ")
    assert 'with the answer "zebra? zebra? ' in lost.reason
    assert "more than the context of 160" in lost.reason


def test_a_sample_without_answers_is_an_error_that_names_it():
    with pytest.raises(DataError, match=r"photos\.csv:7: no answer"):
        Sample((Message.of("user", "What?"),), (), "ask", "photos.csv:7")


def test_a_batch_of_which_nothing_is_left_says_so(processor, broken_picture):
    dataset = ExampleDataset([sample(i, medium=broken_picture) for i in range(2)], processor)
    loaded = load_batch([dataset[0], dataset[1]])
    assert loaded.batch is None
    assert len(loaded.broken) == 2
    assert loaded.to("cpu") == loaded


def test_errors_that_are_not_about_one_sample_stop_the_run(processor):
    class Malformed(list):
        def __getitem__(self, index):
            raise DataError("captions.csv:7: malformed")

    with pytest.raises(DataError, match="malformed"):
        ExampleDataset(Malformed([None]), processor)[0]


def order(processor, tokenizer, **settings) -> list[str]:
    samples = [sample(i, str(i)) for i in range(12)]
    loader = make_loader(samples, processor, batch_size=5, **settings)
    assert len(loader) == 3
    return [text.removeprefix("What?") for loaded in loader for text in documents(loaded, tokenizer)]


def test_the_order_is_a_permutation_by_the_seed(processor, tokenizer):
    in_order = [str(i) for i in range(12)]
    torch.rand(3)
    first = order(processor, tokenizer, shuffle=True, seed=1)
    torch.rand(5)  # whatever was drawn in between
    assert order(processor, tokenizer, shuffle=True, seed=1) == first
    assert sorted(first) == sorted(in_order)
    assert first != in_order
    assert order(processor, tokenizer, shuffle=True, seed=2) != first
    assert order(processor, tokenizer, shuffle=False, seed=1) == in_order


def test_each_epoch_has_an_order_of_its_own(processor, tokenizer):
    loader = make_loader([sample(i, str(i)) for i in range(12)], processor, batch_size=12, shuffle=True)
    epochs = [tuple(documents(loaded, tokenizer)) for _ in range(3) for loaded in loader]
    assert len(set(epochs)) == 3


def test_workers_bring_the_same_batches(processor, tokenizer, broken_picture):
    samples = [sample(0), sample(1, medium=broken_picture), sample(2, "b", medium=some_audio(0)), sample(3, "c")]
    for one, other in zip(
        make_loader(samples, processor, batch_size=3, shuffle=True, seed=4),
        make_loader(samples, processor, batch_size=3, shuffle=True, seed=4, workers=1),
        strict=True,
    ):
        assert one.broken == other.broken
        assert one.batch is not None
        assert other.batch is not None
        assert torch.equal(one.batch.ids, other.batch.ids)
        assert one.batch.media.keys() == other.batch.media.keys()
        for modality, group in one.batch.media.items():
            theirs = other.batch.media[modality]
            assert torch.equal(group.places, theirs.places)
            assert all(torch.equal(a.data, b.data) for a, b in zip(group.inputs, theirs.inputs, strict=True))
