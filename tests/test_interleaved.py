"""Documents of texts and media in any order: what of them is learned, and what sees what."""

import copy

import pytest
import torch
from tiny import cross_config, seeing, some_audio, some_image, some_video

from mmgpt.batch import Example, collate
from mmgpt.content import Medium, Message, Text
from mmgpt.model import MultimodalGPT
from mmgpt.processor import Processor

DOCUMENTS: list[tuple[Text | Medium, ...]] = [
    (
        Text("A red circle:"),
        some_image(0),
        Text(" and a blue one:"),
        some_image(1),
        some_audio(2, 2500),
        Text(" hear."),
    ),
    (some_video(3), Text("What do you see?")),
    (Text("left of a square"), some_audio(4, 3100)),
    (Text("Text alone."),),
]
CONVERSATION = [
    Message.of("user", some_image(5), "What?"),
    Message.of("assistant", "This: ", some_image(6), " a circle."),
    Message.of("user", "And?"),
]


@pytest.fixture(params=[None, "inside", "gated"], scope="module")
def model(request, tokenizer) -> MultimodalGPT:
    """A model of each way of fusion, with embeddings that matter and open gates."""
    return seeing(cross_config(len(tokenizer), request.param))


@pytest.fixture(scope="module")
def processor(model, tokenizer) -> Processor:
    return Processor(model.config, tokenizer)


def encoded(processor: Processor) -> list[Example]:
    """The documents, and a conversation whose last turn shows something too."""
    talk = processor.encode_prompt(CONVERSATION)
    begin = processor.encode_prompt(())
    answered = processor.encode_answer(talk, (some_image(7), Text("A square."), some_audio(8, 2600)))
    return [*(processor.encode_answer(begin, document) for document in DOCUMENTS), answered]


def test_all_text_and_the_end_are_supervised_and_nothing_else(processor, tokenizer):
    learned = [
        tokenizer.spelled([token for token, learn in zip(one.ids, one.supervised, strict=True) if learn])
        for one in encoded(processor)
    ]
    assert learned == [
        "A red circle: and a blue one: hear.<|end|>",
        "What do you see?<|end|>",
        "left of a square<|end|>",
        "Text alone.<|end|>",
        "This:  a circle.<|end|>A square.<|end|>",
    ]


def test_media_of_an_answer_stand_at_their_places(processor, tokenizer):
    document = processor.encode_answer(processor.encode_prompt(()), DOCUMENTS[0])
    ids, places = tokenizer.opening("assistant"), []
    for part in DOCUMENTS[0]:
        if isinstance(part, Text):
            ids = [*ids, *tokenizer.encode(part.text)]
        else:
            places.append(len(ids))
            ids = [*ids, *[tokenizer.slot] * processor.media_input(part).slots]
    assert document.ids == [*ids, tokenizer.end]
    assert [first for first, _ in document.media] == places
    assert [item.modality for _, item in document.media] == ["image", "image", "audio"]


def test_logits_and_loss_do_not_change_with_what_shares_the_batch(model, processor):
    examples = encoded(processor)
    batch = collate(examples)
    with torch.no_grad():
        together = model(batch).split(batch.lengths)
        each = model.loss(batch).each.split([sum(example.supervised) for example in examples])
        for example, logits, losses in zip(examples, together, each, strict=True):
            alone = collate([example])
            torch.testing.assert_close(logits, model(alone), rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(losses, model.loss(alone).each, rtol=1e-4, atol=1e-4)


def test_a_medium_is_seen_by_what_follows_it_and_by_nothing_before(model, processor):
    begin = processor.encode_prompt(())
    first, second = Text("A red circle:"), Text(" and a blue one.")
    one, other = (processor.encode_answer(begin, (first, some_image(seed), second)) for seed in (0, 1))
    with torch.no_grad():
        differ = (model(collate([one])) - model(collate([other]))).abs().amax(-1)  # tokens
    [(place, _)] = one.media
    assert (differ[:place] == 0).all()
    assert (differ[place:] > 1e-4).all()


def test_the_encoder_learns_from_the_text_behind_a_medium_and_not_from_that_before_it(model, processor):
    model = copy.deepcopy(model)
    document = processor.encode_answer(processor.encode_prompt(()), (Text("A red circle:"), some_image(0), Text(" so")))
    [(place, _)] = document.media

    def gradient(learned: range) -> float:
        model.zero_grad()
        supervised = [flag and number in learned for number, flag in enumerate(document.supervised)]
        model.loss(collate([Example(document.ids, supervised, document.media)])).sum.backward()
        grads = [p.grad for part in (model.encoders, model.adapters) for p in part.parameters() if p.grad is not None]
        return max((float(grad.abs().max()) for grad in grads), default=0.0)

    assert gradient(range(place)) == 0
    assert gradient(range(place, len(document))) > 1e-6
