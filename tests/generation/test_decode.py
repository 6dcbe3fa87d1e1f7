import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import some_audio, some_image, some_video

from mmgpt.batch import collate
from mmgpt.content import Message
from mmgpt.errors import ConfigError
from mmgpt.generation import Decoding, generate

PARTS = [
    lambda i: some_image(i),
    lambda i: some_audio(i, 900 + 311 * i),
    lambda i: some_video(i, sound=i % 2 == 0),
    lambda i: "word " * (1 + 3 * i),
]
prompts_of_parts = st.lists(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=3), min_size=2, max_size=4
)
WAYS = [
    Decoding(max_new_tokens=12),
    Decoding(max_new_tokens=12, temperature=1.0, seed=3),
    Decoding(max_new_tokens=12, temperature=1.5, top_k=5, top_p=0.8, seed=4),
    Decoding(max_new_tokens=8, beams=3),
]


@pytest.mark.parametrize("decoding", WAYS)
@given(drawn=prompts_of_parts)
@settings(max_examples=8, deadline=None, derandomize=True)
def test_batched_equals_single_token_for_token(model, processor, decoding, drawn):
    end = processor.tokenizer.end
    examples = [
        processor.encode_prompt([Message.of("user", *(PARTS[kind](i) for kind, i in parts))]) for parts in drawn
    ]
    together = generate(model, collate(examples), end, decoding)
    alone = [generate(model, collate([example]), end, decoding)[0] for example in examples]
    assert together == alone


def test_greedy_decoding_takes_the_likeliest_token_of_a_full_forward_pass(model, processor):
    example = processor.encode_prompt([Message.of("user", some_image(0), some_audio(1), "What?")])
    (answer,) = generate(model, collate([example]), processor.tokenizer.end, Decoding(max_new_tokens=10))
    ids = list(example.ids)
    for token in answer:
        longer = type(example)(ids, [False] * len(ids), example.media)
        assert model(collate([longer]))[-1].argmax() == token
        ids.append(token)


def test_decoding_ends_at_the_end_token_which_is_not_part_of_the_answer(model, processor, monkeypatch):
    end = processor.tokenizer.end
    monkeypatch.setattr(model.gpt, "head", lambda hidden: torch.eye(len(processor.tokenizer))[[end] * len(hidden)])
    batch = collate([processor.encode_prompt([Message.of("user", "a")])] * 2)
    assert generate(model, batch, end, Decoding()) == [[], []]
    assert generate(model, batch, end, Decoding(beams=2)) == [[], []]


def test_an_answer_stops_where_the_context_ends(model, processor, monkeypatch):
    monkeypatch.setattr(model.gpt, "head", lambda hidden: torch.eye(len(processor.tokenizer))[[65] * len(hidden)])
    context = model.config.gpt.context
    texts = ["a", "word " * 30]
    examples = [processor.encode_prompt([Message.of("user", text)]) for text in texts]
    for decoding in (Decoding(max_new_tokens=1000), Decoding(max_new_tokens=1000, beams=2)):
        answers = generate(model, collate(examples), processor.tokenizer.end, decoding)
        assert [len(a) for a in answers] == [context - len(example) for example in examples]


def test_draws_follow_the_probabilities(model, processor, monkeypatch):
    probabilities = torch.zeros(len(processor.tokenizer))
    probabilities[[65, 66, 67]] = torch.tensor([0.6, 0.3, 0.1])
    monkeypatch.setattr(model.gpt, "head", lambda hidden: probabilities.log().expand(len(hidden), -1))
    batch = collate([processor.encode_prompt([Message.of("user", "a")])])

    def shares(**settings):
        drawn = [
            generate(model, batch, processor.tokenizer.end, Decoding(max_new_tokens=1, seed=seed, **settings))[0][0]
            for seed in range(400)
        ]
        return [drawn.count(token) / len(drawn) for token in (65, 66, 67)]

    # Four standard deviations of a share of 400 draws are at most 0.1.
    assert shares(temperature=1.0) == pytest.approx([0.6, 0.3, 0.1], abs=0.1)
    assert shares(temperature=1.0, top_k=2) == pytest.approx([2 / 3, 1 / 3, 0], abs=0.1)
    assert shares(temperature=1.0, top_p=0.5) == [1, 0, 0]
    assert shares(temperature=1.0, top_p=0.7) == pytest.approx([2 / 3, 1 / 3, 0], abs=0.1)
    assert shares(temperature=0.01) == [1, 0, 0]


@pytest.mark.parametrize(
    "settings", [{"max_new_tokens": 0}, {"temperature": -1}, {"top_p": 0}, {"beams": 2, "temperature": 1.0}]
)
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(ConfigError):
        Decoding(**settings)
