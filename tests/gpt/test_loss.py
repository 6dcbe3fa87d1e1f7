import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmgpt.config import GPTConfig
from mmgpt.gpt import GPT, Documents, loss
from mmgpt.gpt.loss import cross_entropy as sum_and_each


def cross_entropy(*arguments) -> torch.Tensor:
    return sum_and_each(*arguments)[0]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """20 rows of the vocabulary used here, so that most batches are many chunks."""
    monkeypatch.setattr(loss, "CHUNK_BYTES", 4 * 61 * 20)


def case(count: int, vocabulary: int = 61, width: int = 8, dtype: torch.dtype = torch.float64, seed: int = 0):
    """Hidden states, a weight and targets, with gradients of about 1."""
    torch.manual_seed(seed)
    hidden = torch.randn(count, width, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, width, dtype=torch.float64).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(vocabulary, (count,))


def plain(
    hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """What PyTorch makes of the whole logits."""
    losses = F.cross_entropy(F.linear(hidden, weight).to(torch.promote_types(hidden.dtype, torch.float32)), targets,
                             reduction="none", label_smoothing=smoothing)  # fmt: skip
    return losses.sum() if weights is None else (losses * weights).sum()


class Allocations(TorchDispatchMode):
    """Bytes of every storage that an operation makes; those it only writes to or looks at are its arguments'."""

    def __init__(self):
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        known = storages((args, kwargs))
        out = func(*args, **(kwargs or {}))
        self.sizes += [size for place, size in storages(out).items() if place not in known]
        return out


def storages(tree: object) -> dict[int, int]:
    """Bytes of each storage by its place."""
    found = [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
    return {storage.data_ptr(): storage.nbytes() for storage in found}


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    count=st.sampled_from([0, 1, 19, 20, 21, 75]),
    trained=st.sampled_from([(True, True), (True, False), (False, True)]),
    weighted=st.booleans(),
    scale=st.sampled_from([1.0, 0.3]),
    columns_first=st.booleans(),
    smoothing=st.sampled_from([0.0, 0.1, 0.9]),
)
def test_value_and_gradients_are_those_of_the_whole_logits(count, trained, weighted, scale, columns_first, smoothing):
    hidden, weight, targets = case(count)
    if columns_first:
        weight = weight.detach().t().contiguous().t().requires_grad_()
    hidden.requires_grad_(trained[0])
    weight.requires_grad_(trained[1])
    inputs = [tensor for tensor in (hidden, weight) if tensor.requires_grad]
    weights = torch.rand(count) if weighted else None
    ours, theirs = (way(hidden, weight, targets, weights, smoothing) for way in (cross_entropy, plain))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    gradients = (torch.autograd.grad(scale * value, inputs) for value in (ours, theirs))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def test_gradients_are_the_slopes_of_the_loss():
    hidden, weight, targets = case(50)
    weights = torch.rand(50, dtype=torch.float64)
    gradients = torch.autograd.grad(cross_entropy(hidden, weight, targets, weights), (hidden, weight))
    for seed in range(5):
        step_h, step_w, _ = (tensor.detach() for tensor in case(50, seed=seed + 1))
        up, down = (
            cross_entropy(hidden + sign * step_h, weight + sign * step_w, targets, weights) for sign in (1e-5, -1e-5)
        )
        along = (gradients[0] * step_h).sum() + (gradients[1] * step_w).sum()
        torch.testing.assert_close((up - down) / 2e-5, along, rtol=1e-7, atol=1e-7)


def test_the_loss_of_large_logits_is_a_number():
    hidden, weight, targets = case(30, dtype=torch.float32)
    value = cross_entropy(100 * hidden, 100 * weight, targets)
    torch.testing.assert_close(value, plain(100 * hidden, 100 * weight, targets))
    assert all(part.isfinite().all() for part in torch.autograd.grad(value, (hidden, weight)))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_whole_logits_are_never_held(smoothing):
    count, vocabulary, width = 700, 610, 8  # chunks of two rows
    hidden, weight, targets = case(count, vocabulary, width, torch.float32)
    with Allocations() as chunked:
        cross_entropy(hidden, weight, targets, None, smoothing).backward()
    with Allocations() as whole:
        plain(hidden, weight, targets, None, smoothing).backward()
    assert max(whole.sizes) == 4 * count * vocabulary  # what is counted would show it
    assert max(chunked.sizes) == 4 * max(count, vocabulary) * width  # gradients


def test_the_gradient_of_the_weight_is_made_once_and_in_the_forward_pass():
    hidden, weight, targets = case(100, 610, dtype=torch.float32)
    with Allocations() as forward:
        value = cross_entropy(hidden, weight, targets) / 7
    with Allocations() as backward:
        value.backward()
    assert forward.sizes.count(4 * weight.numel()) == 1
    assert max(backward.sizes) == 4 * hidden.numel()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, torch.autograd.grad(plain(hidden, weight, targets) / 7, weight)[0])


def test_without_gradients_nothing_is_made_but_chunks_of_logits():
    hidden, weight, targets = case(100, 610, width=32, dtype=torch.float32)
    with torch.no_grad(), Allocations() as made:
        value = cross_entropy(hidden, weight, targets)
    assert not value.requires_grad
    torch.testing.assert_close(value, plain(hidden, weight, targets).detach())
    assert max(made.sizes) == 4 * 2 * 610


def test_a_second_backward_pass_is_an_error_not_another_gradient():
    hidden, weight, targets = case(10)
    value = 3 * cross_entropy(hidden, weight, targets)
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_under_autocast_logits_are_those_of_a_linear_layer_and_gradients_no_worse():
    hidden, weight, targets = case(300, dtype=torch.float32)
    exact = torch.autograd.grad(plain(hidden, weight, targets), (hidden, weight))
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = cross_entropy(hidden, weight, targets), plain(hidden, weight, targets)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)  # logits are rounded alike
    assert ours.dtype == torch.float32
    assert not torch.isclose(ours, plain(hidden, weight, targets), rtol=1e-6, atol=0)  # and rounded they are
    found = [torch.autograd.grad(value, (hidden, weight)) for value in (ours, theirs)]
    for mine, other, right in zip(*found, exact, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - right).norm() < 1.1 * (other - right).norm()


def test_weights_of_low_precision_sum_their_gradient_in_float32(monkeypatch):
    monkeypatch.setattr(loss, "CHUNK_BYTES", 1)  # a target to a chunk: two thousand summands
    hidden, weight, targets = case(2000, dtype=torch.bfloat16)
    exact = torch.autograd.grad(plain(hidden.double(), weight.double(), targets), weight)[0].double()
    (found,) = torch.autograd.grad(cross_entropy(hidden, weight, targets), weight)
    assert found.dtype == torch.bfloat16
    assert (found.double() - exact).norm() < 0.01 * exact.norm()


def gpt(**fields) -> GPT:
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(vocab_size=61, width=16, layers=1, heads=2, context=64, **fields)).double()
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return gpt


@pytest.mark.parametrize("tied", [True, False])
def test_the_gpts_loss_is_that_of_its_logits_and_so_are_the_gradients_of_all_its_weights(tied):
    model = gpt(tied_head=tied)
    ids = torch.randint(61, (60,))
    hidden = model.transform(model.embed(ids), Documents([60]))[:-1]
    weights = torch.rand(59, dtype=torch.float64)
    losses = F.cross_entropy(model.head(hidden), ids[1:], reduction="none")
    pairs = [
        (model.loss(hidden, ids[1:])[0], losses.sum()),
        (model.loss(hidden, ids[1:], weights)[0], losses @ weights),
    ]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
        found = (torch.autograd.grad(value, list(model.parameters()), retain_graph=True) for value in (ours, theirs))
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


class Doubling(torch.nn.Linear):
    """A layer that is not only its weight, as adapted and quantized ones are."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_a_head_that_is_more_than_its_weight_is_asked_for_its_logits():
    model = gpt(tied_head=False)
    model.lm_head = Doubling(16, 61).double()
    hidden, targets, weights = torch.randn(30, 16).double(), torch.randint(61, (30,)), torch.rand(30)
    for smoothing in (0.0, 0.2):
        losses = F.cross_entropy(model.head(hidden).float(), targets, reduction="none", label_smoothing=smoothing)
        torch.testing.assert_close(model.loss(hidden, targets, None, smoothing)[0], losses.sum())
        torch.testing.assert_close(model.loss(hidden, targets, weights, smoothing)[0], losses @ weights)


def test_each_target_has_its_own_loss_whatever_it_weighs():
    hidden, weight, targets = torch.randn(70, 8), torch.randn(30, 8), torch.randint(0, 30, (70,))
    expected = F.cross_entropy(hidden @ weight.T, targets, reduction="none")
    for weights in (None, torch.rand(70)):
        _, each = sum_and_each(hidden.requires_grad_(), weight, targets, weights)
        torch.testing.assert_close(each, expected)
        assert not each.requires_grad
    smoothed = F.cross_entropy(hidden @ weight.T, targets, reduction="none", label_smoothing=0.2)
    torch.testing.assert_close(sum_and_each(hidden, weight, targets, None, 0.2)[1], smoothed.detach())
