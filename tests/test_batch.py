from dataclasses import replace

import pytest
import torch
from tiny import some_audio, some_image

from mmgpt.batch import check_supervised, collate
from mmgpt.content import Message
from mmgpt.errors import DataError
from mmgpt.processor import Processor


def test_documents_lie_end_to_end_without_padding(processor):
    examples = [processor.encode([Message.of("user", text)]) for text in ("a", "a longer question", "b")]
    batch = collate(examples)
    assert batch.lengths == [len(example) for example in examples]
    assert batch.ids.tolist() == [token for example in examples for token in example.ids]


def test_a_picture_shared_by_documents_is_in_the_batch_once(processor):
    prompt = processor.encode_prompt([Message.of("user", some_image(0), "?")])
    examples = [processor.encode_answer(prompt, answer) for answer in ("one", "two", "three")]
    other = processor.encode([Message.of("user", some_image(1), some_audio(2))])
    batch = collate([*examples, other])
    assert [len(batch.media[modality].inputs) for modality in ("image", "audio")] == [2, 1]
    images = batch.media["image"]
    count = images.inputs[0].features
    assert images.rows.tolist() == [*range(count)] * 3 + [*range(count, 2 * count)]
    assert (batch.ids[images.places] == processor.tokenizer.slot).all()


def test_slots_of_all_media_together_are_the_slot_tokens(processor):
    examples = [
        processor.encode([Message.of("user", some_image(i), "and", some_audio(i, 1000 + 700 * i))]) for i in range(3)
    ]
    batch = collate(examples)
    slots = torch.cat([group.places for group in batch.media.values()]).sort().values
    assert torch.equal(slots, (batch.ids == processor.tokenizer.slot).nonzero().squeeze(1))


def test_media_without_slots_are_seen_from_the_token_behind_them_on(processor):
    config = replace(processor.config, gpt=replace(processor.config.gpt, cross="inside"))
    beside = Processor(config, processor.tokenizer)
    sound = Message.of("user", "a", some_audio(0), "b")
    prompt = beside.encode_prompt([sound])
    shared = [beside.encode_answer(prompt, answer) for answer in ("one", "two")]
    batch = collate(
        [beside.encode([Message.of("user", "no media")]), *shared, beside.encode([Message.of("user", "c")])]
    )
    media = batch.media["audio"]
    count = media.inputs[0].features
    assert count > 1
    starts = [batch.lengths[0], batch.lengths[0] + batch.lengths[1]]
    assert media.rows.tolist() == [*range(count)] * 2
    assert media.places.tolist() == [start + 2 for start in starts for _ in range(count)]
    assert [batch.ids[place] for place in media.places] == processor.tokenizer.encode("b") * 2 * count


@pytest.mark.parametrize("cross", [None, "inside"])
def test_documents_are_had_back_from_a_batch(processor, cross):
    config = replace(processor.config, gpt=replace(processor.config.gpt, cross=cross))
    own = Processor(config, processor.tokenizer)
    prompt = replace(own.encode_prompt([Message.of("user", some_image(0), "?")]), task="ask")
    media = [some_audio(2), some_image(1), some_audio(2)]
    examples = [
        own.encode_answer(prompt, "one"),
        own.encode([Message.of("user", *media, "and"), Message.of("assistant", "b")]),
        own.encode([Message.of("user", "no media")]),
        own.encode_answer(prompt, "two"),
    ]
    for back, example in zip(collate(examples).examples, examples, strict=True):
        assert (back.ids, back.supervised, back.task) == (example.ids, example.supervised, example.task)
        assert [place for place, _ in back.media] == [place for place, _ in example.media]
        places: dict[int, set[int]] = {}
        for place, item in example.media:
            places.setdefault(place, set()).add(id(item))
        assert all(id(item) in places[place] for place, item in back.media)


def test_a_document_without_a_supervised_token_is_refused_by_name(processor):
    good = processor.encode([Message.of("user", "a"), Message.of("assistant", "b")], where="chat.jsonl:1")
    bad = processor.encode([Message.of("user", "a")], where="chat.jsonl:2")
    check_supervised([good])
    with pytest.raises(DataError, match=r"chat\.jsonl:2: no supervised token"):
        check_supervised([good, bad])
