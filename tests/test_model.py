import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from memory import held
from tiny import cross_config, seeing, some_audio, some_image, some_video, tiny_config
from torch import Tensor

from mmgpt import checkpoint
from mmgpt.batch import Batch, collate
from mmgpt.config import AdapterConfig, GPTConfig, ImageEncoderConfig, ModelConfig, PairConfig, VideoEncoderConfig
from mmgpt.content import Image, Message
from mmgpt.errors import ConfigError, DataError
from mmgpt.model import MultimodalGPT
from mmgpt.processor import Processor

CONVERSATIONS = [
    [Message.of("user", some_image(0), "What?"), Message.of("assistant", "A red circle.")],
    [Message.of("user", "Only text"), Message.of("assistant", "Yes.")],
    [Message.of("user", some_audio(1, 2500), some_image(2), "Both?"), Message.of("assistant", "A blue square, I see.")],
    [Message.of("user", some_video(3)), Message.of("assistant", "Left."), Message.of("user", "Why?"),
     Message.of("assistant", "So.")],
    [Message.of("user", some_audio(4, 5100), "and", some_video(5, sound=False)), Message.of("assistant", "Hear.")],
]  # fmt: skip


PAIRED = [
    [Message.of("user", some_image(0)), Message.of("assistant", "A red circle.")],
    [Message.of("user", some_audio(1, 12_000)), Message.of("assistant", "No.")],
    [Message.of("user", some_video(3)), Message.of("assistant", "Up")],
]


@pytest.fixture(params=[None, "inside", "gated"], scope="module")
def model(request, tokenizer) -> MultimodalGPT:
    """A model of each way of fusion, with embeddings that matter and open gates."""
    return seeing(cross_config(len(tokenizer), request.param))


@pytest.fixture(scope="module")
def processor(model, tokenizer) -> Processor:
    return Processor(model.config, tokenizer)


def test_packed_documents_have_the_loss_and_gradients_of_the_documents_alone(model, processor):
    model = copy.deepcopy(model).double()
    examples = [processor.encode(conversation) for conversation in CONVERSATIONS]

    def gradients(batches):
        model.zero_grad()
        losses = [model.loss(batch) for batch in batches]
        total = sum(loss.sum for loss in losses)
        total.backward()
        grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        return total.detach(), sum(loss.count for loss in losses), grads

    packed_loss, packed_count, packed = gradients([collate(examples)])
    alone_loss, alone_count, alone = gradients([collate([example]) for example in examples])
    assert packed_count == alone_count
    torch.testing.assert_close(packed_loss, alone_loss)
    assert packed.keys() == alone.keys()
    assert any(name.startswith("encoders.video") for name in packed)
    for name in packed:
        # Spectrograms are computed in single precision whatever the model's, so gradients agree to that.
        torch.testing.assert_close(packed[name], alone[name], rtol=1e-4, atol=1e-5, msg=name)


def test_loss_is_the_cross_entropy_of_the_supervised_tokens_alone(model, processor):
    batch = collate([processor.encode(conversation) for conversation in CONVERSATIONS])
    logits = model(batch)
    places = [place for place in range(len(batch.ids)) if batch.supervised[place]]
    expected = sum(F.cross_entropy(logits[place - 1], batch.ids[place]) for place in places)
    loss = model.loss(batch)
    assert loss.count == len(places)
    torch.testing.assert_close(loss.sum, expected, rtol=1e-5, atol=1e-4)


def test_by_document_the_loss_is_the_mean_over_documents_of_the_mean_of_each(model, processor):
    examples = [processor.encode(conversation) for conversation in CONVERSATIONS]
    means = [float(model.loss(collate([example])).mean) for example in examples]
    loss = model.loss(collate(examples), "document")
    assert loss.count == len(CONVERSATIONS)
    assert float(loss.mean) == pytest.approx(sum(means) / len(means), rel=1e-5)
    assert float(loss.mean) != pytest.approx(float(model.loss(collate(examples)).mean), rel=1e-3)


def test_a_batch_without_a_supervised_token_is_an_error(model, processor):
    with pytest.raises(DataError, match="without a supervised token"):
        model.loss(collate([processor.encode([Message.of("user", "a")])]))


def test_the_order_of_pictures_matters(model, processor):
    one, two = some_image(1), some_image(2)
    first = model(collate([processor.encode_prompt([Message.of("user", one, "or", two)])]))
    second = model(collate([processor.encode_prompt([Message.of("user", two, "or", one)])]))
    assert (first[-1] - second[-1]).abs().max() > 1e-3


def test_a_shared_picture_gives_what_two_equal_pictures_give(model, processor):
    prompts = [processor.encode_prompt([Message.of("user", some_image(0))]) for _ in range(2)]
    shared = [processor.encode_answer(prompts[0], answer) for answer in ("one", "two")]
    apart = [processor.encode_answer(prompt, answer) for prompt, answer in zip(prompts, ("one", "two"), strict=True)]
    torch.testing.assert_close(model.loss(collate(shared)).sum, model.loss(collate(apart)).sum)


def test_every_parameter_gets_a_gradient(model, processor):
    model = copy.deepcopy(model).train()
    model.loss(collate([processor.encode(conversation) for conversation in CONVERSATIONS])).mean.backward()
    idle = [name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not idle


def test_activations_computed_again_give_the_same_loss_and_gradients(model, processor):
    again = copy.deepcopy(model).train()
    again.gpt.transformer.dropout.p = 0.1
    for block in again.gpt.transformer.blocks:
        block.dropout = 0.1
    plain = copy.deepcopy(again)
    again.checkpoint_activations()
    batch = collate([processor.encode(conversation) for conversation in CONVERSATIONS])
    found = []
    for one in (again, plain):
        torch.manual_seed(0)  # of dropout
        value, size = held(lambda one=one: one.loss(batch).mean)
        value.backward()
        found.append((value, size, [parameter.grad for parameter in one.parameters()]))
    (value, size, gradients), (expected, whole, slopes) = found
    assert torch.equal(value, expected)
    for (name, _), one, other in zip(plain.named_parameters(), gradients, slopes, strict=True):
        assert torch.equal(one, other), name
    assert size < 0.6 * whole


def test_video_needs_eyes(tokenizer):
    config = ModelConfig(video=VideoEncoderConfig())
    config.gpt.vocab_size = len(tokenizer)
    with pytest.raises(ConfigError, match="image encoder"):
        MultimodalGPT(config)


def test_documents_look_at_their_own_media_in_order(tokenizer):
    model = MultimodalGPT(cross_config(len(tokenizer), "inside")).eval()
    processor = Processor(model.config, tokenizer)
    prompt = processor.encode_prompt([Message.of("user", "So", some_image(6), some_image(7), "?")])
    shared = [processor.encode_answer(prompt, answer) for answer in ("one", "two")]
    examples = [*map(processor.encode, CONVERSATIONS), *shared]
    media = model.media(collate(examples))
    assert media is not None
    inputs = {id(item): item for example in examples for _, item in example.media}.values()
    assert len(media.features) == sum(item.features for item in inputs)  # shared ones are there once
    assert [bool(length) for length in media.lengths] == [bool(example.media) for example in examples]
    sinces, indices = media.since.split(media.lengths), media.index.split(media.lengths)
    for example, since, index in zip(examples, sinces, indices, strict=True):
        assert since.tolist() == [first for first, item in example.media for _ in range(item.features)]
        for (_, item), rows in zip(
            example.media, index.split([item.features for _, item in example.media]), strict=True
        ):
            alone = model.encode_media(item.modality, [item])
            torch.testing.assert_close(media.features[rows], alone, rtol=1e-4, atol=1e-5)


def test_beside_the_sequence_tokens_are_told_their_places_unless_the_configuration_says_not_to(tokenizer):
    def features(cross, positions: bool) -> Tensor:
        config = cross_config(len(tokenizer), cross)
        config.adapters["audio"] = AdapterConfig("linear", positions=positions)
        model = MultimodalGPT(config).eval()
        model.encoders.load_state_dict(first.encoders.state_dict())
        model.adapters["audio"].load_state_dict(first.adapters["audio"].state_dict())
        return model.encode_media("audio", [Processor(model.config, tokenizer).media_input(some_audio(0))])

    config = cross_config(len(tokenizer), None)
    config.adapters["audio"] = AdapterConfig("linear")
    first = MultimodalGPT(config)
    assert torch.equal(features(None, True), features("inside", False))
    assert not torch.allclose(features("inside", True), features("inside", False), atol=1e-2)


def test_media_that_no_token_sees_are_not_encoded(tokenizer):
    model = MultimodalGPT(cross_config(len(tokenizer), "inside")).eval()
    batch = collate([Processor(model.config, tokenizer).encode([Message.of("user", "a", some_image(0))])] * 2)
    assert batch.media == {}
    assert model.media(batch) is None
    assert model(batch).shape == (2 * batch.lengths[0], len(tokenizer))


def coloured(colour: str, seed: int) -> Image:
    noise = np.random.default_rng(seed).integers(0, 60, (32, 32, 3), dtype=np.uint8)
    noise[:, :, ["red", "green", "blue"].index(colour)] += 180
    return Image(noise)


@pytest.mark.parametrize("cross", ["inside", "gated"])
def test_a_frozen_gpt_that_has_read_of_colours_learns_to_see_them_by_cross_attention_alone(tokenizer, cross):
    def captions(show: Callable[[str, int], Image | str]) -> Batch:
        pairs = [(colour, show(colour, seed)) for seed in range(6) for colour in ("red", "blue")]
        turns = [(Message.of("user", it, "?"), Message.of("assistant", f"a {name} one")) for name, it in pairs]
        return collate([*map(Processor(model.config, tokenizer).encode, turns)])

    def train(batch: Batch) -> None:
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        for _ in range(60):
            optimizer.zero_grad()
            model.loss(batch).mean.backward()
            optimizer.step()

    torch.manual_seed(0)
    model = MultimodalGPT(cross_config(len(tokenizer), None))
    train(captions(lambda colour, _: colour))
    read = model.gpt.state_dict()
    model = MultimodalGPT(cross_config(len(tokenizer), cross))
    assert not model.gpt.load_state_dict(read, strict=False).unexpected_keys
    for name, parameter in model.gpt.named_parameters():
        parameter.requires_grad_(name not in read)
    train(captions(coloured))
    assert all(torch.equal(model.gpt.state_dict()[name], tensor) for name, tensor in read.items())
    unseen = captions(lambda colour, seed: coloured(colour, seed + 100))
    guesses = model.eval()(unseen)[unseen.targets - 1].argmax(-1)
    assert torch.equal(guesses, unseen.ids[unseen.targets])


def test_a_model_with_new_eyes_and_ears_reads_as_before_and_is_that_of_the_whole_configuration(tokenizer, tmp_path):
    whole = tiny_config(len(tokenizer))
    model = MultimodalGPT(ModelConfig(whole.gpt)).eval()
    text_batch = collate([Processor(model.config, tokenizer).encode(CONVERSATIONS[1])])
    before = model(text_batch)
    model.add_encoders(ModelConfig(image=whole.image, adapters={"image": AdapterConfig("linear")}))
    model.add_encoders(ModelConfig(audio=whole.audio, video=whole.video, adapters=whole.adapters))
    assert torch.equal(model.eval()(text_batch), before)
    expected = MultimodalGPT(replace(whole, adapters={**whole.adapters, "image": AdapterConfig("linear")}))
    assert model.config == expected.config
    assert {name: one.shape for name, one in model.state_dict().items()} == {
        name: one.shape for name, one in expected.state_dict().items()
    }
    checkpoint.save(tmp_path, model, tokenizer, {})
    batch = collate([Processor(model.config, tokenizer).encode(conversation) for conversation in CONVERSATIONS])
    assert torch.equal(checkpoint.load(tmp_path)[0](batch), model(batch))


def test_clips_are_heard_once_a_model_that_takes_their_sound_has_ears(tokenizer):
    whole = tiny_config(len(tokenizer))
    silent = replace(whole, audio=None)
    model = MultimodalGPT(silent).eval()
    batch = collate([Processor(model.config, tokenizer).encode(CONVERSATIONS[3])])
    before = model(batch)
    assert len(before) == len(batch.ids)
    model.add_encoders(ModelConfig(audio=whole.audio))
    heard = collate([Processor(model.config, tokenizer).encode(CONVERSATIONS[3])])
    (clip,) = heard.media["video"].inputs
    assert clip.grid.suffix > 0
    assert len(model.eval()(heard)) == len(before) + clip.grid.suffix
    model = MultimodalGPT(replace(silent, video=replace(whole.video, sound=False))).eval()
    model.add_encoders(ModelConfig(audio=whole.audio))
    deaf = collate([Processor(model.config, tokenizer).encode(CONVERSATIONS[3])])
    assert len(model.eval()(deaf)) == len(before)


def test_new_encoders_pair_and_spell_where_the_model_does(tokenizer):
    whole = tiny_config(len(tokenizer))
    pair = PairConfig(width=16, text=GPTConfig(width=16, layers=1, heads=2, context=160), heads=2)
    model = MultimodalGPT(ModelConfig(whole.gpt, audio=whole.audio, pair=pair, ctc=0.3))
    model.add_encoders(ModelConfig(image=whole.image, video=whole.video))
    batch = collate([Processor(model.config, tokenizer).encode(conversation) for conversation in PAIRED])
    model.loss(batch).mean.backward()
    for name in ("pair.heads.image", "pair.heads.video", "pair.heads.audio", "ctc.heads.video", "ctc.heads.audio"):
        assert any(one.grad is not None and one.grad.any() for one in model.get_submodule(name).parameters()), name


@pytest.mark.parametrize(
    "more",
    [ModelConfig(image=ImageEncoderConfig("resnet18")), ModelConfig(adapters={"image": AdapterConfig("linear")})],
)
def test_what_a_model_has_is_not_added_again(tokenizer, more):
    model = MultimodalGPT(tiny_config(len(tokenizer)))
    with pytest.raises(ConfigError, match=r"model\.image: the model has its own; leave it out"):
        model.add_encoders(more)
