import math

import pytest
import torch
from tiny import some_audio, some_image, some_video

import mmgpt
from mmgpt.batch import collate
from mmgpt.content import Message, Text
from mmgpt.data.rows import row_sample
from mmgpt.errors import ConfigError, MediaError
from mmgpt.tasks import TASKS


@pytest.mark.parametrize("decoding", [{}, {"beams": 2}, {"temperature": 1.0, "top_k": 50, "seed": 5}])
def test_a_list_gives_what_each_alone_gives(assistant, decoding):
    images = [some_image(i) for i in range(3)]
    decoding = {**decoding, "max_new_tokens": 8}
    together = assistant.caption(images, **decoding)
    assert all(together)
    assert len(set(together)) == 3
    assert together == [assistant.caption(image, **decoding) for image in images]
    sounds = [some_audio(i, 1500 * (i + 1)) for i in range(3)]
    assert assistant.transcribe(sounds, **decoding) == [assistant.transcribe(s, **decoding) for s in sounds]


def test_a_stream_says_what_generate_says(assistant):
    for seed in range(4):
        prompt = [some_image(seed), "and", some_audio(seed)]
        pieces = list(assistant.stream(prompt, max_new_tokens=20, temperature=1.0, seed=seed))
        whole = assistant.generate(prompt, max_new_tokens=20, temperature=1.0, seed=seed)
        assert "".join(pieces).strip() == whole


def test_questions_take_any_media_one_or_several(assistant):
    image, audio, video = some_image(0), some_audio(1), some_video(2)
    short = {"max_new_tokens": 4}
    for media in ({"image": image}, {"image": [image, some_image(3)]}, {"audio": audio, "video": [video]}, {}):
        assert isinstance(assistant.ask("What?", **media, **short), str)


def test_a_text_to_be_asked_about_stands_below_the_question_as_in_rows(assistant):
    row = row_sample({"instruction": "What?", "input": "A red circle.", "output": "a"}, "x:1")
    drawn = {"max_new_tokens": 6, "temperature": 1.0, "top_k": 50, "seed": 3}
    assert assistant.ask("What?", text="A red circle.", **drawn) == assistant.reply([row.prompt], **drawn)[0]


def test_examples_are_a_conversation_before_what_is_asked(assistant):
    first, second, asked = (some_image(i) for i in range(3))
    drawn = {"max_new_tokens": 6, "temperature": 1.0, "top_k": 50, "seed": 3}

    def before(task: str) -> list[Message]:
        ask = TASKS[task].conversation
        return [*ask(first), Message.of("assistant", "red"), *ask(second), Message.of("assistant", "blue")]

    examples = [(first, "red"), (second, "blue")]
    told = assistant.caption([asked, first], examples=examples, **drawn)
    conversations = [[*before("caption"), *TASKS["caption"].conversation(one)] for one in (asked, first)]
    assert told == assistant.reply(conversations, **drawn)
    assert told[0] != assistant.caption(asked, **drawn)
    prompt = [Message.of("user", first, "What?"), Message.of("assistant", "red"), Message.of("user", asked, "And?")]
    assert (
        assistant.ask("And?", image=asked, examples=[([first, "What?"], "red")], **drawn)
        == (assistant.reply([prompt], **drawn)[0])
    )
    shares = assistant.classify(asked, ["red", "a blue square"], examples=examples)
    encoded = assistant.processor.encode_prompt([*before("classify"), *TASKS["classify"].conversation(asked)])
    logs = assistant.likelihoods(encoded, ["red", "a blue square"]).softmax(0)
    assert [shares["red"], shares["a blue square"]] == pytest.approx(logs.tolist(), rel=1e-4)
    assert shares != pytest.approx(assistant.classify(asked, ["red", "a blue square"]), rel=1e-3)


def test_pictures_may_be_paths_bytes_arrays_or_pil(assistant, tmp_path):
    picture = some_image(0).load()
    path = tmp_path / "a.png"
    picture.save(path)
    import numpy as np

    sources = [path, str(path), path.read_bytes(), picture, np.array(picture)]
    other = assistant.caption(some_image(1), max_new_tokens=6)
    (said,) = set(assistant.caption(sources, max_new_tokens=6))
    assert said
    assert said != other


def test_an_embedding_is_one_unit_vector_of_the_gpts_width(assistant):
    for source in (some_image(0), some_audio(1), "a text"):
        vector = assistant.embed(source)
        assert vector.shape == (32,)
        assert float(vector.norm()) == pytest.approx(1.0, rel=1e-5)
        torch.testing.assert_close(assistant.embed([some_image(3), source])[1], vector)
    assert (assistant.embed("a text") - assistant.embed("another")).abs().max() > 1e-3


def test_without_pairs_a_class_is_as_likely_as_the_gpts_answer(assistant):
    labels = ["red", "a red circle", "blue"]
    shares = assistant.classify(some_image(0), labels, template="It is {}.")
    (question,) = TASKS["classify"].conversation(some_image(0))
    chances = []
    for label in labels:
        answer = Message.of("assistant", f"It is {label}.")
        loss = assistant.model.loss(collate([assistant.processor.encode([question, answer])]))
        chances.append(math.exp(-loss.sum.item()))
    assert sum(shares.values()) == pytest.approx(1.0, rel=1e-5)
    for label, chance in zip(labels, chances, strict=True):
        assert shares[label] == pytest.approx(chance / sum(chances), rel=1e-3)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert assistant.classify(some_image(0), ["red", "blue", "red"]).keys() == {"red", "blue"}


def test_a_text_is_classified_as_rows_of_texts_and_labels_are_learned(assistant):
    labels = ["red", "a red circle", "blue"]
    shares = assistant.classify(Text("What do you see?"), labels)
    sample = row_sample({"text": "What do you see?", "label": "red"}, "x:1")
    chances = []
    for label in labels:
        batch = collate([assistant.processor.encode([*sample.prompt, Message.of("assistant", label)])])
        chances.append(math.exp(-assistant.model.loss(batch).sum.item()))
    for label, chance in zip(labels, chances, strict=True):
        assert shares[label] == pytest.approx(chance / sum(chances), rel=1e-3)


def test_translations_and_summaries_are_asked_for_as_instructions_with_input_are_learned(assistant):
    decoding = {"max_new_tokens": 6, "temperature": 1.0, "top_k": 50}
    for task, request in (("translate", "Translate into German."), ("summarize", "Summarize the text.")):
        texts = ["A red circle.", "a {blue} square"]
        samples = [row_sample({"instruction": request, "input": text, "output": "x"}, "x:1").prompt for text in texts]
        words = {"to": "German"} if task == "translate" else {}
        said = getattr(assistant, task)(texts, **words, **decoding)
        assert said == assistant.reply(samples, **decoding)
        assert said[0] != said[1]
        assert getattr(assistant, task)(texts[1], **words, **decoding) == said[1]


def test_a_class_needs_a_label_and_a_place_in_the_template(assistant):
    for labels, template in (([], "{}"), (["red"], "a photo")):
        with pytest.raises(ConfigError, match=r"classify: needs labels, and \{\} in the template"):
            assistant.classify(some_image(0), labels, template)


def test_a_broken_picture_is_one_clear_error(assistant, tmp_path):
    path = tmp_path / "note.jpg"
    path.write_text("this is no picture")
    with pytest.raises(MediaError, match=r"note\.jpg"):
        assistant.caption(path)


def test_saved_and_loaded_it_answers_the_same(assistant, tmp_path):
    assistant.save(tmp_path / "copy")
    again = mmgpt.load(tmp_path / "copy", device="cpu")
    images = [some_image(i) for i in range(3)]
    said = assistant.caption(images, max_new_tokens=8)
    assert len(set(said)) == 3
    assert again.caption(images, max_new_tokens=8) == said
