"""mmgpt score: the numbers of a task, in JSON and as a table, and one system against another."""

import json

import pytest

from mmgpt.evaluation.metrics.score import RESAMPLES


@pytest.fixture
def files(tmp_path):
    """files("a.tsv", {"1": "text"}) -> a path."""

    def write(name: str, texts: dict[str, str]):
        path = tmp_path / name
        path.write_text("id\ttext\n" + "".join(f"{key}\t{text}\n" for key, text in texts.items()), encoding="utf-8")
        return path

    return write


@pytest.fixture
def spoken(files):
    """Two systems and what was said: one wrong word of twelve, and four of them."""
    truths = {str(i): f"one two {word}" for i, word in enumerate(("three", "four", "five", "six"))}
    good = truths | {"0": "one two free"}
    bad = {key: text.replace("two", "too") for key, text in truths.items()}
    return files("good.tsv", good), files("truths.tsv", truths), files("bad.tsv", bad)


def test_json_has_metrics_intervals_size_and_signature(mmgpt_command, spoken):
    good, truths, _ = spoken
    told = json.loads(mmgpt_command("score", good, truths, "--task", "asr", "--json").out)
    assert list(told) == ["metrics", "intervals", "n", "signature"]
    # Two characters of "three" make "free": one is replaced, one is missing, of 13 + 12 + 12 + 11.
    assert told["metrics"] == {"WER": pytest.approx(1 / 12), "CER": pytest.approx(2 / 48)}
    assert told["intervals"]["WER"] == [0, pytest.approx(3 / 12)]
    assert told["n"] == 4
    assert f"task:asr|refs:1|tok:space|interval:bootstrap-95|resamples:{RESAMPLES}|seed:0" in told["signature"]["mmgpt"]


def test_two_systems_are_compared_on_the_same_resamples(mmgpt_command, spoken):
    good, truths, bad = spoken
    told = json.loads(mmgpt_command("score", good, truths, "--task", "asr", "--against", bad, "--json").out)
    assert told["against"]["metrics"]["WER"] == pytest.approx(4 / 12)
    assert told["against"]["intervals"]["WER"] == pytest.approx([4 / 12, 4 / 12])
    assert told["against"]["difference"]["WER"] == pytest.approx(-3 / 12)
    assert 0 < told["against"]["p"]["WER"] < 0.1
    other = json.loads(mmgpt_command("score", good, truths, "--task", "asr", "--against", good, "--json").out)
    assert other["against"]["difference"] == {"WER": 0, "CER": 0}
    assert other["against"]["p"] == {"WER": 1, "CER": 1}


def test_the_table_shows_percents_and_which_numbers_are_better_low(mmgpt_command, spoken):
    good, truths, bad = spoken
    out = mmgpt_command("score", good, truths, "--task", "asr", "--against", bad).out
    header, wer, cer, _, size, *_ = out.splitlines()
    assert header.split() == ["good.tsv", "95", "%", "interval", "bad.tsv", "95", "%", "interval", "difference", "p"]
    assert wer.split()[:6] == ["WER", "↓", "8.33", "0.00", "–", "25.00"]
    assert "-25.00" in wer
    assert cer.startswith("CER ↓")
    assert size.startswith("4 samples")


@pytest.mark.parametrize(
    ("task", "metrics"),
    [
        ("translation", ["BLEU", "chrF"]),
        ("classification", ["accuracy", "macro-F1"]),
        ("qa", ["exact match", "F1"]),
        ("asr", ["WER", "CER"]),
    ],
)
def test_predictions_that_are_the_references_score_best(mmgpt_command, files, task, metrics):
    path = files("same.tsv", {"a": "the cat sat on the mat", "b": "two dogs ran over the hill"})
    told = json.loads(mmgpt_command("score", path, path, "--task", task, "--json").out)
    best = 0 if task == "asr" else 1
    assert told["metrics"] == {name: pytest.approx(best) for name in metrics}
    assert all(interval == pytest.approx([best, best]) for interval in told["intervals"].values())


def test_translations_have_sacrebleus_signatures(mmgpt_command, files):
    path = files("same.tsv", {"a": "the cat sat on the mat"})
    signature = json.loads(mmgpt_command("score", path, path, "--task", "translation", "--json").out)["signature"]
    assert signature["BLEU"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert signature["chrF"].startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:")


def test_captions_have_coco_captions_metrics_and_what_needs_java_is_told(mmgpt_command, tmp_path):
    said, truths = tmp_path / "said.json", tmp_path / "truths.json"
    captions = {1: "A dog runs in the snow.", 2: "Two cats sleep on a red bench."}
    said.write_text(json.dumps([{"image_id": key, "caption": text} for key, text in captions.items()]))
    rows = [{"image_id": key, "caption": text} for key, text in captions.items()]
    truths.write_text(json.dumps({"annotations": [*rows, {"image_id": 1, "caption": "A dog."}]}))
    told = json.loads(mmgpt_command("score", said, truths, "--task", "caption", "--json").out)
    assert list(told["metrics"]) == ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr"]
    assert told["metrics"]["BLEU-4"] == pytest.approx(1, abs=1e-6)
    assert list(told["left_out"]) == ["METEOR", "SPICE"]
    assert "refs:var" in told["signature"]["mmgpt"]
    out = mmgpt_command("score", said, truths, "--task", "caption").out
    assert out.count("left out: METEOR and SPICE: ") == 1


def test_vqa_has_the_accuracy_of_each_type_of_answer_and_question(mmgpt_command, tmp_path):
    said, truths = tmp_path / "said.json", tmp_path / "truths.json"
    said.write_text(json.dumps([{"question_id": i, "answer": text} for i, text in enumerate(("yes", "3", "2"))]))
    answers = [("yes/no", "yes"), ("number", "two"), ("number", "2")]
    asked = ["is the", "how many", "is the"]
    truths.write_text(json.dumps({"annotations": [
        {"question_id": i, "answer_type": kind, "question_type": asked[i], "answers": [{"answer": text}] * 10}
        for i, (kind, text) in enumerate(answers)
    ]}))  # fmt: skip
    told = json.loads(mmgpt_command("score", said, truths, "--task", "vqa", "--json").out)
    expected = {"accuracy": 2 / 3, "accuracy (number)": 1 / 2, "accuracy (yes/no)": 1}
    expected |= {"accuracy (how many)": 0, "accuracy (is the)": 1}
    assert told["metrics"] == pytest.approx(expected)


def test_what_does_not_fit_is_one_line(mmgpt_command, files, spoken):
    good, truths, _ = spoken
    few = files("few.tsv", {"0": "one"})
    assert 'few.tsv: no prediction with the id "1"' in mmgpt_command("score", few, truths, "--task", "asr").error(1)
    against = mmgpt_command("score", good, truths, "--task", "asr", "--against", few).error(1)
    assert 'few.tsv: no prediction with the id "1" (2 more are like it)' in against
    assert "required: --task" in mmgpt_command("score", good, truths).error(2)
    assert "invalid choice: 'sing'" in mmgpt_command("score", good, truths, "--task", "sing").error(2)


def test_wups_is_told_where_wordnet_is_given(mmgpt_command, files, tmp_path):
    index = (("seat", 100), ("bed", 200), ("sofa", 300))
    (tmp_path / "index.noun").write_text("".join(f"{word} n 1 1 @ 1 0 {at:08}\n" for word, at in index))
    (tmp_path / "data.noun").write_text(
        "00000100 03 n 01 seat 0 000 | top\n00000200 03 n 01 bed 0 001 @ 00000100 n 0000 | kind\n"
        "00000300 03 n 01 sofa 0 001 @ 00000100 n 0000 | kind\n"
    )
    (tmp_path / "noun.exc").write_text("")
    said, truth = files("said.tsv", {"1": "bed", "2": "sofa"}), files("truth.tsv", {"1": "sofa", "2": "sofa"})
    told = json.loads(mmgpt_command("score", said, truth, "--task", "qa", "--wordnet", tmp_path, "--json").out)
    assert told["metrics"]["WUPS@0.0"] == pytest.approx((0.5 + 1) / 2)  # 2 * 1 / (1 + 1 + 2 * 1)
    assert told["metrics"]["WUPS@0.9"] == pytest.approx((0.05 + 1) / 2)
    told = mmgpt_command("score", said, truth, "--task", "qa", "--wordnet", tmp_path / "no")
    assert "apt install wordnet-base" in told.error(1)
