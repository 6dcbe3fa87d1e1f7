"""Configurations of the GPT for hypothesis to draw from."""

from hypothesis import strategies as st

from mmgpt.config import GPTConfig

VOCABULARY = 61
CONTEXT = 48
WIDTH = 32


def configs(**fields: st.SearchStrategy) -> st.SearchStrategy[GPTConfig]:
    """Small ones of all kinds; `fields` are drawn besides."""
    return st.builds(
        GPTConfig,
        vocab_size=st.just(VOCABULARY),
        width=st.just(WIDTH),
        layers=st.just(2),
        heads=st.just(4),
        context=st.just(CONTEXT),
        kv_heads=st.sampled_from([1, 2, None]),
        head_width=st.sampled_from([None, 6]),
        position=st.sampled_from(["rotary", "learned", "sinusoidal"]),
        norm=st.sampled_from(["layer", "rms"]),
        activation=st.sampled_from(["swiglu", "gelu", "gelu_tanh"]),
        qkv_bias=st.booleans(),
        out_bias=st.booleans(),
        mlp_bias=st.booleans(),
        window=st.sampled_from([None, 1, 5, 100]),
        **fields,
    )
