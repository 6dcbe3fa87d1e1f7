import pytest

import mmgpt
from mmgpt import checkpoint
from mmgpt.data.sample import Sample
from mmgpt.training.report import finish, read_curve


@pytest.fixture
def finished(learned):
    """The evaluation, which is part of the run's end; the run's own files are changed by it, always alike."""
    return finish(learned.config, learned.run, goals={"caption": 0.5}, title="Walls <of> colour")


def test_the_report_shows_scores_curve_and_samples(learned, finished):
    page = (learned.run.out / "report.html").read_text(encoding="utf-8")
    assert "Walls &lt;of&gt; colour" in page
    for expected in ("CIDEr-D", "BLEU-4", "red wall", "✓ reached", "data:image/png;base64,", "<svg"):
        assert expected in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page


def test_scores_are_kept_with_the_best_checkpoint_which_still_answers(learned, finished):
    best = learned.run.out / "best"
    training = checkpoint.read_training(checkpoint.resolve(best))
    assert [score["metric"] for score in training["scores"]] == [score.metric for score in finished.scores]
    assert training["steps"] in (100, 200)
    assert training["minutes"] == round(learned.run.seconds / 60, 2)
    for kept, score in zip(training["scores"], finished.scores, strict=True):
        assert (kept["score"], kept["n"]) == (round(score.score, 4), 3)
        assert kept["control"] < kept["score"] or kept["score"] == 0  # BLEU-4 of two words
    assert mmgpt.load(learned.run.out, device="cpu").caption(learned.folder / "0.png") == "red wall"


def test_broken_samples_are_told_and_listed(learned, finished, capsys):
    finish(learned.config, learned.run)
    listed = (learned.run.out / "broken.txt").read_text().splitlines()
    assert len(listed) == 2
    assert all("is damaged or not a picture" in line for line in listed)
    assert "2 samples or answers could not be used" in capsys.readouterr().out
    assert "unusable samples or answers" in (learned.run.out / "report.html").read_text(encoding="utf-8")


def test_other_samples_may_be_given(learned):
    some: list[Sample] = list(learned.run.val_samples)[:1]
    assert len(finish(learned.config, learned.run, some).answered) == 1


def test_the_curve_has_the_logged_values_as_numbers(learned):
    curve = read_curve(learned.run.out)
    assert {key for row in curve for key in row} > {"epoch", "step", "loss", "val_loss", "val_score"}
    assert [row["step"] for row in curve if "val_loss" in row] == [99, 199]
