"""The text encoder: the GPT's blocks without the causal mask, or a transformers encoder of the BERT family."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mmgpt.config import GPTConfig, TokenGrid
from mmgpt.encoders.base import Encoder, Tokens, ragged, unpad
from mmgpt.errors import CheckpointError, ConfigError
from mmgpt.gpt.documents import Documents
from mmgpt.gpt.transformer import Transformer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TextEncoder(Encoder):
    """Texts to tokens, each of which sees all of its own text: for pairing text with the other modalities.

    Args:
        config: The sizes of an encoder of our own blocks, or a loaded transformers model of the BERT family.
    """

    def __init__(self, config: "GPTConfig | PreTrainedModel"):
        super().__init__()
        self.net = OwnBlocks(config) if isinstance(config, GPTConfig) else Pretrained(config)
        self.config = self.net.config
        self.train()

    @classmethod
    def from_pretrained(cls, source: str | Path) -> Self:
        """A BERT-family encoder from a directory, or by its Hub id; in evaluation mode. Raises CheckpointError.

        Weights are read from safetensors alone, and no code of the checkpoint is run.
        """
        from transformers import AutoModel

        try:
            model, info = AutoModel.from_pretrained(source, use_safetensors=True, output_loading_info=True)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{source}: no text encoder can be loaded: {str(error).splitlines()[0]}") from error
        if missing := sorted(key for key in info["missing_keys"] if not key.startswith("pooler.")):
            raise CheckpointError(f"{source}: lacks {missing[0]} and {len(missing) - 1} more tensors of its model")
        return cls(model).eval()

    @property
    def width(self) -> int:
        """Size of a token."""
        return self.net.width

    def grid(self, ids: int) -> TokenGrid:
        """The tokens of a text of so many token ids: as many."""
        return TokenGrid(rows=ids)

    def forward(self, ids: Sequence[Tensor] | Tensor, lengths: Tensor | None = None) -> Tokens:
        """Tokens (batch, tokens, width), zero behind each text's end, and their numbers (batch,).

        Args:
            ids: Token ids (tokens,) of each text; or (batch, tokens) with lengths (batch,).
        """
        return self.forward_features(ids, [-1], lengths)[0]

    def forward_features(
        self, ids: Sequence[Tensor] | Tensor, layers: Sequence[int], lengths: Tensor | None = None
    ) -> list[Tokens]:
        """What forward returns, after each of these blocks; -1 is the last."""
        texts = unpad(ids, lengths)
        counts = torch.tensor([len(text) for text in texts], device=texts[0].device)
        return [(tokens, counts) for tokens in self.net(texts, layers)]


class OwnBlocks(nn.Module):
    """The GPT's transformer over documents seen in both directions; the final norm is applied to every layer."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        if config.vocab_size < 1:
            raise ConfigError("text.vocab_size: a text encoder needs the number of its token ids")
        self.config, self.width = config.resolved(), config.width
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.transformer = Transformer(config, causal=False)

    def forward(self, texts: list[Tensor], layers: Sequence[int]) -> list[Tensor]:
        documents = Documents([len(text) for text in texts], texts[0].device)
        *states, last = self.transformer.states(self.embedding(torch.cat(texts)), documents)
        levels = [*map(self.transformer.norm, states[1:]), last]
        return [ragged(levels[layer].split(documents.lengths))[0] for layer in layers]


class Pretrained(nn.Module):
    """An encoder of transformers, on a right-padded batch."""

    def __init__(self, model: "PreTrainedModel"):
        super().__init__()
        if model.config.is_encoder_decoder:
            raise CheckpointError(f"{model.config.model_type}: has a decoder too; choose an encoder of the BERT family")
        if hasattr(model, "pooler"):
            setattr(model, "pooler", None)  # noqa: B010  tokens are asked for, not their summary
        self.model, self.config, self.width = model, model.config, model.config.hidden_size

    def forward(self, texts: list[Tensor], layers: Sequence[int]) -> list[Tensor]:
        real = pad_sequence([torch.ones_like(text) for text in texts], batch_first=True)
        out = self.model(pad_sequence(texts, batch_first=True), attention_mask=real, output_hidden_states=True)
        levels = [*out.hidden_states[1:-1], out.last_hidden_state]
        return [levels[layer] * real[..., None] for layer in layers]
