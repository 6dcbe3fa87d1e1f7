"""Pretraining on documents of texts and pictures, from files to what was learned."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from walls import COLOURS, colour_of, train_until, wall_config, write_walks

from mmgpt import checkpoint
from mmgpt.batch import collate
from mmgpt.content import Text
from mmgpt.data.chat import read_chat
from mmgpt.data.check import check
from mmgpt.evaluation.inspection import as_text, inspected
from mmgpt.processor import Processor
from mmgpt.run_config import DataConfig, TrainConfig
from mmgpt.training.run import train


def walk_config(path, out, **changes) -> TrainConfig:
    return wall_config(path.parent, out, data=DataConfig("chat", str(path), vocab_size=280), **changes)


def told_losses(directory, path) -> tuple[list[float], list[float]]:
    """The loss of the text behind the first and the second picture of each held-out document."""
    model, tokenizer = checkpoint.load(directory)
    processor = Processor(model.config, tokenizer)
    places: tuple[list[float], list[float]] = ([], [])
    for sample in read_chat(path, "dev")[:-1]:  # the last is broken
        [answer] = sample.answers
        document = processor.encode_answer(processor.encode_prompt(()), answer)
        behind = [first + item.slots for first, item in document.media]
        batch = collate([document])
        with torch.no_grad():
            losses = dict(zip(batch.targets.tolist(), model.eval().loss(batch).each.tolist(), strict=True))
        texts = [part.text for part in answer if isinstance(part, Text)]  # type: ignore[union-attr]
        for place, text, kept in zip(behind, texts[1::2], places, strict=False):
            assert text.strip(" .") in COLOURS
            length = len(tokenizer.encode(text))
            kept.append(sum(losses[place + i] for i in range(length)))
    return places


@pytest.fixture(scope="module")
def walked(tmp_path_factory) -> tuple[Path, Path]:
    """A file of documents, one of which is broken in each split, and the model that was trained on it."""
    place = tmp_path_factory.mktemp("walks")
    path = write_walks(place / "data", broken=("train", "dev"))
    return path, train(walk_config(path, place / "run", epochs=60, val_every=120)).out / "last"


def test_the_text_behind_each_picture_is_learned_from_it(walked):
    path, model = walked
    for losses in told_losses(model, path):
        assert len(losses) == 3
        assert max(losses) < 0.1  # nats a colour; without a look it is at best 1.1, three being equally likely


def test_check_and_inspect_tell_of_the_documents_and_of_the_broken_ones(walked):
    path, directory = walked
    model, tokenizer = checkpoint.load(directory)
    processor = Processor(model.config, tokenizer)
    samples = {split: read_chat(path, split) for split in ("train", "dev")}
    found = check(samples["train"], samples["dev"], processor)
    for split, documents, line in ((found.train, 9, 13), (found.val, 3, 14)):
        assert (split.documents, split.media["image"].count) == (documents, 2 * documents)
        (reason,) = split.broken
        assert reason.startswith(f"{path}:{line}: ")
        assert "is damaged or not a picture" in reason
    first, *_, broken = inspected(samples["dev"], 4, processor, 0)
    slots = f"[image: {first.documents[0].media[0][1].slots} slots]"
    one, two = colour_of(9), colour_of(10)
    told = f"<|assistant|>A walk: {slots} {one}. Then {slots} {two}. <|end|>"
    assert as_text(first.documents[0], tokenizer).plain == told
    assert (broken.documents, len(broken.broken)) == ([], 1)


@pytest.mark.parametrize("packed", [False, True])
def test_a_run_that_died_goes_on_to_the_very_weights(tmp_path, packed):
    path = write_walks(tmp_path / "walks", broken=("train",))
    changes = {"batch_size": None, "batch_tokens": 90} if packed else {"batch_size": 4}
    whole = walk_config(path, tmp_path / "whole", epochs=3, save_every=2, **changes)
    whole.model.gpt.dropout = 0.1
    died = replace(whole, out=str(tmp_path / "died"))
    first = train(whole)
    train_until(died, 5)
    second = train(replace(died, resume=True))
    one, two = (checkpoint.load(run.out / "last")[0].state_dict() for run in (first, second))
    assert all(torch.equal(one[name], two[name]) for name in one)
    (reason,) = second.broken
    assert reason.startswith(f"{path}:13: ")
    assert "broken-train.png: is damaged or not a picture" in reason
