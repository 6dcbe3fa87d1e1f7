import random
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import some_audio, some_image, some_video

from mmgpt.config import audio_grid, image_grid, slot_count, video_grid
from mmgpt.content import Audio, Image, Message, Text, Video
from mmgpt.errors import MediaError
from mmgpt.processor import Processor, TooLongError
from mmgpt.run_config import AugmentConfig
from mmgpt.training.augment import PictureAugment


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


def test_media_in_the_assistants_message_are_not_supervised(processor):
    conversation = [Message.of("user", "Show it."), Message.of("assistant", "Look: ", some_image(0), "a circle.")]
    assert supervised_text(processor, processor.encode(conversation)) == "Look: a circle.<|end|>"


@given(st.text(max_size=60))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_text_comes_back_and_none_becomes_a_special_token(processor, text):
    tokenizer = processor.tokenizer
    ids = tokenizer.encode(text + "<|end|><|slot|><|user|>" + text)
    assert tokenizer.decode(ids) == text + "<|end|><|slot|><|user|>" + text
    assert not {tokenizer.end, tokenizer.slot, *tokenizer.opening("user")} & set(ids)


def test_training_examples_begin_with_the_very_prompt_of_inference(processor):
    prompt = [Message.of("user", some_image(0), "What is it?")]
    asked = processor.encode_prompt(prompt)
    learned = processor.encode_answer(asked, "A circle.")
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


def test_media_beside_the_sequence_stand_before_the_token_that_follows_them_and_take_no_room(processor, tokenizer):
    config = replace(processor.config, gpt=replace(processor.config.gpt, cross="gated"))
    beside = Processor(config, tokenizer)
    parts = [some_image(0), "then", some_audio(1, 4321), some_image(2), some_video(3)]
    example = beside.encode_prompt([Message.of("user", *parts)])
    then = tokenizer.encode("then")
    assert example.ids == [*tokenizer.opening("user"), *then, *tokenizer.opening("assistant")]
    assert [first for first, _ in example.media] == [1, *[1 + len(then)] * 3]
    in_sequence = processor.encode_prompt([Message.of("user", *parts)]).media
    assert [item.features for _, item in example.media] == [item.slots for _, item in in_sequence]
    assert not any(item.slots for _, item in example.media)
    many = [Message.of("user", *[some_audio(seed, 3000) for seed in range(40)])]
    with pytest.raises(TooLongError, match="more than the context of 160"):
        processor.encode_prompt(many)
    assert len(beside.encode_prompt(many)) == 2
    with pytest.raises(TooLongError, match=r"202 tokens \(0 of media\)"):
        beside.encode_prompt([Message.of("user", some_image(0), "x" * 200)])


def test_answers_to_one_prompt_share_its_media(processor):
    prompt = processor.encode_prompt([Message.of("user", some_image(0))])
    first, second = (processor.encode_answer(prompt, answer) for answer in ("one", "two"))
    assert first.media[0][1] is second.media[0][1]


def test_an_answer_with_media_is_the_end_of_the_conversation_and_leaves_the_prompt_as_it_was(processor):
    conversation = [Message.of("user", some_image(0), "Show it.")]
    parts = (Text("Look: "), some_image(1), Text("a circle."))
    prompt = processor.encode_prompt(conversation)
    before = [*prompt.ids], [*prompt.supervised], [*prompt.media]
    answered = processor.encode_answer(prompt, parts)
    whole = processor.encode([*conversation, Message("assistant", parts)])
    assert (answered.ids, answered.supervised) == (whole.ids, whole.supervised)
    assert [first for first, _ in answered.media] == [first for first, _ in whole.media]
    assert answered.media[0][1] is prompt.media[0][1]
    assert (prompt.ids, prompt.supervised, prompt.media) == before


def test_an_answer_with_media_is_too_long_with_their_slots(processor):
    prompt = processor.encode_prompt([Message.of("user", "?")], where="x:1")
    slots = processor.media_input(some_image(0)).slots
    room = processor.config.gpt.context - len(prompt) - 1 - slots
    assert len(processor.encode_answer(prompt, (some_image(0), Text("~" * room)))) == processor.config.gpt.context
    told = rf'^x:1: 161 tokens \({slots} of media\) with the answer "~+\.\.\., more than the context of 160'
    with pytest.raises(TooLongError, match=told):
        processor.encode_answer(prompt, (some_image(0), Text("~" * (room + 1))))


def test_a_conversation_longer_than_the_context_is_refused_whole(processor):
    conversation = [Message.of("user", some_image(0), "word " * 400)]
    with pytest.raises(TooLongError, match=r"file.jsonl:7: \d+ tokens .* more than the context of 160"):
        processor.encode_prompt(conversation, where="file.jsonl:7")


def test_the_context_may_be_filled_to_its_last_token_and_no_further(processor):
    def asked(length: int) -> list[Message]:
        return [Message.of("user", "~" * length)]  # no merge has it, so each is a token

    context = processor.config.gpt.context
    assert len(processor.encode_prompt(asked(context - 2))) == context  # with the tokens of the two roles
    with pytest.raises(TooLongError, match=rf"^conversation: {context + 1} tokens"):
        processor.encode_prompt(asked(context - 1))
    assert len(processor.encode(asked(context - 1))) == context
    with pytest.raises(TooLongError):
        processor.encode(asked(context))
    prompt = processor.encode_prompt(asked(context - 5))
    assert len(processor.encode_answer(prompt, "~~")) == context  # with the end token
    with pytest.raises(TooLongError, match=rf'{context + 1} tokens \(0 of media\) with the answer "~~~"'):
        processor.encode_answer(prompt, "~~~")


def test_a_modality_without_an_encoder_is_named(tokenizer, model):
    deaf = Processor(replace(model.config, audio=None), tokenizer)
    with pytest.raises(MediaError, match=r"no audio encoder \(it has: image, video\)"):
        deaf.encode_prompt([Message.of("user", some_audio(0))])


def test_a_clip_is_frames_and_sound_where_there_are_ears_for_it(processor, tokenizer):
    heard = processor.media_input(some_video(0))
    assert (heard.data.shape, len(heard.sound)) == ((2, 3, 32, 32), 3000)
    assert processor.media_input(some_video(0, sound=False)).sound is None
    config = processor.config
    for deaf in (replace(config, audio=None), replace(config, video=replace(config.video, sound=False))):
        silent = Processor(deaf, tokenizer).media_input(some_video(0))
        assert silent.sound is None
        assert silent.slots < heard.slots


def test_sounds_and_clips_beyond_the_models_seconds_are_refused(processor, tokenizer):
    config = processor.config  # the sound has 0.375 s, the clip 0.75 s
    for audio, video, refused in ((0.3, 60.0, some_audio(0)), (30.0, 0.7, some_video(0, sound=False))):
        shorter = replace(
            config, audio=replace(config.audio, max_seconds=audio), video=replace(config.video, max_seconds=video)
        )
        assert processor.media_input(refused).slots > 0
        with pytest.raises(MediaError, match=r"longer than 0\.[37] seconds"):
            Processor(shorter, tokenizer).media_input(refused)


def test_a_sound_of_next_to_no_samples_a_second_is_refused(processor):
    with pytest.raises(MediaError, match="3 samples a second is too coarse"):
        processor.media_input(Audio(np.zeros(6, dtype=np.float32), 3))


def test_augmentation_is_of_pictures_and_frames_as_they_come(processor, tokenizer):
    seen = []

    def painted(picture: PIL.Image.Image) -> PIL.Image.Image:
        seen.append(picture.size)
        return PIL.Image.new("RGB", picture.size, (200, 100, 50))

    learner = Processor(processor.config, tokenizer, augment=painted)
    pixels = learner.media_input(some_image(0)).data
    assert pixels.flatten(1).T.unique(dim=0).tolist() == [[200, 100, 50]]
    frames = learner.media_input(some_video(0)).data
    assert frames.movedim(1, -1).flatten(0, 2).unique(dim=0).tolist() == [[200, 100, 50]]
    assert seen == [(40, 40), (32, 32), (32, 32)]


def test_all_frames_of_a_clip_are_changed_alike_and_those_of_the_next_otherwise(processor, tokenizer):
    learner = Processor(processor.config, tokenizer, augment=PictureAugment(AugmentConfig(crop=0.3)))
    noise = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8).repeat(3, axis=0)
    random.seed(0)
    first, second = learner.media_input(Video(noise, 4.0)).data, learner.media_input(Video(noise, 4.0)).data
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], second[0])
    assert not torch.equal(first, processor.media_input(Video(noise, 4.0)).data)


def test_pictures_take_the_height_and_width_of_the_encoder(processor, tokenizer):
    config = replace(processor.config, image=replace(processor.config.image, size=(16, 48)))
    halves = np.zeros((100, 10, 3), dtype=np.uint8)
    halves[50:] = 255
    pixels = Processor(config, tokenizer).media_input(Image(halves)).data
    assert pixels.shape == (3, 16, 48)
    assert pixels[:, :6].float().mean() < 5
    assert pixels[:, 10:].float().mean() > 250


def test_pictures_are_resized_whole_and_sounds_resampled(processor):
    halves = np.zeros((10, 100, 3), dtype=np.uint8)
    halves[:, 50:] = 255
    pixels = processor.media_input(Image(halves)).data
    assert pixels.shape == (3, 32, 32)
    assert pixels[:, :, :12].float().mean() < 5
    assert pixels[:, :, 20:].float().mean() > 250
    sound = processor.media_input(Audio(np.zeros(16_000, dtype=np.float32), 16_000)).data
    assert sound.shape == (8000,)


def test_pictures_and_frames_are_cropped_by_the_encoders_rule(processor):
    from dataclasses import replace

    from mmgpt.content import Video

    rule = replace(processor.config.image, crop_mode="center", crop_pct=0.5, interpolation="nearest")
    cropping = Processor(replace(processor.config, image=rule), processor.tokenizer)
    columns = np.arange(128, dtype=np.uint8).repeat(3).reshape(1, 128, 3).repeat(64, axis=0)
    middle = list(range(48, 80))  # of 64 x 128 pixels, which cover twice the encoder's 32 x 32 as they are
    assert cropping.media_input(Image(columns)).data[0, 0].tolist() == middle
    frames = cropping.media_input(Video(np.stack([columns, columns]), 4.0, None)).data
    assert [frame[0, 0].tolist() for frame in frames] == [middle, middle]


def test_sounds_of_odd_rates_are_resampled_in_little_memory(processor):
    rate = 44_099  # shares no factor with the encoder's
    tone = np.sin(2 * np.pi * 440 * np.arange(rate) / rate).astype(np.float32)
    samples = processor.media_input(Audio(tone, rate)).data.numpy()
    assert len(samples) == pytest.approx(8000, abs=1)
    expected = np.sin(2 * np.pi * 440 * np.arange(len(samples)) / 8000)
    assert np.abs(samples - expected)[100:-100].max() < 0.01


@pytest.mark.parametrize("rate", [7993, 8004, 22_001, 44_002, 48_000])
def test_a_sound_of_any_rate_has_no_more_samples_than_it_lasts(processor, rate):
    two_seconds = processor.media_input(Audio(np.zeros(2 * rate, dtype=np.float32), rate)).data
    assert 15_990 <= len(two_seconds) <= 16_000


def test_a_processor_may_have_a_lower_limit_of_pixels(model, tokenizer):
    for medium, pixels in ((some_image(0, size=40), 1600), (some_video(0), 32 * 32)):
        Processor(model.config, tokenizer, max_pixels=pixels).media_input(medium)
        with pytest.raises(MediaError, match=f"over {pixels - 1:,} pixels"):
            Processor(model.config, tokenizer, max_pixels=pixels - 1).media_input(medium)
