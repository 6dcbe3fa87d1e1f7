"""Media and texts in one space: the losses by their definitions, and that a vector is its source's alone."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import some_audio, some_image, some_video, tiny_config

from mmgpt import checkpoint
from mmgpt.assistant import Assistant
from mmgpt.batch import Batch, collate
from mmgpt.config import GPTConfig, ModelConfig, PairConfig
from mmgpt.content import Image, Message, Text
from mmgpt.errors import CheckpointError, ConfigError, MediaError
from mmgpt.model import MultimodalGPT
from mmgpt.pairing import MOST_SCALE, Head, clip_loss, siglip_loss
from mmgpt.processor import Processor, TooLongError
from mmgpt.run_config import TrainConfig
from mmgpt.training.features import prepare

LOSSES = {"clip": clip_loss, "siglip": siglip_loss}
seeds = st.integers(0, 2**32 - 1)
few = settings(derandomize=True, deadline=None, max_examples=20)


def pair_config(**changes) -> PairConfig:
    values = {"width": 16, "text": GPTConfig(width=24, layers=1, heads=2, context=160), "heads": 2}
    return PairConfig(**{**values, **changes})


def paired(tokenizer, config: ModelConfig | None = None, **changes) -> MultimodalGPT:
    """Untrained, with weights large enough to tell its inputs apart."""
    torch.manual_seed(0)
    model = MultimodalGPT(replace(config or tiny_config(len(tokenizer)), pair=pair_config(**changes))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(3.0)
    return model


def drawn(seed: int, one_to_one: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and what is right, at least once in each row and column."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.randint(1, 6, (2,), generator=generator).tolist()
    if one_to_one:
        columns = rows
    logits = 3 * torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    if one_to_one:
        return logits, torch.eye(rows, dtype=torch.bool)
    match = torch.rand(rows, columns, generator=generator) < 0.3
    for place in range(max(rows, columns)):
        match[place % rows, place % columns] = True
    return logits, match


# The losses


@few
@given(seeds)
def test_clips_loss_is_the_mean_surprise_at_the_right_ones_both_ways(seed):
    logits, match = drawn(seed)
    values, right = logits.tolist(), match.tolist()
    rows, columns = len(values), len(values[0])

    def surprise(scores: list[float], own: list[bool]) -> float:
        total = sum(math.exp(score) for score in scores)
        found = [-math.log(math.exp(score) / total) for score, yes in zip(scores, own, strict=True) if yes]
        return sum(found) / len(found)

    by_medium = [surprise(values[i], right[i]) for i in range(rows)]
    by_text = [surprise([row[j] for row in values], [row[j] for row in right]) for j in range(columns)]
    expected = (sum(by_medium) / rows + sum(by_text) / columns) / 2
    assert float(clip_loss(logits, match)) == pytest.approx(expected, rel=1e-12)


@few
@given(seeds)
def test_siglips_loss_is_the_surprise_at_each_answer_yes_or_no(seed):
    logits, match = drawn(seed)
    total = 0.0
    for scores, own in zip(logits.tolist(), match.tolist(), strict=True):
        for score, yes in zip(scores, own, strict=True):
            likely = 1 / (1 + math.exp(-score))
            total -= math.log(likely if yes else 1 - likely)
    assert float(siglip_loss(logits, match)) == pytest.approx(total / int(match.sum()), rel=1e-10)


@few
@given(seeds)
def test_with_one_text_to_a_medium_they_are_the_papers(seed):
    logits, match = drawn(seed, one_to_one=True)
    n = len(logits)
    labels = torch.arange(n)
    clip = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    siglip = -F.logsigmoid((2 * torch.eye(n, dtype=torch.float64) - 1) * logits).sum() / n
    torch.testing.assert_close(clip_loss(logits, match), clip)
    torch.testing.assert_close(siglip_loss(logits, match), siglip)


@pytest.mark.parametrize("loss", LOSSES.values())
@few
@given(seed=seeds)
def test_media_and_texts_are_treated_alike_and_gradients_are_right(loss, seed):
    logits, match = drawn(seed)
    torch.testing.assert_close(loss(logits, match), loss(logits.T, match.T))
    assert torch.autograd.gradcheck(lambda x: loss(x, match), logits.requires_grad_())


@pytest.mark.parametrize("loss", LOSSES.values())
def test_what_is_right_is_drawn_near_and_what_is_wrong_pushed_away(loss):
    match = torch.tensor([[1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    logits = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    loss(logits, match).backward()
    assert logits.grad is not None
    assert (logits.grad[match] < 0).all()
    assert (logits.grad[~match] > 0).all()


# Vectors


@pytest.mark.parametrize("pooling", ["attention", "mean"])
def test_pads_do_not_leak_into_a_vector(pooling):
    torch.manual_seed(0)
    head = Head(pair_config(pooling=pooling), 12).double()
    tokens = torch.randn(3, 7, 12, dtype=torch.float64)
    lengths = torch.tensor([7, 1, 4])
    vectors = head(tokens, lengths)
    for own, vector, length in zip(tokens, vectors, lengths.tolist(), strict=True):
        torch.testing.assert_close(head(own[None, :length], torch.tensor([length]))[0], vector)
    tokens[1, 1:], tokens[2, 4:] = 1e3, -1e3
    torch.testing.assert_close(head(tokens, lengths), vectors)


@pytest.mark.parametrize("pooling", ["attention", "mean"])
def test_a_vector_is_of_length_one_and_does_not_depend_on_what_else_is_in_the_list(tokenizer, pooling):
    assistant = Assistant(paired(tokenizer, pooling=pooling), tokenizer)
    sources = [
        some_audio(0, 700), "red", some_image(0), some_video(0), "What do you see and hear?", some_audio(1, 5000),
        some_video(1, sound=False), some_image(1), Text("red")
    ]  # fmt: skip
    vectors = assistant.embed(sources)
    assert vectors.shape == (9, 16)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(9))
    for source, vector in zip(sources, vectors, strict=True):
        torch.testing.assert_close(assistant.embed(source), vector, rtol=1e-4, atol=1e-5)
    near = vectors @ vectors.T > 0.9999
    assert near.sum() == 9 + 2  # each with itself, and the two that are equal
    assert near[1, 8]


def test_the_nearest_sources_are_told_and_those_that_cannot_be_decoded(tokenizer, tmp_path):
    assistant = Assistant(paired(tokenizer), tokenizer)
    (tmp_path / "a.png").write_bytes(b"no picture")
    sources = [some_image(0), some_audio(0), "red", tmp_path / "a.png", *map(some_image, range(1, 70))]
    readable = [source for source in sources if source != tmp_path / "a.png"]
    near = (assistant.embed(readable) @ assistant.embed("a")).tolist()
    near.insert(3, -2.0)
    lost = []
    found = assistant.retrieve("a", iter(sources), 10, lambda place, error: lost.append((place, str(error))))
    assert [place for place, _ in found] == sorted(range(len(near)), key=lambda place: -near[place])[:10]
    assert [similarity for _, similarity in found] == pytest.approx([near[place] for place, _ in found], abs=1e-4)
    [(place, reason)] = lost
    assert place == 3
    assert "a.png" in reason
    assert assistant.retrieve("red", sources[:3], 1) == [(2, pytest.approx(1.0))]
    assert assistant.retrieve("red", [], 1) == []
    with pytest.raises(MediaError, match=r"a\.png"):
        assistant.retrieve("a", sources)


def test_a_path_is_embedded_as_what_its_ending_says_and_a_str_as_a_text(tokenizer, tmp_path):
    assistant = Assistant(paired(tokenizer), tokenizer)
    picture = some_image(0).load()
    picture.save(tmp_path / "a.png")
    expected = assistant.embed(some_image(0))
    for source in (tmp_path / "a.png", (tmp_path / "a.png").read_bytes(), picture):
        assert torch.equal(assistant.embed(source), expected)
    assert torch.equal(assistant.embed(str(tmp_path)), assistant.embed(Text(str(tmp_path))))
    with pytest.raises(MediaError, match=r"none\.wav"):
        assistant.embed(tmp_path / "none.wav")
    with pytest.raises(TooLongError, match="more than the context of 160"):
        assistant.embed("why " * 200)


def test_classes_are_told_by_the_nearest_text(tokenizer):
    assistant = Assistant(paired(tokenizer), tokenizer)
    labels = ["circle", "square", "blue"]
    shares = assistant.classify(some_image(0), labels, template="A {}.")
    picture, *texts = assistant.embed([some_image(0), *(f"A {label}." for label in labels)])
    expected = (torch.stack(texts) @ picture / 0.07).softmax(0)  # CLIP's first temperature
    assert shares == pytest.approx(dict(zip(labels, expected.tolist(), strict=True)), rel=1e-4)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    with pytest.raises(ConfigError, match="takes no examples"):
        assistant.classify(some_image(0), labels, examples=[(some_image(1), "circle")])


# The loss of a batch


def document(processor: Processor, answer: str, *media) -> list:
    return [processor.encode([Message.of("user", *media, "What?"), Message.of("assistant", answer)])]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("cross", [None, "inside"])
def test_all_that_a_batch_says_of_a_medium_is_right_and_equals_count_once(tokenizer, name, cross):
    config = tiny_config(len(tokenizer))
    config.gpt.cross = cross
    model = paired(tokenizer, config, loss=name)
    processor, assistant = Processor(model.config, tokenizer), Assistant(model, tokenizer)
    one, two, sound = some_image(0), some_image(1), some_audio(2)
    prompt = processor.encode_prompt([Message.of("user", one)])
    batch = collate([
        processor.encode_answer(prompt, "red"),
        processor.encode_answer(prompt, "a red circle"),  # of the same picture
        *document(processor, "red", two),  # what is said of another too
        *document(processor, "left", some_image(0)),  # of the first once more, decoded anew
        *document(processor, "a beep", sound),
        *document(processor, "both", one, sound),  # of two media,
        *document(processor, "nothing"),  # and of none
    ])  # fmt: skip
    assert model.pair is not None
    tokens = {kind: model.media_tokens(kind, group.inputs) for kind, group in batch.media.items()}
    vectors = assistant.embed([one, two, sound, "red", "a red circle", "left", "a beep"])
    match = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=torch.bool)
    scale, bias = (1 / 0.07, 0.0) if name == "clip" else (10.0, -10.0)  # of the papers
    expected = LOSSES[name](scale * vectors[:3] @ vectors[3:].T + bias, match)
    torch.testing.assert_close(model.pair.loss(batch, tokens).detach(), expected, rtol=1e-4, atol=1e-5)


def some_batch(processor: Processor) -> Batch:
    media = [some_image(0), some_image(1), some_audio(0), some_video(1)]
    answers = ["red", "a blue square", "hear", "see"]
    return collate([example for pair in zip(answers, media, strict=True) for example in document(processor, *pair)])


def test_both_losses_are_weighted_and_each_medium_is_encoded_once(tokenizer, monkeypatch):
    model = paired(tokenizer, weight=0.5, caption=2.0)
    batch = some_batch(Processor(model.config, tokenizer))
    calls = []
    encode = MultimodalGPT._encode
    monkeypatch.setattr(MultimodalGPT, "_encode", lambda *given: calls.append(given[1]) or encode(*given))
    both = model.loss(batch)
    assert sorted(calls) == ["audio", "image", "video"]
    both.mean.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    alone = MultimodalGPT(replace(model.config, pair=None))
    alone.load_state_dict(model.state_dict(), strict=False)
    captions = alone.loss(batch).mean
    assert model.pair is not None
    tokens = {kind: model.media_tokens(kind, group.inputs) for kind, group in batch.media.items()}
    pairs = model.pair.loss(batch, tokens)
    torch.testing.assert_close(both.mean, 2.0 * captions + 0.5 * pairs)
    model.zero_grad()
    (0.5 * pairs).backward()
    (2.0 * captions).backward()
    own, theirs = dict(model.named_parameters()), dict(alone.named_parameters())
    for name, gradient in gradients.items():
        parts = [p.grad for p in (own[name], theirs.get(name)) if p is not None and p.grad is not None]
        torch.testing.assert_close(gradient, sum(parts), rtol=1e-3, atol=1e-5)
    assert gradients.keys() == own.keys()


def test_without_captions_the_gpt_is_neither_run_nor_taught(tokenizer, monkeypatch):
    model = paired(tokenizer, caption=0.0)
    monkeypatch.setattr(MultimodalGPT, "hidden", None)
    loss = model.loss(some_batch(Processor(model.config, tokenizer)))
    loss.mean.backward()
    taught = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert taught == {"encoders", "pair"}
    assert not model.config.answers


def test_a_batch_without_a_pair_has_no_contrastive_loss(tokenizer):
    model = paired(tokenizer, caption=0.0)
    processor = Processor(model.config, tokenizer)
    loss = model.loss(collate(document(processor, "nothing")))
    assert loss.mean.item() == 0
    loss.mean.backward()  # which a training step asks for all the same
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)
    nothing = model.loss(None)
    assert (float(nothing.sum), nothing.count, torch.as_tensor(nothing.pair).item()) == (0, 0, 0)


def test_a_model_that_pairs_alone_says_that_it_cannot_answer(tokenizer):
    assistant = Assistant(paired(tokenizer, caption=0.0), tokenizer)
    with pytest.raises(ConfigError, match="answers nothing; use embed or classify"):
        assistant.caption(some_image(0))


def test_the_temperature_has_a_limit(tokenizer):
    model = paired(tokenizer)
    assert model.pair is not None
    model.pair.log_scale.data.fill_(9.0)
    model.loss(some_batch(Processor(model.config, tokenizer)))
    assert float(model.pair.log_scale.detach().exp()) == pytest.approx(MOST_SCALE, rel=1e-5)


def test_a_frozen_encoder_is_paired_from_the_cache(tokenizer, tmp_path, monkeypatch):
    model = paired(tokenizer)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith("encoders"))
    plain = model.loss(some_batch(Processor(model.config, tokenizer)))
    caches = prepare(model, TrainConfig(cache=str(tmp_path)), "32-true")
    processor = Processor(model.config, tokenizer, caches=caches)
    first = model.loss(some_batch(processor))
    monkeypatch.setattr(MultimodalGPT, "_encode", None)
    monkeypatch.setattr(Image, "load", None)
    second = model.loss(some_batch(processor))
    for loss in (first, second):
        torch.testing.assert_close((loss.sum, loss.pair), (plain.sum, plain.pair))
    second.mean.backward()
    assert model.pair is not None
    assert all(p.grad is not None and p.grad.any() for p in model.pair.heads.parameters())


# Kept, and refused


def test_saved_and_loaded_vectors_and_loss_are_the_same(tokenizer, tmp_path):
    model = paired(tokenizer, loss="siglip", pooling="mean")
    checkpoint.save(tmp_path / "copy", model, tokenizer)
    again, _ = checkpoint.load(tmp_path / "copy")
    assert again.config == model.config
    sources = [some_image(0), some_audio(0), "red"]
    vectors = [Assistant(one, tokenizer).embed(sources) for one in (model, again)]
    assert torch.equal(*vectors)
    batch = some_batch(Processor(model.config, tokenizer))
    assert torch.equal(model.loss(batch).mean, again.loss(batch).mean)


def test_a_checkpoint_without_the_pair_heads_is_refused_by_name(tokenizer, tmp_path):
    model = paired(tokenizer)
    alone = MultimodalGPT(replace(model.config, pair=None))
    alone.config.pair = model.config.pair
    checkpoint.save(tmp_path / "copy", alone, tokenizer)
    with pytest.raises(CheckpointError, match=r"tensor pair\.heads\.audio\..* is missing"):
        checkpoint.load(tmp_path / "copy")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"loss": "softmax"}, r"pair\.loss: 'softmax' is none of clip, siglip"),
        ({"pooling": "max"}, r"pair\.pooling: 'max' is none of attention, mean"),
        ({"weight": 0.0}, "weight must be above 0"),
        ({"caption": -1.0}, "caption from 0 on"),
        ({"heads": 3}, "3 heads do not divide"),
        ({"text": GPTConfig(width=24, heads=2, context=8)}, r"pair\.text\.context: 8, less than gpt\.context of 160"),
    ],
)
def test_settings_that_do_not_fit_are_told(tokenizer, changes, told):
    with pytest.raises(ConfigError, match=told):
        paired(tokenizer, **changes)


def test_a_model_without_eyes_and_ears_has_nothing_to_pair(tokenizer):
    with pytest.raises(ConfigError, match=r"configure model\.image or model\.audio"):
        paired(tokenizer, ModelConfig(gpt=tiny_config(len(tokenizer)).gpt))
