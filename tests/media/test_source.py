import io
import os

import PIL.Image
import pytest

from mmgpt.errors import MediaError
from mmgpt.media import load_audio, load_image, load_video

LOADERS = {
    "image": load_image,
    "audio": lambda source: load_audio(source, max_seconds=10),
    "video": lambda source: load_video(source, frames=2, max_seconds=10),
}


@pytest.fixture(params=LOADERS)
def load(request):
    return LOADERS[request.param]


def test_missing_file_is_named(load, tmp_path, refusal):
    assert "gone.bin: no such file" in refusal(lambda: load(tmp_path / "gone.bin"))


def test_directory_is_refused(load, tmp_path, refusal):
    assert "directory" in refusal(lambda: load(tmp_path))


def test_empty_file_and_empty_bytes_are_refused(load, save, refusal):
    assert "empty" in refusal(lambda: load(save("a.wav", b"")))
    assert "empty" in refusal(lambda: load(b""))


@pytest.mark.parametrize("name", ["a.jpg", "a.wav", "a.mp4"])
def test_text_under_a_media_name_is_refused(load, name, save, refusal):
    assert name in refusal(lambda: load(save(name, b"This is a letter, not a picture.\n" * 100)))


def test_unknown_bytes_are_refused(load, refusal):
    assert refusal(lambda: load(bytes(range(256)) * 20)).startswith("bytes: ")


@pytest.mark.parametrize(
    "address", ["http://host/a.png", "HTTPS://host/a.wav", "file:///etc/passwd", "data:image/png,"]
)
def test_addresses_are_not_fetched(load, address, refusal):
    assert "not fetched" in refusal(lambda: load(address))


def test_pipe_is_refused_without_waiting_for_it(load, tmp_path, refusal):
    os.mkfifo(tmp_path / "pipe.wav")
    assert "regular file" in refusal(lambda: load(tmp_path / "pipe.wav"))


def test_odd_paths_stay_one_line(load, refusal):
    assert len(refusal(lambda: load("base64" * 10_000))) < 400
    refusal(lambda: load("two\nlines.png"))
    refusal(lambda: load("zero\0byte.png"))


def test_objects_of_another_type_are_refused(load, refusal):
    refusal(lambda: load(3.5))
    refusal(lambda: load(None))


class Archived:
    """Bytes that lie elsewhere until they are needed."""

    def __init__(self, data: bytes | None):
        self.data = data

    def __str__(self) -> str:
        return "shard.tar: a.bin"

    def read_bytes(self) -> bytes:
        if self.data is None:
            raise MediaError(f"{self}: the shard became shorter; start again")
        return self.data


def test_stored_bytes_are_decoded_as_bytes_and_named_as_their_store(load, refusal):
    assert refusal(lambda: load(Archived(b""))) == "shard.tar: a.bin: empty; give the content of a file"
    assert refusal(lambda: load(Archived(None))) == "shard.tar: a.bin: the shard became shorter; start again"
    assert refusal(lambda: load(Archived(b"letter" * 100))).startswith("shard.tar: a.bin: ")
    picture = io.BytesIO()
    PIL.Image.new("RGB", (3, 2), (200, 10, 10)).save(picture, "PNG")
    assert load_image(Archived(picture.getvalue())).size == (3, 2)
