import re

import numpy as np
import PIL.Image
import pytest

from mmgpt.errors import WriteError
from mmgpt.evaluation.contact_sheet import write_contact_sheet
from mmgpt.evaluation.report import ReportSample, TaskScore, write_report
from mmgpt.media import Clip, Waveform

EVIL = "<script>alert('x')</script>&\""


@pytest.fixture
def samples():
    rng = np.random.default_rng(0)
    sound = Waveform(rng.uniform(-1, 1, 4000).astype(np.float32), 8000)
    frames = rng.integers(0, 256, (3, 24, 24, 3), dtype=np.uint8)
    clip = Clip(frames, np.arange(3) / 4, 0.75, sound)
    picture = PIL.Image.fromarray(frames[0])
    return [
        ReportSample("see", "What?", "a red circle", "a red circle", True, image=picture),
        ReportSample("hear", EVIL, EVIL, EVIL, False, audio=sound),
        ReportSample(EVIL, "Which way?", "left", "right", False, clip=clip),
        ReportSample("write", "Tell.", "", "a tale", None, score=0.25),
    ]


@pytest.fixture
def page(tmp_path, samples):
    scores = [
        TaskScore("see", 0.9, 500, interval=(0.87, 0.92), control=0.1, groups={"new": (0.5, 20)}, goal=0.8),
        TaskScore(EVIL, 0.2, 10, metric="WER", lower_is_better=True, goal=0.1),
    ]
    curve = [{"step": 1, "loss": 4.0}, {"step": 2, "loss": float("nan")}, {"step": 3, "loss": 2.0, "val_loss": 2.5}]
    path = tmp_path / "report.html"
    write_report(path, title=EVIL, summary=[("time", EVIL)], curve=curve, scores=scores, samples=samples)
    return path.read_text(encoding="utf-8")


def test_the_page_is_whole_in_itself(page):
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sources
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert not re.findall(r"url\((?!['\"]?data:)", page)
    assert "@import" not in page


def test_texts_are_shown_and_never_obeyed(page):
    assert "<script" not in page.lower()
    assert page.count("&lt;script&gt;alert(&#x27;x&#x27;)") >= 6


def test_every_medium_is_in_the_page(page):
    assert page.count("data:audio/wav;base64,") == 2  # the sound, and the sound track
    assert page.count("data:image/") >= 1 + 1 + 3 + 1  # picture, spectrogram, three frames, spectrogram of the track
    assert page.count("<audio") == 2


def test_scores_goals_controls_and_groups_are_told(page):
    for text in ("90.0", "10.0", "87.0", "92.0", "✓ reached", "✗ missed", "50.0"):
        assert text in page


def test_right_and_wrong_are_told_by_more_than_colour(page):
    assert page.count("✓ right") == 1
    assert page.count("✗ wrong") == 2
    assert "score 0.25" in page


def test_a_report_without_anything_is_a_page_all_the_same(tmp_path):
    write_report(tmp_path / "empty.html", title="Nothing")
    assert "<h1>Nothing</h1>" in (tmp_path / "empty.html").read_text()


def test_a_report_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WriteError, match="cannot write"):
        write_report(tmp_path / "file" / "report.html", title="x")


def test_a_contact_sheet_holds_every_sample(tmp_path, samples):
    write_contact_sheet(tmp_path / "one.png", samples[:1])
    write_contact_sheet(tmp_path / "all.png", samples, title="Step 1", columns=2)
    one, every = (PIL.Image.open(tmp_path / f"{name}.png") for name in ("one", "all"))
    assert every.width > one.width
    assert every.height > one.height
    assert len(every.convert("RGB").getcolors(1 << 24) or []) > 10
