import itertools
import multiprocessing
import os
import random
import signal
from contextlib import closing

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import some_audio, some_image

from mmgpt.content import Image, Message
from mmgpt.data import order
from mmgpt.data.loader import Loader, Step
from mmgpt.data.mixture import Mixture
from mmgpt.data.packing import cost
from mmgpt.data.sample import Sample
from mmgpt.errors import ConfigError, DataError
from mmgpt.processor import Processor


def sample(number: int, *answers: str, medium=None) -> Sample:
    prompt = (Message.of("user", *([medium] if medium else []), "What?"),)
    return Sample(prompt, answers or (str(number),), "ask", f"x:{number}")


def ragged(count: int) -> list[Sample]:
    """Texts, pictures and sounds with one to three answers of many lengths."""
    media = (None, None, some_image(0), None, some_audio(0))
    return [
        sample(i, *(f"{i}{'abc'[k]} " + "x" * (i * 7 % 13) for k in range(1 + i % 3)), medium=media[i % 5])
        for i in range(count)
    ]


class Stream:
    """Samples one after the other, nobody knows how many."""

    def __init__(self, samples: list[Sample]):
        self.samples = samples

    def __iter__(self):
        return iter(self.samples)


@pytest.fixture(autouse=True, scope="module")
def small_blocks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "BLOCK", 7)
        yield


def broken(tmp_path, number: int) -> Sample:
    (tmp_path / "no.jpg").write_text("no picture")
    return sample(number, medium=Image(tmp_path / "no.jpg"))


def told(step: Step, tokenizer) -> list[list[str]]:
    """The answers in each batch of a step."""
    return [
        [tokenizer.decode(ids.tolist()).removeprefix("What?") for ids in batch.ids.split(batch.lengths)]
        for batch in step.batches
        if batch is not None
    ]


def answers(loader: Loader, tokenizer) -> list[str]:
    """Of an epoch."""
    return [text for step in loader for batch in told(step, tokenizer) for text in batch]


def test_each_iteration_is_the_next_epoch(processor, tokenizer):
    loader = Loader([sample(i) for i in range(12)], processor, batch_size=5, shuffle=True, seed=1)
    first, second = answers(loader, tokenizer), answers(loader, tokenizer)
    assert sorted(first) == sorted(second) == sorted(map(str, range(12)))
    assert first != second
    assert answers(Loader([sample(i) for i in range(12)], processor, batch_size=5), tokenizer) == [
        str(i) for i in range(12)
    ]


def test_an_epoch_that_is_not_gone_through_is_the_next_one_again(processor, tokenizer):
    loader = Loader([sample(i) for i in range(12)], processor, batch_size=5, shuffle=True)
    first = told(next(iter(loader)), tokenizer)
    assert told(next(iter(loader)), tokenizer) == first


def test_a_step_has_as_many_batches_as_are_accumulated(processor, tokenizer):
    loader = Loader([sample(i) for i in range(12)], processor, batch_size=2, accumulate=4)
    steps = list(loader)
    assert [[len(batch) for batch in told(step, tokenizer)] for step in steps] == [[2, 2, 2, 2], [2, 2]]
    assert [step.names for step in steps] == [[f"x:{i}" for i in range(8)], [f"x:{i}" for i in range(8, 12)]]
    for step in steps:
        assert step.count == sum(int(batch.supervised.sum()) for batch in step.batches if batch is not None)


def test_the_share_of_the_data_that_is_done_grows_to_whole_epochs(processor):
    loader = Loader([sample(i) for i in range(10)], processor, batch_size=4)
    assert [step.epochs for step in itertools.chain(loader, loader)] == pytest.approx([0.4, 0.8, 1, 1.4, 1.8, 2])


@given(st.integers(1, 40), st.integers(90, 400), st.integers(1, 3), st.integers(0, 5))
@settings(derandomize=True, deadline=None, max_examples=25)
def test_packed_batches_hold_every_document_once_and_fit_the_budget(
    processor, tokenizer, count, budget, accumulate, seed
):
    samples = ragged(count)
    loader = Loader(samples, processor, batch_tokens=budget, accumulate=accumulate, shuffle=True, seed=seed)
    steps = list(loader)
    said = [text for step in steps for batch in told(step, tokenizer) for text in batch]
    lost = [part.reason.split(":")[1] for step in steps for part in step.broken]
    expected = [text for i, one in enumerate(samples) if str(i) not in lost for text in one.answers]
    assert sorted(said) == sorted(expected)
    for step in steps:
        for batch in filter(None, step.batches):
            encoded = sum(item.grid.count for group in batch.media.values() for item in group.inputs)
            assert len(batch.ids) + encoded <= budget


def test_a_document_above_the_budget_is_lost_alone_and_told(processor, tokenizer):
    samples = [sample(0, "short", "x y " * 30), sample(1)]
    loader = Loader(samples, processor, batch_tokens=40)
    (step,) = loader
    assert sorted(told(step, tokenizer)[0]) == ["1", "short"]
    tokens = cost([processor.encode_answer(processor.encode_prompt(samples[0].prompt), "x y " * 30)])
    assert [part.reason for part in step.broken] == [f"x:0: {tokens} tokens do not fit batch_tokens 40"]


def test_answers_that_do_not_fit_one_batch_are_parted_and_share_the_picture_where_they_can(processor, tokenizer):
    many = sample(0, *(f"a {i}" for i in range(12)), medium=some_image(0))
    steps = list(Loader([many], processor, batch_tokens=60))
    assert len(steps) > 1
    assert all(len(step.batches[0].media["image"].inputs) == 1 for step in steps)
    assert all(len(batch) > 1 for step in steps for batch in told(step, tokenizer))
    assert sorted(text for step in steps for batch in told(step, tokenizer) for text in batch) == sorted(many.answers)


@given(st.data())
@settings(derandomize=True, deadline=None, max_examples=20)
def test_steps_after_any_step_are_those_of_the_run_that_went_on(processor, tokenizer, data):
    ways = [{"batch_size": 3}, {"batch_tokens": 150}, {"batch_tokens": 100, "accumulate": 3}]
    way = data.draw(st.sampled_from(ways))
    kind = data.draw(st.sampled_from([list, Stream]))
    samples = ragged(data.draw(st.integers(1, 30)))

    def loader() -> Loader:
        return Loader(kind(samples), processor, shuffle=True, seed=5, **way)

    whole = loader()
    steps = [*whole, *whole]
    at = data.draw(st.integers(0, len(steps) - 1))
    resumed = loader()
    resumed.load_state(steps[at].state)
    rest = [*resumed, *resumed][: len(steps) - at - 1]
    assert [told(step, tokenizer) for step in rest] == [told(step, tokenizer) for step in steps[at + 1 :]]
    assert [step.state for step in rest] == [step.state for step in steps[at + 1 :]]
    assert [step.epochs for step in rest] == [step.epochs for step in steps[at + 1 :]]


@pytest.mark.parametrize("kind", [list, Stream])
def test_workers_bring_the_same_steps_also_after_a_half_taken_epoch(processor, tokenizer, tmp_path, kind):
    samples = kind([*ragged(30), broken(tmp_path, 30)])
    here, there = (
        Loader(samples, processor, batch_tokens=200, shuffle=True, seed=4, workers=workers) for workers in (0, 2)
    )
    next(iter(there))
    for one, other in zip([*here, *here], [*there, *there], strict=True):
        assert told(one, tokenizer) == told(other, tokenizer)
        assert (one.broken, one.state, one.count) == (other.broken, other.state, other.count)
        for batch, same in zip(one.batches, other.batches, strict=True):
            assert batch is not None
            assert same is not None
            for modality, group in batch.media.items():
                pairs = zip(group.inputs, same.media[modality].inputs, strict=True)
                assert all(torch.equal(a.data, b.data) for a, b in pairs)


def test_random_transforms_are_drawn_from_the_seed_the_epoch_and_the_sample(model, tokenizer):
    def augment(picture):
        return picture.rotate(random.uniform(0, 360))

    def pictures(seed: int, workers: int = 0, state: dict | None = None) -> list[torch.Tensor]:
        processor = Processor(model.config, tokenizer, augment)
        loader = Loader(
            [sample(i, medium=some_image(i)) for i in range(4)], processor, batch_size=1, seed=seed, workers=workers
        )
        if state:
            loader.load_state(state)
        return [item.data for step in loader for item in step.batches[0].media["image"].inputs]

    random.seed(8)
    first = pictures(0)
    assert all(map(torch.equal, first, pictures(0)))
    assert all(map(torch.equal, first, pictures(0, workers=1)))
    assert all(map(torch.equal, first[2:], pictures(0, state={"epoch": 0, "next": 2, "waiting": []})))
    assert not any(map(torch.equal, first, pictures(1)))
    assert not any(map(torch.equal, first, pictures(0, state={"epoch": 1, "next": 0, "waiting": []})))


def test_a_stream_that_is_not_shuffled_gives_the_steps_of_the_list(processor, tokenizer):
    samples = ragged(20)
    one, other = (Loader(kind(samples), processor, batch_size=3, accumulate=2) for kind in (list, Stream))
    assert [told(step, tokenizer) for step in one] == [told(step, tokenizer) for step in other]


def test_a_stream_changes_the_places_of_near_samples_in_each_epoch_anew(processor, tokenizer):
    loader = Loader(Stream([sample(i) for i in range(20)]), processor, batch_size=5, shuffle=True)
    first, second = answers(loader, tokenizer), answers(loader, tokenizer)
    assert first != second
    for epoch in (first, second):
        for start in (0, 7, 14):
            block = epoch[start : start + 7]
            assert sorted(block) == sorted(str(i) for i in range(start, min(20, start + 7)))
            assert block != [str(i) for i in range(start, min(20, start + 7))]


def test_a_stream_is_done_when_it_has_ended(processor):
    loader = Loader(Stream([sample(i) for i in range(10)]), processor, batch_size=5)
    assert [step.epochs for step in itertools.chain(loader, loader)] == [0, 1, 1, 2]


def test_a_stream_is_read_no_further_than_is_needed(processor):
    def endless():
        for i in itertools.count():
            assert i < 30
            yield sample(i)

    loader = Loader(Stream(endless()), processor, batch_size=4, shuffle=True)  # type: ignore[arg-type]
    assert len(list(itertools.islice(loader, 3))) == 3


def test_broken_samples_are_told_and_make_no_batch(processor, tokenizer, tmp_path):
    (step,) = Loader([sample(0), broken(tmp_path, 1), sample(2)], processor, batch_size=3)
    assert told(step, tokenizer) == [["0", "2"]]
    assert [part.reason.split(": ")[0] for part in step.broken] == ["x:1"]
    (step,) = Loader([broken(tmp_path, 1)], processor, batch_size=3)
    assert (step.batches, step.count, len(step.broken)) == ([None], 0, 1)


class Threads(list):
    """Each sample tells of how many threads torch has in its process."""

    def __getitem__(self, index):
        return sample(index, str(torch.get_num_threads()))


def test_workers_have_one_thread_each_so_that_they_do_not_fight_for_the_cores(processor, tokenizer):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        loaders = [Loader(Threads([None] * 4), processor, batch_size=2, workers=workers) for workers in (0, 2)]
        assert [answers(loader, tokenizer) for loader in loaders] == [["3"] * 4, ["1"] * 4]
    finally:
        torch.set_num_threads(before)


def test_workers_end_with_their_loader(processor):
    """At once: the garbage collector, which comes later, would have each waited for."""
    before = set(multiprocessing.active_children())
    loader = Loader(ragged(30), processor, batch_size=2, workers=2)
    next(iter(loader))
    assert len(set(multiprocessing.active_children()) - before) == 2
    del loader
    assert set(multiprocessing.active_children()) == before


def test_a_loader_that_was_closed_can_be_gone_through_again(processor, tokenizer):
    before = set(multiprocessing.active_children())
    loader = Loader([sample(i) for i in range(12)], processor, batch_size=5, workers=1)
    steps = iter(loader)
    first = told(next(steps), tokenizer)
    loader.close()
    assert set(multiprocessing.active_children()) == before
    assert told(next(iter(loader)), tokenizer) == first


class Malformed(list):
    def __getitem__(self, index):
        raise DataError("captions.csv:7: malformed")


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_that_are_not_about_one_sample_stop_the_run_in_one_line(processor, workers):
    loader = Loader(Malformed([None]), processor, batch_size=1, workers=workers)
    with closing(loader), pytest.raises(DataError) as caught:
        list(loader)
    assert str(caught.value) == "captions.csv:7: malformed"


class Deadly(list):
    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


def test_the_death_of_a_worker_is_told(processor):
    loader = Loader(Deadly([None]), processor, batch_size=1, workers=1)
    with closing(loader), pytest.raises(DataError, match="a data worker died"):
        list(loader)


@pytest.mark.parametrize("sizes", [{}, {"batch_size": 2, "batch_tokens": 100}])
def test_a_batch_is_of_samples_or_of_tokens(processor, sizes):
    with pytest.raises(ConfigError, match="batch_size, batch_tokens: give one of them"):
        Loader([sample(0)], processor, **sizes)


def test_a_mixture_is_drawn_on_from_epoch_to_epoch(processor, tokenizer):
    """Else the same draws would come again, and what they left out would never be seen."""
    sources = {name: [sample(i, f"{name}{i}") for i in range(count)] for name, count in (("a", 30), ("b", 10))}

    def loader() -> Loader:
        return Loader(Mixture(sources, {"a": 1.0, "b": 3.0}), processor, batch_size=8, shuffle=True)

    mixture, steps = loader(), []
    for _ in range(4):
        steps += mixture
    drawn = [text for step in steps for batch in told(step, tokenizer) for text in batch]
    assert len(drawn) == 160
    assert set(drawn) == {one.answers[0] for source in sources.values() for one in source}
    resumed = loader()
    resumed.load_state(steps[6].state)
    assert told(next(iter(resumed)), tokenizer) == told(steps[7], tokenizer)
