"""mmgpt eval: its tables, its JSON, and what it says of bad usage."""

import json
import math

import pytest
from tiny import seeing, tiny_config
from walls import write_walls
from wordnets import write_wordnet

from mmgpt import checkpoint
from mmgpt.assistant import Assistant
from mmgpt.config import GPTConfig, PairConfig
from mmgpt.data.captions import read_captions
from mmgpt.evaluation.retrieval import search

CAPTION = ["CIDEr-D", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L"]
SHORT = ("--max-new-tokens", 6, "--temperature", 1.0, "--seed", 3)


@pytest.fixture(scope="module")
def walls(tmp_path_factory):
    return write_walls(tmp_path_factory.mktemp("eval") / "walls", train=2, dev=4, broken=("dev",))


def test_eval_prints_the_scores_and_where_the_report_is(mmgpt_command, model_directory, walls, tmp_path):
    arguments = ("eval", model_directory, "--format", "captions", "--data", walls, "--out", tmp_path / "out", *SHORT)
    told = mmgpt_command(*arguments)
    assert told.code == 0, told.err
    assert "caption, CIDEr-D" in told.out
    assert "1 samples or answers could not be used" in told.out
    assert str(tmp_path / "out" / "report.html") in told.out
    again = mmgpt_command(*arguments[:2], *arguments[4:], "--json")  # the format is told by the data
    results = json.loads((tmp_path / "out" / "results.json").read_text("utf-8"))
    assert json.loads(again.out) == {"model": str(model_directory), "scores": results["scores"], "failed": 1}


def test_what_it_leaves_is_scored_alike_by_mmgpt_score(mmgpt_command, model_directory, walls, tmp_path):
    arguments = ("eval", model_directory, "--data", walls, "--out", tmp_path / "out", "--json", *SHORT)
    scores = {one["metric"]: one for one in json.loads(mmgpt_command(*arguments).out)["scores"]}
    told = json.loads(mmgpt_command("score", tmp_path / "out" / "answers.jsonl", "--task", "caption", "--json").out)
    assert told["n"] == scores["CIDEr-D"]["n"] == 4
    assert set(told["metrics"]) >= {"BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr"}
    for name, value in told["metrics"].items():
        one = scores[name.replace("CIDEr", "CIDEr-D")]
        assert (one["score"], one["interval"]) == (value, told["intervals"][name])


def test_answers_to_questions_get_wups_where_wordnet_is_given(mmgpt_command, model_directory, tmp_path):
    write_wordnet(tmp_path)
    (tmp_path / "dev.jsonl").write_text('{"question": "what is left of the lamp?", "answer": "chair"}\n')
    arguments = ("eval", model_directory, "--format", "texts", "--data", tmp_path / "dev.jsonl")
    for more, metrics in (
        ((), ["exact match", "F1 of words"]),
        (("--wordnet", tmp_path), ["exact match", "F1 of words", "WUPS@0.9", "WUPS@0.0"]),
    ):
        told = mmgpt_command(*arguments, "--out", tmp_path / "out", "--json", *more, *SHORT)
        assert told.code == 0, told.err
        assert [score["metric"] for score in json.loads(told.out)["scores"]] == metrics


def test_translations_are_told_with_the_signature_of_their_score(mmgpt_command, model_directory, tmp_path):
    rows = [{"source": "A dog runs.", "target": "一只狗在跑。"}, {"source": "He bought it.", "target": "他买了。"}]
    (tmp_path / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ("eval", model_directory, "--data", tmp_path, "--task", "translate", "--out", tmp_path / "out", *SHORT)
    told = mmgpt_command(*arguments)
    results = json.loads((tmp_path / "out" / "results.json").read_text("utf-8"))
    bleu, chrf = (score["signature"] for score in results["scores"])
    assert "|tok:zh|" in bleu
    assert "|nc:6|" in chrf
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert all(signature in page and signature in told.out for signature in (bleu, chrf))


def test_eval_refuses_other_settings_in_the_same_place(mmgpt_command, model_directory, walls, tmp_path):
    arguments = ("eval", model_directory, "--format", "captions", "--data", walls, "--out", tmp_path / "out", *SHORT)
    assert mmgpt_command(*arguments, "--limit", 2).code == 0
    assert "data.limit was 2 and is 3" in mmgpt_command(*arguments, "--limit", 3).error(2)


def test_two_models_are_compared_sample_by_sample(mmgpt_command, model_directory, walls, tmp_path):
    """A model is as good as itself: p is 1 where nothing differs."""
    arguments = ("eval", model_directory, model_directory, "--format", "captions", "--data", walls, *SHORT)
    told = mmgpt_command(*arguments, "--out", tmp_path / "out", "--json")
    both = json.loads(told.out)
    assert [one["model"] for one in both["models"]] == [str(model_directory)] * 2
    assert {row["metric"]: (row["n"], row["p"]) for row in both["comparison"]} == dict.fromkeys(CAPTION, (4, [1.0]))
    assert json.loads((tmp_path / "out" / "comparison.json").read_text("utf-8"))["comparison"] == both["comparison"]
    name = model_directory.name
    assert (tmp_path / "out" / f"2-{name}" / "report.html").is_file()
    shown = mmgpt_command(*arguments, "--out", tmp_path / "out").out
    assert "+0.0" in shown
    assert "1.000" in shown


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["eval", "m"], "required: --data"),
        (["eval", "m", "--format", "world", "--data", "x"], "invalid choice: 'world'"),
        (["eval", "m", "--format", "captions", "--data", "x", "--limit", "0"], "--limit: must be a whole number"),
        (["eval", "m", "--format", "captions", "--data", "x", "--task", "sing"], "invalid choice: 'sing'"),
    ],
)
def test_bad_usage_of_eval_is_one_line_and_2(mmgpt_command, arguments, told):
    assert told in mmgpt_command(*arguments).error(2)


def test_data_of_no_known_format_want_it_told(mmgpt_command, model_directory, tmp_path):
    (tmp_path / "a.xyz").touch()
    line = mmgpt_command("eval", model_directory, "--data", tmp_path).error(2)
    assert f"{tmp_path}: the names of the files tell no format; say which: captions, coco" in line


def test_data_that_are_not_there_are_told(mmgpt_command, model_directory, tmp_path):
    assert str(tmp_path / "no") in mmgpt_command(
        "eval", model_directory, "--format", "captions", "--data", tmp_path / "no", "--out", tmp_path / "out"
    ).error(1)


def test_plain_text_is_cut_to_the_context_and_scored_by_its_likelihood(mmgpt_command, model_directory, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("A red circle is left of a blue square. " * 200, "utf-8")  # a line longer than any context
    arguments = ("eval", model_directory, "--format", "texts", "--data", text, "--split", "dev")
    told = mmgpt_command(*arguments, "--out", tmp_path / "out", "--json")
    assert told.code == 0, told.err
    results = json.loads(told.out)
    assert results["failed"] == 0
    assert [score["metric"] for score in results["scores"]] == [
        "perplexity of tokens", "bits per byte", "bits per character",
    ]  # fmt: skip
    perplexity, bits, _ = (score["score"] for score in results["scores"])
    shown = mmgpt_command(*arguments, "--out", tmp_path / "out").out
    assert f"{perplexity:.3f}" in shown
    assert f"{bits:.3f}" in shown
    compared = mmgpt_command(*arguments[:2], *arguments[1:], "--out", tmp_path / "both").out
    assert f"{perplexity:.3f}" in compared
    assert "+0.000" in compared


@pytest.fixture(scope="module")
def pairing(tokenizer, tmp_path_factory):
    """A model that pairs and answers nothing; untrained, so that it is right now and then."""
    config = tiny_config(len(tokenizer))
    config.pair = PairConfig(width=16, text=GPTConfig(width=24, layers=1, heads=2, context=160), heads=2, caption=0.0)
    return checkpoint.save(tmp_path_factory.mktemp("pairing") / "pairing", seeing(config), tokenizer)


def test_a_model_that_pairs_is_told_by_what_it_retrieves(mmgpt_command, pairing, tmp_path):
    folder = write_walls(tmp_path / "walls", train=2, dev=13, broken=("dev",))
    arguments = ("eval", pairing, "--format", "captions", "--data", folder, "--task", "retrieve")
    told = mmgpt_command(*arguments, "--out", tmp_path / "out", "--json")
    assert told.code == 0, told.err
    expected, _ = search(Assistant(*checkpoint.load(pairing)), read_captions(folder, "dev"))
    results = json.loads((tmp_path / "out" / "results.json").read_text("utf-8"))
    assert json.loads(told.out) == {"model": str(pairing), "scores": results["scores"], "failed": 1}
    assert [(one["task"], one["metric"], one["score"]) for one in results["scores"]] == [
        (score.task, score.metric, score.score) for one in expected for score in one.scores()
    ]
    ways = [(one["task"], one["metric"], one["n"]) for one in results["scores"] if one["metric"].startswith("R@")]
    assert ways == [("find the text", "R@1", 13), *(("find the medium", f"R@{n}", 3) for n in (1, 5, 10))]
    (reason,) = results["failed"]
    assert "not a picture" in reason["reason"]
    assert "Retrieval by pairing" in (tmp_path / "out" / "report.html").read_text("utf-8")
    assert mmgpt_command(*arguments, "--out", tmp_path / "out").code == 0  # the same again
    assert "data.limit was None and is 4" in mmgpt_command(*arguments, "--limit", 4, "--out", tmp_path / "out").error(2)


def test_classes_are_told_zero_shot(mmgpt_command, pairing, walls, tmp_path):
    for i, name in enumerate(("red", "blue", "red", "green")):
        (tmp_path / "kinds" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "kinds" / name / f"{i}.png").write_bytes((walls / f"{i}.png").read_bytes())
    arguments = ("--format", "folders", "--data", tmp_path / "kinds", "--split", "train", "--task", "retrieve")
    told = mmgpt_command("eval", pairing, *arguments, "--out", tmp_path / "out", "--json")
    assert told.code == 0, told.err
    (score,) = json.loads(told.out)["scores"]
    model = Assistant(*checkpoint.load(pairing))
    held_out = sorted((tmp_path / "kinds").glob("*/*.png"))[0]  # the first by name
    files = [file for file in (tmp_path / "kinds").glob("*/*.png") if file != held_out]
    labels = sorted({file.parent.name for file in files})
    right = sum(next(iter(model.classify(file, labels))) == file.parent.name for file in files)
    assert (score["task"], score["metric"], score["score"], score["n"]) == ("find the class", "accuracy", right / 3, 3)


def test_two_models_that_pair_are_compared_query_by_query(mmgpt_command, pairing, walls, tmp_path):
    arguments = ("eval", pairing, pairing, "--format", "captions", "--data", walls, "--task", "retrieve")
    told = mmgpt_command(*arguments, "--out", tmp_path / "out", "--json")
    assert told.code == 0, told.err
    rows = json.loads(told.out)["comparison"]
    assert [(row["task"], row["metric"], row["n"], row["p"]) for row in rows] == [
        ("find the text", "R@1", 4, [1.0]), ("find the medium", "R@1", 3, [1.0]),
    ]  # fmt: skip
    assert all(math.isfinite(end) for row in rows for interval in row["intervals"] for end in interval)


def test_what_cannot_be_retrieved_is_told(mmgpt_command, pairing, model_directory, walls, tmp_path):
    data = ("--format", "captions", "--data", walls, "--out", tmp_path / "out")
    assert "eval --task retrieve" in mmgpt_command("eval", pairing, *data).error(2)
    assert "does not pair" in mmgpt_command("eval", model_directory, *data, "--task", "retrieve").error(2)
    assert "leave --choose" in mmgpt_command("eval", pairing, *data, "--task", "retrieve", "--choose").error(2)
    (tmp_path / "a.csv").write_text("question,answer\nQ,A\nQ,B\n")
    texts = ("--format", "texts", "--data", tmp_path / "a.csv", "--out", tmp_path / "texts", "--task", "retrieve")
    assert "there are no pairs" in mmgpt_command("eval", pairing, *texts).error(1)
