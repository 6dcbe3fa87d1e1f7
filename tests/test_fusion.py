import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgpt.config import AdapterConfig, TokenGrid, slot_count
from mmgpt.errors import ConfigError
from mmgpt.fusion import Adapter, Resampler, check_slots, splice

KINDS = ("identity", "linear", "mlp", "pixel_shuffle", "resampler")
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
    adapter = Adapter(config, 16, 16, time_only=time_only)
    features = adapter(padded([grid.count for grid in some], 16), some)
    assert features.shape == (sum(slot_count(config, grid) for grid in some), 16)


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_neither_pads_nor_neighbours_in_the_batch_change_features(kind, beside):
    config = AdapterConfig(kind, queries=3, layers=2, heads=2)
    adapter = Adapter(config, 16, 16, beside=beside)
    some = [TokenGrid(2, 3, prefix=1), TokenGrid(4, 4), TokenGrid(1, 1, suffix=2)]
    together = adapter(padded([grid.count for grid in some], 16, fill=9.0), some)
    tokens = padded([grid.count for grid in some], 16)
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


@pytest.mark.parametrize(("kind", "width"), [("mlp", 8), ("pixel_shuffle", 8 * 4)])
def test_between_the_two_layers_of_an_mlp_is_a_gelu(kind, width):
    adapter = Adapter(AdapterConfig(kind, factor=2), 8, 16)
    first, second = (layer for layer in adapter.project.modules() if isinstance(layer, torch.nn.Linear))
    torch.manual_seed(0)
    x = torch.randn(5, width)
    expected = F.linear(F.gelu(F.linear(x, first.weight, first.bias)), second.weight, second.bias)
    torch.testing.assert_close(adapter.project(x), expected)


@torch.no_grad()
def test_the_resampler_reads_media_and_queries_with_torchs_own_attention():
    """Flamingo's perceiver resampler, written with torch.nn.MultiheadAttention."""
    torch.manual_seed(0)
    resampler = Resampler(AdapterConfig("resampler", queries=3, layers=2, heads=2), 8, 16)
    for parameter in resampler.parameters():
        parameter.normal_(std=0.5)
    lengths = torch.tensor([5, 2])
    tokens = padded(lengths.tolist(), fill=9.0)

    def normed(x, norm):
        return F.layer_norm(x, (16,), norm.weight, norm.bias)

    media = normed(resampler.project(tokens), resampler.norm)
    pads = torch.cat([torch.arange(5) >= lengths[:, None], torch.zeros(2, 3, dtype=torch.bool)], dim=1)
    queries = resampler.queries.expand(2, -1, -1)
    for block in resampler.blocks:
        attention = torch.nn.MultiheadAttention(16, 2, batch_first=True)
        attention.in_proj_weight.copy_(torch.cat([block.query.weight, block.key_value.weight]))
        attention.in_proj_bias.copy_(torch.cat([block.query.bias, block.key_value.bias]))
        attention.out_proj.load_state_dict(block.out.state_dict())
        x = normed(queries, block.query_norm)
        keys = torch.cat([media, x], dim=1)
        queries = queries + attention(x, keys, keys, key_padding_mask=pads)[0]
        norm, up, _, down = block.mlp
        queries = queries + down(F.gelu(up(normed(queries, norm))))
    torch.testing.assert_close(resampler(tokens, lengths), queries)


def test_splice_fills_the_slots_and_nothing_else():
    x = torch.zeros(5, 2)
    out = splice(x, torch.tensor([[1.0, 1.0], [2.0, 2.0]]), torch.tensor([3, 1]))
    assert out[:, 0].tolist() == [0, 2, 0, 1, 0]
    assert not x.any()


def test_features_take_the_precision_of_the_embeddings():
    out = splice(torch.zeros(2, 1, dtype=torch.bfloat16), torch.ones(1, 1), torch.tensor([1]))
    assert out.dtype == torch.bfloat16
    assert out.squeeze().tolist() == [0, 1]


def test_a_count_that_differs_from_the_configuration_is_told():
    with pytest.raises(ConfigError, match=r"audio 1 of the batch: the encoder returned 5 tokens, .* says 4"):
        check_slots("audio", [TokenGrid(3), TokenGrid(4)], torch.tensor([3, 5]), AdapterConfig("linear"))
    with pytest.raises(ConfigError, match="audio 0 of the batch"):  # as many in all, but not each its own
        check_slots("audio", [TokenGrid(3), TokenGrid(4)], torch.tensor([4, 3]), AdapterConfig("linear"))


def test_an_unknown_adapter_is_told_with_those_there_are():
    with pytest.raises(ConfigError, match="adapter cubic: unknown; use identity, linear, mlp, pixel_shuffle"):
        Adapter(AdapterConfig("cubic"), 8, 16)  # type: ignore[arg-type]


def test_resampler_heads_must_divide_the_width():
    with pytest.raises(ConfigError, match="3 heads do not divide"):
        Adapter(AdapterConfig("resampler", heads=3), 8, 16)


@pytest.mark.parametrize("kind", KINDS)
def test_beside_the_sequence_the_order_of_tokens_is_told_unless_the_encoder_does(kind):
    grids = [TokenGrid(6)]
    tokens = padded([6], 16)

    def order_matters(positions: bool) -> bool:
        adapter = Adapter(AdapterConfig(kind, positions=positions, heads=2, factor=1), 16, 16, beside=True)
        # To cross-attention, which knows no order, features are but a set.
        there, back = (adapter(some, grids).tanh().sum(0) for some in (tokens, tokens.flip(1)))
        return not torch.allclose(there, back, atol=1e-5)

    assert order_matters(positions=True)
    assert not order_matters(positions=False)


def test_tokens_pass_as_they_are_only_where_widths_are_equal():
    tokens = padded([4, 2], 16)
    grids = [TokenGrid(4), TokenGrid(2)]
    assert torch.equal(Adapter(AdapterConfig("identity"), 16, 16)(tokens, grids), torch.cat([tokens[0], tokens[1, :2]]))
    with pytest.raises(ConfigError, match="width 8 is not the GPT's 16; use linear"):
        Adapter(AdapterConfig("identity"), 8, 16)
