"""Evaluations on disk: what is kept, gone on with and refused, of a tiny model and a folder of walls."""

import dataclasses
import fcntl
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from exam_kills import DECODING
from walls import colour_of, write_walls

from mmgpt import checkpoint
from mmgpt.content import Message
from mmgpt.data.controls import shuffle_media
from mmgpt.errors import ConfigError
from mmgpt.evaluation import exam as exam_module
from mmgpt.evaluation.asking import Answered, costs
from mmgpt.evaluation.exam import Exam, Examined, compare, examine, preprocessing_hash, text_length
from mmgpt.evaluation.predictions import Reference
from mmgpt.evaluation.runner import evaluate
from mmgpt.evaluation.scoring import compared, score
from mmgpt.tokenizer import Tokenizer

FILES = ("settings.json", "answers.jsonl", "results.json", "report.html")


@pytest.fixture(scope="module")
def place(tmp_path_factory, model, tokenizer) -> Path:
    """A model, and pictures of which one is broken."""
    place = tmp_path_factory.mktemp("exam")
    checkpoint.save(place / "model", model, tokenizer)
    write_walls(place / "walls", train=2, dev=9, broken=("dev",))
    return place


@pytest.fixture(scope="module")
def asked(place) -> Exam:
    return Exam(str(place / "model"), "captions", str(place / "walls"), decoding=DECODING)


@pytest.fixture(scope="module")
def whole(place, asked) -> Path:
    """An evaluation that was never stopped."""
    examine(asked, place / "whole")
    return place / "whole"


def copy(whole: Path, out: Path, lines: int, torn: bytes = b"") -> Path:
    """One that was stopped after so many lines."""
    out.mkdir()
    (out / "settings.json").write_bytes((whole / "settings.json").read_bytes())
    kept = (whole / "answers.jsonl").read_bytes().splitlines(keepends=True)[:lines]
    (out / "answers.jsonl").write_bytes(b"".join(kept) + torn)
    return out


def lines_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "answers.jsonl").read_text("utf-8").splitlines()]


def test_each_line_has_what_was_asked_said_and_true(place, whole, assistant):
    *lines, broken = lines_of(whole)
    pictures = [place / "walls" / f"{i}.png" for i in range(2, 11)]
    said = assistant.caption(list(pictures), **{name: getattr(DECODING, name) for name in ("max_new_tokens", "top_k")},
                             temperature=1.0)  # fmt: skip
    assert [line["prediction"] for line in lines] == said
    assert [line["truths"] for line in lines] == [[f"{colour_of(i)} wall"] for i in range(2, 11)]
    for i, line in enumerate(lines):
        assert line["id"] == f"{place / 'walls' / 'captions.csv'}:{i + 4}"
        medium, text = line["prompt"][0]["content"]
        assert (medium, text["text"]) == ({"type": "image", "path": str(pictures[i])}, "Describe the picture.")
    assert "prediction" not in broken
    assert "not a picture" in broken["prediction_failed"]


def test_the_control_is_what_is_said_of_another_picture(asked, whole, assistant):
    spoilt = shuffle_media(asked.samples(), np.random.default_rng(DECODING.seed))
    for sample, line in zip(spoilt, lines_of(whole), strict=True):
        image = sample.prompt[0].parts[0]
        if "control" in line:
            assert line["control"] == assistant.caption(image, max_new_tokens=6, top_k=50, temperature=1.0)
        else:  # it got the broken one
            assert "broken" in str(image.source)
            assert "not a picture" in line["control_failed"]


def test_results_hold_the_scores_of_the_answers_and_what_made_them(asked, whole, assistant):
    results = json.loads((whole / "results.json").read_text("utf-8"))
    expected = evaluate(assistant, asked.samples(), DECODING, seed=DECODING.seed).scores
    assert {(one["task"], one["n"]) for one in results["scores"]} == {("caption", 9)}
    for found, own in zip(results["scores"], expected, strict=True):
        assert (found["score"], found["control"], tuple(found["interval"])) == (
            own.score, own.control, own.interval,
        )  # fmt: skip
    assert results["decoding"]["temperature"] == 1.0
    assert results["prompts"] == {"caption": ["Describe the picture."]}
    assert len(results["failed"]) == len(results["controls_failed"]) == 1
    assert results["versions"]["torch"]
    assert len(results["model"]["configuration_sha256"]) == 64


@pytest.mark.parametrize("torn", [b"", b'{"id": "half a li', b"\0\0\0\n"])
def test_it_goes_on_after_the_last_whole_line(asked, whole, tmp_path, torn, monkeypatch):
    out = copy(whole, tmp_path / "out", 4, torn)
    fed, replies = [], exam_module.replies
    monkeypatch.setattr(
        exam_module, "replies", lambda assistant, samples, decoding: replies(assistant, counted(samples), decoding)
    )

    def counted(samples):
        for sample in samples:
            fed.append(sample.where)
            yield sample

    examine(asked, out)
    assert fed == [sample.where for sample in asked.samples()[4:] for _ in range(2)]
    for name in FILES:
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name


def test_what_is_whole_needs_no_model(asked, whole, tmp_path, monkeypatch):
    out = copy(whole, tmp_path / "out", 10)
    monkeypatch.setattr(exam_module, "load", None)
    examine(asked, out)
    assert (out / "results.json").read_bytes() == (whole / "results.json").read_bytes()


def test_killed_again_and_again_it_leaves_the_files_of_one_that_never_was(place, whole, tmp_path):
    kills = [["file", 1], ["step", 2], ["line", 1], ["step", 3], ["line", 4], ["file", 1], ["file", 2]]
    script = Path(__file__).with_name("exam_kills.py")
    command = [sys.executable, script, place / "model", place / "walls", tmp_path / "out", json.dumps(kills)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.strip() == str([-9] * len(kills) + [0]), done.stderr
    for name in FILES:
        assert (tmp_path / "out" / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"decoding": dataclasses.replace(DECODING, beams=2, temperature=0.0)}, "decoding.beams was 1 and is 2"),
        ({"decoding": dataclasses.replace(DECODING, seed=1)}, "decoding.seed was 0 and is 1"),
        ({"limit": 3}, "data.limit was None and is 3"),
        ({"split": "train"}, "data.split was dev and is train"),
        ({"task": "describe"}, "data.task was None and is describe"),
        ({"int8": True}, "model.int8 was False and is True"),
    ],
)
def test_other_settings_are_refused_and_nothing_is_changed(asked, whole, tmp_path, change, told):
    out = copy(whole, tmp_path / "out", 2)
    before = (out / "answers.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="holds answers made with other settings") as error:
        examine(dataclasses.replace(asked, **change), out)
    assert told in str(error.value)
    assert (out / "answers.jsonl").read_bytes() == before


def test_another_model_and_other_truths_are_refused(asked, whole, tmp_path, model, tokenizer, monkeypatch):
    out = copy(whole, tmp_path / "out", 2)
    tensors = {name: tensor.clone() for name, tensor in checkpoint.tensors_of(model).items()}
    tensors["gpt.embedding.weight"][0, 0] += 1
    checkpoint.save(tmp_path / "model", model, tokenizer, tensors=tensors)
    with pytest.raises(ConfigError, match=r"model\.sha256 was"):
        examine(dataclasses.replace(asked, model=str(tmp_path / "model")), out)
    samples = asked.samples()
    samples[3] = dataclasses.replace(samples[3], answers=("a door",))
    monkeypatch.setattr(Exam, "samples", lambda self: samples)
    with pytest.raises(ConfigError, match=r"\(data\.sha256 was"):
        examine(asked, out)


def test_the_same_model_saved_again_is_the_same(asked, whole, tmp_path, model, tokenizer):
    checkpoint.save(tmp_path / "again", model, tokenizer, {"scores": [1]})
    out = copy(whole, tmp_path / "out", 10)
    assert examine(dataclasses.replace(asked, model=str(tmp_path / "again")), out).model == str(tmp_path / "again")


def test_answers_without_settings_and_a_place_in_use_are_refused(asked, whole, tmp_path):
    out = copy(whole, tmp_path / "out", 2)
    (out / "settings.json").unlink()
    with pytest.raises(ConfigError, match=r"answers\.jsonl is there without its settings\.json"):
        examine(asked, out)
    with (whole / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another process is writing there"):
            examine(asked, whole)


def test_a_limit_is_spread_over_the_split_and_a_task_may_be_told(asked):
    some = dataclasses.replace(asked, limit=3, task="describe").samples()
    places = [sample.where for sample in asked.samples()]
    assert [sample.where for sample in some] == [places[0], places[3], places[6]]
    assert {sample.task for sample in some} == {"describe"}


def test_chosen_is_the_likeliest_answer_that_the_data_has(asked, place, tmp_path, assistant):
    """As `classify` tells it, for the picture itself and for the one put in its place."""
    asked = dataclasses.replace(asked, choose=True)
    examined = examine(asked, tmp_path / "out")
    samples = asked.samples()
    labels = sorted({sample.answers[0] for sample in samples})
    assert len(labels) > 1
    for i, line in enumerate(lines_of(tmp_path / "out")):
        if "prediction" not in line:
            continue
        part, text = samples[i].prompt[0].parts
        prompt = assistant.processor.encode_prompt([Message.of("user", part, text)])
        logs = [float(assistant.likelihoods(prompt, [label])) for label in labels]
        assert line["prediction"] == examined.answered[i].prediction == labels[np.argmax(logs)]
    assert json.loads((tmp_path / "out" / "settings.json").read_bytes())["decoding"]["choose"] is True


def test_shots_of_the_train_part_stand_before_each_question(asked, place, tmp_path, assistant):
    few = dataclasses.replace(asked, shots=2)
    examine(few, tmp_path / "out")
    shots = few.examples()
    assert len(shots) == 2
    assert {shot.where for shot in shots}.isdisjoint(sample.where for sample in few.samples())
    begun = [message for shot in shots for message in (*shot.prompt, Message.of("assistant", shot.references[0]))]
    for line, sample in zip(lines_of(tmp_path / "out"), few.samples(), strict=True):
        assert [message["role"] for message in line["prompt"]] == ["user"]  # the question's own
        if "prediction" in line:
            [said] = assistant.reply([[*begun, *sample.prompt]], **dataclasses.asdict(few.decoding))
            assert line["prediction"] == said
    with pytest.raises(ConfigError, match=r"data\.shots was 2 and is 0"):
        examine(asked, tmp_path / "out")
    with pytest.raises(ConfigError, match="another split"):
        dataclasses.replace(few, split="train").examples()


def test_models_are_compared_on_the_samples_that_all_answered_as_mmgpt_score_does(asked):
    """The first sample is too long for one of them. The same numbers come from the metrics alone."""
    samples = [dataclasses.replace(one, task="ask") for one in asked.samples()[:9]]
    said = [one.answers[0] for one in samples]
    good = {i: Answered(one, said[i]) for i, one in enumerate(samples)}
    bad = {i: Answered(one, said[i] if i % 4 == 1 else "a door") for i, one in enumerate(samples) if i}
    row, f1 = compare([Examined("a", [], good, {}), Examined("b", [], bad, {0: "too long"})])
    truths = [Reference([truth], "") for truth in said[1:]]
    first, second = (score("qa", [one[i].prediction for i in range(1, 9)], truths) for one in (good, bad))
    assert (row.task, row.metric, row.n, row.scores) == ("ask", "exact match", 8, [1.0, 2 / 8])
    assert row.intervals == [first.intervals["exact match"], second.intervals["exact match"]]
    assert row.p == [compared(first, second)["exact match"][1]]
    assert row.p[0] < 0.05
    assert (f1.metric, f1.scores) == ("F1 of words", [first.scores["F1"], second.scores["F1"]])


def test_of_documents_to_continue_the_likelihood_is_told(place, tmp_path, assistant):
    texts = [f"{'red blue '[: 1 + i % 9]}circle {i}." for i in range(40)]
    rows = "".join(json.dumps({"text": text, "split": "dev"}) + "\n" for text in texts)
    (tmp_path / "texts.jsonl").write_text(rows)
    exam = Exam(str(place / "model"), "texts", str(tmp_path / "texts.jsonl"), decoding=DECODING)
    examine(exam, tmp_path / "out")
    results = json.loads((tmp_path / "out" / "results.json").read_text("utf-8"))
    scores = {one["metric"]: one for one in results["scores"]}
    found = [one.cost for one in costs(assistant, exam.samples())]
    nats, tokens = sum(one.nats for one in found), sum(one.tokens for one in found)
    assert scores["perplexity of tokens"]["score"] == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    bits = nats / math.log(2) / sum(map(len, texts))
    for name in ("bits per byte", "bits per character"):
        one = scores[name]
        assert (one["score"], one["times"], one["control"]) == (pytest.approx(bits, rel=1e-5), 1, None)
        assert one["interval"][0] < bits < one["interval"][1]
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert f"{bits:.3f}" in page
    assert str(found[0]) in page

    again = copy(tmp_path / "out", tmp_path / "again", 17)
    examine(exam, again)
    for name in FILES:
        assert (again / name).read_bytes() == (tmp_path / "out" / name).read_bytes(), name
    other = examine(dataclasses.replace(exam, decoding=dataclasses.replace(DECODING, seed=5)), tmp_path / "other")
    assert compare([examine(exam, again), other])[0].times == 1


def test_questions_that_share_a_picture_are_asked_one_by_one(place, tmp_path):
    picture = str(place / "walls" / "3.png")
    shutil.copy(picture, tmp_path / "a.png")
    row = {"image": "a.png", "question": ["What?", "Why?"], "answer": ["a", "b"], "split": "dev"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n")
    exam = Exam(str(place / "model"), "texts", str(tmp_path / "rows.jsonl"), decoding=DECODING)
    asked = [sample.prompt[0].parts[1].text for sample in exam.samples()]
    assert asked == ["What?", "Why?"] * 2
    assert len(dataclasses.replace(exam, limit=3).samples()) == 3


def test_the_hash_of_preprocessing_is_of_what_the_model_is_given_and_nothing_else(place, tmp_path, model, tokenizer):
    def changed(name: str, **fields) -> str:
        checkpoint.save(tmp_path / name, model, tokenizer)
        path = checkpoint.resolve(tmp_path / name) / "config.json"
        values = json.loads(path.read_text())
        for field, value in fields.items():
            section, key = field.split("__")
            assert values["model"][section][key] != value
            values["model"][section][key] = value
        path.write_text(json.dumps(values))
        return preprocessing_hash(str(tmp_path / name))

    own = preprocessing_hash(str(place / "model"))
    assert changed("same") == changed("dropout", gpt__dropout=0.5, image__frozen=True) == own
    different = {changed("mean", image__mean=[0.1, 0.2, 0.3]), changed("rate", audio__sample_rate=4000)}
    different |= {changed("frames", video__frames=7)}
    checkpoint.save(tmp_path / "words", model, Tokenizer.train(["other words are here"] * 9, len(tokenizer)))
    different |= {preprocessing_hash(str(tmp_path / "words")), own}
    assert len(different) == 5
    asked = Exam(str(place / "model"), "captions", str(place / "walls"), limit=1, decoding=DECODING)
    examine(asked, tmp_path / "out")
    results = json.loads((tmp_path / "out" / "results.json").read_text("utf-8"))
    assert results["model"]["preprocessing_sha256"] == own


def test_texts_are_cut_as_those_that_were_learned(place, tmp_path, model, tokenizer):
    for length in (100, 90):
        checkpoint.save(tmp_path / str(length), model, tokenizer, {"text_length": length})
    learned, other, without = (str(path) for path in (tmp_path / "100", tmp_path / "90", place / "model"))
    assert text_length([learned]) == text_length([learned, without]) == 100
    assert text_length([without]) == model.config.gpt.context - 2
    with pytest.raises(ConfigError, match=r"different lengths: .*100 of 100 bytes, .*90 of 90 bytes; evaluate each"):
        text_length([learned, other])
