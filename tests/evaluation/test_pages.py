"""The pages of an evaluation and of an explanation, opened from their files in a real browser."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page
from tiny import some_audio, some_image, some_video

from mmgpt.content import Message
from mmgpt.data.sample import Sample
from mmgpt.evaluation.asking import Answered
from mmgpt.evaluation.exam_report import write_exam_report
from mmgpt.evaluation.explain import explain
from mmgpt.evaluation.explain_page import write_explanation
from mmgpt.evaluation.runner import beside, measured

WIDTHS = {"phone": 390, "desktop": 1280}
SETTINGS = {
    "model": {"name": "runs/a-model-of-a-long-name", "int8": False},
    "data": {"path": "some/folder/of-a-very-long-name/photos", "format": "captions", "split": "dev", "samples": 9},
    "decoding": {"beams": 1, "temperature": 0.0, "max_new_tokens": 48, "seed": 0, "choose": False},
}
SHOWN = "[...document.querySelectorAll('article')].filter(one => one.offsetParent).length"


@pytest.fixture(params=WIDTHS.values(), ids=WIDTHS)
def opened(browser, request) -> Iterator:
    """opened(path) -> the page of a file. Nothing is told on the console, and nothing is loaded from elsewhere."""
    told: list[str] = []
    with browser.new_context(viewport={"width": request.param, "height": 800}) as context:
        page = context.new_page()
        page.on("console", lambda message: told.append(message.text))
        page.on("pageerror", lambda error: told.append(str(error)))

        def of(path: Path) -> Page:
            page.on(
                "request", lambda one: None if one.url.startswith(("data:", path.as_uri())) else told.append(one.url)
            )
            page.goto(path.as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") == request.param
            return page

        yield of
    assert not told


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """Answers of several tasks, with media of all kinds, and long words everywhere."""
    path = tmp_path_factory.mktemp("report") / "report.html"

    def said(task: str, truth: str, prediction: str, *parts, **fields) -> Answered:
        prompt = (Message.of("user", *parts, f"What? {'x' * 80}"),)
        return Answered(Sample(prompt, (truth,), task, f"{'folder/' * 20}a.jpg", **fields), prediction)

    answers = [
        *[said("classify", f"{'long ' * 8}class {i % 20}", f"class {i}", some_image(i)) for i in range(30)],
        *[
            said("ask", "a", "a" if i % 3 else "b", kinds={"question type": f"how {'many' * (i % 4)}"})
            for i in range(12)
        ],
        *[said("translate", "x" * 90, "y" * 90) for _ in range(2)],
        said("transcribe", "a b", "a", some_audio(1)),
        said("describe", "it moves", "it stands", some_video(2)),
    ]
    measures, answered = measured(answers), dict(enumerate(answers))
    write_exam_report(path, SETTINGS, measures, beside(measures, answers), answered, answered, {99: "y" * 200})
    return path


def test_the_samples_of_a_report_are_filtered(opened, report):
    page = opened(report)
    assert page.evaluate(SHOWN) == 46
    page.get_by_text("wrong", exact=False).locator("visible=true").first.click()
    assert page.evaluate(SHOWN) == 30 + 4 + 1  # the classes, four answers, the transcript
    page.get_by_label("Question type").select_option(label="how many (3)")
    assert page.evaluate(SHOWN) == 1  # of numbers 1, 5 and 9 the last alone is wrong
    page.locator("label:has(#show-all)").click()
    assert page.evaluate(SHOWN) == 3
    assert page.locator(".task h3:visible").all_text_contents() == ["ask 8 of 12 shown here right"]
    page.get_by_label("Question type").select_option("all")
    page.locator("label", has_text="describe").click()
    assert page.evaluate(SHOWN) == 1


def test_the_clips_and_sounds_of_a_report_play(opened, report):
    page = opened(report)
    seconds = page.evaluate("""async () => {
        const found = [];
        for (const medium of document.querySelectorAll('video, audio')) {
            medium.muted = true;
            await medium.play();
            found.push([medium.tagName, medium.duration]);
            medium.pause();
        }
        return found;
    }""")
    assert [(kind, round(length, 1)) for kind, length in seconds] == [
        ("AUDIO", 0.4),
        ("VIDEO", pytest.approx(0.75, abs=0.1)),
    ]


def test_an_explanation_is_seen(opened, assistant, tmp_path):
    prompt = [Message.of("user", some_image(3), some_audio(1), "What? " + "x" * 20)]
    found = explain(assistant, prompt, f"A red square{'s' * 40}.", "rollout")
    write_explanation(tmp_path, found, f"What {'x' * 200}?")
    page = opened(tmp_path / "explanation.html")
    assert page.locator(".spoken figure").count() == len(found.words)
    assert page.evaluate("[...document.images].every(one => one.complete && one.naturalWidth > 0)")
