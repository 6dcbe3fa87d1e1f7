from dataclasses import replace

import pytest
import torch
from tiny import some_image

from mmgpt.batch import Example, collate
from mmgpt.content import Image, Message, Text
from mmgpt.data.dataset import Broken, ExampleDataset
from mmgpt.data.sample import Sample
from mmgpt.errors import DataError


def sample(number: int, *answers: str, medium=None, prompt: str = "What?") -> Sample:
    return Sample((Message.of("user", medium or some_image(number), prompt),), answers or ("a",), "ask", f"x:{number}")


@pytest.fixture
def broken_picture(tmp_path) -> Image:
    (tmp_path / "no.jpg").write_text("no picture")
    return Image(tmp_path / "no.jpg")


def texts(parts: list[Example | Broken], tokenizer) -> list[str]:
    return [tokenizer.decode(part.ids) for part in parts if isinstance(part, Example)]


def lost(parts: list[Example | Broken]) -> str:
    """The reason of the one broken part."""
    (reason,) = [part.reason for part in parts if isinstance(part, Broken)]
    return reason


def test_each_answer_is_a_document_and_they_share_one_picture(processor, tokenizer):
    parts = ExampleDataset([sample(0, "a red circle", "a circle")], processor)[0]
    assert texts(parts, tokenizer) == ["What?a red circle", "What?a circle"]
    assert len({id(item) for part in parts if isinstance(part, Example) for _, item in part.media}) == 1


def shared(*samples: Sample, medium=None) -> Sample:
    """Samples of one medium, the first of which has the others."""
    medium = medium or some_image(1)
    first, *more = (replace(one, prompt=(Message.of("user", medium, one.prompt[0].parts[1]),)) for one in samples)
    return replace(first, more=tuple(more))


def test_samples_of_one_picture_share_it_and_see_nothing_of_each_other(processor, tokenizer):
    one = shared(sample(1, "a", "b"), replace(sample(2, "c", prompt="Why?"), task="caption"))
    parts = ExampleDataset([one], processor)[0]
    assert texts(parts, tokenizer) == ["What?a", "What?b", "Why?c"]
    examples = [part for part in parts if isinstance(part, Example)]
    assert [(part.task, part.where) for part in examples] == [("ask", "x:1")] * 2 + [("caption", "x:2")]
    assert len(collate(examples).media["image"].inputs) == 1


def test_a_shared_picture_teaches_what_it_would_teach_alone(model, processor):
    together = shared(sample(1, "a", "b"), sample(2, "c", prompt="Why?"))
    apart = [part for one in together.exchanges for part in ExampleDataset([one], processor)[0]]
    found = {}
    for name, examples in (("together", ExampleDataset([together], processor)[0]), ("apart", apart)):
        batch = collate([part for part in examples if isinstance(part, Example)])
        model.zero_grad()
        model.loss(batch).sum.backward()
        found[name] = {
            name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None
        }
    model.zero_grad()
    assert found["together"].keys() == found["apart"].keys()
    for name, gradient in found["together"].items():
        torch.testing.assert_close(gradient, found["apart"][name], rtol=1e-4, atol=1e-4, msg=name)


def test_a_question_that_is_too_long_costs_itself_and_a_broken_picture_all(processor, tokenizer, broken_picture):
    one = shared(sample(1, "a"), sample(2, "b", prompt="zebra? " * 50), sample(3, "c"))
    parts = ExampleDataset([one], processor)[0]
    assert texts(parts, tokenizer) == ["What?a", "What?c"]
    assert lost(parts).startswith("x:2: ")
    parts = ExampleDataset([shared(sample(1), sample(2), medium=broken_picture)], processor)[0]
    assert not texts(parts, tokenizer)
    assert lost(parts).startswith("x:1: ")


def test_a_broken_picture_costs_its_own_sample_and_is_named(processor, tokenizer, broken_picture):
    dataset = ExampleDataset([sample(0), sample(1, medium=broken_picture), sample(2, "c")], processor)
    assert [texts(dataset[i], tokenizer) for i in range(len(dataset))] == [["What?a"], [], ["What?c"]]
    assert lost(dataset[1]).startswith("x:1: ")
    assert "no.jpg: is damaged or not a picture" in lost(dataset[1])


def test_a_prompt_longer_than_the_context_costs_its_sample_once_and_is_named(processor, tokenizer):
    parts = ExampleDataset([sample(1, "short", "shorter", prompt="zebra? " * 50)], processor)[0]
    assert not texts(parts, tokenizer)
    assert lost(parts).startswith("x:1: ")
    assert "more than the context of 160" in lost(parts)


def test_an_answer_longer_than_the_context_is_dropped_alone_and_named(processor, tokenizer):
    parts = ExampleDataset([sample(1, "short", "zebra? " * 50, "last")], processor)[0]
    assert texts(parts, tokenizer) == ["What?short", "What?last"]
    assert lost(parts).startswith("x:1: ")
    assert 'with the answer "zebra? zebra? ' in lost(parts)
    assert "more than the context of 160" in lost(parts)


def test_a_broken_picture_in_an_answer_costs_that_answer_and_is_named(processor, tokenizer, broken_picture):
    answers = ("a", (Text("b"), broken_picture), (some_image(1), Text("c")))
    one = Sample((Message.of("user", some_image(0), "What?"),), answers, "ask", "x:1")
    parts = ExampleDataset([one], processor)[0]
    assert texts(parts, tokenizer) == ["What?a", "What?c"]
    assert lost(parts).startswith("x:1: ")
    assert "no.jpg: is damaged or not a picture" in lost(parts)
    shown = [[item for _, item in part.media] for part in parts if isinstance(part, Example)]
    assert [len(items) for items in shown] == [1, 2]
    assert shown[0][0] is shown[1][0]


def test_a_sample_without_answers_is_an_error_that_names_it():
    with pytest.raises(DataError, match=r"photos\.csv:7: no answer"):
        Sample((Message.of("user", "What?"),), (), "ask", "photos.csv:7")


def test_errors_that_are_not_about_one_sample_stop_the_run(processor):
    class Malformed(list):
        def __getitem__(self, index):
            raise DataError("captions.csv:7: malformed")

    with pytest.raises(DataError, match="malformed"):
        ExampleDataset(Malformed([None]), processor)[0]
