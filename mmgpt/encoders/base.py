"""What all encoders have in common."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Tokens = tuple[Tensor, Tensor]
"""Tokens (batch, tokens, width), zero behind each one's end, and their numbers (batch,), int64."""


class Encoder(nn.Module):
    """An encoder has a resolved `config`, never mixes the samples of a batch, and can be frozen."""

    config: Any

    @property
    def width(self) -> int:
        """Size of a token."""
        return self.config.width

    def freeze(self) -> Self:
        """Train none of it from now on: no gradients, and always in evaluation mode."""
        self.requires_grad_(False)
        if hasattr(self.config, "frozen"):
            self.config.frozen = True
        return self.train(False)

    def checkpoint_activations(self) -> None:
        """Hold less for the backward pass and compute it again there: timm backbones that can, and nothing else."""
        for module in self.modules():
            switch = getattr(module, "set_grad_checkpointing", None)
            if switch is not None:
                with suppress(AssertionError):  # how timm says that a model cannot
                    switch(True)

    def train(self, mode: bool = True) -> Self:
        """Training mode, save for what is frozen and for layers with running statistics, which would mix samples."""
        super().train(mode and any(parameter.requires_grad for parameter in self.parameters()))
        for module in self.modules():
            if hasattr(module, "running_var"):
                module.train(False)
        return self


def even(tokens: Tensor) -> Tokens:
    """Tokens (batch, tokens, width) of which each sample has equally many."""
    return tokens, torch.full((len(tokens),), tokens.shape[1], device=tokens.device)


def ragged(tokens: Sequence[Tensor]) -> Tokens:
    """Tokens (tokens, width) of each sample, filled up with zeros to the longest."""
    counts = [len(one) for one in tokens]
    # The backward pass of pad_sequence copies the whole batch once for each sample.
    padded = torch.stack([F.pad(one, (0, 0, 0, max(counts) - len(one))) for one in tokens])
    return padded, torch.tensor(counts, device=padded.device)


def unpad(inputs: Sequence[Tensor] | Tensor, lengths: Tensor | None) -> list[Tensor]:
    """The rows of a right-padded batch (batch, longest) without their pads; without lengths there are no pads."""
    if lengths is None:
        return list(inputs)
    return [row[:length] for row, length in zip(inputs, lengths.tolist(), strict=True)]


def sinusoids(count: int, width: int) -> Tensor:
    """Sines and cosines of the positions 0..count-1 (count, width), as in Vaswani et al. 2017."""
    half = -(-width // 2)
    frequencies = 10_000.0 ** (-torch.arange(half) / half)
    phase = torch.arange(count)[:, None] * frequencies
    return torch.cat([phase.sin(), phase.cos()], dim=1)[:, :width]
