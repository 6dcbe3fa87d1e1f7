"""Runs that pair media with texts, alone or beside captions, to their report."""

import pytest
import torch
from walls import COLOURS, colour_of, wall_config, write_walls

import mmgpt
from mmgpt import checkpoint
from mmgpt.config import GPTConfig, PairConfig
from mmgpt.training.report import finish, read_curve
from mmgpt.training.run import train


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_walls(tmp_path_factory.mktemp("walls") / "data", broken=("dev",))


def run(folder, out, **changes):
    config = wall_config(folder, out, epochs=60, val_every=60)
    config.batch_size = 9
    text = GPTConfig(width=32, layers=1, heads=2, context=64)
    config.model.pair = PairConfig(width=16, text=text, heads=2, **changes)
    done = train(config)
    return done, finish(config, done)


@pytest.mark.parametrize(("loss", "caption"), [("clip", 0.0), ("siglip", 1.0)])
def test_it_learns_to_pair_walls_with_their_colours(folder, tmp_path, loss, caption):
    done, evaluation = run(folder, tmp_path / "run", loss=loss, caption=caption)
    model = mmgpt.load(done.out, device="cpu")
    for i in range(12):  # the last three are held out
        shares = model.classify(folder / f"{i}.png", list(COLOURS), template="{} wall")
        assert next(iter(shares)) == colour_of(i)
    scores = {(score.task, score.metric): score for score in evaluation.scores}
    texts = len({colour_of(i) for i in range(9, 12)})
    for task, n in (("find the text", 3), ("find the medium", texts)):
        first = scores[task, "R@1"]
        assert (first.score, first.n) == (1.0, n)
        assert first.chance == pytest.approx(1 / texts)
    captioned = [score.metric for score in evaluation.scores if score.task == "caption"]
    assert captioned == (["CIDEr-D", "BLEU-4"] if caption else [])
    assert sum("broken-dev.png" in reason for reason in evaluation.broken) == 1
    kept = checkpoint.read_training(checkpoint.resolve(done.out / "best"))["scores"]
    assert [(one["task"], one["score"]) for one in kept if one["metric"] == "R@1"] == [
        ("find the text", 1.0), ("find the medium", 1.0)
    ]  # fmt: skip
    assert "R@1" in (done.out / "report.html").read_text(encoding="utf-8")
    assert all(("val_score" in row) <= bool(caption) for row in read_curve(done.out))


def test_the_validation_loss_is_that_of_the_pairs_too(folder, tmp_path):
    done, _ = run(folder, tmp_path / "run", caption=0.0)
    model, tokenizer = checkpoint.load(done.out / "last")
    assistant = mmgpt.Assistant(model, tokenizer)
    walls = assistant.embed([folder / f"{i}.png" for i in range(9, 12)])
    names = list(dict.fromkeys(colour_of(i) for i in range(9, 12)))
    texts = assistant.embed([f"{name} wall" for name in names])
    assert model.pair is not None
    right = torch.tensor([[colour_of(i) == name for name in names] for i in range(9, 12)])
    from mmgpt.pairing import clip_loss

    expected = float(clip_loss(model.pair.logits(walls, texts), right))
    assert [row["val_loss"] for row in read_curve(done.out) if "val_loss" in row][-1] == pytest.approx(
        expected, rel=1e-3, abs=1e-6
    )
