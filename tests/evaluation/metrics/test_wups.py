"""WUPS on a small WordNet of our own, against what nltk 3.10 says of the very files."""

import pytest
from wordnets import write_wordnet

from mmgpt.errors import DataError
from mmgpt.evaluation.metrics.wups import WordNet, wups

NLTK = {  # the greatest similarity of any senses
    ("chair", "sofa"): 0.8,
    ("chair", "person"): 0.8,
    ("sofa_bed", "bed"): 0.8888888888888888,
    ("sofa_bed", "chair"): 0.7272727272727273,
    ("couch", "sofa"): 1.0,
    ("plato", "chairwoman"): 0.6666666666666666,
    ("plato", "bed"): 0.2857142857142857,
    ("shelf", "bed"): 0.75,
    ("goose", "bed"): 0.0,
}


@pytest.fixture
def folder(tmp_path):
    return write_wordnet(tmp_path)


@pytest.fixture
def wordnet(folder) -> WordNet:
    return WordNet(folder)


@pytest.mark.parametrize(("pair", "expected"), NLTK.items())
def test_the_similarity_of_words_is_nltks(wordnet, pair, expected):
    senses = [wordnet.senses(word) for word in pair]
    most = max(wordnet.similarity(a, b) for a in senses[0] for b in senses[1])
    assert most == pytest.approx(expected, abs=1e-12)


def test_plurals_are_known_by_their_singulars(wordnet):
    for plural, word in (("chairs", "chair"), ("Shelves", "shelf"), ("geese", "goose"), ("sofa beds", "sofa_bed")):
        assert wordnet.senses(plural) == wordnet.senses(word) != []
    assert wordnet.senses("lamps") == []


@pytest.mark.parametrize(
    ("said", "truth", "expected"),
    [
        ("chair", ["chair"], 1.0),
        ("lamp", ["Lamp"], 1.0),  # the same word, though WordNet does not know it
        ("lamp", ["chair"], 0.0),
        ("sofa", ["couch"], 1.0),
        ("sofa", ["chair"], 0.1 * 0.8),  # below the threshold
        ("bed, chair", ["chair, bed"], 1.0),
        ("chair", ["chair, bed"], 0.1 * 6 / 9),  # the bed is covered by the chair alone: 2 * 3 / (2 + 1 + 2 * 3)
        ("chair, bed", ["chair"], 0.1 * 6 / 9),
        ("", ["chair"], 0.0),
        ("bed", ["lamp", "bed"], 1.0),
    ],
)
def test_answers_are_lists_that_cover_each_other(wordnet, said, truth, expected):
    assert wups([said], [truth], wordnet).value == pytest.approx(expected)


def test_the_threshold_decides_what_is_near_enough(wordnet):
    score = wups(["sofa", "bed"], [["chair"], ["bed"]], wordnet, threshold=0.8)
    assert score.value == pytest.approx((0.8 + 1) / 2)
    assert wups(["sofa"], [["chair"]], wordnet, threshold=0.0).value == pytest.approx(0.8)


def test_other_folders_are_refused(folder):
    (folder / "index.noun").write_text("no index\n")
    with pytest.raises(DataError, match=r"holds not WordNet's index\.noun.*apt install wordnet-base"):
        WordNet(folder)
    with pytest.raises(DataError, match="holds not WordNet's"):
        WordNet(folder / "none")
