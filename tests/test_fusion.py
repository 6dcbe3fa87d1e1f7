import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgpt.config import AdapterConfig, TokenGrid, slot_count
from mmgpt.errors import ConfigError
from mmgpt.fusion import Adapter, check_slots, splice

KINDS = ("linear", "mlp", "pixel_shuffle", "resampler")
grids = st.builds(TokenGrid, st.integers(1, 7), st.integers(1, 7), prefix=st.integers(0, 2), suffix=st.integers(0, 3))


def padded(lengths: list[int], width: int = 8, fill: float = 0.0) -> torch.Tensor:
    torch.manual_seed(0)
    tokens = torch.full((len(lengths), max(lengths), width), fill)
    for row, length in enumerate(lengths):
        tokens[row, :length] = torch.randn(length, width)
    return tokens


@pytest.mark.parametrize("kind", KINDS)
@given(some=st.lists(grids, min_size=1, max_size=4), factor=st.integers(1, 3), time_only=st.booleans())
@settings(max_examples=25, deadline=None, derandomize=True)
def test_features_are_as_many_as_slots(kind, some, factor, time_only):
    if time_only:
        some = [TokenGrid(grid.rows) for grid in some]
    config = AdapterConfig(kind, factor=factor, queries=3, layers=1, heads=2)
    adapter = Adapter(config, 8, 16, time_only=time_only)
    features = adapter(padded([grid.count for grid in some]), some)
    assert features.shape == (sum(slot_count(config, grid) for grid in some), 16)


@pytest.mark.parametrize("kind", KINDS)
def test_neither_pads_nor_neighbours_in_the_batch_change_features(kind):
    config = AdapterConfig(kind, queries=3, layers=2, heads=2)
    adapter = Adapter(config, 8, 16)
    some = [TokenGrid(2, 3, prefix=1), TokenGrid(4, 4), TokenGrid(1, 1, suffix=2)]
    together = adapter(padded([grid.count for grid in some], fill=9.0), some)
    tokens = padded([grid.count for grid in some])
    alone = [adapter(tokens[i : i + 1, : grid.count], [grid]) for i, grid in enumerate(some)]
    torch.testing.assert_close(together, torch.cat(alone))


def test_pixel_shuffle_lays_each_square_of_neighbours_into_one_token():
    adapter = Adapter(AdapterConfig("pixel_shuffle", factor=2), 1, 4)
    adapter.project = torch.nn.Identity()
    pixels = torch.arange(16.0).view(1, 16, 1)  # a 4 x 4 grid, row by row
    expected = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert adapter(pixels, [TokenGrid(4, 4)]).tolist() == expected


def test_pixel_shuffle_fills_the_rim_with_zeros_and_passes_single_tokens_on():
    adapter = Adapter(AdapterConfig("pixel_shuffle", factor=2), 1, 4)
    adapter.project = torch.nn.Identity()
    tokens = torch.arange(1.0, 6.0).view(1, 5, 1)  # a class token, then 1 x 3, then one of sound
    expected = [[1, 0, 0, 0], [2, 3, 0, 0], [4, 0, 0, 0], [5, 0, 0, 0]]
    assert adapter(tokens, [TokenGrid(1, 3, prefix=1, suffix=1)]).tolist() == expected


def test_sounds_are_stacked_along_time():
    adapter = Adapter(AdapterConfig("pixel_shuffle", factor=2), 1, 4, time_only=True)
    adapter.project = torch.nn.Identity()
    assert adapter(torch.tensor([[[1.0], [2.0], [3.0]]]), [TokenGrid(3)]).tolist() == [[1, 2], [3, 0]]


def test_splice_fills_the_slots_and_nothing_else():
    x = torch.zeros(5, 2)
    out = splice(x, torch.tensor([[1.0, 1.0], [2.0, 2.0]]), torch.tensor([3, 1]))
    assert out[:, 0].tolist() == [0, 2, 0, 1, 0]
    assert not x.any()


def test_a_count_that_differs_from_the_configuration_is_told():
    with pytest.raises(ConfigError, match=r"audio 1 of the batch: the encoder returned 5 tokens, .* says 4"):
        check_slots("audio", [TokenGrid(3), TokenGrid(4)], torch.tensor([3, 5]), AdapterConfig("linear"))


def test_resampler_heads_must_divide_the_width():
    with pytest.raises(ConfigError, match="3 heads do not divide"):
        Adapter(AdapterConfig("resampler", heads=3), 8, 16)
