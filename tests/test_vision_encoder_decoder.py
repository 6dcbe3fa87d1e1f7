import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as BPETokenizer
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessor,
)

import mmgpt
from mmgpt import checkpoint
from mmgpt.batch import Example, collate
from mmgpt.cli.main import run
from mmgpt.content import Image, Message
from mmgpt.errors import CheckpointError, DataError
from mmgpt.model import MultimodalGPT
from mmgpt.processor import Processor
from mmgpt.tokenizer import Tokenizer

SIZE = 24
VOCABULARY = 281
END = "<|endoftext|>"


@pytest.fixture(scope="session")
def bpe() -> BPETokenizer:
    """A byte-level BPE such as GPT-2's, which begins and ends texts with the same token."""
    bpe = Tokenizer.train(["A red circle left of a blue square."] * 4, 290)._bpe
    plain = json.loads(bpe.to_str())
    plain["added_tokens"] = []
    bpe = BPETokenizer.from_str(json.dumps(plain))
    bpe.add_special_tokens([END])
    assert bpe.get_vocab_size() == VOCABULARY
    return bpe


def reference(encoder_width: int = 32, width: int = 24, **fields) -> VisionEncoderDecoderModel:
    """A model of transformers in which no parameter is zero or one; the last token starts and ends captions."""
    torch.manual_seed(fields.pop("seed", 0))
    end = VOCABULARY - 1
    encoder = ViTConfig(
        hidden_size=encoder_width,
        num_hidden_layers=fields.pop("encoder_layers", 2),
        num_attention_heads=2,
        intermediate_size=40,
        image_size=SIZE,
        patch_size=fields.pop("patch_size", 8),
        qkv_bias=fields.pop("qkv_bias", True),
    )
    decoder = GPT2Config(
        **{"n_embd": width, "n_head": 2, "n_layer": 2, "vocab_size": VOCABULARY, "n_positions": 32, **fields},
        bos_token_id=end,
        eos_token_id=end,
    )
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id = config.eos_token_id = config.pad_token_id = end
    model = VisionEncoderDecoderModel(config=config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # What is seen matters much, so that captions of different pictures differ.
            parameter.add_(torch.randn_like(parameter), alpha=1.0 if "crossattention" in name else 0.1)
    return model


def save(model: VisionEncoderDecoderModel, bpe: BPETokenizer, folder: Path, pickled: bool = False) -> Path:
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    bpe.save(str(folder / "tokenizer.json"))
    if pickled:
        tensors = load_file(folder / "model.safetensors")
        torch.save(tensors, folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    return folder


@pytest.fixture
def saved(tmp_path: Path, bpe: BPETokenizer) -> Path:
    return save(reference(), bpe, tmp_path / "foreign")


def picture(seed: int) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8))


SEEN = Image(picture(0))


def pixels(*pictures: PIL.Image.Image) -> Tensor:
    return ViTImageProcessor(size={"height": SIZE, "width": SIZE})(list(pictures), return_tensors="pt")["pixel_values"]


def captioned(model: MultimodalGPT, tokenizer: Tokenizer, captions: list[str]) -> list[Example]:
    """Picture i with caption i, as an example to learn from."""
    processor = Processor(model.config, tokenizer)
    return [
        processor.encode(
            [Message.of("user", Image(picture(i)), "Describe the picture."), Message.of("assistant", text)]
        )
        for i, text in enumerate(captions)
    ]


def edit(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


MODELS = st.fixed_dictionaries(
    {
        "encoder_width": st.sampled_from([24, 32]),  # as wide as the decoder, or not
        "encoder_layers": st.integers(1, 3),
        "patch_size": st.sampled_from([6, 8, 12]),
        "qkv_bias": st.booleans(),
        "n_layer": st.integers(1, 3),
        "n_head": st.sampled_from([1, 2, 4]),
        "n_inner": st.sampled_from([None, 20]),
        "activation_function": st.sampled_from(["gelu_new", "gelu"]),
        "tie_word_embeddings": st.booleans(),
    }
)
CAPTIONS = ["A red circle", "", "A blue square left of a red circle."]


@settings(derandomize=True, deadline=None, max_examples=8)
@given(fields=MODELS, pickled=st.booleans())
def test_models_of_any_size_give_the_logits_of_transformers(tmp_path_factory, bpe, fields, pickled):
    theirs = reference(**fields)
    model, tokenizer = checkpoint.load(save(theirs, bpe, tmp_path_factory.mktemp("ved"), pickled))
    examples = captioned(model, tokenizer, CAPTIONS)
    logits = model(collate(examples)).split([len(example) for example in examples])
    for i, (example, ours) in enumerate(zip(examples, logits, strict=True)):
        with torch.no_grad():
            out = theirs(pixel_values=pixels(picture(i)), decoder_input_ids=torch.tensor([example.ids]))
        torch.testing.assert_close(ours, out.logits[0], rtol=1e-4, atol=1e-4)


def test_an_example_is_the_start_the_caption_and_the_end(saved, bpe):
    model, tokenizer = checkpoint.load(saved)
    end = bpe.token_to_id(END)
    (example,) = captioned(model, tokenizer, ["A red circle"])
    text = bpe.encode("A red circle").ids
    assert example.ids == [end, *text, end]
    assert example.supervised == [False, *[True] * (len(text) + 1)]
    assert [first for first, _ in example.media] == [0]
    prompt = [Message.of("user", Image(picture(0)), "What is in the picture?")]
    processor = Processor(model.config, tokenizer)
    assert processor.encode_prompt(prompt).ids == [end]
    assert processor.encode_answer(processor.encode_prompt(prompt), "A red circle").ids == example.ids
    assert tokenizer.end == end
    assert tokenizer.decode(example.ids) == "A red circle"
    assert end not in tokenizer.encode(END)


@pytest.mark.parametrize(
    ("conversation", "message"),
    [
        ([Message.of("user", SEEN, "Which colour?")], '; it cannot be told "Which colour?"'),
        ([Message.of("system", "Be brief."), Message.of("user", SEEN)], '; it cannot be told "Be brief."'),
        ([Message.of("system", ""), Message.of("user", SEEN)], ", once in a conversation"),
        ([Message.of("user", SEEN), Message.of("assistant", "A."), Message.of("user", "")], ", once in a conversation"),
        ([], ", once in a conversation"),
    ],
)
def test_anything_but_a_caption_is_refused_in_one_line(saved, conversation, message):
    model, tokenizer = checkpoint.load(saved)
    expected = re.escape(f"chat.jsonl:3: this model knows one task alone, caption{message}")
    with pytest.raises(DataError, match=expected):
        Processor(model.config, tokenizer).encode(conversation, where="chat.jsonl:3")


def test_saved_in_our_format_it_comes_back_as_it_was(saved, tmp_path):
    model, tokenizer = checkpoint.load(saved)
    ours = checkpoint.save(tmp_path / "ours", model, tokenizer)
    for path in saved.iterdir():
        path.unlink()
    again, its_tokenizer = checkpoint.load(ours)
    assert replace(again.config.image, weights=None) == replace(model.config.image, weights=None)
    assert again.config.gpt == model.config.gpt
    assert not again.training
    assert its_tokenizer.plain == tokenizer.plain
    assert its_tokenizer.to_json() == tokenizer.to_json()
    before, after = (captioned(*pair, CAPTIONS) for pair in ((model, tokenizer), (again, its_tokenizer)))
    assert [example.ids for example in before] == [example.ids for example in after]
    assert torch.equal(model(collate(before)), again(collate(after)))


def test_it_is_shared_as_ours(saved, hub):
    model = mmgpt.load(saved, device="cpu")
    model.push_to_hub("me/captions")
    files = hub.repositories["me/captions"].files
    assert str(saved).encode() not in b"".join(files.values())
    card = files["README.md"].decode()
    assert "begun from foreign (a local copy)" in card
    assert 'model.caption("photo.jpg")' in card
    assert mmgpt.load("me/captions", device="cpu").caption(SEEN) == model.caption(SEEN) != ""


def test_it_can_be_trained_on(saved):
    model, tokenizer = checkpoint.load(saved)
    assert all(parameter.requires_grad for parameter in model.parameters())
    loss = model.train().loss(collate(captioned(model, tokenizer, CAPTIONS)))
    assert loss.count == sum(len(tokenizer.encode(text)) + 1 for text in CAPTIONS)
    loss.mean.backward()
    idle = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not idle


def test_vocabulary_and_merges_do_where_there_is_no_tokenizer_json(saved, bpe):
    (saved / "tokenizer.json").unlink()
    bpe.model.save(str(saved))
    edit(saved / "vocab.json", lambda vocabulary: vocabulary.update({END: len(vocabulary)}))
    _, tokenizer = checkpoint.load(saved)
    text = "A red circle isn't\n  blue: ça va? " + END
    ids = tokenizer.encode(text)
    assert tokenizer.decode([tokenizer.end, *ids, tokenizer.end]) == text
    assert ids[:4] == bpe.encode(text).ids[:4]
    assert tokenizer.end == bpe.token_to_id(END)


def test_start_and_end_are_those_that_transformers_would_take(saved, bpe):
    edit(saved / "generation_config.json", lambda config: config.update(decoder_start_token_id=7, eos_token_id=[8]))
    _, tokenizer = checkpoint.load(saved)
    assert (tokenizer.opening("assistant"), tokenizer.end) == ([7], 8)
    (saved / "generation_config.json").unlink()
    edit(saved / "config.json", lambda config: [config.pop("decoder_start_token_id"), config.pop("eos_token_id")])
    edit(saved / "config.json", lambda config: config["decoder"].update(bos_token_id=9, eos_token_id=10))
    _, tokenizer = checkpoint.load(saved)
    assert (tokenizer.opening("assistant"), tokenizer.end) == ([9], 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config["decoder"].update(add_cross_attention=False), "unexpected tensors: h.0.crossattention"),
        (lambda config: config["decoder"].update(model_type="bert"), "model_type 'bert' is not supported"),
        (lambda config: config["encoder"].update(model_type="swin"), "model_type 'swin'"),
        (lambda config: config.update(decoder=None), "model_type 'None' is not supported"),
        (lambda config: config["decoder"].update(n_embd=32, n_head=2), "wte.weight: shape"),
    ],
)
def test_configurations_that_cannot_be_used_are_refused_in_one_line(saved, change, message):
    edit(saved / "config.json", change)
    with pytest.raises(CheckpointError, match=message) as error:
        checkpoint.load(saved)
    assert str(saved) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        (None, 3, "decoder_start_token_id None"),
        (VOCABULARY, 3, f"decoder_start_token_id {VOCABULARY}"),
        (3, "x", "eos_token_id 'x'"),
        (3, [3, 4], r"eos_token_id \[3, 4\]"),
    ],
)
def test_tokens_that_there_are_not_are_refused(saved, start, end, message):
    (saved / "generation_config.json").unlink()
    edit(saved / "config.json", lambda config: config["decoder"].update(bos_token_id=None, eos_token_id=None))
    edit(saved / "config.json", lambda config: config.update(decoder_start_token_id=start, eos_token_id=end))
    with pytest.raises(CheckpointError, match=f"{message} is none of the {VOCABULARY} tokens"):
        checkpoint.load(saved)


def test_tensors_and_files_that_are_missing_or_too_many_are_named(saved, bpe):
    path = saved / "model.safetensors"
    tensors = load_file(path)

    def broken(**changes) -> str:
        save_file({k: v for k, v in {**tensors, **changes}.items() if v is not None}, path)
        with pytest.raises(CheckpointError) as error:
            checkpoint.load(saved)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "missing tensors: h.1.crossattention.q_attn.weight" in broken(
        **{"decoder.transformer.h.1.crossattention.q_attn.weight": None}
    )
    assert "missing tensors: encoder.layernorm.bias" in broken(**{"encoder.layernorm.bias": None})
    assert "unexpected tensors: more.weight" in broken(**{"more.weight": torch.zeros(1)})
    assert "width 32 is not the GPT's 24" in broken(**{"enc_to_dec_proj.weight": None, "enc_to_dec_proj.bias": None})
    assert "enc_to_dec_proj" in broken(**{"enc_to_dec_proj.bias": None})
    assert "enc_to_dec_proj" in broken(**{"enc_to_dec_proj.bias": torch.zeros(3)})
    edit(saved / "config.json", lambda config: config["decoder"].update(add_cross_attention=False))
    blind = {name: None for name in tensors if "cross" in name}
    assert "config.json: a decoder without add_cross_attention cannot see" in broken(**blind)
    edit(saved / "config.json", lambda config: config["decoder"].update(add_cross_attention=True))
    save_file(tensors, path)
    large = BPETokenizer.from_str(bpe.to_str())
    large.add_tokens(["more"])
    large.save(str(saved / "tokenizer.json"))
    with pytest.raises(CheckpointError, match=f"{VOCABULARY + 1} tokens of the tokenizer, {VOCABULARY}"):
        checkpoint.load(saved)
    (saved / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: no tokenizer here"):
        checkpoint.load(saved)


def test_a_gpt2_alone_is_no_captioning_model(tmp_path, bpe):
    GPT2LMHeadModel(GPT2Config(n_embd=24, n_head=2, n_layer=1, vocab_size=50)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="not a configuration of mmgpt"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("beams", [1, 2, 4])
def test_captions_are_those_of_transformers(tmp_path, bpe, beams, seed):
    theirs = reference(seed=seed, tie_word_embeddings=False)
    pictures = [picture(seed) for seed in range(4)]

    def generate() -> list[list[int]]:
        return theirs.generate(
            pixels(*pictures), max_new_tokens=9, num_beams=beams, do_sample=False, early_stopping="never"
        ).tolist()

    # A token that comes in the middle of captions becomes their end.
    theirs.generation_config.eos_token_id = theirs.config.eos_token_id = end = generate()[0][4]
    texts = [row[1 : row.index(end)] if end in row else row[1:] for row in generate()]
    expected = [bpe.decode(ids, skip_special_tokens=True).strip() for ids in texts]
    assert len(set(expected)) > 1
    model = mmgpt.load(save(theirs, bpe, tmp_path))
    assert model.caption([Image(one) for one in pictures], max_new_tokens=9, beams=beams) == expected


def test_a_question_is_refused_and_a_caption_given(saved):
    model = mmgpt.load(saved)
    with pytest.raises(DataError, match=r'one task alone, caption; it cannot be told "What colour\?"'):
        model.ask("What colour?", image=picture(0))
    assert isinstance(model.caption(picture(0), max_new_tokens=3), str)


@pytest.mark.parametrize("pickled", [False, True])
def test_without_a_model_the_caption_command_asks_the_public_one(tmp_path, bpe, monkeypatch, capsys, pickled):
    folder = save(reference(), bpe, tmp_path / "hub", pickled)
    asked = []

    def snapshot(repository: str, revision: None, allow_patterns: list[str]) -> str:
        asked.append((repository, "pytorch_model.bin" in allow_patterns))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    picture(0).save(tmp_path / "a.png")
    run(["caption", str(tmp_path / "a.png"), "--max-new-tokens", "6"])
    assert capsys.readouterr().out.strip() == mmgpt.load(folder).caption(SEEN, max_new_tokens=6)
    public = "nlpconnect/vit-gpt2-image-captioning"
    assert asked == [(public, False), (public, True)][: 1 + pickled]


def test_a_model_that_is_neither_here_nor_on_the_hub_is_told_in_one_line(tmp_path):
    with pytest.raises(CheckpointError, match=r"^some/model: no such directory .* and nothing of the Hub: ") as error:
        mmgpt.load("some/model")
    assert "\n" not in str(error.value)
