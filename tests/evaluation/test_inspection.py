"""Pieces of documents, and the page of what the model gets."""

import re
from dataclasses import replace

import numpy as np
import pytest
from tiny import some_audio, some_image, some_video

from mmgpt.content import Image, Message, Text
from mmgpt.data.sample import Sample
from mmgpt.evaluation.inspection import answer_start, as_text, inspected, pieces, write_inspection
from mmgpt.model import MultimodalGPT
from mmgpt.processor import Processor

EVIL = "<script>alert('x')</script>&\""


def sample(*parts, answers=("yes",)) -> Sample:
    return Sample((Message.of("user", *parts),), answers, "ask", "x:1")


def test_pieces_are_the_document_in_order(processor, tokenizer):
    image, sound = some_image(0), some_audio(0)
    (one,) = inspected([sample(image, sound, "What?", some_video(0))], 1, processor, 0)
    (document,) = one.documents
    found = list(pieces(document))
    kinds = [piece.medium.modality if piece.medium else tokenizer.spelled(piece.ids) for piece in found]
    assert kinds == ["<|user|>", "image", "audio", "What?", "video", "<|assistant|>", "yes<|end|>"]
    assert [piece.supervised for piece in found] == [False] * 6 + [True]
    slots = sum(piece.medium.slots for piece in found if piece.medium)
    assert sum(len(piece.ids) for piece in found) + slots == len(document)


def test_media_without_slots_stand_before_the_token_that_sees_them(model, tokenizer):
    config = replace(model.config, gpt=replace(model.config.gpt, cross="inside"))
    beside = Processor(MultimodalGPT(config).config, tokenizer)
    (one,) = inspected([sample(some_image(0), "What?", some_image(1), some_image(2))], 1, beside, 0)
    told = as_text(one.documents[0], tokenizer).plain
    count = one.documents[0].media[0][1].features
    look = f"[image: {count} features to look at]"
    assert told == f"<|user|>{look}What?{look}{look}<|assistant|>yes<|end|>"


def test_what_is_learned_is_in_colour(processor, tokenizer):
    (one,) = inspected([sample(some_image(0), "What?")], 1, processor, 0)
    text = as_text(one.documents[0], tokenizer)
    slots = one.documents[0].media[0][1].slots
    assert text.plain == f"<|user|>[image: {slots} slots]What?<|assistant|>yes<|end|>"
    coloured = [text.plain[span.start : span.end] for span in text.spans if "green" in str(span.style)]
    assert coloured == ["yes<|end|>"]


def test_an_answer_begins_behind_the_last_opening(processor, tokenizer):
    prompt = (Message.of("user", "a"), Message.of("assistant", "b"), Message.of("user", "c"))
    (one,) = inspected([Sample(prompt, ("d", "dd"), "ask", "x:1")], 1, processor, 0)
    for document, answer in zip(one.documents, ("d", "dd"), strict=True):
        assert as_text(document, tokenizer, answer_start(document, tokenizer)).plain == f"{answer}<|end|>"


def test_samples_are_spread_and_broken_ones_are_told(processor, tmp_path):
    (tmp_path / "no.jpg").write_text("no picture")
    samples = [sample(f"{i}") for i in range(8)] + [sample(Image(tmp_path / "no.jpg"), "What?")]
    found = inspected(samples, 3, processor, 0)
    assert [one.sample for one in found] == [samples[0], samples[4], samples[8]]
    assert [len(one.documents) for one in found] == [1, 1, 0]
    assert "no.jpg: is damaged" in found[2].broken[0]


def test_a_document_of_texts_and_media_is_told_in_its_order(processor, tokenizer):
    document = Sample((), ((Text("See:"), some_image(0), Text("a circle."), some_audio(0)),), "continue", "x:1")
    (one,) = inspected([document], 1, processor, 0)
    text = as_text(one.documents[0], tokenizer)
    slots = [item.slots for _, item in one.documents[0].media]
    picture, sound = f"[image: {slots[0]} slots]", f"[audio: {slots[1]} slots]"
    assert text.plain == f"<|assistant|>See:{picture}a circle.{sound}<|end|>"
    coloured = [text.plain[span.start : span.end] for span in text.spans if "green" in str(span.style)]
    assert coloured == ["See:", "a circle.", "<|end|>"]


def test_the_page_shows_the_media_of_all_answers_each_once(tmp_path, model, processor, tokenizer):
    answers = ((Text("a"), some_image(1)), (some_image(2), some_audio(0), Text("b")))
    found = inspected([sample(some_image(0), "What?", answers=answers)], 1, processor, 0)
    write_inspection(tmp_path / "page.html", found, tokenizer, dict(model.encoders.items()), "x")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert re.findall(r'alt="([^"]*)"', page) == [
        *(f"image {number} of sample 1" for number in (1, 2, 3)),
        "Spectrogram: audio 4 of sample 1",
    ]
    slots = [processor.media_input(part).slots for part in (some_image(2), some_audio(0))]
    other = page.partition("Other right answers")[2]
    assert re.findall(r"<b>(.*?)</b>", other) == [f"image: {slots[0]} slots", f"audio: {slots[1]} slots"]


@pytest.fixture
def page(tmp_path, model, processor, tokenizer):
    (tmp_path / "no.jpg").write_text("no picture")
    samples = [
        sample(some_image(0), EVIL, answers=(EVIL, "über")),
        sample(some_audio(0), "What?"),
        sample(some_video(0), "What?"),
        sample(Image(tmp_path / "no.jpg"), "What?"),
    ]
    found = inspected(samples, 4, processor, 0)
    path = tmp_path / "page.html"
    write_inspection(path, found, tokenizer, dict(model.encoders.items()), EVIL)
    return path.read_text(encoding="utf-8")


def test_the_page_is_whole_in_itself_and_texts_are_never_obeyed(page):
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) == 1 + 2 + 2 + 2  # picture, spectrogram and sound, two frames, the track's
    assert all(source.startswith("data:") for source in sources)
    assert "<script" not in page.lower()


def test_each_token_is_a_box_and_those_learned_are_marked(page, processor, tokenizer):
    learned = re.findall(r'<i class="learned">(.*?)</i>', page)
    answers = [EVIL, "über", "yes", "yes"]
    assert len(learned) == sum(len(tokenizer.encode(answer)) + 1 for answer in answers) + 1  # one in the legend
    assert page.count("not learned from: x:1: ") == 1
    slots = processor.media_input(some_image(0)).slots
    assert f"<b>image: {slots} slots</b>" in page


def test_pictures_are_shown_as_the_encoder_gets_them(page, processor):
    import base64
    import io

    import PIL.Image

    data = base64.b64decode(re.findall(r'src="data:image/png;base64,([^"]*)"', page)[0])
    shown = np.asarray(PIL.Image.open(io.BytesIO(data)))
    assert (shown == processor.media_input(some_image(0)).data.permute(1, 2, 0).numpy()).all()
