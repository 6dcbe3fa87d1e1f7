import pytest
from tiny import some_audio, some_image, some_video

import mmgpt
from mmgpt.errors import MediaError


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


def test_an_embedding_is_one_vector_of_the_gpts_width(assistant):
    for source in (some_image(0), some_audio(1), "a text"):
        vector = assistant.embed(source)
        assert vector.shape == (32,)
    assert (assistant.embed("a text") - assistant.embed("another")).abs().max() > 1e-3


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
