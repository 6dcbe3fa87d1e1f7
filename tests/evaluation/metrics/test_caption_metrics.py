"""Scores of captions. Upper-case values are those of pycocoevalcap 1.2: PTBTokenizer, Bleu, Rouge, Cider, Meteor."""

import importlib.util
import math
import shutil
from shutil import which  # as it is outside of tests

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgpt.errors import DataError
from mmgpt.evaluation.metrics.captions import bleu, cider, cider_scores, rouge_l, tokenize
from mmgpt.evaluation.metrics.java import java_scores

CANDIDATES = [
    "A black dog doesn't run in the snow.",
    "Two men (one in red) stand near a t-shirt shop",
    "a girl",
    "",
    "The kids' dog jumps over a fence, twice!",
]
REFERENCES = [
    ["A black dog runs through the snow .", "A dog isn't running; it's in the snow!", "The black dog"],
    ["Two men stand by a shop.", "Men in red & white shirts stand near the T-shirt store"],
    ["A little girl climbs into a wooden playhouse.", "A girl going into a wooden building ."],
    ["Nobody is there", "An empty street"],
    ["The dog jumps over a fence", "A kid's dog leaps over the fence twice ."],
]
BLEU = [0.6032437347687475, 0.46611540523781936, 0.3281314535285019, 0.22673288966126226]
ROUGE_L = 0.5264516121885171
CIDER = [1.943243328122981, 1.4249765640509529, 1.0802025005149156, 0.0, 3.9970769778866835]
METEOR = 0.3192148610901999

words = st.lists(st.sampled_from(["a", "red", "dog", "runs", "in", "snow"]), min_size=1, max_size=8).map(" ".join)
samples = st.lists(st.tuples(words, st.lists(words, min_size=1, max_size=3)), min_size=1, max_size=6)


@pytest.mark.parametrize(
    ("text", "expected"),
    # By PTBTokenizer of pycocoevalcap 1.2, which runs Stanford CoreNLP 3.4.1.
    [
        ("A man, in a red-and-white shirt.", "a man in a red-and-white shirt"),
        ("They don't look; she's smiling!", "they do n't look she 's smiling"),
        ("Two dogs (one black) run", "two dogs -lrb- one black -rrb- run"),
        ("Rock 'n' roll in the '90s at 10:30 a.m.", "rock 'n' roll in the '90s at 10:30 a.m."),
        ('He cannot; they\'re gonna win 3,000 ... "really"!!', "he can not they 're gon na win 3,000 really !!"),
        ("Salt &amp; pepper at a Q&A", "salt & pepper at a q&a"),
        ("5 men ride 4x4 trucks to Mr. Smith's shop -- fast", "5 men ride 4x4 trucks to mr. smith 's shop fast"),
        ("'Tis a do-it-yourself and/or O'Clock sign", "'t is a do-it-yourself and/or o'clock sign"),
        ("A U.S. flag [torn]", "a u.s. flag -lsb- torn -rsb-"),
        ("hook 'em horns – or not", "hook 'em horns or not"),
        ("costs £5 or 2½ dollars", "costs # 5 or 2 1/2 dollars"),
        ("He gave me 10 ,000 yen.", "he gave me 10 ,000 yen"),
        ("an at&t headphone", "an at & t headphone"),
        ("", ""),
    ],
)
def test_words_are_counted_as_the_penn_treebank_does(text, expected):
    assert " ".join(tokenize(text)) == expected


def test_bleu_rouge_and_cider_are_those_of_coco_caption():
    assert [score.value for score in bleu(CANDIDATES, REFERENCES)] == pytest.approx(BLEU, rel=1e-14)
    assert rouge_l(CANDIDATES, REFERENCES).value == pytest.approx(ROUGE_L, rel=1e-14)
    assert cider_scores(CANDIDATES, REFERENCES) == pytest.approx(CIDER, rel=1e-14)
    assert cider(CANDIDATES, REFERENCES).value == pytest.approx(sum(CIDER) / 5, rel=1e-14)


@pytest.mark.skipif(
    importlib.util.find_spec("pycocoevalcap") is None or which("java") is None, reason="needs the extra and Java"
)
def test_meteor_is_that_of_coco_caption_also_where_a_caption_is_matched_whole(monkeypatch):
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.spice import spice

    def unreachable():
        raise OSError("no network")

    monkeypatch.setattr(shutil, "which", which)
    monkeypatch.setattr(spice, "get_stanford_models", unreachable)
    scores, left_out = java_scores(CANDIDATES, REFERENCES)
    assert scores["METEOR"].value == METEOR
    assert "no network" in left_out["SPICE"]
    candidates, references = [*CANDIDATES, "a red bus"], [*REFERENCES, ["a red bus", "a bus"]]
    tokens = [[{i: [" ".join(tokenize(text)) for text in group]} for i, group in enumerate(texts)]
              for texts in (references, [[text] for text in candidates])]  # fmt: skip
    merged = [{key: value for one in side for key, value in one.items()} for side in tokens]
    assert java_scores(candidates, references)[0]["METEOR"].value == pytest.approx(Meteor().compute_score(*merged)[0])


def test_without_java_or_its_package_the_reason_is_told(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    reason = "there is no java command; install a Java runtime"
    assert java_scores(["a"], [["a"]]) == ({}, {"METEOR": reason, "SPICE": reason})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "uv sync --extra metrics" in java_scores(["a"], [["a"]])[1]["METEOR"]


def test_bleu_by_hand():
    # Unigrams: the (clipped at 1) + cat = 2 of 4; bigrams: "the cat" alone, 1 of 3; candidate longer than reference.
    one, two = bleu(["the cat the the"], [["the cat sat"]], 2)
    assert one.value == pytest.approx(2 / 4, rel=1e-6)
    assert two.value == pytest.approx(math.sqrt(2 / 4 * 1 / 3), rel=1e-6)


def test_bleu_takes_the_reference_closest_in_length_for_its_penalty():
    # Three words against references of five and nine: penalty exp(1 - 5 / 3); all unigrams match.
    references = [["a red dog runs home", "a red dog runs home in the deep snow"]]
    assert bleu(["a red dog"], references, 1)[0].value == pytest.approx(math.exp(1 - 5 / 3), rel=1e-6)


def test_rouge_by_hand():
    # "a dog runs" is in both in this order: 3 of 3 words said, 3 of 5 true ones; F with recall weighed 1.2 squared.
    expected = (1 + 1.44) * 1 * (3 / 5) / (3 / 5 + 1.44 * 1)
    assert rouge_l(["a dog runs"], [["a red dog quickly runs"]]).value == pytest.approx(expected)


def test_to_rouge_texts_without_words_are_alike():
    # As coco-caption has it: Rouge().calc_score([""], [""]) is 1.
    assert rouge_l(["", ""], [["."], ["a dog"]]).value == pytest.approx(1 / 2)


def test_cider_by_hand():
    # "red dog" and "blue cat" share nothing: each n-gram is in one of two samples, so all weights are log 2, and
    # identical captions have similarity 1 for n = 1 and 2; of n = 3 and 4 there are none. 10 x (1 + 1 + 0 + 0) / 4.
    assert cider_scores(["red dog", "blue cat"], [["red dog"], ["blue cat"]]) == pytest.approx([5, 5])
    assert cider_scores(["blue cat", "red dog"], [["red dog"], ["blue cat"]]) == [0, 0]
    # Half of the unigrams, none of the bigrams: cosine 1/2 for n = 1.
    assert cider_scores(["red cat", "blue cat"], [["red dog"], ["blue bird"]])[0] == pytest.approx(10 * 0.5 / 4)


def test_cider_punishes_another_length():
    same = [["a b c d e"], ["v w x y z"]]
    longer = cider_scores(["a b c d e a b c d e", "v"], same)[0]
    assert longer < cider_scores(["a b c d e", "v"], same)[0]


@given(samples, st.randoms())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_scores_lie_in_their_range_and_do_not_depend_on_the_order(pairs, random):
    shuffled = random.sample(pairs, len(pairs))
    for metric, most in ((cider, 10), (rouge_l, 1), (lambda c, r: bleu(c, r)[3], 1)):
        value = metric(*map(list, zip(*pairs, strict=True))).value
        assert -1e-9 <= value <= most + 1e-9
        assert value == pytest.approx(metric(*map(list, zip(*shuffled, strict=True))).value)


@given(samples)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_a_caption_that_is_one_of_its_references_scores_most(pairs):
    said, truths = [group[-1] for _, group in pairs], [group for _, group in pairs]
    assert rouge_l(said, truths).value == pytest.approx(1)
    assert bleu(said, truths)[0].value == pytest.approx(1, abs=1e-6)
    alone = [[text] for text in said]
    assert cider(said, alone).value >= cider([text for text, _ in pairs], alone).value - 1e-9


@pytest.mark.parametrize(
    ("candidates", "references", "message"),
    [
        ([], [], "nothing to score"),
        (["a"], [], "1 candidates but 0"),
        (["a"], ["text"], "sample 0"),
        (["a"], [[]], "0"),
    ],
)
def test_input_that_cannot_be_scored_is_told(candidates, references, message):
    with pytest.raises(DataError, match=message):
        cider(candidates, references)
