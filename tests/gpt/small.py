"""Small GPTs of several families whose every part matters, and what to feed them."""

import torch
from torch import Tensor

from mmgpt.config import GPTConfig
from mmgpt.gpt import GPT

VOCABULARY = 97


def config(**fields) -> GPTConfig:
    return GPTConfig(**{"vocab_size": VOCABULARY, "width": 32, "layers": 3, "heads": 4, "context": 64, **fields})


CONFIGS = [
    config(tied_head=True),
    config(tied_head=False, kv_heads=2),
    config(position="learned", norm="layer", activation="gelu_tanh", qkv_bias=True, out_bias=True, mlp_bias=True),
]


def model(config: GPTConfig) -> GPT:
    """Weights large enough that every part of the network matters."""
    torch.manual_seed(0)
    gpt = GPT(config).eval()
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return gpt


def ids(*shape: int) -> Tensor:
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(3))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
