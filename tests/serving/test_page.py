"""The page to try a model on, in a real browser."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect
from servers import Running, image_part, png, running, text_part, user, wav

WIDTHS = {"phone": 360, "desktop": 1280}


@pytest.fixture
def page(browser, server) -> Iterator[Page]:
    """The page at the width of a phone; nothing goes wrong in its script, and it loads nothing from elsewhere."""
    errors: list[str] = []
    with browser.new_context(viewport={"width": WIDTHS["phone"], "height": 700}) as context:
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: errors.append(request.url) if foreign(request.url, server) else None)
        page.goto(server.url)
        yield page
    assert not errors


def foreign(url: str, server: Running) -> bool:
    return not url.startswith((server.url, f"blob:{server.url}", "data:"))


def answers(page: Page):
    return page.locator(".message.assistant:not(.waiting) .said")


def test_each_word_of_an_answer_shows_where_it_looked(page, tmp_path):
    (tmp_path / "a.png").write_bytes(png(1))
    page.locator("summary").click()
    page.fill("#tokens", "6")
    page.set_input_files("#files", tmp_path / "a.png")
    page.fill("#text", "What?")
    page.keyboard.press("Enter")
    expect(answers(page)).to_have_count(1)
    said = answers(page).text_content() or ""
    page.get_by_role("button", name="Where did it look?").click()
    words = page.locator(".word")
    expect(words.first).to_be_visible()
    assert "".join(words.all_text_contents()) == "".join(said.split())
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
    expect(page.locator(".message.assistant:not(.wrong):not(.waiting)")).to_have_count(1)


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
