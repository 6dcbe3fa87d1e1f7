"""What right answers cost a model: the same in any company, and what training's loss says."""

import math

import pytest
from tiny import some_audio, some_image

from mmgpt.batch import collate
from mmgpt.content import Image, Message
from mmgpt.data.sample import Sample
from mmgpt.evaluation import asking
from mmgpt.evaluation.asking import Answered, Lost, costs


def document(text: str) -> Sample:
    return Sample((), (text,), "continue", "a.txt: byte 0")


SAMPLES = [
    document("A red circle left of a blue square."),
    document(""),
    Sample((Message.of("user", some_image(1), "What?"),), ("A blue square.", "A circle."), "caption", "b"),
    document("What do you see, and what do you hear? " * 3),
    Sample((Message.of("user", some_audio(2), "What?"),), ("hear",), "transcribe", "c"),
]


def loss_of(assistant, sample: Sample) -> tuple[float, int]:
    """What training counts: the sum over the tokens of all answers, and how many they are."""
    prompt = assistant.processor.encode_prompt(sample.prompt)
    batch = collate([assistant.processor.encode_answer(prompt, answer) for answer in sample.answers])
    found = assistant.model.loss(batch)
    return float(found.sum.detach()), found.count


@pytest.mark.parametrize("most", [1, 60, 10_000])
def test_a_cost_is_training_s_loss_whatever_is_looked_at_with_it(assistant, monkeypatch, most):
    monkeypatch.setattr(asking, "TOKENS", most)
    found = list(costs(assistant, SAMPLES))
    assert [one.sample for one in found] == SAMPLES
    for one in found:
        assert isinstance(one, Answered)
        assert one.cost is not None
        nats, tokens = loss_of(assistant, one.sample)
        assert one.cost.tokens == tokens
        assert one.cost.nats == pytest.approx(nats, rel=1e-5)
        assert one.told == str(one.cost)


def test_media_count(assistant):
    seen, other = (
        Sample((Message.of("user", some_image(i), "What?"),), ("A blue square.",), "caption", "b") for i in (1, 2)
    )
    one, two = (found.cost.nats for found in costs(assistant, [seen, other]))
    assert abs(one - two) > 1e-3


def test_what_cannot_be_looked_at_costs_its_own_place(assistant, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    broken = Sample((Message.of("user", Image(tmp_path / "broken.png"), "What?"),), ("A.",), "caption", "row 2")
    long = document("see " * 500)
    found = list(costs(assistant, [SAMPLES[0], broken, long, SAMPLES[2]]))
    assert [type(one) for one in found] == [Answered, Lost, Lost, Answered]
    assert isinstance(found[1], Lost)
    assert found[1].reason.startswith("row 2: ")
    assert isinstance(found[2], Lost)
    assert "more than the context" in found[2].reason
    alone = next(costs(assistant, [SAMPLES[2]]))
    assert isinstance(alone, Answered)
    assert isinstance(found[3], Answered)
    assert alone.cost is not None
    assert found[3].cost is not None
    assert math.isclose(found[3].cost.nats, alone.cost.nats, rel_tol=1e-5)
