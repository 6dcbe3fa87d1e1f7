"""CTC beside the GPT's loss: by its definition, and that a document's is its own."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import some_audio, some_image, some_video, tiny_config
from torch import Tensor

from mmgpt import checkpoint
from mmgpt.batch import Batch, MediaBatch, MediaInput, collate
from mmgpt.config import LossPer, ModelConfig, TokenGrid
from mmgpt.content import Message, Video
from mmgpt.ctc import CTC
from mmgpt.errors import ConfigError
from mmgpt.model import MultimodalGPT
from mmgpt.processor import Processor
from mmgpt.run_config import TrainConfig
from mmgpt.training.run import make_model, make_tokenizer

VOCABULARY = 2
PER: tuple[LossPer, ...] = ("token", "document")


def heard(length: int, answer: list[int]) -> Batch:
    """A document with a sound of so many tokens and an answer."""
    item = MediaInput("audio", torch.zeros(1), TokenGrid(length), 1, 1)
    media = MediaBatch([item], torch.tensor([0]), torch.tensor([0]))
    supervised = torch.tensor([False] + [True] * len(answer))
    return Batch(torch.tensor([0, *answer]), supervised, [1 + len(answer)], [""], {"audio": media})


def spelled(path: tuple[int, ...]) -> list[int]:
    """What a path of tokens and blanks says: repetitions are one, and blanks nothing."""
    return [token for token, _ in itertools.groupby(path) if token != VOCABULARY]


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=3))
def test_it_is_the_surprise_at_all_ways_to_say_the_answer_together(seed, length, answer):
    torch.manual_seed(seed)
    ctc = CTC(VOCABULARY, {"image": 7, "audio": 4})
    tokens = torch.randn(1, 6, 4, requires_grad=True)  # the last ones are pads
    shares = ctc.heads["audio"](tokens[0, :length]).softmax(-1).tolist()
    paths = itertools.product(range(VOCABULARY + 1), repeat=length)
    likely = sum(math.prod(map(list.__getitem__, shares, path)) for path in paths if spelled(path) == answer)
    expected = -math.log(likely) if likely else 0.0  # where it is too short to say it
    by_token, by_document = (ctc.loss(heard(length, answer), {"audio": tokens}, per).item() for per in PER)
    assert by_token == pytest.approx(expected, rel=1e-4)
    assert by_document == pytest.approx(expected / len(answer), rel=1e-4)


@pytest.fixture(scope="module")
def spelling(tokenizer) -> MultimodalGPT:
    torch.manual_seed(0)
    return MultimodalGPT(replace(tiny_config(len(tokenizer)), ctc=0.5))


@pytest.fixture(scope="module")
def examples(spelling, tokenizer):
    processor = Processor(spelling.config, tokenizer)

    def example(answer: str, *media):
        return processor.encode([Message.of("user", *media, "What?"), Message.of("assistant", answer)])

    return {
        "heard": example("red", some_audio(0, 6000)),
        "seen": example("a", some_video(0)),
        "heard, too": example("blue", some_audio(1, 9000)),
        "a picture": example("red", some_image(0)),
        "text": example("red"),
        "two sounds": example("red", some_audio(2), some_audio(3)),
        "too much to say": example("red and blue " * 8, some_audio(4, 900)),
    }


def spelled_beside(model: MultimodalGPT, batch: Batch) -> Tensor:
    """What CTC adds to the loss of a batch."""
    assert model.ctc is not None
    with_it, ctc = model.loss(batch), model.ctc
    model.ctc = None
    try:
        without = model.loss(batch)
    finally:
        model.ctc = ctc
    assert torch.equal(with_it.each, without.each)
    return with_it.sum - without.sum


def test_a_documents_loss_is_its_own_whatever_shares_its_batch(spelling, examples):
    alone = {name: spelled_beside(spelling, collate([one])) for name, one in examples.items()}
    assert {name for name, loss in alone.items() if loss} == {"heard", "seen", "heard, too"}
    torch.testing.assert_close(spelled_beside(spelling, collate(list(examples.values()))), sum(alone.values()))


def test_of_a_clip_the_sound_track_spells_and_where_there_is_none_the_frames(spelling, examples, tokenizer):
    def reached(clip: Video) -> set[str]:
        processor = Processor(spelling.config, tokenizer)
        example = processor.encode([Message.of("user", clip, "What?"), Message.of("assistant", "a")])
        spelling.zero_grad()
        spelled_beside(spelling, collate([example])).backward()
        names = {name: p.grad for name, p in spelling.named_parameters() if p.grad is not None}
        return {name.split(".")[2] for name, grad in names.items() if name.startswith("encoders.video") and grad.any()}

    assert reached(some_video(0)) == {"sound"}
    assert reached(some_video(0, sound=False)) == {"time", "place", "change"}


def test_its_gradient_reaches_the_encoder_and_not_the_gpt(spelling, examples):
    spelling.zero_grad()
    spelled_beside(spelling, collate(list(examples.values()))).backward()
    reached = {name: p.grad for name, p in spelling.named_parameters() if p.grad is not None}
    assert all(gradient.isfinite().all() for gradient in reached.values())
    assert {name.split(".")[0] for name, gradient in reached.items() if gradient.abs().max() > 1e-6} == {
        "ctc",
        "encoders",
    }


def test_a_saved_model_has_it_and_loads(spelling, examples, tokenizer, tmp_path):
    other, _ = checkpoint.load(checkpoint.save(tmp_path / "model", spelling, tokenizer))
    batch = collate(list(examples.values()))
    assert spelled_beside(spelling, batch)
    assert torch.equal(spelled_beside(other.train(), batch), spelled_beside(spelling, batch))
    assert not spelled_beside(other.eval(), batch)


@pytest.mark.parametrize("frozen", ["encoders", "ctc"])
def test_where_an_encoder_or_its_head_is_frozen_nothing_is_spelled(tokenizer, examples, frozen):
    model = MultimodalGPT(replace(tiny_config(len(tokenizer)), ctc=0.5))
    model.get_submodule(frozen).requires_grad_(False)
    assert not spelled_beside(model, collate(list(examples.values())))


def test_a_run_gives_ctc_to_a_model_that_had_none_and_another_weight_to_one_that_has_it(tokenizer, spelling, tmp_path):
    plain = checkpoint.save(tmp_path / "plain", MultimodalGPT(tiny_config(len(tokenizer))), tokenizer)
    for init in (plain, checkpoint.save(tmp_path / "spelling", spelling, tokenizer)):
        config = TrainConfig(init=str(init), model=ModelConfig(ctc=0.25), out=str(tmp_path / "run"))
        model = make_model(config, make_tokenizer(config, []))
        assert model.ctc is not None
        assert model.config.ctc == 0.25
        assert model.encoders.keys() > model.ctc.heads.keys() == {"audio", "video"}


def test_models_that_cannot_have_it_say_so(tokenizer):
    config = replace(tiny_config(len(tokenizer)), ctc=0.5)
    with pytest.raises(ConfigError, match=r"model\.ctc: sounds and clips alone"):
        MultimodalGPT(replace(config, audio=None, video=None))
    with pytest.raises(ConfigError, match=r"model\.ctc: must be from 0 on, not -1"):
        MultimodalGPT(replace(config, ctc=-1))
