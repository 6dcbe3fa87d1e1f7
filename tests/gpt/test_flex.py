import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.nn.attention import flex_attention as torch_flex

from mmgpt.config import GPTConfig
from mmgpt.gpt import flex
from mmgpt.gpt.documents import Documents
from mmgpt.gpt.transformer import GPT

LENGTHS = [150, 0, 1, 300, 7, 128]
WINDOWED = GPTConfig(
    vocab_size=60, width=32, layers=4, heads=2, kv_heads=1, context=400, window=5, window_layers=[0, 2]
)


@contextmanager
def flat() -> Iterator[None]:
    """Documents are seen as on a GPU; on a CPU FlexAttention has a gradient too, but tells that it has none."""
    with (
        patch.object(Documents, "_flat", lambda *_: True),
        patch.object(flex, "compiled", torch_flex.flex_attention),
        patch.object(torch_flex, "_validate_device", lambda *_: None),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def some_heads(documents: Documents, groups: int) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(documents.total, n, 4, dtype=torch.float64).requires_grad_() for n in (2 * groups, 2, 2)]


@settings(derandomize=True, deadline=None, max_examples=25)
@given(
    st.lists(st.one_of(st.integers(0, 3), st.integers(0, 200)), min_size=1, max_size=8).filter(any),
    st.integers(1, 3),
    st.sampled_from([None, 1, 2, 3, 50, 128, 300]),
    st.booleans(),
)
def test_flat_tokens_see_what_padded_documents_see(lengths: list[int], groups: int, window: int | None, causal: bool):
    documents = Documents(lengths)
    qkv = some_heads(documents, groups)
    padded = documents.attend(*qkv, causal, window)
    with flat():
        found = documents.attend(*qkv, causal, window)
        torch.testing.assert_close(found, padded)
        weights = torch.randn_like(found)
        expected = torch.autograd.grad((padded * weights).sum(), qkv)
        torch.testing.assert_close(torch.autograd.grad((found * weights).sum(), qkv), expected)


@settings(derandomize=True, deadline=None, max_examples=80)
@given(
    st.lists(st.sampled_from([0, 1, 100, 128, 250, 700]), min_size=1, max_size=6).filter(any),
    st.sampled_from([None, 1, 127, 128, 129, 130, 255, 256, 300]),
    st.booleans(),
)
def test_blocks_are_those_found_by_looking_at_each_token(lengths: list[int], window: int | None, causal: bool):
    mask = flex.block_mask(Documents(lengths).numbers, causal, window if causal else None)
    expected = torch_flex.create_block_mask(mask.mask_mod, None, None, *mask.seq_lengths, device="cpu")
    assert torch.equal(mask.to_dense(), expected.to_dense())
    assert torch.equal(mask.full_kv_num_blocks, expected.full_kv_num_blocks)
    assert torch.equal(mask.full_kv_indices, expected.full_kv_indices)


def losses_and_gradients(gpt: GPT, device: str) -> list[Tensor]:
    gpt = gpt.to(device).requires_grad_()
    gpt.zero_grad()
    ids = torch.arange(sum(LENGTHS), device=device) * 7 % 60
    hidden = gpt.transform(gpt.embed(ids), Documents(LENGTHS, device))
    total, each = gpt.loss(hidden[:-1], ids[1:])
    total.backward()
    gradients = [parameter.grad for parameter in gpt.parameters() if parameter.grad is not None]
    assert len(gradients) > 10
    return [each.detach().cpu(), *(gradient.cpu() for gradient in gradients)]


def test_a_gpt_learns_the_same_and_its_layers_share_masks():
    torch.manual_seed(0)
    gpt = GPT(WINDOWED).double()
    expected = losses_and_gradients(gpt, "cpu")
    with flat(), patch.object(flex, "block_mask", wraps=flex.block_mask) as made:
        torch.testing.assert_close(losses_and_gradients(gpt, "cpu"), expected)
    assert [call.args[1:] for call in made.call_args_list] == [(True, 5), (True, None)]


def test_other_lengths_and_windows_are_not_compiled_anew():
    counter = CompileCounter()
    with patch.object(flex, "compiled", flex.build(counter)), torch.no_grad():
        for lengths in ([600, 3], [1], [128, 128], [200], LENGTHS):
            documents = Documents(lengths)
            qkv = some_heads(documents, 2)
            for kind in ((True, None), (True, 9), (True, 2), (False, None)):
                found = flex.attend(*qkv, flex.block_mask(documents.numbers, *kind))
                torch.testing.assert_close(found, documents.attend(*qkv, *kind))
    assert counter.frame_count == 1


def test_many_kinds_of_heads_types_and_modes_are_all_compiled():
    torch.compiler.reset()
    counter, documents = CompileCounter(), Documents(LENGTHS)
    modes = (torch.no_grad, torch.inference_mode)
    with patch.object(flex, "compiled", flex.build(counter)):
        for groups in (1, 2, 3):
            for dtype in (torch.float32, torch.float64):
                for mode in modes:
                    with mode():
                        qkv = [one.to(dtype) for one in some_heads(documents, groups)]
                        flex.attend(*qkv, flex.block_mask(documents.numbers, causal=True))
    assert counter.frame_count > 8  # torch's limit, behind which it goes on uncompiled


def test_where_flex_attention_cannot_be_compiled_documents_are_padded(monkeypatch):
    def refuse(*_, **__):
        raise NotImplementedError("NYI: embedding dimension must be at least 16\nbut got 8")

    monkeypatch.setattr(flex, "compiled", refuse)
    kind = torch.device("cpu"), torch.float32, 3, 1, 8
    with pytest.warns(UserWarning, match=r"FlexAttention fails, NYI: embedding dimension must be at least 16$"):
        assert not flex.works(*kind)
    monkeypatch.setattr(flex, "compiled", lambda q, k, v, **_: q)
    assert not flex.works(*kind)  # what has failed is not tried again
    assert flex.works(*kind[:-1], 16)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("heads", [2, 4])  # of 16, and of 8, which are padded
def test_a_gpt_learns_on_a_gpu_what_it_learns_on_a_cpu(heads: int):
    torch.manual_seed(0)
    gpt = GPT(replace(WINDOWED, heads=heads))
    expected = losses_and_gradients(gpt, "cpu")
    with patch.object(flex, "attend", wraps=flex.attend) as flat_tokens, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.testing.assert_close(losses_and_gradients(gpt, "cuda"), expected, rtol=1e-3, atol=1e-4)
    assert bool(flat_tokens.call_count) == (heads == 2)
