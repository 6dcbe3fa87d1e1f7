"""Runs that pair media with texts, alone or beside captions, to their report."""

import pytest
import torch
from walls import COLOURS, colour_of, wall_config, write_walls

import mmgpt
from mmgpt import checkpoint
from mmgpt.cli.train import parse
from mmgpt.config import GPTConfig, PairConfig
from mmgpt.errors import ConfigError
from mmgpt.training.report import finish, read_curve
from mmgpt.training.run import make_tokenizer, model_config, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_walls(tmp_path_factory.mktemp("walls") / "data", broken=("dev",))


def run(folder, out, epochs=60, **changes):
    config = wall_config(folder, out, epochs=epochs, val_every=epochs)
    config.batch_size = 9
    text = GPTConfig(width=32, layers=1, heads=2, context=64)
    config.model.pair = PairConfig(width=16, text=text, heads=2, **changes)
    done = train(config)
    return done, finish(config, done)


@pytest.fixture(scope="module")
def paired(folder, tmp_path_factory):
    """A run that has learned to pair walls with their colours, and nothing else."""
    return run(folder, tmp_path_factory.mktemp("paired") / "run", caption=0.0)


@pytest.mark.parametrize(("loss", "caption"), [("clip", 0.0), ("siglip", 1.0)])
def test_it_learns_to_pair_walls_with_their_colours(folder, paired, tmp_path, loss, caption):
    done, evaluation = (
        paired if (loss, caption) == ("clip", 0.0) else run(folder, tmp_path / "run", loss=loss, caption=caption)
    )
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
    assert captioned[:2] == (["CIDEr-D", "BLEU-1"] if caption else [])
    assert sum("broken-dev.png" in reason for reason in evaluation.broken) == 1
    kept = checkpoint.read_training(checkpoint.resolve(done.out / "best"))["scores"]
    assert [(one["task"], one["score"]) for one in kept if one["metric"] == "R@1"] == [
        ("find the text", 1.0), ("find the medium", 1.0)
    ]  # fmt: skip
    assert "R@1" in (done.out / "report.html").read_text(encoding="utf-8")
    assert all(("val_score" in row) <= bool(caption) for row in read_curve(done.out))


def test_the_validation_loss_is_that_of_the_pairs_too(folder, paired):
    done, _ = paired
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


def captioning(folder, paired, out, *options):
    """What goes on from there to captions."""
    done, _ = paired
    given = ["--init", str(done.out), "--model.pair.caption", "1", "--data.format", "captions", "--data.path"]
    more = ["--out", str(out), "--batch_size", "9", "--precision", "32-true", "--optimizer.learning_rate", "5e-3"]
    return parse([*given, str(folder), *more, *options])


def test_what_has_learned_pairs_alone_goes_on_to_captions(folder, paired, tmp_path):
    config = captioning(folder, paired, tmp_path / "run", "--epochs", "60", "--val_every", "60")
    done = train(config)
    model = mmgpt.load(done.out, device="cpu")
    assert model.caption([folder / f"{i}.png" for i in range(9)]) == [f"{colour_of(i)} wall" for i in range(9)]
    assert model.model.config == model_config(config)
    assert model.model.config.pair is not None
    assert model.model.config.pair.width == 16  # as it was


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--model.pair.loss", "siglip"], "model: init .* has its own; leave out one of the two"),
        (["--model.gpt.width", "32"], "model: init .* has its own; leave out one of the two"),
        (["--model.pair.caption", "-1"], "caption from 0 on"),
        (["--model.pair.weight", "0"], "weight must be above 0"),
    ],
)
def test_beside_init_the_weights_of_the_losses_alone_are_set_anew(folder, paired, tmp_path, options, told):
    with pytest.raises(ConfigError, match=told):
        make_tokenizer(captioning(folder, paired, tmp_path, *options), [])


def test_weights_of_pairs_are_refused_where_init_does_not_pair(learned):
    config = parse(["--init", str(learned.run.out), "--model.pair.caption", "1"])
    with pytest.raises(ConfigError, match=r"model\.pair: init .* does not pair media with texts"):
        make_tokenizer(config, [])


def test_what_was_found_before_the_training_is_told_beside_what_is_found_after(folder, tmp_path):
    begun, first = run(folder, tmp_path / "begun", epochs=1, caption=0.0)
    more = ["--epochs", "100", "--val_every", "100", "--data.val_samples", "100"]
    config = captioning(folder, (begun, first), tmp_path / "run", *more)
    evaluation = finish(config, train(config))
    pairs = [score for score in evaluation.scores if score.task in ("find the text", "find the medium")]
    assert [(one.task, one.metric, one.before) for one in pairs] == [
        (one.task, one.metric, one.score) for one in first.scores
    ]
    assert [one.score for one in pairs if one.metric == "R@1"] == [1.0, 1.0]
    assert any(one.before != one.score for one in pairs)
    assert {score.before for score in evaluation.scores if score.task == "caption"} == {None}
    kept = checkpoint.read_training(checkpoint.resolve(tmp_path / "run"))["scores"]
    assert {one["metric"]: one["before"] for one in kept if one["task"] == "find the text"} == {
        one.metric: round(one.score, 4) for one in first.scores if one.task == "find the text"
    }
    assert "before this training" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_a_run_does_not_replace_what_it_begins_with(folder, paired, tmp_path):
    done, _ = paired
    for init in (done.out, done.out / "last"):
        config = captioning(folder, paired, done.out)
        config.init = str(init)
        with pytest.raises(ConfigError, match="is where init lies"):
            make_tokenizer(config, [])
