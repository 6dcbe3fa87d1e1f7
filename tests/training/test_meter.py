import csv
import io
import re
import time
from contextlib import redirect_stdout
from pathlib import Path

import lightning as L
import pytest
import torch
from tiny import some_audio, some_image
from walls import wall_config, write_walls

from mmgpt.batch import Batch, collate
from mmgpt.content import Message
from mmgpt.data.dataset import ExampleDataset
from mmgpt.data.loader import Loader
from mmgpt.data.sample import Sample
from mmgpt.model import MultimodalGPT
from mmgpt.training import callbacks, meter
from mmgpt.training.memory import peak_memory
from mmgpt.training.meter import LOGGED, Meter
from mmgpt.training.module import MultimodalModule, exchanged
from mmgpt.training.run import train


def batch(processor, *samples: tuple[str, list, tuple[str, ...]]) -> Batch:
    dataset = ExampleDataset(
        [
            Sample((Message.of("user", *parts),), answers, task, f"x:{i}")
            for i, (task, parts, answers) in enumerate(samples)
        ],
        processor,
    )
    return collate([example for i in range(len(dataset)) for example in dataset[i]])


def test_losses_are_told_apart_by_task_and_by_modality(model, processor):
    kinds = [
        ("ask", [some_image(0), "What?"], ("a red circle", "red")),
        ("ask", ["What?"], ("a b",)),
        ("hear", [some_audio(0), some_image(1)], ("boom",)),
    ]
    losses, alone = Meter(), []
    with torch.no_grad():
        both = batch(processor, *kinds)
        losses.learned(both, model.loss(both))
        for kind in kinds:
            one = batch(processor, kind)
            loss = model.loss(one)
            alone.append((float(loss.sum), loss.count))

    def mean(*numbers: int) -> float:
        return pytest.approx(sum(alone[i][0] for i in numbers) / sum(alone[i][1] for i in numbers), rel=1e-5)

    assert losses.means() == {
        "": mean(0, 1, 2), "ask": mean(0, 1), "hear": mean(2),
        "image": mean(0), "text": mean(1), "audio + image": mean(2),
    }  # fmt: skip
    assert losses.means() == {}


def test_media_are_exchanged_among_those_of_one_size_and_nothing_else_is(processor):
    pictures = batch(processor, *(("ask", [some_image(i), "What?"], ("a",)) for i in range(3)))
    spoilt, changed = exchanged(pictures)
    assert spoilt is not None
    assert changed == {0, 1, 2}
    before, after = ([item.digest for item in one.media["image"].inputs] for one in (pictures, spoilt))
    assert sorted(before) == sorted(after)
    assert all(one != other for one, other in zip(before, after, strict=True))
    assert spoilt.ids is pictures.ids
    sounds = batch(processor, *(("ask", [some_audio(i, 1000 + 2000 * i), "What?"], ("a",)) for i in range(2)))
    assert len({item.grid for item in sounds.media["audio"].inputs}) == 2  # of two lengths
    assert exchanged(sounds) == (None, set())
    assert exchanged(batch(processor, ("ask", ["What?"], ("a",)))) == (None, set())


def test_documents_are_told_all_of_whose_media_are_others(processor):
    shown = [
        [some_audio(0, 1000)], [], [some_audio(1, 1000)], [some_audio(2, 1000), some_audio(3, 3000)],
        [some_image(0), some_audio(4, 1000)], [some_image(1)],
    ]  # fmt: skip
    some = batch(processor, *(("ask", [*media, "What?"], ("a", "b")) for media in shown))
    spoilt, changed = exchanged(some)
    assert spoilt is not None
    assert changed == {0, 1, 4, 5, 8, 9, 10, 11}  # each sample has two answers


def test_what_media_are_worth_is_measured_on_the_documents_that_show_others(model, processor):
    """Of sounds of three lengths, in batches of three documents, those of one length; and it is not in val_loss."""
    told = [(1000, "boom"), (3000, "a long and winding sound of the sea"), (1000, "a red circle"), (5000, "b c d e")]

    def sample(sound: int, text: int) -> tuple[str, list, tuple[str, ...]]:
        return "hear", [some_audio(sound, told[sound][0]), "What?"], (told[text][1],)

    def alone(*pairs: tuple[int, int]) -> float:
        losses = [model.loss(batch(processor, sample(*pair))) for pair in pairs]
        return float(sum(loss.sum for loss in losses)) / sum(loss.count for loss in losses)

    samples = [Sample((Message.of("user", *p),), a, task, "x") for task, p, a in (sample(i, i) for i in range(4))]
    module = MultimodalModule(MultimodalGPT(model.config))
    module.model.load_state_dict(model.state_dict())
    trainer = L.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.validate(module, Loader(samples, processor, batch_size=3), verbose=False)
    measured = {name: float(value) for name, value in trainer.callback_metrics.items()}
    with torch.no_grad():
        gap = alone((0, 2), (2, 0)) - alone((0, 0), (2, 2))
        assert abs(gap) > 1e-5
        assert measured["val_gap/audio"] == measured["val_gap/hear"] == pytest.approx(gap, abs=1e-6)
        assert measured["val_loss"] == pytest.approx(alone(*((i, i) for i in range(4))), rel=1e-5)


def columns(out: Path) -> dict[str, list[float]]:
    with (out / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows if row[name]] for name in rows[0]}


@pytest.fixture(scope="module")
def logged(tmp_path_factory) -> tuple[dict[str, list[float]], list[str]]:
    """What is logged, and the lines that are told meanwhile."""
    place = tmp_path_factory.mktemp("logged")
    config = wall_config(
        write_walls(place / "walls", train=17, dev=6),
        place / "run",
        epochs=90,
        batch_size=None,
        batch_tokens=150,
        val_every=10,
    )
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as told:
        patch.setattr(meter, "TOLD", 0.0)
        train(config)
    return columns(place / "run"), told.getvalue().splitlines()


def test_a_run_logs_what_it_does_with_its_time(logged):
    log, _ = logged
    assert all(value > 0 for value in log["tokens_per_second"])
    assert all(0 < value < 1 for name in ("supervised", "wait") for value in log[name])
    assert all(0.5 < value <= 1 for value in log["fill"])
    assert log["memory_gb"] == sorted(log["memory_gb"])
    assert log["memory_gb"][-1] <= peak_memory() / 1e9 + 1e-6  # logged in single precision


def test_time_in_which_states_are_written_is_not_waited_for_data(tmp_path, monkeypatch):
    monkeypatch.setattr(callbacks, "save_state", lambda *_: time.sleep(0.2))
    config = wall_config(write_walls(tmp_path / "walls"), tmp_path / "run", steps=LOGGED, save_every=1)
    train(config)
    [wait] = columns(tmp_path / "run")["wait"]
    assert wait < 0.5


def test_the_line_of_progress_tells_what_is_logged(logged):
    log, told = logged
    found = re.search(
        r"100%: step \d+, loss [\d.]+, validation [\d.]+, score [\d.]+, "
        r"([\d,]+) tokens/s, supervised (\d+)%, wait (\d+)%, fill (\d+)%, [\d.]+ GB",
        told[-1],
    )
    assert found
    speed, *shares = (float(number.replace(",", "")) for number in found.groups())
    assert speed == pytest.approx(log["tokens_per_second"][-1], abs=0.51)
    assert shares == pytest.approx([100 * log[name][-1] for name in ("supervised", "wait", "fill")], abs=0.51)


def test_a_run_logs_losses_by_kind_and_gradients_by_module(logged):
    log, _ = logged
    assert log["loss/caption"] == log["loss/image"]
    assert log["val_loss/caption"] == pytest.approx(log["val_loss"])
    parts = [log[f"gradient/{name}"] for name in ("gpt", "encoders.image", "adapters.image")]
    for whole, *norms in zip(log["gradient"], *parts, strict=True):
        assert whole == pytest.approx(sum(norm**2 for norm in norms) ** 0.5, rel=1e-4)


def test_a_model_that_has_learned_to_see_loses_by_other_pictures(logged):
    """And one that has not does not: so it is seen in minutes whether a projector learns."""
    log, _ = logged
    assert abs(log["val_gap/image"][0]) < 0.1
    assert log["val_gap/image"][-1] > 1.0
