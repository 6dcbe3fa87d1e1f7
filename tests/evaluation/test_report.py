import base64
import io
import re

import numpy as np
import PIL.Image
import pytest

from mmgpt.errors import WriteError
from mmgpt.evaluation.charts import learning_curve
from mmgpt.evaluation.contact_sheet import write_contact_sheet
from mmgpt.evaluation.report import CHOICES, ReportSample, Room, TaskScore, write_report
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
    assert page.count("data:audio/mpeg;base64,") == 2  # the sound, and the sound track
    assert page.count("data:image/") >= 1 + 1 + 3 + 1  # picture, spectrogram, three frames, spectrogram of the track
    assert page.count("<audio") == 2


def test_scores_goals_controls_and_groups_are_told(page):
    for text in ("90.0", "10.0", "87.0", "92.0", "✓ reached", "✗ missed", "50.0"):
        assert text in page


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, ["score"]),
        (
            {"control": 0.1, "interval": (0.2, 0.4)},
            ["score, with 95&nbsp;% interval", "same questions, media shuffled"],
        ),
        ({"chance": 0.25}, ["score", "chance"]),
        ({"before": 0.3}, ["score", "before this training"]),
    ],
)
def test_the_key_explains_the_marks_that_are_there_and_no_others(tmp_path, given, told):
    write_report(tmp_path / "a.html", title="x", scores=[TaskScore("a", 0.3, 9, **given), TaskScore("b", 0.3, 9)])
    (key,) = re.findall(r'<ul class="key">(.*?)</ul>', (tmp_path / "a.html").read_text(encoding="utf-8"))
    assert re.findall(r"<li[^>]*>([^<]*)</li>", key) == told


def test_each_frame_of_a_clip_is_shown_once(tmp_path):
    times = np.repeat([0.0, 0.25, 0.5], [3, 1, 2])
    clip = Clip(np.zeros((6, 24, 24, 3), np.uint8), times, 0.75, None)
    write_report(tmp_path / "a.html", title="x", samples=[ReportSample("see", "?", "a", "b", False, clip=clip)])
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert re.findall(r"<small>([0-9.]+) s</small>", page) == ["0.00", "0.25", "0.50"]
    assert page.count("data:image/") == 3


def test_a_clip_of_many_frames_can_be_played_and_shows_some(tmp_path):
    frames = np.zeros((30, 24, 24, 3), np.uint8)
    sound = Waveform(np.zeros(8000, np.float32), 8000)
    clip = Clip(frames, np.arange(30) / 10, 3.0, sound)
    write_report(tmp_path / "a.html", title="x", samples=[ReportSample("see", "?", "a", "b", False, clip=clip)],
                 room=Room(side=48, frames=4))  # fmt: skip
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert page.count("<video") == page.count("data:video/mp4;base64,") == 1
    assert len(re.findall(r"<small>[0-9.]+ s</small>", page)) == 4
    assert "<audio" not in page  # it is in the clip


def test_the_room_of_media_is_that_which_is_told(tmp_path):
    picture = PIL.Image.effect_noise((300, 200), 50)
    sound = Waveform(np.zeros(24_000, np.float32), 8000)
    samples = [ReportSample("see", "?", "a", "b", image=picture, audio=sound)]
    write_report(tmp_path / "a.html", title="x", samples=iter(samples), room=Room(side=100, seconds=1.5))
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]*)"', page)
    assert [PIL.Image.open(io.BytesIO(base64.b64decode(data))).size for data in pictures] == [(100, 67), (100, 35)]
    assert "first 1.5 s of 3.0 s" in page


def test_filters_have_the_values_that_differ_in_the_order_of_people(tmp_path):
    facets = [{"words": f"{n} words", "same": "x"} for n in (20, 3, 3, 100)]
    samples = [ReportSample("see", "?", "a", "b", True, facets=one) for one in [*facets, {}]]
    write_report(tmp_path / "a.html", title="x", samples=samples)
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert re.findall(r"<option [^>]*>([^<]*)<", page) == ["all", "3 words (2)", "20 words (1)", "100 words (1)"]
    classes = re.findall(r'<article class="([^"]*)"', page)
    assert classes == ["right by-0-1", "right by-0-0", "right by-0-0", "right by-0-2", "right"]
    assert "body:has(#by-0 option[value='1']:checked) article:not(.by-0-1)" in page


def test_rare_values_of_a_filter_share_a_place(tmp_path):
    names = [f"kind {i}" for i in range(CHOICES + 3) for _ in range(1 + (i < CHOICES))]
    samples = [ReportSample("see", "?", "a", "b", facets={"kind": name}) for name in names]
    write_report(tmp_path / "a.html", title="x", samples=samples)
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    *_, last, others = re.findall(r"<option [^>]*>([^<]*)<", page)
    assert (last, others) == (f"kind {CHOICES - 1} (2)", "others (3)")
    assert page.count(f'"open by-0-{CHOICES}"') == 3


def test_a_curve_of_one_point_is_seen_as_a_dot():
    figure = learning_curve([{"step": 5, "loss": 1.0}, {"step": 10, "loss": 2.0}, {"step": 10, "val_loss": 4.0}])
    dots = re.findall(r'<circle class="(\w+)" cx="([\d.]+)%" cy="([\d.]+)%"', figure)
    assert [(kind, float(x), float(y)) for kind, x, y in dots] == [("train", 100, 50), ("val", 100, 0)]


def test_of_a_reward_the_best_is_the_highest():
    curve = [{"step": 10, "reward": 0.5, "loss": 3.0}, {"step": 20, "val_reward": 2.0}, {"step": 30, "val_reward": 1.0}]
    figure = learning_curve(curve, "reward")
    assert "validation, last 1, highest 2<" in figure
    assert "training, last 0.5<" in figure
    assert "Reward over 30 steps" in figure


def test_steps_are_told_where_they_are_whole():
    figure = learning_curve([{"step": 0, "loss": 4.0}, {"step": 12, "loss": 1.0}])
    steps = re.findall(r'<text x="([\d.]+)%" y="100%"[^>]*>([^<]*)</text>', figure)
    assert [(round(float(x) * 12 / 100, 2), text) for x, text in steps] == [(0, "0"), (5, "5"), (10, "10")]


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
