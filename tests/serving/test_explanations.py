"""Where the model looks for each word, asked of the server."""

import json
import re
import threading

import pytest
from servers import audio_part, image_part, png, running, sent, text_part, user, wav

from mmgpt.content import Audio, Image, Message
from mmgpt.evaluation import explain as module
from mmgpt.evaluation.explain import explain
from mmgpt.evaluation.explain_page import pictures
from mmgpt.evaluation.pictures import picture_uri
from mmgpt.serving.settings import Limits

ANSWER = "A red circle."


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    monkeypatch.setattr(module, "CELLS", {"image": (2, 2), "audio": (3,), "video": (2, 2)})


def asked(*parts: dict, **fields) -> dict:
    return {"model": "tiny", "messages": user(*parts), "answer": ANSWER, **fields}


def test_each_word_has_its_likelihood_and_pictures(server, assistant):
    parts = image_part(png(1)), audio_part(wav(1)), text_part("What?")
    told = server.http.post("/v1/explanations", json=asked(*parts))
    assert told.status_code == 200, told.text
    found = explain(assistant, [Message.of("user", Image(png(1)), Audio(wav(1)), "What?")], ANSWER)
    words = told.json()["words"]
    assert [word["text"] for word in words] == [word.text for word in found.words] == ["A", " red", " circle."]
    for got, word, seen in zip(words, found.words, pictures(found), strict=True):
        assert got["probability"] == pytest.approx(word.probability, rel=1e-4)
        assert got["blind"] == pytest.approx(word.blind, rel=1e-4)
        assert got["pictures"] == [picture_uri(one, max(one.size)) for one in seen]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"messages": user(text_part("What?"))}, "no picture, sound or clip in the prompt"),
        ({"messages": user(image_part(b"no picture"))}, "damaged or not a picture"),
        ({"messages": user(*[image_part(png(i)) for i in range(5)])}, "over 4 media are not explained"),
        ({"answer": "a red " * 200}, "more than the context|over 200 tokens"),
        ({"answer": "\ud800"}, "valid string"),
        ({"answer": ""}, "answer"),
        ({"temperature": 1.0}, "temperature"),
    ],
)
def test_what_cannot_be_explained_is_refused(server, change, told):
    body = json.dumps(asked(image_part(png(1))) | change).encode()
    response = server.http.post("/v1/explanations", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400, response.text
    assert re.search(told, response.json()["error"]["message"] + str(response.json()["error"]["param"]))


def test_the_limits_of_the_server_hold(assistant):
    with running(assistant, Limits(pixels=100, tokens=64)) as small:
        response = small.http.post("/v1/explanations", json=asked(image_part(png(1))))
    assert response.status_code == 400
    assert "over 100 pixels" in response.json()["error"]["message"]


def test_who_leaves_is_explained_no_further(server, monkeypatch):
    passes: list[int] = []
    begun, free, real = threading.Event(), threading.Event(), module._log_probabilities

    def slow(*arguments):
        passes.append(1)
        begun.set()
        assert free.wait(20)
        return real(*arguments)

    monkeypatch.setattr(module, "_log_probabilities", slow)
    monkeypatch.setattr(module, "TOGETHER", 1)
    with sent(server.url, asked(image_part(png(1))), "/v1/explanations"):
        assert begun.wait(20)
    server.wait_until(lambda: server.idle)
    free.set()
    server.service.explaining.submit(lambda: None).result(20)  # the next one's turn has come
    assert len(passes) == 1
