"""Keys, limits and broken requests: one clear line in OpenAI's form, and the server goes on."""

import asyncio
import json
import socket
import time

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers import audio_part, held, image_part, png, running, text_part, user, wav

from mmgpt.errors import ConfigError
from mmgpt.serving import gate, service
from mmgpt.serving.settings import Keys, Limits, read_keys

CHAT = "/v1/chat/completions"


def refused(server, asked, path: str = CHAT, headers: dict | None = None) -> tuple[int, dict]:
    """Status and error of a request; that it has OpenAI's form, and one line."""
    body = asked if isinstance(asked, bytes) else json.dumps(asked)
    told = server.http.post(path, content=body, headers={"Content-Type": "application/json", **(headers or {})})
    error = told.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]
    return told.status_code, error


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"tools": [{"type": "function"}]}, "tools", "tools: is not supported here; leave it out"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "logit_bias: is not supported here"),
        ({"temperature": 3}, "temperature", "temperature: Input should be less than or equal to 2"),
        ({"top_p": 0}, "top_p", "top_p: Input should be greater than 0"),
        ({"n": 0}, "n", "n: Input should be greater than or equal to 1"),
        ({"n": 17}, "n", "17 answers are over the 16 of this server"),
        ({"n": 2, "temperature": 0}, None, "without a temperature all n answers are the same"),
        ({"stop": ["a"] * 5}, "stop", "stop: List should have at most 4 items"),
        ({"stop": ""}, "stop.0", "stop.0: String should have at least 1 character"),
        ({"max_tokens": 65}, "max_tokens", "65 tokens of an answer are over the 64 of this server"),
        ({"max_tokens": 3, "max_completion_tokens": 3}, None, "leave out one of the two"),
        ({"top_logprobs": 2}, None, "top_logprobs goes with logprobs=true"),
        ({"stream_options": {"include_usage": True}}, None, "stream_options go with stream=true"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "Input should be 'text', 'json_object' or"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "json_schema goes with the type json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "nonsense"}}}},
            None,
            "JSON schema: ",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"a": "b" * 70_000}}}},
            "response_format",
            "response_format has over 65,536 characters",
        ),
        ({"choices": ["a" * 70_000]}, "choices", "choices has over 65,536 characters"),
        ({"choices": ["a", ""]}, None, "choices: one of them is empty; leave it out"),
        ({"regex": "a" * 70_000}, "regex", "regex has over 65,536 characters"),
        ({"regex": "(a"}, None, 'regex "(a": '),
        ({"regex": "a", "choices": ["a"]}, None, "choose one of choices, regex and json_schema"),
        ({"messages": None}, "messages", "messages: is missing"),
        ({"messages": []}, "messages", "messages: List should have at least 1 item"),
        ({"messages": [{"role": "king", "content": "a"}]}, None, 'messages[0]: unknown role "king"'),
        (
            {"messages": [{"role": "user", "content": "a", "tool_calls": [1]}]},
            "messages",
            'messages[0]."tool_calls" is not supported here; leave it out',
        ),
        ({"messages": user({"type": "file", "file": {}})}, None, 'messages[0].content[0]: unknown part type "file"'),
        ({"messages": user(text_part("\ud800"))}, None, "half a surrogate pair"),
        ({"messages": user(image_part(b"no picture"))}, None, "messages[0].content[0]: is damaged or not a picture"),
        (
            {"messages": user(text_part("a"), audio_part(b"no sound"))},
            None,
            "messages[0].content[1]: is damaged or not a sound",
        ),
        ({"messages": user(text_part("word " * 200))}, None, "more than the context of 160"),
        ({"messages": user(text_part("a" * 100_000))}, None, "100,000 characters, more than the context of 160"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_one_line(server, change, param, message):
    status, error = refused(server, {"model": "tiny", "messages": user(text_part("What?")), **change})
    assert (status, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert message in error["message"]


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1/a.png", "https://a.b/c.png", "file:///etc/passwd", "/etc/passwd", ""]
)
@pytest.mark.parametrize("kind", ["image_url", "video_url", "image", "audio"])
def test_neither_addresses_nor_paths_are_opened(server, url, kind):
    part = {"type": kind, kind: {"url": url}} if kind.endswith("_url") else {"type": kind, "path": url}
    status, error = refused(server, {"messages": user(part)})
    assert status == 400
    assert "is not a data: URL; send the medium itself" in error["message"]


def test_parameters_without_effect_and_nulls_are_taken(server):
    harmless = {"user": "me", "metadata": {"a": "b"}, "store": True, "service_tier": "auto"}
    nulls = {"tools": None, "logit_bias": None, "response_format": None, "stop": None, "seed": None, "n": None}
    asked = {"messages": user(text_part("What?")), "max_tokens": 2, **harmless, **nulls}
    assert server.http.post(CHAT, json=asked).status_code == 200


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "the body is not JSON"),
        (b"[1]", "the body is not a JSON object"),
        (b"", "the body is not a JSON object"),
        (b"[" * 100_000, "parsing the body"),
        (b"\xff\xfe\x00", "the body"),
    ],
)
def test_bodies_that_are_no_json_objects_are_refused(server, body, message):
    status, error = refused(server, body, headers={"Content-Type": "application/json"})
    assert status == 400
    assert message in error["message"]


def test_unknown_models_paths_and_methods_are_told_in_the_same_form(server):
    status, error = refused(server, {"model": "gpt-4o", "messages": user(text_part("a"))})
    assert (status, error["param"], error["code"]) == (404, "model", "model_not_found")
    assert error["message"] == "there is no model 'gpt-4o'; this server has 'tiny'"
    assert refused(server, {}, "/v1/nothing")[0] == 404
    assert server.http.get(CHAT).status_code == 405
    assert server.http.get("/v1/models/other").json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"response_format": "srt"}, "response_format: Input should be 'json' or 'text'"),
        ({"language": "en"}, "language: is not supported here"),
        ({"temperature": "hot"}, "temperature: Input should be a valid number"),
    ],
)
def test_transcriptions_refuse_what_they_do_not_do(server, form, message):
    told = server.http.post("/v1/audio/transcriptions", data=form, files={"file": ("a.wav", wav(0))})
    assert told.status_code == 400
    assert message in told.json()["error"]["message"]


def test_a_sound_that_is_none_or_not_sent_is_told(server):
    told = server.http.post("/v1/audio/transcriptions", files={"file": ("a.wav", b"no sound")})
    assert told.json()["error"]["message"].startswith("file: is damaged or not a sound")
    told = server.http.post("/v1/audio/transcriptions", data={"model": "tiny"})
    assert (told.status_code, told.json()["error"]["message"]) == (400, "file: is missing")


@pytest.fixture(scope="module")
def strict(assistant):
    """A server with narrow limits, two keys and one web page."""
    limits = Limits(requests=2, body=60_000, media=2, pixels=2500, seconds=1, tokens=8, answers=4)
    with running(assistant, limits, keys=("first-key", "second-key"), origins=("https://page.example",)) as one:
        yield one


def authorized(server):
    http = server.http
    http.headers["Authorization"] = "Bearer second-key"
    return http


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer first-ke", "Basic first-key", "first-key"])
def test_without_a_key_nothing_but_health_is_told(strict, header):
    headers = {} if header is None else {"Authorization": header}
    for path in ("/v1/models", "/metrics", "/openapi.json", "/nothing"):
        assert strict.http.get(path, headers=headers).status_code == 401
    status, error = refused(strict, {"messages": user(text_part("a"))}, headers=headers)
    assert (status, error["type"], error["code"]) == (401, "authentication_error", "invalid_api_key")
    assert strict.http.get("/health", headers=headers).status_code == 200


def test_each_key_opens(strict):
    for key in ("first-key", "second-key"):
        client = openai.OpenAI(base_url=f"{strict.url}/v1", api_key=key, max_retries=0)
        assert [model.id for model in client.models.list()] == ["tiny"]
    with pytest.raises(openai.AuthenticationError, match="no valid API key"):
        strict.client.models.list()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([image_part(png(0, 51))], "messages[0].content[0]: 51 x 51 is over 2,500 pixels"),
        ([audio_part(wav(0, 8001))], "messages[0].content[0]: the sound is longer than 1 seconds"),
        ([image_part(png(i, 8)) for i in range(3)], "3 media are over the 2 of this server"),
    ],
)
def test_media_beyond_the_limits_are_refused(strict, parts, message):
    told = authorized(strict).post(CHAT, json={"messages": user(*parts)})
    assert told.status_code == 400
    assert message in told.json()["error"]["message"]


def test_media_within_the_limits_are_taken(strict):
    parts = [image_part(png(0, 50)), audio_part(wav(0, 8000))]
    assert authorized(strict).post(CHAT, json={"messages": user(*parts)}).status_code == 200


def test_a_completion_is_as_long_by_itself_as_it_may_be(strict):
    told = authorized(strict).post("/v1/completions", json={"prompt": "A red", "seed": 1})
    assert told.status_code == 200, told.text
    assert 0 < told.json()["usage"]["completion_tokens"] <= 8


def pieces(count: int):
    for _ in range(count):
        yield b" " * 1000


@pytest.mark.parametrize("sent", ["with a length", "in chunks"])
def test_a_body_beyond_the_limit_is_refused_while_it_is_read(strict, sent):
    body = b"".join(pieces(100)) if sent == "with a length" else pieces(100)
    told = authorized(strict).post(CHAT, content=body, headers={"Content-Type": "application/json"})
    assert (told.status_code, told.json()["error"]["code"]) == (413, "too_large")
    assert told.json()["error"]["message"] == "the request is over 60,000 bytes; send less"
    assert strict.idle


def test_a_web_page_may_ask_only_if_it_is_allowed(strict, server):
    def preflight(one, origin: str):
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        return one.http.options(CHAT, headers=headers).headers.get("access-control-allow-origin")

    assert preflight(strict, "https://page.example") == "https://page.example"
    assert preflight(strict, "https://other.example") is None
    assert preflight(server, "https://page.example") is None
    # A page's simple request, which browsers send without asking first, is not taken for JSON.
    status, error = refused(server, b'{"messages": []}', headers={"Content-Type": "text/plain"})
    assert (status, "application/json" in error["message"]) == (400, True)


def test_a_full_queue_is_told_with_the_time_to_come_again(strict):
    """Two who send their bodies slowly have all places; when they leave, there is room again."""
    slow = [socket.create_connection(strict.url.removeprefix("http://").split(":")) for _ in range(2)]
    head = f"POST {CHAT} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer first-key\r\nContent-Length: 500\r\n\r\n{{"
    for one in slow:
        one.sendall(head.encode())
    strict.wait_until(lambda: strict.service.running == 2)
    told = authorized(strict).post(CHAT, json={"messages": user(text_part("a"))})
    assert (told.status_code, told.json()["error"]["type"]) == (429, "rate_limit_error")
    assert int(told.headers["Retry-After"]) > 0
    assert authorized(strict).get("/v1/models").status_code == 200
    for one in slow:
        one.close()
    strict.wait_until(lambda: strict.service.running == 0)
    assert authorized(strict).post(CHAT, json={"messages": user(text_part("a"))}).status_code == 200


def test_bodies_have_a_limit_of_bytes_together(assistant, monkeypatch):
    monkeypatch.setattr(service, "BODIES", 2)
    with running(assistant, Limits(body=1000, tokens=8)) as own:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: a\r\nContent-Length: 900\r\n\r\n"
        slow = [socket.create_connection(own.url.removeprefix("http://").split(":")) for _ in range(2)]
        for one in slow:
            one.sendall(head.encode() + b" " * 850)
        own.wait_until(lambda: own.service.held == 1700)
        body = json.dumps({"messages": user(text_part("a" * 300))})
        told = own.http.post(CHAT, content=body, headers={"Content-Type": "application/json"})
        assert (told.status_code, told.json()["error"]["code"]) == (429, "memory_full")
        assert int(told.headers["Retry-After"]) > 0
        assert own.http.post(CHAT, json={"messages": user(text_part("a"))}).status_code == 200
        for one in slow:
            one.close()
        own.wait_until(lambda: own.service.held == 0)
        assert own.http.post(CHAT, content=body, headers={"Content-Type": "application/json"}).status_code != 429


SCRIPT = "<script>alert(1)</script>"


@pytest.mark.parametrize(
    ("method", "path", "sent"),
    [
        ("POST", CHAT, {"json": {"messages": user(text_part(SCRIPT)), "max_tokens": 2}}),
        ("POST", CHAT, {"json": {"messages": user(text_part(SCRIPT)), "max_tokens": 2, "stream": True}}),
        ("POST", CHAT, {"json": {"messages": user(text_part("a")), SCRIPT: 1}}),
        ("POST", CHAT, {"json": {"model": SCRIPT, "messages": user(text_part("a"))}}),
        ("POST", CHAT, {"content": SCRIPT}),
        ("POST", "/v1/completions", {"json": {"prompt": SCRIPT, "max_tokens": 2}}),
        (
            "POST",
            "/v1/audio/transcriptions",
            {"data": {"response_format": "text"}, "files": {"file": (SCRIPT, wav(0), "text/html")}},
        ),
        ("POST", "/v1/audio/transcriptions", {"data": {"language": SCRIPT}, "files": {"file": (SCRIPT, SCRIPT)}}),
        ("GET", f"/{SCRIPT}", {}),
        ("GET", f"/v1/models/{SCRIPT}", {}),
        ("GET", "/health", {}),
        ("GET", "/metrics", {}),
        ("OPTIONS", CHAT, {"headers": {"Origin": SCRIPT, "Access-Control-Request-Method": SCRIPT}}),
    ],
)
def test_what_is_sent_comes_back_as_no_page(strict, method, path, sent):
    told = strict.http.request(method, path, **sent)
    authorization = {"Authorization": "Bearer first-key"}
    known = strict.http.request(method, path, **{**sent, "headers": authorization | sent.get("headers", {})})
    for answer in (told, known):
        kind = answer.headers["Content-Type"].partition(";")[0]
        assert kind in ("application/json", "text/event-stream", "text/plain")
        assert answer.headers.get_list("X-Content-Type-Options") == ["nosniff"]


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_is_cancelled_and_his_rows_are_free(assistant, monkeypatch, stream):
    with running(assistant, Limits(tokens=140)) as own:
        held(monkeypatch, own)  # 20 ms a token: 140 tokens take three seconds
        asked = {"messages": user(text_part("What?")), "n": 3, "stream": stream, "seed": 1}
        body = json.dumps(asked).encode()
        head = (
            f"POST {CHAT} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        caller = socket.create_connection(own.url.removeprefix("http://").split(":"))
        caller.sendall(head.encode() + body)
        own.wait_until(lambda: len(own.service.worker.engine.active) == 3)
        caller.close()
        began = time.monotonic()
        own.wait_until(lambda: own.idle)
        assert time.monotonic() - began < 1.5
        assert set(own.service.worker.engine.cache.lengths) == {0}
        own.wait_until(lambda: own.metric("mmgpt_requests_total", path=CHAT, status="200" if stream else "499") == 1)


def test_an_engine_that_fails_fails_those_it_serves_and_nobody_after_them(assistant, monkeypatch, server):
    with running(assistant) as own:
        engine = own.service.worker.engine
        monkeypatch.setattr(engine, "_forward", lambda feeds: 1 / 0)
        status, error = refused(own, {"messages": user(text_part("What?"))})
        assert (status, error["type"]) == (500, "server_error")
        assert error["message"] == "the engine failed (ZeroDivisionError); ask again"
        asked = {"messages": user(text_part("What?")), "temperature": 0, "max_tokens": 8}
        expected = server.http.post(CHAT, json=asked).json()["choices"]
        assert own.http.post(CHAT, json=asked).json()["choices"] == expected
        own.wait_until(lambda: own.idle)


def test_keys_come_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("MMGPT_API_KEYS", raising=False)
    assert not read_keys(None)
    file = tmp_path / "keys"
    file.write_text("# of the team\nalpha\n\n  beta  \n")
    keys = read_keys(str(file))
    assert [keys.know(key) for key in ("alpha", "beta", "", "# of the team", "alph")] == [
        True,
        True,
        False,
        False,
        False,
    ]
    monkeypatch.setenv("MMGPT_API_KEYS", "one, two three")
    assert [read_keys(None).know(key) for key in ("one", "two", "three", "alpha")] == [True, True, True, False]
    assert read_keys(str(file)).know("alpha")
    file.write_text("# nothing\n")
    with pytest.raises(ConfigError, match="no API key there"):
        read_keys(str(file))
    monkeypatch.setenv("MMGPT_API_KEYS", " ")
    with pytest.raises(ConfigError, match="MMGPT_API_KEYS: no API key there"):
        read_keys(None)


class Stuck:
    """An ASGI client that sends some pieces of a body, the last of which `ends` it, and takes a few messages alone."""

    def __init__(self, body: list[bytes], takes: int, ends: bool = False):
        self.body, self.takes, self.ends = body, takes, ends
        self.taken: list[dict] = []

    async def receive(self) -> dict:
        if self.body:
            piece = self.body.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(self.body) or not self.ends}
        return await asyncio.Future()

    async def send(self, message: dict) -> None:
        if len(self.taken) == self.takes:
            await asyncio.Future()
        self.taken.append(message)


SCOPE = {"type": "http", "method": "POST", "path": CHAT, "headers": []}


def test_a_request_that_never_ends_loses_its_place(server, monkeypatch):
    monkeypatch.setattr(gate, "BODY_SECONDS", 0.05)
    client = Stuck([b"{"], takes=2)
    asyncio.run(gate.Gate(None, server.service, Keys([]))(SCOPE, client.receive, client.send))
    start, told = client.taken
    assert start["status"] == 408
    assert json.loads(told["body"])["error"]["message"].startswith("the request was not sent within")
    assert server.service.running == 0


def test_who_takes_nothing_any_more_loses_his_place(server, monkeypatch):
    monkeypatch.setattr(gate, "STALLED_SECONDS", 0.05)
    closed = []

    async def app(scope, receive, send):
        try:
            for _ in range(9):
                await send({"type": "http.response.body", "body": b"a", "more_body": True})
        finally:
            closed.append(True)

    client = Stuck([b"{}"], takes=2, ends=True)
    asyncio.run(gate.Gate(app, server.service, Keys([]))(SCOPE, client.receive, client.send))
    assert (len(client.taken), closed, server.service.running) == (2, [True], 0)


def test_who_takes_what_is_sent_keeps_his_place_however_long_it_lasts(server, monkeypatch):
    monkeypatch.setattr(gate, "STALLED_SECONDS", 0.05)

    async def app(scope, receive, send):
        for _ in range(3):
            await asyncio.sleep(0.12)  # nothing is sent that he might take
            await send({"type": "http.response.body", "body": b"a", "more_body": True})

    client = Stuck([b"{}"], takes=9, ends=True)
    asyncio.run(gate.Gate(app, server.service, Keys([]))(SCOPE, client.receive, client.send))
    assert len(client.taken) == 3


def test_a_failure_of_the_app_by_a_timeout_is_no_slow_client(server):
    async def app(scope, receive, send):
        raise TimeoutError("of the app")

    client = Stuck([b"{}"], takes=9, ends=True)
    with pytest.raises(TimeoutError, match="of the app"):
        asyncio.run(gate.Gate(app, server.service, Keys([]))(SCOPE, client.receive, client.send))


numbers = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.just(10**400), st.sampled_from([0, 1, 2, 0.5])
)
anything = st.recursive(
    numbers | st.text(max_size=5) | st.sampled_from(["user", "assistant", "text", "image_url", "data:;base64,AA"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "text", "role", "content", "url", "image_url", "schema"]), inner)
    ),
    max_leaves=6,
)
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "system", "assistant"]), "content": st.text(max_size=9)}),
    min_size=1,
    max_size=3,
)
OPTIONS = (
    "temperature top_p n seed stop stream stream_options logprobs top_logprobs frequency_penalty presence_penalty "
    "response_format model user tools"
)
bodies = st.fixed_dictionaries(
    {"messages": messages | anything, "max_tokens": st.just(2) | anything},
    optional=dict.fromkeys(OPTIONS.split(), numbers | anything),
)


@given(asked=bodies)
@settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_is_sent_is_answered_or_refused_and_never_fails(server, asked):
    told = server.http.post(CHAT, content=json.dumps(asked), headers={"Content-Type": "application/json"})
    assert told.status_code in (200, 400, 404), told.text
    if told.status_code != 200:
        assert told.json()["error"]["message"]
    elif asked.get("stream") in (None, False, 0):
        assert told.json()["choices"]
    else:
        assert told.text.endswith("data: [DONE]\n\n")
        assert "server_error" not in told.text


@pytest.mark.parametrize("depth", [50, 400, 900, 50_000])
def test_a_deep_schema_is_answered_or_refused(server, depth):
    schema = '{"type":"object","properties":{"a":' * depth + '{"type":"object"}' + "}}" * depth
    shape = f'{{"type":"json_schema","json_schema":{{"name":"a","schema":{schema}}}}}'
    body = f'{{"messages":[{{"role":"user","content":"What?"}}],"max_tokens":2,"response_format":{shape}}}'
    told = server.http.post(CHAT, content=body, headers={"Content-Type": "application/json"})
    assert told.status_code in (200, 400)
