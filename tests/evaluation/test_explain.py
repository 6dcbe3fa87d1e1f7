"""Heat maps of a tiny model, against passes with media that are blank in the same places, made by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import cross_config, seeing, some_audio, some_image, tiny_config

from mmgpt.assistant import Assistant
from mmgpt.batch import collate
from mmgpt.config import AdapterConfig
from mmgpt.content import Audio, Image, Message, Video
from mmgpt.errors import ConfigError, MediaError
from mmgpt.evaluation import explain as module
from mmgpt.evaluation.explain import explain
from mmgpt.evaluation.explain_page import write_explanation
from mmgpt.gpt.documents import Documents

ANSWER = "A red square."
WORDS = ["A", " red", " square."]


def asked(*media) -> list[Message]:
    return [Message.of("user", *media, "What do you see?")]


def word_logs(assistant: Assistant, *media) -> list[float]:
    """The log-probability of each word of the answer, from the logits of the whole document."""
    before = assistant.processor.encode_prompt(asked(*media))
    example = assistant.processor.encode_answer(before, ANSWER)
    with torch.no_grad():
        logs = assistant.model(collate([example])).log_softmax(1)
    place, found = len(before), []
    for word in WORDS:
        ids = assistant.tokenizer.encode(word)
        assert example.ids[place : place + len(ids)] == ids
        found.append(sum(float(logs[place + i - 1, id]) for i, id in enumerate(ids)))
        place += len(ids)
    return found


@pytest.fixture
def lone(monkeypatch):
    """Each cell is hidden by itself."""
    monkeypatch.setattr(module, "REACHES", dict.fromkeys(("image", "audio", "video"), (0,)))


def test_a_place_is_worth_what_the_word_loses_without_it(assistant, lone):
    pixels = some_image(3, 32).source
    found = explain(assistant, asked(Image(pixels)), ANSWER)
    whole = word_logs(assistant, Image(pixels))
    assert [word.text for word in found.words] == WORDS
    for row, column in ((0, 0), (5, 11), (11, 4)):
        hidden = pixels.copy()
        rows, columns = (slice(32 * at // 12, -(-32 * (at + 1) // 12)) for at in (row, column))
        hidden[rows, columns] = pixels.astype(float).mean(axis=(0, 1)).round()
        for word, before, after in zip(found.words, whole, word_logs(assistant, Image(hidden)), strict=True):
            assert word.maps[0].shape == (12, 12)
            assert word.maps[0][row, column] == pytest.approx(before - after, abs=1e-4)
            assert word.probability == pytest.approx(np.exp(before), rel=1e-4)
    assert max(np.abs(word.maps[0]).max() for word in found.words) > 0.01


def test_the_tokens_of_a_word_are_likely_together_as_the_word_is(assistant, lone):
    found = explain(assistant, asked(some_image(3, 32)), "A zebra.", "rollout")
    assert "".join(token.text for word in found.words for token in word.tokens) == "A zebra."
    before = assistant.processor.encode_prompt(asked(some_image(3, 32)))
    example = assistant.processor.encode_answer(before, "A zebra.")
    with torch.no_grad():
        logs = assistant.model(collate([example])).log_softmax(1)
    places = range(len(before), len(example) - 1)
    alone = [float(logs[place - 1, example.ids[place]].exp()) for place in places]
    assert [token.probability for word in found.words for token in word.tokens] == pytest.approx(alone, rel=1e-4)
    for word in found.words:
        assert np.prod([token.probability for token in word.tokens]) == pytest.approx(word.probability, rel=1e-4)
        assert np.prod([token.blind for token in word.tokens]) == pytest.approx(word.blind, rel=1e-4)
    assert len(found.words[1].tokens) > 1


def test_a_cell_is_worth_the_mean_of_the_places_it_is_hidden_with(assistant, monkeypatch):
    monkeypatch.setattr(module, "CELLS", {**module.CELLS, "audio": (4,)})
    sound = some_audio(1, 3200)
    monkeypatch.setattr(module, "REACHES", {"audio": (0, 1)})
    [level] = explain(assistant, asked(sound), ANSWER).words[1].maps
    before = word_logs(assistant, sound)[1]

    def lost(first: int, end: int) -> float:
        hidden = sound.source.copy()
        hidden[800 * first : 800 * end] = 0
        return before - word_logs(assistant, Audio(hidden, 8000))[1]

    mean = np.mean([lost(0, 1), lost(0, 2), lost(0, 3)])  # alone, and around the first and the second cell
    assert level[0] == pytest.approx(mean, abs=1e-4)
    mean = np.mean([lost(2, 3), lost(0, 3), lost(1, 4), lost(2, 4)])
    assert level[2] == pytest.approx(mean, abs=1e-4)


def test_frames_and_the_sound_track_of_a_clip_have_a_map_each(assistant, lone):
    frames = np.random.default_rng(2).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    track = some_audio(4, 2400)
    found = explain(assistant, asked(Video(frames, 4.0, track)), ANSWER)
    assert [(one.kind, one.cells) for one in found.surfaces] == [("video", (2, 6, 6)), ("audio", (24,))]
    before = word_logs(assistant, Video(frames, 4.0, track))
    hidden = frames.copy()
    hidden[1, 0:6, 26:32] = frames.astype(float).mean(axis=(0, 1, 2)).round()
    silent = track.source.copy()
    silent[500:600] = 0
    without = (
        word_logs(assistant, Video(hidden, 4.0, track)),
        word_logs(assistant, Video(frames, 4.0, Audio(silent, 8000))),
    )
    for i, word in enumerate(found.words):
        assert word.maps[0][1, 0, 5] == pytest.approx(before[i] - without[0][i], abs=1e-4)
        assert word.maps[1][5] == pytest.approx(before[i] - without[1][i], abs=1e-4)


def test_blind_is_what_the_word_is_without_any_medium(assistant, lone, monkeypatch):
    pixels, sound = some_image(3, 32).source, some_audio(1)
    blank = np.full_like(pixels, 128)
    monkeypatch.setattr(module, "CELLS", {"image": (1, 1), "audio": (1,)})
    found = explain(assistant, asked(Image(pixels), sound), ANSWER)
    logs = word_logs(assistant, Image(blank), Audio(np.zeros_like(sound.source), 8000))
    assert [word.blind for word in found.words] == pytest.approx(np.exp(logs).tolist(), rel=1e-4)


def test_media_beside_the_sequence_are_hidden_too(tokenizer, lone):
    assistant = Assistant(seeing(cross_config(len(tokenizer), "inside")), tokenizer)
    pixels = some_image(3, 32).source
    hidden = pixels.copy()
    hidden[0:3, 0:3] = pixels.astype(float).mean(axis=(0, 1)).round()
    before, after = word_logs(assistant, Image(pixels)), word_logs(assistant, Image(hidden))
    for word, whole, without in zip(explain(assistant, asked(Image(pixels)), ANSWER).words, before, after, strict=True):
        assert word.maps[0][0, 0] == pytest.approx(whole - without, abs=1e-4)
    with pytest.raises(ConfigError, match="no slots in the sequence; use occlusion"):
        explain(assistant, asked(Image(pixels)), ANSWER, "rollout")


def test_roll_out_follows_the_attention_of_all_layers(tokenizer):
    """Attention is read off as what it makes of values that are one token each."""
    config = tiny_config(len(tokenizer))
    config.image.layer = -3  # a grid of 4 x 4
    assistant = Assistant(seeing(config), tokenizer)
    prompt = asked(some_image(3), some_audio(1))
    example = assistant.processor.encode_answer(assistant.processor.encode_prompt(prompt), ANSWER)
    attend, layers = Documents.attend, []

    def reading(self, q, k, v, causal, window=None):
        tokens, heads, width = q.shape
        longer = (0, tokens - width)  # so that values may be as wide as there are tokens; the scale stays what it was
        one_each = torch.eye(tokens)[:, None].repeat(1, heads, 1)
        wide = F.pad(q * (tokens / width) ** 0.5, longer), F.pad(k, longer)
        layers.append(attend(self, *wide, one_each, causal).mean(1))
        return attend(self, q, k, v, causal, window)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(Documents, "attend", reading)
        assistant.model(collate([example]))
    flow = torch.eye(len(example))
    for layer in layers:
        assert layer.sum(1) == pytest.approx(torch.ones(len(example)), abs=1e-4)
        flow = (0.5 * layer + 0.5 * torch.eye(len(example))) @ flow
    assert len(layers) == 2
    (first, image), (second, sound) = example.media
    start = len(example) - 1 - len(assistant.tokenizer.encode(ANSWER))
    maps = explain(assistant, prompt, ANSWER, "rollout").words[0].maps
    seen = flow[start - 1, first : first + image.slots]
    assert maps[0] == pytest.approx(seen.view(4, 4).numpy(), abs=1e-5)
    assert maps[1] == pytest.approx(flow[start - 1, second : second + sound.slots].numpy(), abs=1e-5)


def test_slots_of_a_resampler_have_no_place(tokenizer):
    config = tiny_config(len(tokenizer))
    config.adapters["image"] = AdapterConfig("resampler", queries=3, layers=1)
    with pytest.raises(ConfigError, match="the slots of image have no place; use occlusion"):
        explain(Assistant(seeing(config), tokenizer), asked(some_image(0)), ANSWER, "rollout")


def test_the_models_own_answer_is_explained_where_none_is_given(assistant):
    prompt = asked(some_image(5))
    found = explain(assistant, prompt, method="rollout")
    assert "".join(word.text for word in found.words).strip() == assistant.reply([prompt])[0]
    assert explain(assistant, prompt, "", "rollout").words == []


def test_without_a_medium_there_is_nothing_to_look_at(assistant):
    with pytest.raises(MediaError, match="no picture, sound or clip in the prompt"):
        explain(assistant, asked(), ANSWER)


def test_the_page_has_a_picture_for_each_word(assistant, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CELLS", {"image": (3, 3), "audio": (3,), "video": (2, 2)})
    frames = np.random.default_rng(2).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    prompt = asked(some_image(3), some_audio(1), Video(frames, 4.0, some_audio(4)))
    found = explain(assistant, prompt, "A <b> square.")
    write_explanation(tmp_path, found, "What <i>do</i> you see?")
    page = (tmp_path / "explanation.html").read_text("utf-8")
    assert "What &lt;i&gt;do&lt;/i&gt; you see?" in page
    assert "&lt;b&gt;" in page
    assert "<b>&lt;b&gt;</b>" in page
    assert page.count("<figcaption>") == len(found.words) == 3
    assert page.count("<audio") == 2  # the sound, and that of the clip
    assert "hiding this place makes the word less likely" in page
    assert page.count("<li><code>") == sum(len(word.tokens) for word in found.words if len(word.tokens) > 1) > 0
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["01-A.png", "02-b.png", "03-square.png"]
