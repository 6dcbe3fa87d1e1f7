"""Damaged media of all kinds, however they are sent: none is answered with 500, and none hurts the server."""

import io
import random

import av
import numpy as np
import PIL.Image
import pytest
from servers import Running, audio_part, image_part, mp4, text_part, user, video_part, wav

CHAT, TRANSCRIPTIONS = "/v1/chat/completions", "/v1/audio/transcriptions"
DAMAGED = 20  # of each format
PARTS = {"image": image_part, "audio": audio_part, "video": video_part}
FORMATS = {"image": ("PNG", "JPEG", "WEBP", "GIF"), "audio": ("wav", "mp3"), "video": ("mp4",)}


def picture(kind: str, seed: int) -> bytes:
    written = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    frames = [PIL.Image.fromarray(pixels), PIL.Image.fromarray(pixels[::-1])]
    more = {"progressive": True} if kind == "JPEG" else {} if kind == "PNG" else {"save_all": True}
    frames[0].save(written, kind, **more, **({"append_images": frames[1:]} if "save_all" in more else {}))
    return written.getvalue()


def mp3(seed: int) -> bytes:
    written = io.BytesIO()
    samples = np.random.default_rng(seed).uniform(-0.5, 0.5, (1, 8000)).astype(np.float32)
    with av.open(written, "w", format="mp3") as file:
        track = file.add_stream("libmp3lame", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples, "fltp", "mono")
        frame.sample_rate = 16_000
        file.mux(track.encode(frame))
        file.mux(track.encode(None))
    return written.getvalue()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, list[bytes]]:
    """Two good files of each format."""
    folder = tmp_path_factory.mktemp("clips")
    files = {kind: [picture(kind, seed) for seed in range(2)] for kind in FORMATS["image"]}
    more = {"wav": [wav(0), wav(1)], "mp3": [mp3(0), mp3(1)], "mp4": [mp4(folder, 0), mp4(folder, 1)]}
    return files | more


def damaged(draw: random.Random, files: dict[str, list[bytes]], kind: str) -> bytes:
    """One of the files cut, with other bits or bytes, with a piece twice, or with a piece of any other file."""
    data = bytearray(draw.choice(files[kind]))
    for _ in range(draw.randint(1, 3)):
        place = draw.randrange(len(data))
        match draw.choice(["cut", "flip", "fill", "repeat", "splice"]):
            case "cut":
                del data[max(place, 1) :]
            case "flip":
                for _ in range(draw.randint(1, 8)):
                    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            case "fill":
                data[place : place + 4] = draw.choice([bytes(4), b"\xff" * 4, b"\x7f\xff\xff\xff"])
            case "repeat":
                data[place:place] = data[place : place + draw.randint(1, 200)] * draw.randint(1, 20)
            case "splice":
                other = draw.choice(files[draw.choice(list(files))])
                start = draw.randrange(len(other))
                data[place:] = other[start : start + draw.randint(1, len(other))]
    return bytes(data)


def good(server: Running) -> str:
    asked = {"messages": user(audio_part(wav(5)), text_part("What?")), "temperature": 0, "max_tokens": 4}
    told = server.http.post(CHAT, json=asked)
    assert told.status_code == 200
    return told.json()["choices"][0]["message"]["content"]


@pytest.mark.parametrize(("modality", "kind"), [(modality, kind) for modality in FORMATS for kind in FORMATS[modality]])
def test_damaged_media_are_answered_or_refused(server, whole, modality, kind):
    before, draw, http, statuses = good(server), random.Random(kind), server.http, set()
    for _ in range(DAMAGED):
        data = damaged(draw, whole, kind)
        replies = [http.post(CHAT, json={"messages": user(PARTS[modality](data)), "max_tokens": 1})]
        if modality == "audio":
            replies.append(http.post(TRANSCRIPTIONS, files={"file": (f"a.{kind}", data)}))
        for told in replies:
            statuses.add(told.status_code)
            assert told.status_code in (200, 400), (data, told.text)
            if told.status_code == 400:
                assert told.json()["error"]["code"] in ("invalid_content", "context_length_exceeded"), told.text
    assert 400 in statuses
    assert good(server) == before
    server.wait_until(lambda: server.idle)
