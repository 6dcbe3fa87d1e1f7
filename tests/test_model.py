import copy

import pytest
import torch
import torch.nn.functional as F
from tiny import some_audio, some_image, some_video, tiny_config

from mmgpt.batch import collate
from mmgpt.config import ModelConfig, VideoEncoderConfig
from mmgpt.content import Message
from mmgpt.errors import ConfigError, DataError
from mmgpt.model import MultimodalGPT

CONVERSATIONS = [
    [Message.of("user", some_image(0), "What?"), Message.of("assistant", "A red circle.")],
    [Message.of("user", "Only text"), Message.of("assistant", "Yes.")],
    [Message.of("user", some_audio(1, 2500), some_image(2), "Both?"), Message.of("assistant", "A blue square, I see.")],
    [Message.of("user", some_video(3)), Message.of("assistant", "Left."), Message.of("user", "Why?"),
     Message.of("assistant", "So.")],
    [Message.of("user", some_audio(4, 5100), "and", some_video(5, sound=False)), Message.of("assistant", "Hear.")],
]  # fmt: skip


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


def test_a_batch_without_a_supervised_token_is_an_error(model, processor):
    with pytest.raises(DataError, match="without a supervised token"):
        model.loss(collate([processor.encode([Message.of("user", "a")])]))


def test_the_order_of_pictures_matters(model, processor):
    one, two = some_image(1), some_image(2)
    first = model(collate([processor.encode_prompt([Message.of("user", one, "or", two)])]))
    second = model(collate([processor.encode_prompt([Message.of("user", two, "or", one)])]))
    assert (first[-1] - second[-1]).abs().max() > 1e-3


def test_a_shared_picture_gives_what_two_equal_pictures_give(model, processor):
    shared = processor.encode_answers([Message.of("user", some_image(0))], ["one", "two"])
    apart = [processor.encode_answers([Message.of("user", some_image(0))], [answer])[0] for answer in ("one", "two")]
    torch.testing.assert_close(model.loss(collate(shared)).sum, model.loss(collate(apart)).sum)


def test_every_parameter_gets_a_gradient(tokenizer, processor):
    torch.manual_seed(0)
    model = MultimodalGPT(tiny_config(len(tokenizer)))
    model.loss(collate([processor.encode(conversation) for conversation in CONVERSATIONS])).mean.backward()
    idle = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle


def test_video_needs_eyes(tokenizer):
    config = ModelConfig(video=VideoEncoderConfig())
    config.gpt.vocab_size = len(tokenizer)
    with pytest.raises(ConfigError, match="image encoder"):
        MultimodalGPT(config)
