"""The commands that ask a model, info and tokenizer: what they print, and what they say of bad input."""

import json
import os

import numpy as np
import PIL.Image
import pytest

from mmgpt import checkpoint
from mmgpt.content import Audio, Image, Text
from mmgpt.tasks import TASKS
from mmgpt.tokenizer import Tokenizer

# Drawn, since the likeliest tokens of an untrained model are no text.
SHORT = ("--max-new-tokens", 6, "--temperature", 1.0, "--seed", 3)
DRAWN = {"max_new_tokens": 6, "temperature": 1.0, "seed": 3}


def test_caption_prints_what_the_model_says(mmgpt_command, model_directory, media, assistant):
    said = assistant.caption(media / "good.jpg", **DRAWN)
    assert said
    one = mmgpt_command("caption", media / "good.jpg", "--model", model_directory, *SHORT)
    assert (one.code, one.out, one.err) == (0, said + "\n", "")
    two = mmgpt_command("caption", media / "good.jpg", media / "good.jpg", "--model", model_directory, *SHORT)
    assert two.out == 2 * f"{media / 'good.jpg'}: {said}\n"


def test_caption_as_json_is_an_object_to_a_line(mmgpt_command, model_directory, media, assistant):
    told = mmgpt_command("caption", media / "good.jpg", "--model", model_directory, "--json", *SHORT)
    assert json.loads(told.out) == {
        "image": str(media / "good.jpg"),
        "caption": assistant.caption(media / "good.jpg", **DRAWN),
    }


def test_transcribe_prints_what_the_model_hears(mmgpt_command, model_directory, media, assistant):
    said = assistant.transcribe(media / "good.wav", **DRAWN)
    told = mmgpt_command("transcribe", media / "good.wav", "--model", model_directory, *SHORT)
    assert (told.code, told.out) == (0, said + "\n")
    told = mmgpt_command("transcribe", media / "good.wav", "--model", model_directory, "--json", *SHORT)
    assert json.loads(told.out) == {"audio": str(media / "good.wav"), "transcript": said}


def test_ask_takes_media_several_times_or_none(mmgpt_command, model_directory, media, assistant):
    picture, sound = media / "good.jpg", media / "good.wav"
    told = mmgpt_command(
        "ask", "What?", "--image", picture, "--image", picture, "--audio", sound, "--model", model_directory, *SHORT
    )
    said = assistant.ask("What?", image=[picture, picture], audio=sound, **DRAWN)
    assert (told.code, told.out) == (0, said + "\n")
    told = mmgpt_command("ask", "What?", "--model", model_directory, "--json", *SHORT)
    assert json.loads(told.out) == {"question": "What?", "answer": assistant.ask("What?", **DRAWN)}


def test_ask_reads_a_text_to_be_asked_about_and_examples(mmgpt_command, model_directory, media, assistant, tmp_path):
    (tmp_path / "a.txt").write_text("A red circle.\n", "utf-8")
    asked = ("ask", "What?", "--model", model_directory, *SHORT)
    about = mmgpt_command(*asked, "--text", tmp_path / "a.txt")
    assert about.out == assistant.ask("What?\nA red circle.", **DRAWN) + "\n"
    assert "no.txt: cannot be read" in mmgpt_command(*asked, "--text", tmp_path / "no.txt").error(1)
    shown = mmgpt_command(*asked, "--example", media / "good.jpg", "And this?", "red", "--example", "Why?", "so")
    examples = [([Image(media / "good.jpg"), "And this?"], "red"), ("Why?", "so")]
    assert shown.out == assistant.ask("What?", examples=examples, **DRAWN) + "\n" != about.out
    assert "--example: is a question and its answer" in mmgpt_command(*asked, "--example", "Why?").error(2)


def test_examples_stand_before_what_is_asked_of_files(mmgpt_command, model_directory, media, assistant, tmp_path):
    picture, sound = media / "good.jpg", media / "good.wav"
    shown = ("--model", model_directory, "--example")
    told = mmgpt_command("caption", picture, *shown, picture, "a red wall", *SHORT)
    assert told.out == assistant.caption(picture, examples=[(picture, "a red wall")], **DRAWN) + "\n"
    told = mmgpt_command("transcribe", sound, *shown, sound, "ki da", *SHORT)
    assert told.out == assistant.transcribe(sound, examples=[(sound, "ki da")], **DRAWN) + "\n"
    told = mmgpt_command("describe", sound, *shown, picture, "it stands", *SHORT)
    assert told.out == assistant.describe(sound, examples=[(picture, "it stands")], **DRAWN) + "\n"
    told = mmgpt_command("classify", picture, "--labels", "a,b", *shown, "so", "b", "--json")
    assert json.loads(told.out)["labels"] == assistant.classify(picture, ["a", "b"], examples=[(Text("so"), "b")])
    line = mmgpt_command("caption", picture, "--out", tmp_path / "a.jsonl", *shown, picture, "a").error(2)
    assert "--example: goes without --out" in line


def test_a_cluster_is_for_captions_that_go_into_a_file(mmgpt_command):
    for flags in (["--engine", "ray"], ["--workers", 2]):
        assert "--engine, --workers: go with --out" in mmgpt_command("caption", "a.png", *flags).error(2)


def test_describe_tells_what_each_file_is_by_its_ending(mmgpt_command, model_directory, media, assistant):
    sound, picture = media / "good.wav", media / "good.jpg"
    said = assistant.describe([sound, picture], **DRAWN)
    ask = TASKS["describe"].conversation
    assert said == assistant.reply([ask(Audio(sound)), ask(Image(picture))], **DRAWN)
    told = mmgpt_command("describe", sound, picture, "--model", model_directory, *SHORT)
    assert (told.code, told.out) == (0, f"{sound}: {said[0]}\n{picture}: {said[1]}\n")
    told = mmgpt_command("describe", sound, "--model", model_directory, "--json", *SHORT)
    assert json.loads(told.out) == {"media": str(sound), "description": said[0]}
    assert "empty.jpg" in mmgpt_command("describe", media / "empty.jpg", "--model", model_directory).error(1)


def test_generate_goes_on_with_a_text_or_with_nothing(mmgpt_command, model_directory, assistant):
    begun = "A red circle"
    said = assistant.complete(begun, **DRAWN)
    told = mmgpt_command("generate", begun, "--model", model_directory, *SHORT)
    assert (told.code, told.out) == (0, f"{begun}{said}\n")
    told = mmgpt_command("generate", "--model", model_directory, *SHORT)
    assert told.out == assistant.complete("", **DRAWN) + "\n"
    told = mmgpt_command("generate", begun, "--model", model_directory, "--json", *SHORT)
    assert json.loads(told.out) == {"text": begun, "completion": said}
    beams = ("--max-new-tokens", 6, "--beams", 2)
    told = mmgpt_command("generate", begun, "--model", model_directory, *beams)
    assert told.out == begun + assistant.complete(begun, max_new_tokens=6, beams=2) + "\n"


def test_retrieve_tells_the_nearest_files_first(mmgpt_command, model_directory, assistant, media, tmp_path):
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 64 * (i + 1), (48, 48, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    (tmp_path / "broken.png").write_text("no picture")
    query = tmp_path / "2.png"
    pictures = [tmp_path / f"{i}.png" for i in range(4)]
    nearness = assistant.embed(pictures) @ assistant.embed(query)
    order = nearness.argsort(descending=True).tolist()
    assert order[0] == 2
    told = mmgpt_command("retrieve", query, tmp_path, "--model", model_directory, "--most", 3)
    assert told.code == 1
    assert "broken.png" in told.err
    assert told.out == "".join(f"{nearness[i]:.3f}  {pictures[i]}\n" for i in order[:3])
    words = mmgpt_command("retrieve", "A red circle.", query, "--model", model_directory, "--json")
    [found] = [json.loads(line) for line in words.out.splitlines()]
    assert found["file"] == str(query)
    near = float(assistant.embed(query) @ assistant.embed("A red circle."))
    assert found["similarity"] == pytest.approx(near, abs=1e-4)
    assert "--most: must be" in mmgpt_command("retrieve", "x", query, "--most", 0).error(2)
    sound = tmp_path / "a.wav"
    sound.write_bytes((media / "good.wav").read_bytes())
    told = mmgpt_command("retrieve", sound, tmp_path, "--model", model_directory, "--most", 1)
    assert told.out == f"1.000  {sound}\n"


def test_translate_prints_what_the_model_says(mmgpt_command, model_directory, assistant):
    said = assistant.translate("A dog runs.", "German", **DRAWN)
    asked = ("translate", "A dog runs.", "--to", "German", "--model", model_directory, *SHORT)
    told = mmgpt_command(*asked)
    assert (told.code, told.out) == (0, said + "\n")
    told = mmgpt_command(*asked, "--json")
    assert json.loads(told.out) == {"text": "A dog runs.", "to": "German", "translation": said}


def test_summarize_reads_a_file_or_standard_input(mmgpt_command, model_directory, assistant, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\nA red circle left of a blue square.\n\n")
    said = assistant.summarize("A red circle left of a blue square.", **DRAWN)
    told = mmgpt_command("summarize", path, "--model", model_directory, *SHORT)
    assert (told.code, told.out) == (0, said + "\n")
    told = mmgpt_command("summarize", path, "--model", model_directory, "--json", *SHORT)
    assert json.loads(told.out) == {"file": str(path), "summary": said}
    own = os.dup(0)
    with path.open() as text:
        os.dup2(text.fileno(), 0)
    try:
        told = mmgpt_command("summarize", "-", "--model", model_directory, *SHORT)
    finally:
        os.dup2(own, 0)
        os.close(own)
    assert (told.code, told.out) == (0, said + "\n")


def test_a_text_that_cannot_be_summarized_is_told(mmgpt_command, model_directory, tmp_path):
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "latin.txt").write_bytes(b"gr\xfc\xdfe")
    (tmp_path / "long.txt").write_text("what? " * 200)
    for name, reason in (
        ("no.txt", "cannot be read"),
        ("blank.txt", "there is no text in it"),
        ("latin.txt", "not UTF-8"),
    ):
        line = mmgpt_command("summarize", tmp_path / name, "--model", model_directory).error(1)
        assert str(tmp_path / name) in line
        assert reason in line
    line = mmgpt_command("summarize", tmp_path / "long.txt", "--model", model_directory).error(1)
    assert "more than the context of 160" in line


def test_classify_tells_the_shares_of_media_and_texts(mmgpt_command, model_directory, media, assistant):
    for source, own in ((media / "good.jpg", media / "good.jpg"), ("What? " * 20, Text("What? " * 20))):
        shares = assistant.classify(own, ["red", "a blue square"], "It is {}.")
        asked = ("classify", source, "--labels", "red, a blue square", "--template", "It is {}.", "--model",
                 model_directory)  # fmt: skip
        told = mmgpt_command(*asked, "--json")
        assert json.loads(told.out) == {"source": str(source), "labels": shares}
        lines = mmgpt_command(*asked).out.splitlines()
        assert [line.partition("%  ")[2] for line in lines] == list(shares)
        assert float(lines[0].split()[0]) == pytest.approx(100 * max(shares.values()), abs=0.06)


def test_classify_takes_a_long_text_and_names_a_medium_that_is_missing(mmgpt_command, model_directory, media):
    line = mmgpt_command("classify", "what? " * 900, "--labels", "a,b", "--model", model_directory).error(1)
    assert "more than the context of 160" in line
    line = mmgpt_command("classify", media / "no.jpg", "--labels", "a,b", "--model", model_directory).error(1)
    assert "no such file" in line
    asked = ("classify", "What?", "--model", model_directory)
    assert "needs labels" in mmgpt_command(*asked, "--labels", " , ").error(2)


def test_info_tells_sizes_modalities_and_training(mmgpt_command, model_directory, model):
    told = mmgpt_command("info", model_directory)
    assert told.code == 0
    total = sum(parameter.numel() for parameter in model.parameters())
    for expected in (f"{total / 1e6:.2f} M parameters", "convnext_atto", "8000 Hz", "2 frames", "steps", "7", "1.5"):
        assert expected in told.out
    told = json.loads(mmgpt_command("info", model_directory, "--json").out)
    assert sum(told["parameters"].values()) == total
    assert told["config"]["image"]["size"] == [32, 32]
    assert told["training"]["steps"] == 7


def test_tokenizer_train_writes_what_tokenizer_load_reads(mmgpt_command, tmp_path):
    (tmp_path / "a.txt").write_text("a red circle and a blue square\n" * 20)
    told = mmgpt_command("tokenizer", "train", tmp_path / "a.txt", "--vocab-size", 280, "--out", tmp_path / "new" / "t")
    assert told.code == 0
    tokenizer = Tokenizer.load(tmp_path / "new" / "t")
    assert told.out.startswith(f"{len(tokenizer)} tokens")
    assert len(tokenizer.encode("a red circle")) < len("a red circle")


@pytest.mark.parametrize(
    ("command", "name", "told"),
    [
        ("caption", "missing.jpg", "no such file"),
        ("caption", "text.jpg", "not a picture"),
        ("caption", "truncated.jpg", "truncated"),
        ("caption", "empty.jpg", "is empty (0 bytes)"),
        ("caption", "huge.png", "larger than 100,000,000 pixels"),
        ("caption", "good.wav", "not a picture"),
        ("caption", ".", "is a directory"),
        ("transcribe", "missing.wav", "no such file"),
        ("transcribe", "empty.wav", "is empty (0 bytes)"),
        ("transcribe", "silent.wav", "no samples"),
        ("transcribe", "text.jpg", "not a sound"),
    ],
)
def test_bad_media_are_named_with_the_reason(mmgpt_command, model_directory, media, command, name, told):
    line = mmgpt_command(command, media / name, "--model", model_directory).error(1)
    assert str(media / name) in line
    assert told in line


def test_a_huge_picture_is_refused_without_the_memory_for_it(mmgpt_command, model_directory, media):
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    mmgpt_command("caption", media / "huge.png", "--model", model_directory).error(1)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes; it would take 300,000


def test_a_model_that_is_not_there_is_told(mmgpt_command, media, tmp_path):
    for command in ("caption", "transcribe", "ask"):
        line = mmgpt_command(command, media / "good.jpg", "--model", tmp_path / "nowhere").error(1)
        assert f"{tmp_path / 'nowhere'}: no such directory" in line
    assert "no checkpoint here" in mmgpt_command("info", tmp_path).error(1)


def test_a_checkpoint_of_another_shape_names_the_tensor(mmgpt_command, media, tmp_path, model, tokenizer):
    checkpoint.save(tmp_path / "model", model, tokenizer)
    path = checkpoint.resolve(tmp_path / "model") / "config.json"
    values = json.loads(path.read_text())
    values["model"]["gpt"]["mlp_width"] = 64
    path.write_text(json.dumps(values))
    line = mmgpt_command("caption", media / "good.jpg", "--model", tmp_path / "model").error(1)
    # The gate and the values of the MLP are one matrix, twice as high as the MLP is wide.
    assert "model.safetensors: tensor gpt.transformer.blocks.0.mlp.up.weight is (192, 32)" in line
    assert "the model's is (128, 32)" in line


def test_a_question_longer_than_the_context_is_told(mmgpt_command, model_directory):
    line = mmgpt_command("ask", "what? " * 200, "--model", model_directory).error(1)
    assert "more than the context of 160" in line


def test_decoding_settings_that_exclude_each_other_are_bad_usage(mmgpt_command, model_directory, media):
    line = mmgpt_command(
        "caption", media / "good.jpg", "--model", model_directory, "--beams", 2, "--temperature", 1
    ).error(2)
    assert "beam search does not sample" in line


@pytest.mark.parametrize(
    ("text", "size", "told"),
    [(None, 300, "no such file"), (b"\xff\xfe", 300, "not readable as UTF-8"), (b"a", 3, "at least 261")],
)
def test_a_tokenizer_that_cannot_be_trained_is_told(mmgpt_command, tmp_path, text, size, told):
    if text is not None:
        (tmp_path / "a.txt").write_bytes(text)
    line = mmgpt_command(
        "tokenizer", "train", tmp_path / "a.txt", "--vocab-size", size, "--out", tmp_path / "out"
    ).error(1)
    assert told in line
    assert not (tmp_path / "out").exists()


def test_a_broken_picture_among_others_costs_itself_alone(mmgpt_command, model_directory, media, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_text("no picture")
    good = str(media / "good.jpg")
    told = mmgpt_command("caption", good, broken, good, "--model", model_directory, "--json")
    assert "broken.png" in told.error(1)
    assert [json.loads(line)["image"] for line in told.out.splitlines()] == [good, good]


def test_explain_tells_each_word_and_writes_a_page(mmgpt_command, model_directory, media, tmp_path):
    asked = ("explain", model_directory, "--image", media / "good.jpg", "--answer", "A red circle")
    told = mmgpt_command(*asked, "--method", "rollout", "--out", tmp_path / "seen")
    assert told.code == 0, told.err
    assert [line.split()[0] for line in told.out.splitlines()[:3]] == ["A", "red", "circle"]
    assert str(tmp_path / "seen" / "explanation.html") in told.out
    assert (tmp_path / "seen" / "02-red.png").exists()
    assert "attention roll-out" in (tmp_path / "seen" / "explanation.html").read_text("utf-8")
    found = json.loads(mmgpt_command(*asked, "--method", "rollout", "--out", tmp_path / "seen", "--json").out)
    assert found["prompt"] == "Describe the picture."
    assert [word["text"] for word in found["words"]] == ["A", " red", " circle"]
    assert 0 < found["words"][1]["probability"] < 1
    assert found["words"][1]["tokens"]
    own = mmgpt_command(*asked, "--prompt", "What is it?", "--out", tmp_path / "seen", "--json")
    assert json.loads(own.out)["prompt"] == "What is it?"


def test_explain_takes_the_model_first_and_wants_media(mmgpt_command, model_directory, media, tmp_path):
    nothing = mmgpt_command("explain", model_directory, "--prompt", "What?")
    assert "no picture, sound or clip in the prompt" in nothing.error(1)
    line = mmgpt_command("explain", "What?", "--image", media / "good.jpg").error(1)
    assert "What?: no such directory" in line
    assert "required: MODEL" in mmgpt_command("explain", "--image", media / "good.jpg").error(2)
