"""Pairing: one vector for each medium and each text, near to each other where the two belong together.

picture, sound, clip ── encoder ── tokens ── pooling head ──► vector ┐
                                                                     ├── similarity ── CLIP's or SigLIP's loss
text ── text encoder ── tokens ── pooling head ─────────────► vector ┘
"""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from mmgpt.batch import Batch
from mmgpt.config import AdapterConfig, PairConfig
from mmgpt.distributed import gathered, rank
from mmgpt.encoders import TextEncoder
from mmgpt.errors import ConfigError
from mmgpt.fusion import Resampler

MOST_SCALE = 100.0  # CLIP's: a larger one makes training unstable
Text: TypeAlias = tuple[int, ...]  # a text by its token ids
Name = TypeVar("Name", bytes, Text)


class Pairing(nn.Module):
    """The text encoder, the head of each kind of medium and of texts, and the loss of what belongs together.

    Args:
        config: Which loss and pooling, and the sizes.
        vocabulary: Number of token ids of the texts.
        longest: Most tokens a text may have.
        widths: Width of each encoder's tokens, by modality.

    Raises:
        ConfigError: An unknown setting, sizes that do not fit, or no medium to pair texts with.
    """

    def __init__(self, config: PairConfig, vocabulary: int, longest: int, widths: Mapping[str, int]):
        super().__init__()
        if config.loss not in ("clip", "siglip"):
            raise ConfigError(f"pair.loss: {config.loss!r} is none of clip, siglip")
        if not widths:
            raise ConfigError("pair: needs something to pair texts with; configure model.image or model.audio")
        check_weights(config)
        if config.text.context < longest:
            raise ConfigError(f"pair.text.context: {config.text.context}, less than gpt.context of {longest}")
        self.text = TextEncoder(replace(config.text, vocab_size=vocabulary))
        self.config = replace(config, text=self.text.config)
        self.heads = nn.ModuleDict({name: Head(config, width) for name, width in widths.items()})
        self.text_head = Head(config, self.text.width)
        clip = config.loss == "clip"
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07 if clip else 10.0)))  # as in the papers
        self.bias = None if clip else nn.Parameter(torch.tensor(-10.0))

    def add(self, modality: str, width: int) -> None:
        """A head for an encoder whose tokens have this width."""
        self.heads[modality] = Head(self.config, width)

    def texts(self, texts: Sequence[Tensor]) -> Tensor:
        """Unit vectors (texts, width) of texts by their token ids (tokens,), the end token the last of each."""
        return self.text_head(*self.text(texts))

    def media(self, modality: str, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Unit vectors (batch, width) of an encoder's tokens (batch, tokens, width), right-padded to their lengths."""
        return self.heads[modality](tokens, lengths)

    def logits(self, media: Tensor, texts: Tensor, processes: int = 1) -> Tensor:
        """How well each medium goes with each text, (media, texts), from their unit vectors.

        Of `processes` that compute the same, each gives its part of the gradient of temperature and bias.
        """
        logits = _part(self.log_scale.exp(), processes) * media @ texts.T
        return logits if self.bias is None else logits + _part(self.bias, processes)

    def loss(self, batch: Batch | None, tokens: Mapping[str, Tensor]) -> Tensor:
        """This process' part of the contrastive loss of a batch, which is the sum over all processes.

        A pair is a document's only medium and what is supervised in it; documents with several media, or none, are
        left out. The pairs of all processes are compared with each other, so that many processes learn what one with
        the large batch learns; batches that are accumulated to one step are not, so that accumulation makes the loss
        easier. Equal texts count as one, and equal media, and all that the batch says of a medium is right.

        Args:
            batch: None where this process has nothing, while others may have.
            tokens: The encoders' tokens (inputs, tokens, width) of the batch's media, by modality.
        """
        if self.bias is None:
            self.log_scale.data.clamp_(max=math.log(MOST_SCALE))
        media, texts, pairs = ({}, {}, []) if batch is None else _pairs(batch)
        everyone = gathered(([name for own in media.values() for name in own], list(texts), pairs))
        right = {pair for _, _, some in everyone for pair in some}
        if not right:
            return 0.0 * self.log_scale  # which has a backward pass
        rows = [self._media(batch, modality, list(own.values()), tokens) for modality, own in media.items() if batch]
        columns = [self.texts(list(texts.values()))] if texts else []
        nothing = self.log_scale.new_zeros(0, self.config.width)
        media_names, rows = _united(torch.cat([nothing, *rows]), [names for names, _, _ in everyone])
        text_names, columns = _united(torch.cat([nothing, *columns]), [names for _, names, _ in everyone])
        match = matches(right, media_names, text_names)
        with torch.autocast(rows.device.type, enabled=False):
            logits = self.logits(rows, columns, len(everyone))
            loss = (clip_loss if self.config.loss == "clip" else siglip_loss)(logits, match.to(logits.device))
        # Each process has the whole loss, but gradients of its own vectors alone: these add up as they are.
        return loss - loss.detach() * (1 - 1 / len(everyone))

    def _media(self, batch: Batch, modality: str, places: list[int], tokens: Mapping[str, Tensor]) -> Tensor:
        grids = [batch.media[modality].inputs[place].grid for place in places]
        lengths = torch.tensor([grid.count for grid in grids], device=self.log_scale.device)
        return self.media(modality, tokens[modality][places], lengths)


def check_weights(config: PairConfig) -> None:
    """Raises ConfigError for weights of the losses by which nothing can be learned."""
    if config.weight <= 0 or config.caption < 0:
        raise ConfigError(f"pair: weight must be above 0, caption from 0 on; not {config.weight}, {config.caption}")


class Head(nn.Module):
    """Tokens (batch, tokens, width), right-padded to lengths (batch,), to unit vectors (batch, common width)."""

    def __init__(self, config: PairConfig, width: int):
        super().__init__()
        if config.pooling not in ("attention", "mean"):
            raise ConfigError(f"pair.pooling: {config.pooling!r} is none of attention, mean")
        query = AdapterConfig("resampler", queries=1, layers=1, heads=config.heads)
        attends = config.pooling == "attention"
        self.pool = Resampler(query, width, config.width) if attends else None
        self.project = nn.Linear(config.width if attends else width, config.width, bias=False)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        if self.pool is not None:
            pooled = self.pool(tokens, lengths)[:, 0]  # batch, common width
        else:
            real = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]  # batch, tokens
            pooled = tokens.where(real[..., None], 0).sum(dim=1) / lengths[:, None]
        vectors = self.project(pooled)
        return F.normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=-1)


def clip_loss(logits: Tensor, match: Tensor) -> Tensor:
    """CLIP's loss (Radford et al. 2021): each medium is to find its text among all, and each text its medium.

    Where several are right, each is as right as the others (UniCL, Yang et al. 2022).

    Args:
        logits: Of each medium with each text, (media, texts).
        match: Which belong together, (media, texts) bool; at least one in each row and column.
    """
    right = match.to(logits.dtype)
    find_text = (logits.log_softmax(1) * right).sum(1) / right.sum(1)  # media
    find_medium = (logits.log_softmax(0) * right).sum(0) / right.sum(0)  # texts
    return -(find_text.mean() + find_medium.mean()) / 2


def siglip_loss(logits: Tensor, match: Tensor) -> Tensor:
    """SigLIP's loss (Zhai et al. 2023): each medium with each text is a question of its own, right or wrong.

    The sum is divided by the number of right pairs: the batch size of the paper, where each medium has one text. The
    arguments are those of `clip_loss`.
    """
    signs = match.to(logits.dtype) * 2 - 1
    return -F.logsigmoid(signs * logits).sum() / match.sum()


def matches(pairs: Iterable[tuple[Hashable, Hashable]], media: Iterable[Hashable], texts: Iterable[Hashable]) -> Tensor:
    """Which media and texts are pairs, by their names: (media, texts) bool."""
    rows, columns = ({name: place for place, name in enumerate(names)} for names in (media, texts))
    match = torch.zeros(len(rows), len(columns), dtype=torch.bool)
    for medium, text in pairs:
        match[rows[medium], columns[text]] = True
    return match


def _pairs(batch: Batch) -> tuple[dict[str, dict[bytes, int]], dict[Text, Tensor], list[tuple[bytes, Text]]]:
    """The media to pair, by modality and name, with their places among the inputs; the texts; and which are pairs."""
    media: dict[str, dict[bytes, int]] = {}
    texts: dict[Text, Tensor] = {}
    pairs = []
    for seen, said in zip(batch.shown, batch.answers, strict=True):
        if len(seen) == 1 and len(said):
            ((modality, index),) = seen
            item, text = batch.media[modality].inputs[index], tuple(said.tolist())
            name = item.key or item.digest
            media.setdefault(modality, {}).setdefault(name, index)
            texts.setdefault(text, said)
            pairs.append((name, text))
    return media, texts, pairs


def _united(own: Tensor, names: list[list[Name]]) -> tuple[list[Name], Tensor]:
    """Names and vectors (names, width) of all processes, each name once; the gradient reaches this one's own."""
    vectors = own
    if len(names) > 1:
        padded = own.detach().new_zeros(max(map(len, names)), own.shape[1])
        padded[: len(own)] = own.detach()
        parts = [torch.empty_like(padded) for _ in names]
        dist.all_gather(parts, padded)
        parts[rank()] = own
        vectors = torch.cat([part[: len(some)] for part, some in zip(parts, names, strict=True)])
    first: dict[Name, int] = {}
    for place, name in enumerate(name for some in names for name in some):
        first.setdefault(name, place)
    return list(first), vectors[list(first.values())]


def _part(value: Tensor, processes: int) -> Tensor:
    """The same value with its share of the gradient."""
    return value.detach() + (value - value.detach()) / processes
