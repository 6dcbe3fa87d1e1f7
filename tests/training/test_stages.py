"""Stages of training: pretraining, alignment of pretrained parts, and fine-tuning of what came out of it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer as BPETokenizer
from transformers import GPT2Config, GPT2LMHeadModel, ViTConfig, ViTModel
from walls import colour_of, wall_config, write_walls

import mmgpt
from mmgpt import checkpoint
from mmgpt.cli.train import parse
from mmgpt.config import GPTConfig
from mmgpt.errors import CheckpointError, ConfigError
from mmgpt.gpt import GPT
from mmgpt.model import MultimodalGPT
from mmgpt.run_config import TrainConfig
from mmgpt.tokenizer import SPECIAL_TOKENS, Tokenizer
from mmgpt.training.run import make_model, make_tokenizer, train

CONFIGS = Path(__file__).parents[2] / "configs"
TEXT = "A wall that is red, green or blue; describe the picture. "


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    """A GPT-2 with its tokenizer, and a ViT, as transformers saves them."""
    place = tmp_path_factory.mktemp("pretrained")
    bpe = json.loads(Tokenizer.train([TEXT] * 4, 300).to_json())
    bpe["added_tokens"] = []
    plain = BPETokenizer.from_str(json.dumps(bpe))
    torch.manual_seed(0)
    gpt = GPT2Config(n_embd=32, n_head=2, n_layer=2, n_positions=96, vocab_size=plain.get_vocab_size())
    GPT2LMHeadModel(gpt).save_pretrained(place / "gpt")
    (place / "gpt" / "tokenizer.json").write_text(plain.to_str())
    vit = ViTConfig(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
    )
    ViTModel(vit, add_pooling_layer=False).save_pretrained(place / "vit")
    return place


def staged(name: str, folder: Path, out: Path, *options: str) -> TrainConfig:
    """One of the configurations of the project, on small data."""
    shared = ["--data.path", str(folder), "--out", str(out), "--precision", "32-true"]
    return parse(["--config", str(CONFIGS / f"{name}.yaml"), *shared, *options])


def alignment(folder: Path, pretrained: Path, place: Path, *options: str) -> TrainConfig:
    weights = ["--model.gpt.weights", str(pretrained / "gpt"), "--model.image.weights", str(pretrained / "vit")]
    return staged("align", folder, place / "align", *weights, "--cache", str(place / "features"), *options)


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return dict(checkpoint.load(directory)[0].state_dict())


def changed(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> set[str]:
    assert one.keys() == other.keys()
    return {name for name, tensor in one.items() if not torch.equal(tensor, other[name])}


def test_a_pretrained_gpt_learns_to_see_in_two_stages(pretrained, tmp_path, capsys):
    folder = write_walls(tmp_path / "walls", train=12, dev=3)
    config = alignment(folder, pretrained, tmp_path, "--batch_size", "4")
    train(config)
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert any(row[:1] == ["gpt.blocks"] and row[-1] == "frozen" for row in table)
    assert any(row[:1] == ["adapters.image"] and row[-1] == "AdamW" for row in table)
    aligned = weights(tmp_path / "align" / "last")
    theirs = GPT.from_pretrained(pretrained / "gpt").state_dict()
    for name, tensor in theirs.items():
        assert torch.equal(aligned[f"gpt.{name}"][: len(tensor)], tensor), name
    tokenizer = checkpoint.load(tmp_path / "align" / "last")[1]
    assert len(tokenizer) == len(theirs["embedding.weight"]) + len(SPECIAL_TOKENS)
    assert len(aligned["gpt.embedding.weight"]) == len(tokenizer)

    options = ["--init", str(tmp_path / "align"), "--cache", str(tmp_path / "features"), "--lora.rank", "4"]
    tuned = staged("finetune", folder, tmp_path / "tuned", *options, "--batch_size", "4", "--epochs", "25",
                   "--optimizer.learning_rate", "0.01", "--val_every", "60")  # fmt: skip
    train(tuned)
    moved = changed(weights(tmp_path / "tuned" / "last"), weights(tmp_path / "align" / "best"))
    linear = ("attention.qkv", "attention.out", "mlp.up", "mlp.down")
    assert moved == {
        *(f"gpt.transformer.blocks.{i}.{name}.weight" for i in (0, 1) for name in linear),
        *(name for name in aligned if name.startswith("adapters.")),
    }
    losses = [checkpoint.read_training(checkpoint.resolve(tmp_path / run))["val_loss"] for run in ("align", "tuned")]
    assert losses[1] < losses[0] - 0.1


def test_what_init_names_goes_on_with_its_own_model_and_tokenizer(learned, tmp_path):
    config = TrainConfig(
        out=str(tmp_path / "run"),
        init=str(learned.run.out),
        data=learned.config.data,
        precision="32-true",
        batch_size=9,
    )
    config.optimizer.learning_rate = 1e-6
    train(config)
    model = mmgpt.load(tmp_path / "run", device="cpu")
    assert model.caption(learned.folder / "4.png") == f"{colour_of(4)} wall"
    assert model.tokenizer.to_json() == checkpoint.load(learned.run.out)[1].to_json()
    before, after = weights(learned.run.out), weights(tmp_path / "run" / "last")
    assert max(float((after[name] - before[name]).abs().max()) for name in before) < 1e-5
    assert changed(before, after) > {"gpt.embedding.weight", "adapters.image.project.weight"}


def test_a_gpt_of_ours_that_has_read_learns_to_see(tmp_path):
    texts, folder = tmp_path / "texts", write_walls(tmp_path / "walls")
    texts.mkdir()
    (texts / "walls.txt").write_text("".join(f"{colour_of(i)} wall\n\n" for i in range(60)), "utf-8")
    options = ["--model.gpt.width", "64", "--model.gpt.layers", "1", "--data.vocab_size", "280"]
    train(staged("pretrain", texts, tmp_path / "read", "--epochs", "1", *options))
    new = wall_config(folder, tmp_path / "seen", init=str(tmp_path / "read"), epochs=60, val_every=100)
    new.model, new.data.vocab_size = replace(new.model, gpt=GPTConfig()), 8192
    before, begun = weights(tmp_path / "read" / "best"), make_model(new, checkpoint.load(tmp_path / "read")[1])
    after = begun.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert {name.split(".")[0] for name in after.keys() - before.keys()} == {"encoders", "adapters"}
    assert begun.training
    assert all(parameter.requires_grad for parameter in begun.parameters())
    train(new)
    seen = mmgpt.load(tmp_path / "seen", device="cpu")
    assert seen.caption(folder / "4.png") == f"{colour_of(4)} wall"
    assert checkpoint.read_training(checkpoint.resolve(tmp_path / "seen"))["begun_from"]


def test_an_encoder_that_was_frozen_is_trained_unless_it_is_frozen_again(tmp_path, tokenizer):
    config = wall_config(tmp_path, tmp_path)
    assert config.model.image is not None
    image = replace(config.model.image, frozen=True)
    model = MultimodalGPT(replace(config.model, gpt=GPTConfig(len(tokenizer), width=64), image=image))
    checkpoint.save(tmp_path / "saved", model, tokenizer)
    again = make_model(TrainConfig(init=str(tmp_path / "saved")), tokenizer)
    assert all(parameter.requires_grad for parameter in again.parameters())
    assert again.training
    assert again.encoders["image"].training
    assert again.config.image is not None
    assert not again.config.image.frozen


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--model.gpt.width", "64"], "model: init .* has its own; leave out one of the two"),
        (["--model.image.name", "resnet18"], r"model\.image: the model has its own; leave it out"),
        (["--data.tokenizer", "somewhere"], r"data\.tokenizer: init .* has its own"),
    ],
)
def test_a_model_beside_init_is_an_error(learned, options, told):
    config = parse(["--init", str(learned.run.out), *options])
    with pytest.raises(ConfigError, match=told):
        make_tokenizer(config, [])


def test_an_init_that_is_not_there_is_told(tmp_path):
    with pytest.raises(CheckpointError, match="no such directory"):
        make_tokenizer(TrainConfig(init=str(tmp_path / "no")), [])


def test_a_size_that_is_not_that_of_the_pretrained_gpt_is_told(pretrained, tmp_path):
    folder = write_walls(tmp_path / "walls")
    with pytest.raises(ConfigError, match=r"gpt\.width: 64, but .* has 32; leave it out"):
        train(alignment(folder, pretrained, tmp_path, "--model.gpt.width", "64"))


def test_gates_of_a_frozen_pretrained_gpt_learn_alone(pretrained, tmp_path):
    """Flamingo: at first it says what the GPT alone says; then only gated layers and the adapter have changed."""
    folder = write_walls(tmp_path / "walls", train=8, dev=2)
    gates = ["--model.gpt.cross", "gated", "--model.gpt.cross_layers", "[1]", "--train", "[adapters, '*.gated']"]
    config = alignment(folder, pretrained, tmp_path, *gates, "--batch_size", "4")
    torch.manual_seed(config.seed)
    start = make_model(config, make_tokenizer(config, []))
    train(config)
    moved = changed(weights(tmp_path / "align" / "last"), dict(start.state_dict()))
    assert {".".join(name.split(".")[:5]) for name in moved if name.startswith("gpt.")} == {
        "gpt.transformer.blocks.1.gated"
    }
    assert {".".join(name.split(".")[:2]) for name in moved if not name.startswith("gpt.")} == {"adapters.image"}


def test_plain_text_is_learned_from_scratch(tmp_path):
    (tmp_path / "a.txt").write_text((TEXT + "\n\n") * 60)
    options = ["--model", "{gpt: {width: 32, layers: 1, heads: 2, context: 256}}", "--data.vocab_size", "300"]
    config = staged("pretrain", tmp_path / "a.txt", tmp_path / "run", *options, "--data.text_length", "120",
                    "--batch_tokens", "512", "--epochs", "60")  # fmt: skip
    train(config)
    assert checkpoint.read_training(checkpoint.resolve(tmp_path / "run"))["val_loss"] < 0.5  # of 5.7 at the start
