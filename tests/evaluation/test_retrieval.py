from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import some_audio, some_image, tiny_config

from mmgpt.assistant import Assistant
from mmgpt.config import GPTConfig, PairConfig
from mmgpt.content import Image
from mmgpt.data.sample import Sample
from mmgpt.errors import ConfigError
from mmgpt.evaluation.retrieval import Retrieval, rank, search
from mmgpt.model import MultimodalGPT
from mmgpt.tasks import TASKS


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_the_rank_is_the_place_of_the_first_right_one_in_the_sorted_list(seed):
    generator = torch.Generator().manual_seed(seed)
    queries, items = torch.randint(1, 8, (2,), generator=generator).tolist()
    similarity = torch.randn(queries, items, generator=generator)
    match = torch.rand(queries, items, generator=generator) < 0.3
    match[:, 0] |= ~match.any(1)
    expected = []
    for scores, right in zip(similarity.tolist(), match.tolist(), strict=True):
        order = sorted(range(items), key=lambda i, scores=scores: -scores[i])
        expected.append(next(place for place, i in enumerate(order, 1) if right[i]))
    way = rank(similarity, match)
    assert way.ranks == expected
    assert way.right == [sum(right) for right in match.tolist()]
    assert way.items == items


def test_a_model_that_cannot_tell_finds_nothing():
    way = rank(torch.zeros(4, 4), torch.eye(4, dtype=torch.bool))
    assert way.ranks == [4] * 4


def test_recall_and_median():
    way = Retrieval([1, 1, 3, 8], [1] * 4, 10)
    assert [way.recall(depth) for depth in (1, 2, 3, 8)] == [0.5, 0.5, 0.75, 1.0]
    assert way.median() == 2.0


@pytest.mark.parametrize("right", [[1], [2], [1, 3], [5]])
def test_chance_is_what_all_orders_of_the_items_give_on_average(right):
    items = 5
    way = Retrieval([1] * len(right), right, items)
    ranks = [next(i for i, item in enumerate(order, 1) if item < n) for n in right for order in permutations(range(5))]
    for depth in range(1, items + 1):
        assert way.chance(depth) == pytest.approx(sum(r <= depth for r in ranks) / len(ranks))
    assert way.chance_median() == sorted(ranks)[(len(ranks) - 1) // 2]


@pytest.fixture(scope="module")
def pairing(tokenizer) -> Assistant:
    """Untrained, so that it is right now and then."""
    torch.manual_seed(0)
    config = tiny_config(len(tokenizer))
    config.pair = PairConfig(width=16, text=GPTConfig(width=24, layers=1, heads=2, context=160), heads=2)
    return Assistant(MultimodalGPT(config), tokenizer)


def sample(task: str, medium, answer: str, number: int) -> Sample:
    return Sample(tuple(TASKS[task].conversation(medium)), (answer,), task, f"x:{number}")


def test_the_class_of_a_medium_is_told_by_the_nearest_of_all_classes(pairing, tmp_path):
    (tmp_path / "no.png").write_text("no picture")
    names = ["red", "green", "blue"]
    media = [*(some_image(i) for i in range(7)), *(some_audio(i) for i in range(3))]
    samples = [sample("classify", medium, names[i % 3], i) for i, medium in enumerate(media)]
    [found], broken = search(pairing, [*samples, sample("classify", Image(tmp_path / "no.png"), "red", 10)])
    right = [next(iter(pairing.classify(one.media()[0], names))) == one.references[0] for one in samples]
    assert 0 < sum(right) < 10
    (score,) = found.scores()
    assert (score.task, score.metric, score.n) == ("find the class", "accuracy", 10)
    assert score.score == sum(right) / 10
    assert score.chance == pytest.approx(1 / 3)
    assert score.interval is not None
    assert score.interval[0] < score.score < score.interval[1]
    assert found.nearest == [next(iter(pairing.classify(one.media()[0], names))) for one in samples]
    assert broken.keys() == {10}
    assert broken[10].startswith("x:10: ")


def test_classes_and_captions_are_searched_apart(pairing):
    captions = [sample("caption", some_image(i), f"caption {i}", i) for i in range(3)]
    classes = [sample("classify", some_image(i), "ab"[i % 2], i) for i in range(4)]
    (*both, kinds), _ = search(pairing, [*captions, *classes])
    alone, _ = search(pairing, captions)
    assert both == alone
    assert (kinds.task, kinds.depths, kinds.way.items) == ("find the class", {"accuracy": 1}, 2)


def test_the_nearest_are_those_of_the_embeddings_and_equal_media_are_searched_for_once(pairing):
    media = [some_image(0), some_audio(1), some_image(0), some_image(2)]
    samples = [sample("caption", medium, f"caption {i}", i) for i, medium in enumerate(media)]
    (by_text, by_medium), _ = search(pairing, samples)
    assert by_text.queries == [0, 1, 3]
    texts = [f"caption {i}" for i in range(4)]
    assert by_medium.queries == texts
    near = pairing.embed([media[i] for i in (0, 1, 3)]) @ pairing.embed([*texts]).T
    assert by_text.nearest == [texts[i] for i in near.argmax(1).tolist()]
    assert by_medium.nearest == [[0, 1, 3][i] for i in near.argmax(0).tolist()]
    assert by_text.way.right == [2, 1, 1]
    assert by_text.score(1, {0, 3}).value == sum(by_text.way.ranks[i] == 1 for i in (0, 2)) / 2


def test_a_model_that_does_not_pair_is_told(assistant):
    with pytest.raises(ConfigError, match="does not pair media with texts"):
        search(assistant, [sample("caption", some_image(0), "caption", 0)])
