from dataclasses import replace

from tiny import some_audio, some_image

from mmgpt.content import Message, Text
from mmgpt.data.sample import Sample


def test_texts_media_and_references_are_those_of_the_prompt_and_all_answers():
    one, two, sound = some_image(0), some_image(1), some_audio(0)
    prompt = (Message.of("system", "S"), Message.of("user", one, "Q"))
    sample = Sample(prompt, ("a", (Text("b "), two, Text(" c"), sound)), "ask", "x:1")
    assert sample.texts() == ["S", "Q", "a", "b ", " c"]
    assert sample.media() == [one, two, sound]
    assert sample.references == ("a", "b c")


def test_those_that_share_its_media_are_asked_one_by_one_and_all_their_words_count():
    picture = some_image(0)
    first, second = (Sample((Message.of("user", picture, text),), (text.lower(),), "ask", "x:1") for text in "QR")
    together = replace(first, more=(second,))
    assert together.exchanges == (first, second)
    assert first.exchanges == (first,)
    assert together.texts() == ["Q", "q", "R", "r"]
    assert together.media() == [picture]
