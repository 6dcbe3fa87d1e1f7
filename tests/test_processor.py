import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import some_audio, some_image, some_video

from mmgpt.config import audio_grid, image_grid, slot_count, video_grid
from mmgpt.content import Image, Message
from mmgpt.errors import MediaError
from mmgpt.processor import Processor, TooLongError


def supervised_text(processor, example) -> str:
    ids = [token for token, learn in zip(example.ids, example.supervised, strict=True) if learn]
    return processor.tokenizer._bpe.decode(ids, skip_special_tokens=False)


def test_assistant_text_and_its_end_are_supervised_and_nothing_else(processor):
    conversation = [
        Message.of("system", "Be brief."),
        Message.of("user", some_image(0), "What is it?"),
        Message.of("assistant", "A circle."),
        Message.of("user", "Colour?"),
        Message.of("assistant", "Red."),
    ]
    assert supervised_text(processor, processor.encode(conversation)) == "A circle.<|end|>Red.<|end|>"


@given(st.text(max_size=60))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_text_comes_back_and_none_becomes_a_special_token(processor, text):
    tokenizer = processor.tokenizer
    ids = tokenizer.encode(text + "<|end|><|slot|><|user|>" + text)
    assert tokenizer.decode(ids) == text + "<|end|><|slot|><|user|>" + text
    assert not {tokenizer.end, tokenizer.slot, tokenizer.role("user")} & set(ids)


def test_training_examples_begin_with_the_very_prompt_of_inference(processor):
    prompt = [Message.of("user", some_image(0), "What is it?")]
    asked = processor.encode_prompt(prompt)
    (learned,) = processor.encode_answers(prompt, ["A circle."])
    whole = processor.encode([*prompt, Message.of("assistant", "A circle.")])
    assert learned.ids[: len(asked)] == asked.ids
    assert learned.ids == whole.ids
    assert learned.supervised == whole.supervised
    assert not any(asked.supervised)


def test_media_anywhere_fill_as_many_slots_as_the_configuration_counts(processor):
    parts = [some_image(0), "then", some_audio(1, 4321), some_image(2), some_video(3), "?", some_video(4, sound=False)]
    example = processor.encode_prompt([Message.of("user", *parts)])
    config = processor.config
    expected = [
        slot_count(config.adapter("image"), image_grid(config.image)),
        slot_count(config.adapter("audio"), audio_grid(config.audio, 4321)),
        slot_count(config.adapter("image"), image_grid(config.image)),
        slot_count(config.adapter("video"), video_grid(config.video, config.audio, 3000)),
        slot_count(config.adapter("video"), video_grid(config.video, config.audio, 0)),
    ]
    assert [item.slots for _, item in example.media] == expected
    slots = [place for place, token in enumerate(example.ids) if token == processor.tokenizer.slot]
    assert slots == [first + i for first, item in example.media for i in range(item.slots)]


def test_answers_to_one_prompt_share_its_media(processor):
    first, second = processor.encode_answers([Message.of("user", some_image(0))], ["one", "two"])
    assert first.media[0][1] is second.media[0][1]


def test_a_conversation_longer_than_the_context_is_refused_whole(processor):
    conversation = [Message.of("user", some_image(0), "word " * 400)]
    with pytest.raises(TooLongError, match=r"file.jsonl:7: \d+ tokens .* more than the context of 160"):
        processor.encode_prompt(conversation, where="file.jsonl:7")


def test_a_modality_without_an_encoder_is_named(tokenizer, model):
    from dataclasses import replace

    deaf = Processor(replace(model.config, audio=None), tokenizer)
    with pytest.raises(MediaError, match=r"no audio encoder \(it has: image, video\)"):
        deaf.encode_prompt([Message.of("user", some_audio(0))])


def test_pictures_are_resized_whole_and_sounds_resampled(processor):
    halves = np.zeros((10, 100, 3), dtype=np.uint8)
    halves[:, 50:] = 255
    pixels = processor.media_input(Image(halves)).data
    assert pixels.shape == (3, 32, 32)
    assert pixels[:, :, :12].float().mean() < 5
    assert pixels[:, :, 20:].float().mean() > 250
    from mmgpt.content import Audio

    sound = processor.media_input(Audio(np.zeros(16_000, dtype=np.float32), 16_000)).data
    assert sound.shape == (8000,)


def test_sounds_of_odd_rates_are_resampled_in_little_memory(processor):
    from mmgpt.content import Audio

    rate = 44_099  # shares no factor with the encoder's
    tone = np.sin(2 * np.pi * 440 * np.arange(rate) / rate).astype(np.float32)
    samples = processor.media_input(Audio(tone, rate)).data.numpy()
    assert len(samples) == pytest.approx(8000, abs=1)
    expected = np.sin(2 * np.pi * 440 * np.arange(len(samples)) / 8000)
    assert np.abs(samples - expected)[100:-100].max() < 0.01
