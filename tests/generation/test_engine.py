import dataclasses
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import cross_config, seeing, some_audio, some_image, some_video

from mmgpt.batch import Example, collate
from mmgpt.content import Message
from mmgpt.errors import ConfigError
from mmgpt.generation import Decoding, Engine
from mmgpt.model import MultimodalGPT
from mmgpt.processor import Processor, TooLongError

PARTS = [
    lambda i: some_image(i),
    lambda i: some_audio(i, 900 + 311 * i),
    lambda i: some_video(i, sound=i % 2 == 0),
    lambda i: "word " * (1 + 3 * i),
]
drawn_parts = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=3)
WAYS = [
    Decoding(max_new_tokens=12),
    Decoding(max_new_tokens=12, lookup=4),
    Decoding(max_new_tokens=12, temperature=1.0, seed=3, n=2),
    Decoding(max_new_tokens=12, temperature=1.5, top_k=5, top_p=0.8, min_p=0.05, repetition_penalty=1.3, seed=4),
    Decoding(max_new_tokens=8, beams=3, n=2),
    Decoding(max_new_tokens=12, choices=("yes", "no", "yesterday")),
    Decoding(max_new_tokens=6, temperature=0.7, regex="[a-c]{2,9}", logprobs=2),
    Decoding(max_new_tokens=12, temperature=1.0, stop=("a", "e"), frequency_penalty=0.5, presence_penalty=0.1),
]


def prompt(processor, *parts) -> Example:
    return processor.encode_prompt([Message.of("user", *parts)])


def tokens(answers) -> list[list[int]]:
    return [answer.tokens for answer in answers]


def without_numbers(answers):
    """Log-probabilities are rounded differently in another batch."""
    return [dataclasses.replace(answer, choices=None) for answer in answers]


def logits_after(model, example: Example, answer: list[int]) -> torch.Tensor:
    """By a full forward pass, without cache."""
    ids = [*example.ids, *answer]
    with torch.no_grad():
        return model(collate([Example(ids, [False] * len(ids), example.media)]))[-1]


@pytest.mark.parametrize("decoding", WAYS)
@given(drawn=st.lists(drawn_parts, min_size=2, max_size=4))
@settings(max_examples=8, deadline=None, derandomize=True)
def test_batched_equals_single_token_for_token(model, tokenizer, processor, decoding, drawn):
    examples = [prompt(processor, *(PARTS[kind](i) for kind, i in parts)) for parts in drawn]
    together = Engine(model, tokenizer).run(examples, decoding)
    alone = [Engine(model, tokenizer).run([example], decoding)[0] for example in examples]
    assert [tokens(answers) for answers in together] == [tokens(answers) for answers in alone]
    assert all(len(answers) == decoding.n for answers in together)


def test_greedy_decoding_takes_the_likeliest_token_of_a_full_forward_pass(model, tokenizer, processor):
    for i in range(4):
        example = prompt(processor, some_image(i), some_audio(1), "What?")
        [[answer]] = Engine(model, tokenizer).run([example], Decoding(max_new_tokens=10))
        for place in range(len(answer.tokens)):
            assert logits_after(model, example, answer.tokens[:place]).argmax() == answer.tokens[place]
        if answer.finish == "stop":
            assert logits_after(model, example, answer.tokens).argmax() == tokenizer.end
        else:
            assert len(answer.tokens) == 10


class Clock:
    """Counts the forward passes of a model, and what they are fed."""

    def __init__(self, model, monkeypatch):
        self.fed: list[int] = []
        self.encoded: list[str] = []
        transform, encode = model.gpt.transform, model.encode_media
        monkeypatch.setattr(model.gpt, "transform", lambda x, *rest: self.fed.append(len(x)) or transform(x, *rest))
        monkeypatch.setattr(
            model,
            "encode_media",
            lambda modality, inputs: self.encoded.extend([modality] * len(inputs)) or encode(modality, inputs),
        )


@pytest.fixture
def clock(model, monkeypatch) -> Clock:
    return Clock(model, monkeypatch)


requests = st.lists(
    st.tuples(
        st.integers(0, 6),  # steps before it comes
        drawn_parts,
        st.integers(0, len(WAYS) - 1),
        st.one_of(st.none(), st.integers(0, 8)),  # steps after which it is cancelled
    ),
    min_size=1,
    max_size=9,
)


@given(drawn=requests, rows=st.integers(3, 6), tight=st.booleans())
@settings(max_examples=25, deadline=None, derandomize=True)
def test_whatever_comes_and_goes_every_answer_is_that_of_its_lone_run(model, tokenizer, processor, drawn, rows, tight):
    token_bytes = 2 * 2 * 32 * 4  # keys and values of two layers of width 32 in single precision
    room = 192 * token_bytes * (3 if tight else rows)
    engine = Engine(model, tokenizer, rows=rows, cache_bytes=room, store_bytes=40_000)
    examples = [prompt(processor, *(PARTS[kind](i) for kind, i in parts)) for _, parts, _, _ in drawn]
    running = {}
    cancelled = set()
    clock = 0
    while len(running) < len(drawn) or not all(request.done for request in running.values()):
        for i, (arrival, _, way, _) in enumerate(drawn):
            if arrival <= clock and i not in running:
                running[i] = engine.submit(examples[i], WAYS[way])
        for i, (arrival, _, _, patience) in enumerate(drawn):
            if patience is not None and clock == arrival + patience and not running[i].done:
                engine.cancel(running[i])
                cancelled.add(i)
        engine.step()
        cache = engine.cache
        assert cache.keys.nbytes + cache.values.nbytes <= room
        assert cache.rows <= rows
        assert engine.blocks.bytes <= 40_000
        assert sorted(row for search in engine.active for row in search.rows) == list(
            range(sum(len(search.rows) for search in engine.active))
        )
        clock += 1
        assert clock < 1000
    assert not engine.active
    assert not engine.waiting
    assert set(engine.cache.lengths) <= {0}
    for i, (_, _, way, _) in enumerate(drawn):
        alone = Engine(model, tokenizer).run([examples[i]], WAYS[way])[0]
        answers = running[i].answers
        if i not in cancelled:
            assert without_numbers(answers) == without_numbers(alone)
        elif WAYS[way].beams == 1:
            for answer, whole in zip(answers, alone, strict=True):
                assert answer.tokens == whole.tokens[: len(answer.tokens)]


def test_who_comes_later_is_let_in_while_others_decode(model, tokenizer, processor, clock):
    engine = Engine(model, tokenizer)
    first = engine.submit(prompt(processor, "word " * 20), Decoding(max_new_tokens=12, regex="[a-z]{40}"))
    for _ in range(4):
        engine.step()
    second = engine.submit(prompt(processor, "x"), Decoding(max_new_tokens=3, regex="[a-z]{40}"))
    engine.step()
    assert clock.fed[-1] == len(second.prompt) + 1
    assert not first.done
    while not second.done:
        engine.step()
    assert not first.done
    assert len(second.answers[0].tokens) == 3
    assert second.answers[0].finish == "length"


def test_long_prompts_do_not_hold_up_who_decodes(model, tokenizer, processor, clock, monkeypatch):
    monkeypatch.setattr("mmgpt.generation.engine.PREFILL_TOKENS", 10)
    engine = Engine(model, tokenizer)
    engine.submit(prompt(processor, "x"), Decoding(max_new_tokens=30, regex="[a-z]{40}"))
    engine.step()
    late = [engine.submit(prompt(processor, "word " * n), Decoding(max_new_tokens=4)) for n in (9, 12)]
    while not all(request.done for request in late):
        engine.step()
    assert max(clock.fed[1:]) <= 12
    alone = [Engine(model, tokenizer).run([request.prompt], Decoding(max_new_tokens=4))[0] for request in late]
    assert [request.answers for request in late] == alone


def test_ten_questions_about_one_picture_cost_one_prefill_of_it(model, tokenizer, processor, clock):
    picture = some_image(3)
    pieces = [picture, some_image(4), some_image(5), "What do you see and hear? " * 3]
    questions = [prompt(processor, *pieces, f"What {i}?") for i in range(10)]
    shared = len(questions[0]) - 10
    engine = Engine(model, tokenizer)
    together = engine.run(questions, Decoding(max_new_tokens=3))
    assert clock.encoded == ["image"] * 3
    assert sum(clock.fed) < 2 * shared + 10 * (30 + 3)
    clock.fed.clear()
    again = [engine.run([question], Decoding(max_new_tokens=3))[0] for question in questions]
    assert again == together
    assert clock.encoded == ["image"] * 3
    assert sum(clock.fed) < 10 * (30 + 3)


def test_what_differs_before_a_picture_is_never_taken_for_the_same(model, tokenizer, processor):
    engine = Engine(model, tokenizer)
    way = Decoding(max_new_tokens=8, temperature=0.5)
    for texts in (("A red circle. " * 3, "x"), ("A blue square. " * 3, "x")):
        for i in (0, 1):
            example = prompt(processor, texts[0], some_image(i), some_audio(i), "What do you see and hear? " * 2)
            assert engine.run([example], way) == Engine(model, tokenizer).run([example], way)


def test_a_model_that_has_learned_forgets_what_was_kept(model, tokenizer, processor):
    engine = Engine(model, tokenizer)
    example = prompt(processor, some_image(0), "What do you see and hear? " * 3)
    engine.run([example], Decoding(max_new_tokens=2))
    assert len(engine.blocks)
    assert len(engine.features)
    weight = model.gpt.transformer.blocks[0].mlp.up.weight
    before = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.mul_(3)
        way = Decoding(max_new_tokens=8, temperature=0.3)
        assert engine.run([example], way) == Engine(model, tokenizer).run([example], way)
    finally:
        with torch.no_grad():
            weight.copy_(before)


def test_lookup_needs_fewer_passes_and_changes_nothing(model, tokenizer, processor, clock, monkeypatch):
    # A model that goes round in a circle of 5 tokens.
    size = len(tokenizer)
    following = torch.zeros(size, size)
    following[torch.arange(size), (torch.arange(size) - 65 + 1) % 5 + 65] = 1.0
    monkeypatch.setattr(model.gpt, "embed", lambda ids: torch.eye(size)[ids])
    monkeypatch.setattr(
        model.gpt, "transform", lambda x, layout, media, at: clock.fed.append(len(x)) or (x[at], layout.close())[0]
    )
    monkeypatch.setattr(model.gpt, "head", lambda x: x @ following)
    example = prompt(processor, "x")
    plain = Engine(model, tokenizer).run([example], Decoding(max_new_tokens=40))
    passes = len(clock.fed)
    clock.fed.clear()
    guessed = Engine(model, tokenizer).run([example], Decoding(max_new_tokens=40, lookup=6))
    assert guessed == plain
    assert passes == 40
    assert len(clock.fed) < 15


def test_an_answer_stops_where_the_context_ends(model, tokenizer, processor):
    context = model.config.gpt.context
    examples = [prompt(processor, text) for text in ("a", "word " * 30)]
    letters = Decoding(max_new_tokens=1000, regex="[a-z]{1000}")
    for example, [answer] in zip(examples, Engine(model, tokenizer).run(examples, letters), strict=True):
        assert len(answer.tokens) == context - len(example)
        assert answer.finish == "length"


def test_lengths_are_told_before_any_work_is_done(model, tokenizer, processor, clock):
    full = prompt(processor, "a")
    ids = full.ids * (model.config.gpt.context // len(full) + 1)
    full = Example(ids[: model.config.gpt.context], [False] * model.config.gpt.context, [], "line 7")
    engine = Engine(model, tokenizer)
    with pytest.raises(TooLongError, match="line 7: 160 tokens leave no room to answer in the context of 160"):
        engine.run([prompt(processor, "a"), full])
    small = Engine(model, tokenizer, cache_bytes=10_000)
    with pytest.raises(ConfigError, match=r"1 rows of \d+ tokens .* do not fit"):
        small.run([prompt(processor, "a")])
    with pytest.raises(ConfigError, match="40 rows of"):
        engine.run([prompt(processor, "a")], Decoding(beams=40))
    assert not clock.fed
    assert not engine.waiting


def test_who_has_no_room_waits_for_it(model, tokenizer, processor):
    token_bytes = 2 * 2 * 32 * 4
    engine = Engine(model, tokenizer, rows=8, cache_bytes=2 * 64 * token_bytes)
    examples = [prompt(processor, "word " * n) for n in (1, 4, 2, 7, 3)]
    way = Decoding(max_new_tokens=20, temperature=1.0)
    answers = engine.run(examples, way)
    assert engine.cache.rows <= 2
    assert answers == [Engine(model, tokenizer).run([example], way)[0] for example in examples]


def test_an_abandoned_stream_leaves_nothing_behind(model, tokenizer, processor):
    engine = Engine(model, tokenizer)
    stream = engine.stream(prompt(processor, "a"), Decoding(max_new_tokens=30, regex="[a-z]{40}"))
    assert [len(next(stream).tokens) for _ in range(4)] == [1, 2, 3, 4]
    stream.close()
    assert not engine.active
    assert set(engine.cache.lengths) == {0}


def test_steps_without_work_do_nothing(model, tokenizer, clock):
    engine = Engine(model, tokenizer)
    engine.step()
    assert not clock.fed
    assert engine.cache.rows == 0


@pytest.fixture(scope="module", params=["inside", "gated"])
def crossing(request, tokenizer) -> MultimodalGPT:
    """Media stand beside its sequences; open gates."""
    return seeing(cross_config(len(tokenizer), request.param), weights=4.0, embedding=0.5)


@pytest.mark.parametrize("decoding", [WAYS[0], WAYS[1], WAYS[4]])
def test_media_beside_the_sequence_are_shared_and_looked_at_once(crossing, tokenizer, decoding, monkeypatch):
    processor = Processor(crossing.config, tokenizer)
    talk = "What do you see and hear? " * 3
    prompts = [
        prompt(processor, talk, some_image(i % 2), "and", some_audio(0), "?" * n) for n, i in enumerate((0, 0, 1, 0))
    ]
    prompts.append(prompt(processor, "no media"))
    alone = [Engine(crossing, tokenizer).run([one], decoding)[0] for one in prompts]
    clock = Clock(crossing, monkeypatch)
    engine = Engine(crossing, tokenizer, rows=6)
    assert engine.run(prompts, decoding) == alone
    assert sorted(clock.encoded) == ["audio", "image", "image"]
    assert [engine.run([one], decoding)[0] for one in prompts] == alone
    assert sorted(clock.encoded) == ["audio", "image", "image"]


def test_media_beside_the_sequence_that_never_fit_are_told_at_once(crossing, tokenizer):
    processor = Processor(crossing.config, tokenizer)
    token_bytes = 2 * 2 * 32 * 4
    looks = prompt(processor, *(some_audio(i) for i in range(4)))
    engine = Engine(crossing, tokenizer, cache_bytes=64 * token_bytes)
    assert engine.run([prompt(processor, "a")], Decoding(max_new_tokens=4))
    with pytest.raises(ConfigError, match="do not fit"):
        engine.submit(looks, Decoding(max_new_tokens=4))


def test_the_same_seed_draws_the_same_and_another_seed_another(model, tokenizer, processor):
    example = prompt(processor, some_image(0))
    way = Decoding(max_new_tokens=12, temperature=1.5, n=3)
    [first] = Engine(model, tokenizer).run([example], way)
    [again] = Engine(model, tokenizer).run([example], way)
    [other] = Engine(model, tokenizer).run([example], dataclasses.replace(way, seed=1))
    assert first == again
    assert len({tuple(answer.tokens) for answer in [*first, *other]}) == 6


def test_order_of_arrival_does_not_matter(model, tokenizer, processor):
    examples = [prompt(processor, PARTS[i % 4](i), "x" * i) for i in range(8)]
    shuffled = random.Random(0).sample(range(8), 8)
    way = Decoding(max_new_tokens=10, temperature=1.0)
    answers = Engine(model, tokenizer, rows=3).run(examples, way)
    others = Engine(model, tokenizer, rows=4).run([examples[i] for i in shuffled], way)
    assert [answers[i] for i in shuffled] == others


class Fickle:
    """A constraint that becomes too complex after some tokens, as grammars may."""

    def __init__(self, vocabulary: int, patience: int):
        self.vocabulary, self.patience = vocabulary, patience

    def allowed(self) -> torch.Tensor:
        return torch.ones(self.vocabulary, dtype=torch.bool)

    def accept(self, token: int) -> None:
        self.patience -= 1
        if not self.patience:
            raise ConfigError("too complex")


def test_a_request_that_fails_on_its_way_disturbs_nobody(model, tokenizer, processor, monkeypatch):
    fine, bad = prompt(processor, some_image(1), "word"), prompt(processor, "What?")
    drawn = Decoding(max_new_tokens=12, temperature=1.0, n=2, seed=1)
    failing = Decoding(max_new_tokens=12, temperature=1.0, n=3, seed=2, regex="never read")
    [alone] = Engine(model, tokenizer).run([fine], drawn)
    engine = Engine(model, tokenizer, rows=4)  # so that one of the failing answers still waits
    monkeypatch.setattr(engine, "_constraint", lambda way: Fickle(len(tokenizer), 3) if way.regex else None)
    requests = [engine.submit(fine, drawn), engine.submit(bad, failing)]
    while not all(request.done for request in requests):
        engine.step()
    assert requests[0].answers == alone
    assert requests[0].error is None
    assert str(requests[1].error) == "too complex"
    assert not engine.active
    assert not engine.waiting
    assert engine.run([fine], drawn) == [alone]
    for attempt in (lambda: engine.run([fine, bad], failing), lambda: list(engine.stream(bad, failing))):
        with pytest.raises(ConfigError, match="too complex"):
            attempt()
        assert not engine.active


def test_requests_made_in_other_threads_are_answered_as_those_submitted(model, tokenizer, processor):
    way = Decoding(max_new_tokens=8, temperature=1.0, seed=5, regex="[a-e]{3,9}")
    examples = [prompt(processor, some_image(i), "word " * i) for i in range(6)]
    engine = Engine(model, tokenizer)
    with ThreadPoolExecutor(3) as threads:
        made = list(threads.map(lambda example: engine.prepare(example, way), examples))
    for request in made:
        engine.enter(request)
    while not all(request.done for request in made):
        engine.step()
    assert [request.answers for request in made] == Engine(model, tokenizer).run(examples, way)
