"""MultimodalGPT: encoders, adapters and GPT as one module; forward, loss, save and load."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mmgpt.batch import Batch, MediaInput
from mmgpt.config import LossPer, ModelConfig
from mmgpt.ctc import CTC
from mmgpt.encoders import ENCODERS
from mmgpt.encoders.base import Encoder, ragged
from mmgpt.errors import ConfigError, DataError
from mmgpt.fusion import Adapter, check_slots, splice
from mmgpt.gpt import GPT, Documents, Media
from mmgpt.pairing import Pairing

if TYPE_CHECKING:
    from mmgpt.feature_cache import FeatureCache


@dataclass
class Loss:
    """Sum of the cross-entropy over supervised tokens, in nats, and their number; `mean` is what is minimised.

    `each` (targets,) is that of each supervised token, without a gradient.
    `pair` is the contrastive loss of the batch's pairs, where the model has one. Both come with their weights.
    """

    sum: Tensor
    count: int
    each: Tensor
    pair: Tensor | float = 0.0

    @property
    def mean(self) -> Tensor:
        return self.share(self.count, 1)

    def share(self, count: int, batches: int) -> Tensor:
        """Its part of the loss of a step with so many supervised tokens in so many batches."""
        return self.sum / count + self.pair / batches


class MultimodalGPT(nn.Module):
    """One GPT with an encoder and an adapter for each modality that its configuration names.

    A medium goes encoder -> adapter -> slots of the token sequence; from there on the GPT sees only tokens. Where
    config.gpt.cross is set, it goes encoder -> adapter -> the GPT's cross-attention instead, and has no slots. Where
    config.pair is set, the encoder's tokens are also paired with texts (`pair`); where config.ctc is, they are trained
    to spell the answer by themselves (`ctc`).

    Args:
        config: What to build. `model.config` is the resolved configuration, with the encoders' own sizes filled in.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        if unknown := [name for name in config.adapters if name not in ENCODERS]:
            raise ConfigError(f"model.adapters.{unknown[0]}: unknown; known are: {', '.join(ENCODERS)}")
        if config.gpt.vocab_size < 1:
            raise ConfigError("model.gpt.vocab_size: must be the number of tokens of the tokenizer, not 0")
        self.gpt = GPT.build(config.gpt)
        if config.gpt.weights is not None:
            config = dataclasses.replace(config, gpt=self.gpt.config)
        self.encoders = nn.ModuleDict()
        self.adapters = nn.ModuleDict()
        self.pair: Pairing | None = None
        self.ctc: CTC | None = None
        self.config = dataclasses.replace(config, image=None, audio=None, video=None, pair=None, ctc=0.0)
        self.add_encoders(config)
        if config.pair is not None:
            self.pair = Pairing(config.pair, config.gpt.vocab_size, config.gpt.context, self._widths)
            self.config.pair = self.pair.config
        if config.ctc:
            self.add_ctc(config.ctc)
        self.also: Callable[[MultimodalGPT], Tensor] | None = None  # a term of the loss that training adds
        self.features: FeatureCache | None = None  # where tokens of inputs with a key are kept

    def add_encoders(self, config: ModelConfig) -> None:
        """Encoders of config, each with its adapter there: so a GPT that reads learns to see, one that sees to hear.

        They are new, and so are their heads where the model pairs or spells; all else stays as it is, but that a model
        which takes sound tracks of clips hears them from now on. Raises ConfigError for one that there is already.
        """
        self.config = self.config.with_encoders(config)
        for modality, build in ENCODERS.items():
            if getattr(config, modality) is None:
                continue
            encoder = build(getattr(config, modality), self.encoders)
            self.encoders[modality] = encoder
            self.adapters[modality] = Adapter(
                self.config.adapter(modality),
                encoder.width,
                self.gpt.config.width,
                time_only=modality == "audio",
                beside=self.gpt.config.cross is not None,
            )
            setattr(self.config, modality, encoder.config)
            for heads in (self.pair, self.ctc):
                if heads is not None:
                    heads.add(modality, encoder.width)
        if config.audio is not None and "video" in self.encoders and config.video is None:
            self.encoders["video"].hear(self.encoders["audio"])  # type: ignore[operator]

    def add_ctc(self, weight: float) -> None:
        """Have sound and video encoders spell the answer by themselves, with this weight of the loss; heads are new.

        Raises ConfigError for a weight that is not above 0, and where there are no such encoders.
        """
        if not weight > 0:
            raise ConfigError(f"model.ctc: must be from 0 on, not {weight}")
        self.ctc, self.config.ctc = CTC(self.gpt.config.vocab_size, self._widths), weight

    @property
    def _widths(self) -> dict[str, int]:
        """Width of each encoder's tokens, by modality."""
        return {name: one.width for name, one in self.encoders.items() if isinstance(one, Encoder)}

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def checkpoint_activations(self) -> None:
        """Train in less memory and more time: the GPT's blocks, and timm backbones that can, run twice.

        Losses and gradients stay the same, to the bit. It is no part of the configuration and is not saved.
        """
        self.gpt.transformer.checkpointing = True
        for module in self.encoders.modules():
            if isinstance(module, Encoder):
                module.checkpoint_activations()

    def encode_media(self, modality: str, inputs: list[MediaInput]) -> Tensor:
        """Features (features, width) of all inputs end to end, as they enter the sequence or are looked at."""
        return self.adapters[modality](self.media_tokens(modality, inputs), [item.grid for item in inputs])

    def media_tokens(self, modality: str, inputs: list[MediaInput]) -> Tensor:
        """The encoder's tokens (inputs, tokens, width), zero behind each input's end; or those kept."""
        recall = any(item.encoded or item.key is not None for item in inputs)
        return self._recall(modality, inputs) if recall else self._encode(modality, inputs)

    def media_vectors(self, inputs: Sequence[MediaInput]) -> Tensor:
        """Unit vectors (inputs, width) of media in the space that they share with texts; config.pair must be set."""
        assert self.pair is not None
        vectors: dict[int, Tensor] = {}
        for modality in dict.fromkeys(item.modality for item in inputs):
            own = {i: item for i, item in enumerate(inputs) if item.modality == modality}
            lengths = torch.tensor([item.grid.count for item in own.values()], device=self.device)
            tokens = self.media_tokens(modality, list(own.values()))
            vectors |= zip(own, self.pair.media(modality, tokens, lengths), strict=True)
        return torch.stack([vectors[i] for i in range(len(inputs))])

    def _recall(self, modality: str, inputs: list[MediaInput]) -> Tensor:
        """What _encode returns, but only what is neither encoded nor kept goes through the encoder, and is then kept.

        Equal media are encoded once, and what is kept already is taken, though it be from this very epoch: so every
        run has the same tokens of a medium, to the last bit, whatever shared its batch.
        """
        known: dict[bytes | int, Tensor] = {}
        lacking: dict[bytes | int, MediaInput] = {}
        names = [item.key or id(item) for item in inputs]
        for name, item in zip(names, inputs, strict=True):
            if item.encoded:
                known[name] = item.data
            elif item.key and self.features is not None and (found := self.features.get(item.key)) is not None:
                known[name] = found[0].to(item.data.device)
            else:
                lacking[name] = item
        lacking = {name: item for name, item in lacking.items() if name not in known}
        if lacking:
            made = self._encode(modality, list(lacking.values()))
            for (name, item), tokens in zip(lacking.items(), made, strict=True):
                known[name] = tokens[: item.grid.count]
                if item.key and self.features is not None:
                    self.features.put(item.key, known[name], item.grid)
        return ragged([known[name] for name in names])[0]

    def _encode(self, modality: str, inputs: list[MediaInput]) -> Tensor:
        """The encoder's tokens (batch, tokens, width), zero behind each input's end."""
        encoder = self.encoders[modality]
        if modality == "audio":
            tokens, lengths = encoder([item.data for item in inputs])
        elif modality == "video":
            tokens, lengths = encoder(torch.stack([item.data for item in inputs]), [item.sound for item in inputs])
        else:
            tokens, lengths = encoder(torch.stack([item.data for item in inputs]))
        check_slots(modality, [item.grid for item in inputs], lengths, self.config.adapter(modality))
        return tokens

    def embed(self, batch: Batch) -> Tensor:
        """Token embeddings (tokens, width) with every medium that has slots spliced into them."""
        x = self.gpt.embed(batch.ids)
        if self.config.gpt.cross is None:
            for modality, media in batch.media.items():
                features = self.encode_media(modality, media.inputs)
                x = splice(x, features[media.rows], media.places)
        return x

    def media(self, batch: Batch) -> Media | None:
        """What the batch's documents look at by cross-attention, each medium's features once; None without any."""
        if self.config.gpt.cross is None or not batch.media:
            return None
        features, index, places, count = [], [], [], 0
        for modality, media in batch.media.items():
            features.append(self.encode_media(modality, media.inputs))
            index.append(media.rows + count)
            places.append(media.places)
            count += len(features[-1])
        documents = Documents(batch.lengths, batch.ids.device)
        place, order = torch.cat(places).sort(stable=True)  # so that each document's media are together
        lengths = documents.numbers[place].bincount(minlength=len(documents)).tolist()
        return Media(torch.cat(features), torch.cat(index)[order], lengths, documents.positions[place])

    def hidden(self, batch: Batch, places: Tensor | None = None) -> Tensor:
        """The GPT's last hidden states (tokens, width), or (places, width) of those tokens alone."""
        return self.gpt.transform(self.embed(batch), Documents(batch.lengths), self.media(batch), places)

    def forward(self, batch: Batch) -> Tensor:
        """Logits (tokens, vocabulary) at every place; training and generation ask for fewer."""
        return self.gpt.head(self.hidden(batch))

    def loss(self, batch: Batch | None, per: LossPer | Tensor = "token", smoothing: float = 0.0) -> Loss:
        """Next-token cross-entropy on the supervised tokens; beside it the loss of pairs, and in training CTC's, too.

        Logits are computed at the supervised tokens alone, a chunk at a time, and each medium is encoded once. With
        several processes all must call it together where there are pairs: those of one are compared with the others'.

        Args:
            batch: Documents; None in a process that has nothing while others have.
            per: What counts alike: each supervised token, or each document, whose tokens then share its weight of one;
                or the weight of every token of each document (documents,), without CTC.
            smoothing: Share of a target's probability that is spread evenly over the vocabulary.
        """
        targets = None if batch is None else batch.targets
        if targets is not None and not len(targets):
            raise DataError("a batch without a supervised token: there is nothing to learn from; check the data")
        pair: Tensor | float = 0.0
        tokens: dict[str, Tensor] = {}
        ctc = self.ctc if self.training else None
        if batch is not None and (self.pair is not None or ctc is not None):
            tokens = {name: self.media_tokens(name, group.inputs) for name, group in batch.media.items()}
        if self.pair is not None:
            pair = self.pair.loss(batch, tokens) * self.pair.config.weight
        if batch is not None and tokens:
            batch = _encoded(batch, tokens)
        also = torch.zeros((), device=self.device) if self.also is None else self.also(self)
        if batch is None or targets is None or not self.config.answers:
            count = 0 if targets is None else len(targets)
            return Loss(also, count, also.new_zeros(count), pair)
        hidden = self.hidden(batch, targets - 1)  # targets, width
        factors, count = None, len(targets)
        if per != "token":
            numbers, count = batch.numbers[targets], len(batch.lengths)
            weights = per if isinstance(per, Tensor) else 1 / numbers.bincount(minlength=count)
            factors = weights[numbers]
        total, each = self.gpt.loss(hidden, batch.ids[targets], factors, smoothing)
        if self.pair is not None:
            total = total * self.pair.config.caption
        if ctc is not None and not isinstance(per, Tensor):
            total = total + self.config.ctc * ctc.loss(batch, tokens, per)
        return Loss(total + also, count, each, pair)


def _encoded(batch: Batch, tokens: dict[str, Tensor]) -> Batch:
    """The batch with media that have gone through their encoders, to these tokens (inputs, tokens, width)."""
    media = {}
    for modality, group in batch.media.items():
        made = zip(group.inputs, tokens[modality], strict=True)
        inputs = [dataclasses.replace(item, data=own[: item.grid.count], encoded=True) for item, own in made]
        media[modality] = dataclasses.replace(group, inputs=inputs)
    return dataclasses.replace(batch, media=media)
