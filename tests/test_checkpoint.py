import copy
import errno
import json
import shutil
import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import some_audio, some_image, some_video, tiny_config

from mmgpt import checkpoint
from mmgpt.batch import collate
from mmgpt.config import AdapterConfig
from mmgpt.content import Message
from mmgpt.errors import CheckpointError
from mmgpt.model import MultimodalGPT
from mmgpt.processor import Processor

PROMPT = [Message.of("user", some_image(0), some_audio(1), some_video(2), "What?")]


def weights(directory):
    return checkpoint.resolve(directory) / "model.safetensors"


@pytest.fixture
def saved(tmp_path, model, tokenizer):
    return checkpoint.save(tmp_path / "run", model, tokenizer, {"steps": 7})


def test_a_loaded_model_prepares_and_answers_exactly_as_the_saved_one(saved, model, processor):
    loaded, tokenizer = checkpoint.load(saved)
    again = Processor(loaded.config, tokenizer).encode_prompt(PROMPT)
    example = processor.encode_prompt(PROMPT)
    assert again.ids == example.ids
    for (_, ours), (_, theirs) in zip(again.media, example.media, strict=True):
        assert torch.equal(ours.data, theirs.data)
    assert torch.equal(loaded(collate([again])), model(collate([example])))


@pytest.mark.parametrize("cross", ["inside", "gated"])
def test_a_model_with_cross_attention_comes_back_as_it_was(tmp_path, tokenizer, cross):
    config = tiny_config(len(tokenizer))
    config.gpt.cross, config.gpt.cross_layers = cross, (1,)
    config.adapters["image"] = AdapterConfig("linear", positions=False)
    model = MultimodalGPT(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("gate"):
            torch.nn.init.ones_(parameter)
    loaded, again = checkpoint.load(checkpoint.save(tmp_path, model, tokenizer))
    assert loaded.config == model.config
    example = Processor(loaded.config, again).encode_prompt(PROMPT)
    assert example.ids == Processor(model.config, tokenizer).encode_prompt(PROMPT).ids
    assert torch.equal(loaded(collate([example])), model(collate([example])))


def test_a_loaded_model_is_ready_to_answer(saved):
    loaded, _ = checkpoint.load(saved)
    assert not any(module.training for module in loaded.modules())


def test_a_copy_of_one_version_is_a_checkpoint_too(saved, tmp_path):
    shutil.copytree(checkpoint.resolve(saved), tmp_path / "copy")
    assert checkpoint.resolve(tmp_path / "copy") == tmp_path / "copy"
    checkpoint.load(tmp_path / "copy")


def test_weights_in_any_layout_of_memory_are_saved(tmp_path, model, tokenizer):
    turned = copy.deepcopy(model)
    for parameter in turned.parameters():
        parameter.data = parameter.data.mT.contiguous().mT if parameter.ndim >= 2 else parameter.data
    assert not all(parameter.is_contiguous() for parameter in turned.parameters())
    loaded, _ = checkpoint.load(checkpoint.save(tmp_path / "turned", turned, tokenizer))
    for (name, ours), (_, theirs) in zip(model.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert torch.equal(ours, theirs), name


def test_pretrained_weights_are_not_fetched_again(saved):
    directory = checkpoint.resolve(saved)
    values = json.loads((directory / "config.json").read_text())
    for modality in ("image", "audio"):
        values["model"][modality].update(pretrained=True, weights="somewhere")
    (directory / "config.json").write_text(json.dumps(values))
    config = checkpoint.read_config(directory)
    for encoder in (config.image, config.audio):
        assert (encoder.pretrained, encoder.weights) == (False, None)


def test_what_the_preprocessing_needs_is_in_the_file(saved):
    config = json.loads((checkpoint.resolve(saved) / "config.json").read_text())["model"]
    assert config["image"]["size"] == [32, 32]
    assert config["image"]["mean"] is not None
    assert config["image"]["grid"] is not None
    assert config["audio"]["sample_rate"] == 8000


def test_no_file_of_a_checkpoint_is_a_pickle(saved):
    names = sorted(path.name for path in checkpoint.resolve(saved).iterdir())
    assert names == ["config.json", "model.safetensors", "tokenizer.json", "training.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("gpt.embedding.weight"), "tensor gpt.embedding.weight is missing"),
        (lambda tensors: tensors.update(more=torch.zeros(1)), "tensor more is not part of the model"),
        (
            lambda tensors: tensors.update({"gpt.embedding.weight": torch.zeros(3, 5)}),
            r"tensor gpt.embedding.weight is \(3, 5\), the model's is \(\d+, 32\)",
        ),
    ],
)
def test_a_missing_extra_or_misshapen_tensor_is_named(saved, change, message):
    tensors = load_file(weights(saved))
    change(tensors)
    save_file(tensors, weights(saved))
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(saved)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"not tensors at all",
        lambda content: content[:1000],
        lambda content: content[:-1],
        lambda content: content.replace(b'"shape"', b'"shade"', 1),
        lambda content: content.replace(b"[", b"{", 1),
        lambda content: struct.pack("<Q", 2) + b"[]",
        lambda content: struct.pack("<Q", 2) + b"{}",
        lambda content: struct.pack("<Q", 1 << 60) + b"{}",
    ],
)
def test_damaged_weights_are_one_clear_error(saved, damage):
    path = weights(saved)
    path.write_bytes(damage(path.read_bytes()))
    for read in (checkpoint.load, lambda directory: checkpoint.read_sizes(checkpoint.resolve(directory))):
        with pytest.raises(CheckpointError, match=r"model.safetensors: cannot be read"):
            read(saved)


def test_the_header_is_read_as_safetensors_reads_it(saved):
    with safe_open(weights(saved), framework="np") as file:
        expected = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert checkpoint._shapes(weights(saved)) == expected


def test_an_unknown_key_of_the_configuration_is_told_with_the_nearest(saved):
    path = checkpoint.resolve(saved) / "config.json"
    values = json.loads(path.read_text())
    values["model"]["gpt"]["widht"] = values["model"]["gpt"].pop("width")
    path.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"model.gpt.widht: unknown; did you mean width\?"):
        checkpoint.load(saved)


def test_the_format_of_another_mmgpt_is_told(saved):
    path = checkpoint.resolve(saved) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    with pytest.raises(CheckpointError, match="format 2; this mmgpt reads format 1"):
        checkpoint.load(saved)


def test_a_damaged_record_of_the_training_is_told(saved):
    path = checkpoint.resolve(saved) / "training.json"
    for damage in (lambda: path.write_text("{"), path.unlink):
        damage()
        with pytest.raises(CheckpointError, match=r"training\.json"):
            checkpoint.read_training(path.parent)


def test_missing_directories_and_empty_ones_are_told(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere: no such directory"):
        checkpoint.load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        checkpoint.load(tmp_path)


def test_a_pointer_cannot_lead_out_of_its_directory(saved):
    (saved / checkpoint.POINTER).write_text("../../elsewhere\n")
    with pytest.raises(CheckpointError, match="does not name a version"):
        checkpoint.load(saved)


def test_saving_again_keeps_only_the_new_version(saved, model, tokenizer):
    before = checkpoint.resolve(saved)
    checkpoint.save(saved, model, tokenizer, {"steps": 8})
    assert checkpoint.resolve(saved) != before
    assert not before.exists()
    assert checkpoint.read_training(checkpoint.resolve(saved)) == {"steps": 8}
    assert len(list(saved.iterdir())) == 2


@pytest.mark.parametrize("step", ["safetensors.torch.save_file", "mmgpt.checkpoint.sync", "pathlib.Path.replace"])
def test_a_save_that_fails_leaves_the_checkpoint_before_it(saved, model, tokenizer, monkeypatch, step):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = sorted(path.name for path in saved.iterdir())
    monkeypatch.setattr(step, full)
    with pytest.raises(CheckpointError, match="not saved: no space left on the device"):
        checkpoint.save(saved, model, tokenizer)
    monkeypatch.undo()
    assert sorted(path.name for path in saved.iterdir()) == before
    checkpoint.load(saved)


def test_the_version_in_force_changes_in_one_step(saved, model, tokenizer):
    """Who has opened the pointer goes on reading the name that was whole."""
    before = checkpoint.resolve(saved).name
    with (saved / checkpoint.POINTER).open() as held:
        checkpoint.save(saved, model, tokenizer)
        assert held.read().strip() == before


def test_a_run_loads_its_best_checkpoint(tmp_path, model, tokenizer):
    checkpoint.save(tmp_path / "best", model, tokenizer)
    assert checkpoint.resolve(tmp_path) == checkpoint.resolve(tmp_path / "best")


def test_sizes_add_up_to_the_parameters(saved, model):
    sizes = checkpoint.read_sizes(checkpoint.resolve(saved))
    assert sum(sizes.values()) == sum(p.numel() for p in model.parameters())
    assert {"gpt", "encoders.image", "encoders.audio", "encoders.video", "adapters.video"} <= sizes.keys()
