"""The page to try a model on, in a real browser."""

import base64
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from playwright.sync_api import Page, expect
from servers import (
    Running,
    audio_part,
    base64_of,
    held,
    image_part,
    mp4,
    png,
    running,
    text_part,
    user,
    video_part,
    wav,
)

from mmgpt.media import load_audio

WIDTHS = {"phone": 360, "desktop": 1280}
TOO_WIDE = """() => ["html", "main"].map((name) => document.querySelector(name))
    .filter((element) => element.scrollWidth > element.clientWidth).map((element) => element.tagName)"""
FILES = """(files) => {
    const transfer = new DataTransfer();
    for (const [name, type, data] of files)
        transfer.items.add(new File([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], name, { type }));
    return transfer;
}"""
FOCUSED = """() => {
    const focused = document.activeElement, style = getComputedStyle(focused.closest(".button") ?? focused);
    return [focused.id || focused.className || focused.tagName, style.outlineStyle];
}"""


@pytest.fixture
def page(browser, server) -> Iterator[Page]:
    """The page at the width of a phone: nothing is wider, no script fails, and nothing is loaded from elsewhere."""
    errors: list[str] = []
    with browser.new_context(viewport={"width": WIDTHS["phone"], "height": 700}) as context:
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: errors.append(request.url) if foreign(request.url, server) else None)
        page.goto(server.url)
        yield page
        assert page.evaluate(TOO_WIDE) == []
    assert not errors


def foreign(url: str, server: Running) -> bool:
    return not url.startswith((server.url, f"blob:{server.url}", "data:"))


def answers(page: Page):
    return page.locator(".message.assistant:not([aria-busy]) .said")


def drop(page: Page, *files: tuple[str, str, bytes]) -> None:
    """Let files fall on the page: name, type, content."""
    transfer = page.evaluate_handle(FILES, [(name, kind, base64_of(data)) for name, kind, data in files])
    page.dispatch_event("main", "dragover", {"dataTransfer": transfer})
    expect(page.locator("body")).to_have_class("over")
    page.dispatch_event("main", "drop", {"dataTransfer": transfer})
    expect(page.locator("body")).not_to_have_class("over")


def asked_of(page: Page) -> list[dict]:
    """What the page asks from now on."""
    asked: list[dict] = []
    page.on("request", lambda request: asked.append(request.post_data_json) if request.method == "POST" else None)
    return asked


@pytest.mark.parametrize(
    ("name", "kind", "view", "content", "part"),
    [
        ("a.png", "image/png", "img", lambda folder: png(1), image_part),
        ("a.wav", "audio/wav", "audio", lambda folder: wav(1), audio_part),
        ("a.mp4", "video/mp4", "video", lambda folder: mp4(folder, 1), video_part),
    ],
    ids=["picture", "sound", "video"],
)
def test_what_is_dropped_is_shown_and_gets_the_answer_of_the_api(
    page, server, tmp_path, name: str, kind: str, view: str, content: Callable[[Path], bytes], part
):
    data = content(tmp_path)
    drop(page, (name, kind, data))
    expect(page.locator(".attached")).to_have_text(f"{name}×")
    expect(page.locator("#text")).to_be_focused()
    page.keyboard.type("What?")
    page.keyboard.press("Enter")
    expect(page.locator(f".message.user {view}")).to_be_visible()
    expect(page.locator(".attached")).to_have_count(0)
    expect(answers(page)).to_have_count(1)
    told = server.client.chat.completions.create(
        model="tiny", messages=user(part(data), text_part("What?")), temperature=0
    )
    assert answers(page).text_content() == told.choices[0].message.content
    if view != "img":
        page.wait_for_function("view => document.querySelector(view).duration > 0.3", arg=view)  # it can be played


def test_what_is_no_picture_sound_or_video_is_refused_by_its_name(page):
    drop(page, ("paper.pdf", "application/pdf", b"%PDF"), ("a.png", "image/png", png(1)), ("strange", "", b"?"))
    expect(page.get_by_role("alert")).to_have_text("No picture, sound or video: paper.pdf, strange")
    expect(page.locator(".attached")).to_have_text("a.png×")
    page.get_by_role("button", name="Remove a.png").click()
    expect(page.locator(".attached")).to_have_count(0)
    drop(page, ("a.wav", "audio/wav", wav(1)))
    expect(page.get_by_role("alert")).to_be_empty()


@pytest.mark.parametrize("end", ["Record a sound", "Send"])
def test_a_sound_is_recorded_and_asked_about(page, end):
    asked = asked_of(page)
    button = page.get_by_role("button", name="Record a sound")
    button.click()
    expect(button).to_have_attribute("aria-pressed", "true")
    page.wait_for_timeout(1200)  # the microphone beeps once a second
    page.get_by_role("button", name=end).click()
    expect(button).to_have_attribute("aria-pressed", "false")
    if end != "Send":
        expect(page.locator(".attached")).to_have_text("recording×")
        page.click("#send")
    expect(page.locator(".message.user audio")).to_be_visible()
    expect(page.locator(".message.assistant:not(.wrong):not([aria-busy])")).to_have_count(1)
    [part] = asked[0]["messages"][0]["content"]
    heard = load_audio(base64.b64decode(part["input_audio"]["data"]), max_seconds=10)
    assert 0.7 < heard.seconds < 4
    assert np.abs(heard.samples).max() > 0.01


def test_who_is_asked_twice_for_the_microphone_listens_to_it_once(page):
    page.evaluate("""() => {
        const devices = navigator.mediaDevices, real = devices.getUserMedia.bind(devices);
        window.streams = [];
        devices.getUserMedia = async (asked) => {
            const stream = await real(asked);
            streams.push(stream);
            await new Promise((resolve) => setTimeout(resolve, 200)); // to be asked whether he allows it
            return stream;
        };
        for (let i = 0; i < 2; i++) document.querySelector("#record").click();
    }""")
    button = page.get_by_role("button", name="Record a sound")
    expect(button).to_have_attribute("aria-pressed", "true")
    page.wait_for_timeout(400)
    button.click()
    expect(page.locator(".attached")).to_have_count(1)
    expect(button).to_have_attribute("aria-pressed", "false")
    assert page.evaluate("streams.flatMap((one) => one.getTracks()).filter((one) => one.readyState == 'live')") == []


@pytest.mark.parametrize("begun", ["", "A red"])
def test_an_answer_that_was_cut_off_by_moderation_says_so(page, begun):
    events = [
        {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]}
        for text, finish in ((begun, None), ("", "content_filter"))
    ]
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=body, content_type="text/event-stream"))
    page.fill("#text", "What?")
    page.click("#send")
    expect(answers(page)).to_have_text(begun)
    told = page.evaluate("""getComputedStyle(document.querySelector(".assistant .said"), "::after").content""")
    assert told == '"(refused by this server\'s moderation)"'


def test_where_no_sound_can_be_recorded_it_is_told_why(page):
    page.evaluate("delete Navigator.prototype.mediaDevices")  # as on a page that came over http from elsewhere
    page.click("#record")
    expect(page.get_by_role("alert")).to_contain_text("No sound can be recorded: browsers allow it over https")
    expect(page.locator("#record")).to_have_attribute("aria-pressed", "false")


def test_where_no_recorder_can_be_made_the_microphone_is_let_go(page):
    page.evaluate("""() => {
        const devices = navigator.mediaDevices, real = devices.getUserMedia.bind(devices);
        devices.getUserMedia = async (asked) => (window.stream = await real(asked));
        window.MediaRecorder = class { constructor() { throw new Error("not this kind"); } };
    }""")
    page.click("#record")
    expect(page.get_by_role("alert")).to_contain_text("No sound can be recorded: not this kind")
    assert page.evaluate("stream.getTracks().map((one) => one.readyState)") == ["ended"]


def test_an_answer_is_shown_as_it_grows_and_can_be_stopped(page, server, monkeypatch):
    asked = asked_of(page)
    free = held(monkeypatch, server)  # 20 ms a token: 64 tokens take over a second
    page.fill("#text", "What?")
    page.keyboard.press("Enter")
    expect(page.locator("[aria-busy] .said")).not_to_be_empty()
    page.get_by_role("button", name="Stop").click()
    expect(answers(page)).to_have_count(1)
    server.wait_until(lambda: server.idle)
    free.set()
    begun = answers(page).text_content() or ""
    told = server.client.chat.completions.create(model="tiny", messages=user(text_part("What?")), temperature=0)
    whole = told.choices[0].message.content or ""
    assert whole.startswith(begun)
    assert 0 < len(begun) < len(whole)
    page.locator("summary").click()
    page.check("#remember")
    page.fill("#text", "And then?")
    page.get_by_role("button", name="Send").click()
    expect(answers(page)).to_have_count(2)
    assert [message["role"] for message in asked[1]["messages"]] == ["user", "assistant", "user"]
    assert asked[1]["messages"][1]["content"] == begun
    page.get_by_role("button", name="New chat").click()
    expect(page.locator(".message")).to_have_count(0)
    expect(page.locator("#hint")).to_be_visible()
    page.keyboard.type("Hello?")
    page.keyboard.press("Enter")
    expect(answers(page)).to_have_count(1)
    assert len(asked[2]["messages"]) == 1


def test_enter_pressed_twice_asks_once(page, tmp_path):
    asked = asked_of(page)
    drop(page, ("a.mp4", "video/mp4", mp4(tmp_path, 1)))
    page.evaluate("""for (let i = 0; i < 2; i++) document.querySelector("#text").dispatchEvent(
        new KeyboardEvent("keydown", { key: "Enter", bubbles: true, cancelable: true }))""")
    expect(answers(page)).to_have_count(1)
    expect(page.locator(".message.user")).to_have_count(1)
    assert len(asked) == 1


def test_what_goes_wrong_at_the_server_is_told_in_sight(page, server, monkeypatch):
    pictures = [(f"{i}.png", "image/png", png(i, 400)) for i in range(4)]  # together higher than the screen
    drop(page, *pictures)
    page.click("#send")
    expect(page.get_by_role("button", name="Where did it look?")).to_be_in_viewport(ratio=1)
    monkeypatch.setattr(server.service.worker.engine, "_forward", lambda feeds: 1 / 0)
    drop(page, *pictures)
    page.click("#send")
    wrong = page.locator(".message.wrong .said")
    expect(wrong).to_have_text("the engine failed (ZeroDivisionError); ask again")
    expect(wrong).to_be_in_viewport(ratio=1)
    page.context.set_offline(True)
    page.fill("#text", "Hello?")
    page.click("#send")
    expect(wrong.last).to_have_text("the server does not answer")
    page.context.set_offline(False)
    page.fill("#text", "Hello?")
    page.click("#send")
    expect(page.locator(".message.assistant:not(.wrong):not([aria-busy])")).to_have_count(2)


def test_all_is_reached_by_the_keyboard_and_settings_change_what_is_asked(page):
    asked = asked_of(page)
    keys: list[str] = []
    page.on("request", lambda request: keys.append(request.headers.get("authorization", "")))

    def tab(key: str = "Tab") -> str:
        page.keyboard.press(key)
        name, ring = page.evaluate(FOCUSED)
        assert ring == "solid", name
        return name

    assert [tab() for _ in range(6)] == ["clear", "SUMMARY", "files", "record", "text", "send"]
    assert [tab("Shift+Tab") for _ in range(4)] == ["text", "record", "files", "SUMMARY"]
    page.keyboard.press("Enter")
    for name, value in (("temperature", "0.5"), ("tokens", "5"), ("remember", " "), ("key", "secret")):
        assert tab() == name
        page.keyboard.type(value)
    assert [tab() for _ in range(3)] == ["files", "record", "text"]
    flat = page.locator("#text").bounding_box()["height"]
    page.keyboard.type("What?")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("Now!")
    assert page.locator("#text").bounding_box()["height"] > 1.4 * flat
    page.keyboard.press("Enter")
    expect(answers(page)).to_have_count(1)
    expect(page.locator("#text")).to_be_focused()
    assert asked[0]["temperature"] == 0.5
    assert asked[0]["max_completion_tokens"] == 5
    assert asked[0]["messages"] == user(text_part("What?\nNow!"))
    assert keys[-1] == "Bearer secret"


def test_a_picture_is_chosen_and_each_word_looked_into_by_the_keyboard(page, tmp_path):
    (tmp_path / "a.png").write_bytes(png(3))
    # Now, for the browser is told of it in the background: a chooser that comes at once would be missed.
    page.on("filechooser", lambda chooser: chooser.set_files(tmp_path / "a.png"))
    page.locator("summary").click()
    page.fill("#tokens", "12")
    page.locator("#files").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".attached")).to_have_text("a.png×")
    expect(page.locator("#text")).to_be_focused()
    page.keyboard.press("Enter")
    why = page.get_by_role("button", name="Where did it look?")
    expect(why).to_be_visible()
    for _ in range(3):  # past the buttons to record and to attach
        page.keyboard.press("Shift+Tab")
    expect(why).to_be_focused()
    page.keyboard.press("Enter")
    words = page.locator(".word")
    expect(words.first).to_be_focused()
    expect(page.locator(".seen img")).to_be_in_viewport(ratio=1)


def test_each_word_of_an_answer_shows_where_it_looked(page, tmp_path):
    (tmp_path / "a.png").write_bytes(png(10))
    page.locator("summary").click()
    page.fill("#tokens", "6")
    page.set_input_files("#files", tmp_path / "a.png")
    page.fill("#text", "A red circle?")  # of which it says "see see see"
    page.keyboard.press("Enter")
    expect(answers(page)).to_have_count(1)
    said = answers(page).text_content() or ""
    page.get_by_role("button", name="Where did it look?").click()
    words = page.locator(".word")
    expect(words.nth(2)).to_be_visible()
    assert answers(page).text_content() == said  # with its spaces and lines
    assert "".join("".join(words.all_text_contents()).split()) == "".join(said.split())
    expect(page.locator(".seen img")).to_have_count(1)
    expect(page.locator(".seen p")).to_have_text(re.compile(r"\d+ % likely, \d+ % without what was sent"))
    words.last.focus()
    expect(words.last).to_have_attribute("aria-pressed", "true")
    page.locator("#text").fill("And now?")
    page.keyboard.press("Enter")
    expect(answers(page)).to_have_count(2)
    expect(page.get_by_role("button", name="Where did it look?")).to_have_count(0)  # nothing new was sent


def test_a_picture_and_a_question_by_the_keyboard_get_the_answer_of_the_api(page, server, tmp_path):
    expect(page.locator("#model")).to_have_text("tiny")
    (tmp_path / "a.png").write_bytes(png(1))
    page.set_input_files("#files", tmp_path / "a.png")
    expect(page.locator(".attached img")).to_be_visible()
    page.locator("#text").press_sequentially("What?")
    page.keyboard.press("Enter")
    expect(page.locator(".message.user img")).to_be_visible()
    expect(answers(page)).to_have_count(1)
    asked = user(image_part(png(1)), text_part("What?"))
    told = server.client.chat.completions.create(model="tiny", messages=asked, temperature=0)
    assert answers(page).text_content() == told.choices[0].message.content


def test_a_sound_is_asked_about_and_earlier_messages_are_sent_if_they_are_to_be(page, server, tmp_path):
    (tmp_path / "a.wav").write_bytes(wav(2))
    sent: list[dict] = []
    page.on("request", lambda request: sent.append(request.post_data_json) if request.method == "POST" else None)
    for remember in (False, True):
        page.locator("summary").click()
        page.locator("#remember").set_checked(remember)
        page.locator("summary").click()
        page.set_input_files("#files", tmp_path / "a.wav")
        page.fill("#text", "Say it")
        page.click("#send")
        expect(answers(page)).to_have_count(1 + remember)
    first, second = (request["messages"] for request in sent)
    assert [part["type"] for part in first[0]["content"]] == ["input_audio", "text"]
    assert len(first) == 1
    assert second[0] == first[0]


def test_what_the_server_refuses_is_told_and_does_not_stay_in_the_conversation(page, tmp_path):
    (tmp_path / "no.png").write_text("no picture")
    page.set_input_files("#files", tmp_path / "no.png")
    page.click("#send")
    expect(page.locator(".message.wrong .said")).to_contain_text("messages[0].content[0]")
    page.fill("#text", "Hello?")
    page.click("#send")
    expect(page.locator(".message.assistant:not(.wrong):not([aria-busy])")).to_have_count(1)


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_screen_and_the_text_can_be_read(page, tmp_path, width, scheme):
    page.set_viewport_size({"width": width, "height": 700})
    page.emulate_media(color_scheme=scheme)
    (tmp_path / f"{'long' * 20}.png").write_bytes(png(1))
    page.set_input_files("#files", tmp_path / f"{'long' * 20}.png")
    page.fill("#text", "x" * 300)
    page.locator("summary").click()
    wide = "document.documentElement.scrollWidth"
    assert page.evaluate(wide) <= width
    page.click("#send")
    expect(answers(page)).to_have_count(1)  # or why there is none
    assert page.evaluate(wide) <= width
    ink, ground = (
        luminance(page.evaluate(f"getComputedStyle(document.body).{name}")) for name in ("color", "backgroundColor")
    )
    assert (max(ink, ground) + 0.05) / (min(ink, ground) + 0.05) > 7  # WCAG's AAA


def luminance(colour: str) -> float:
    """Relative luminance by WCAG."""
    channels = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_page_is_open_and_asks_for_the_key_itself(assistant, browser):
    with running(assistant, keys=("secret",)) as server, browser.new_context() as context:
        page = context.new_page()
        page.goto(server.url)
        expect(page.locator("#model")).to_contain_text("no valid API key")
        page.locator("summary").click()
        page.fill("#key", "secret")
        page.keyboard.press("Tab")
        expect(page.locator("#model")).to_have_text("tiny")


def test_the_page_may_load_and_run_nothing_but_its_own(server):
    for path in ("/", "/page.js", "/page.css"):
        answer = httpx.get(server.url + path)
        assert answer.status_code == 200
        assert "default-src 'none'; script-src 'self'" in answer.headers["content-security-policy"]
    source = (Path(__file__).parents[2] / "mmgpt/serving/page/page.js").read_text()
    assert "innerHTML" not in source
