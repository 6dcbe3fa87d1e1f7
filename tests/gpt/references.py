"""Models of transformers with weights in which every part matters, shared by the tests of checkpoints."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PretrainedConfig, PreTrainedModel

from mmgpt.gpt import GPT, Documents

CLOSE = {"rtol": 2e-5, "atol": 2e-5}  # what float32 rounds


def reference(config: PretrainedConfig | None = None) -> PreTrainedModel:
    """A model of transformers, GPT-2 unless said otherwise, in which no parameter is zero or one.

    Its attention is the plain formula ("eager"), so that what is compared with is not our own kernel.
    """
    torch.manual_seed(0)
    config = config or GPT2Config(
        n_embd=24, n_head=3, n_layer=2, vocab_size=50, n_positions=32, bos_token_id=0, eos_token_id=0
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model


def llama(**settings) -> LlamaConfig:
    """A small Llama, of as many tokens as the GPT-2 above."""
    sizes = {"hidden_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 30}
    return LlamaConfig(**sizes, num_hidden_layers=2, vocab_size=50, **settings)


def random_ids(vocab_size: int, length: int) -> Tensor:
    return torch.randint(vocab_size, (length,), generator=torch.Generator().manual_seed(length))


def cached(gpt: GPT, ids: Tensor, sizes: list[int]) -> Tensor:
    """Logits (tokens, vocabulary), computed over a cache so many tokens at a time."""
    cache = gpt.cache(rows=1, capacity=len(ids))
    parts = [gpt.transform(gpt.embed(chunk), cache.extend([len(chunk)])) for chunk in ids.split(sizes)]
    return gpt.head(torch.cat(parts))


def check_all_numbers(ours: GPT, theirs: PreTrainedModel) -> None:
    """Hidden states and logits of texts alone, in a ragged batch, and chunk by chunk."""
    lengths = [40, 3, 17, 1]
    documents = [random_ids(ours.config.vocab_size, length) for length in lengths]
    with torch.no_grad():
        alone = [theirs(ids[None], output_hidden_states=True) for ids in documents]
        for ids, expected in zip(documents, alone, strict=True):
            torch.testing.assert_close(ours(ids[None]), expected.logits, **CLOSE)
            states = ours.hidden_states(ids[None], range(ours.config.layers + 1))
            for state, hidden in zip(states, expected.hidden_states, strict=True):
                torch.testing.assert_close(state, hidden, **CLOSE)
        ragged = ours.head(ours.transform(ours.embed(torch.cat(documents)), Documents(lengths)))
        torch.testing.assert_close(ragged, torch.cat([expected.logits[0] for expected in alone]), **CLOSE)
        torch.testing.assert_close(cached(ours, documents[0], [11, 1, 20, 1, 7]), alone[0].logits[0], **CLOSE)


def check_saved(ours: GPT, folder: Path) -> PreTrainedModel:
    """transformers gives our logits for what we save, and we load it bit for bit. Returns the model of transformers."""
    ours.save_pretrained(folder)
    theirs, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info  # nothing missing, unexpected or misshapen
    again = GPT.from_pretrained(folder)
    ids = random_ids(ours.config.vocab_size, 40)[None]
    with torch.no_grad():
        expected = ours(ids)
        torch.testing.assert_close(theirs(ids).logits, expected, **CLOSE)
        assert torch.equal(again(ids), expected)
    for name, tensor in ours.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    return theirs
