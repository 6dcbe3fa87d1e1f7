"""What mmgpt.load returns: model, processor and decoding behind the questions a user has."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, overload

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F

from mmgpt import checkpoint
from mmgpt.batch import Example, MediaInput, collate
from mmgpt.card import origin
from mmgpt.content import Audio, Image, Message, Part, Text, Video
from mmgpt.data.folders import medium_of
from mmgpt.errors import ConfigError, MediaError, shown
from mmgpt.files import atomic_write
from mmgpt.generation import Answer, Decoding, Engine, settled
from mmgpt.model import MultimodalGPT
from mmgpt.processor import Processor, TooLongError
from mmgpt.sharing import CARD, push
from mmgpt.tasks import TASKS, few_shot
from mmgpt.tokenizer import Tokenizer

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

# What stands for a medium wherever one is asked for: the part itself, or what the part is made from.
Source: TypeAlias = str | Path | bytes | np.ndarray | PIL.Image.Image | Image | Audio | Video
Embedded: TypeAlias = Source | Text  # a str is a text
Prepared: TypeAlias = torch.Tensor | MediaInput | Example  # a text's token ids, a medium, or a prompt of either
Prompt: TypeAlias = str | Part | Sequence[str | Part]
Examples: TypeAlias = Sequence[tuple[Source, str]]  # what is asked about before, each with its right answer
T = TypeVar("T", Image, Audio, Video)
GROUP = 32  # sources that are embedded together
ROWS = 512  # places whose logits over the vocabulary are computed at once


class Assistant:
    """A trained model, ready to use. Answers do not depend on what else is in a list of requests.

    Args:
        model: The model; it is put into evaluation mode.
        tokenizer: Its tokenizer.
        training: What is told of how it was made (`checkpoint.read_training`); goes with it when it is saved.
        card: The model card that its user wrote; goes with it too.
    """

    def __init__(
        self,
        model: MultimodalGPT,
        tokenizer: Tokenizer,
        training: Mapping[str, Any] | None = None,
        card: str | None = None,
    ):
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.training = dict(training or {})
        self.card = card
        self.processor = Processor(model.config, tokenizer)
        self.engine = Engine(self.model, tokenizer)

    @overload
    def caption(self, image: list[Source], **decoding: Any) -> list[str]: ...
    @overload
    def caption(self, image: Source, **decoding: Any) -> str: ...
    def caption(self, image: Source | list[Source], examples: Examples = (), **decoding: Any) -> str | list[str]:
        """A caption of a picture (path, bytes, PIL image, array or Image); a list in gives a list out, batched.

        `examples` are pictures with their captions, which stand before the request (few-shot).
        """
        return self._task("caption", partial(_made, Image), image, examples, decoding)

    @overload
    def transcribe(self, audio: list[Source], **decoding: Any) -> list[str]: ...
    @overload
    def transcribe(self, audio: Source, **decoding: Any) -> str: ...
    def transcribe(self, audio: Source | list[Source], examples: Examples = (), **decoding: Any) -> str | list[str]:
        """What is said in a sound; a list in gives a list out, batched. `examples` as in `caption`."""
        return self._task("transcribe", partial(_made, Audio), audio, examples, decoding)

    @overload
    def describe(self, medium: list[Source], **decoding: Any) -> list[str]: ...
    @overload
    def describe(self, medium: Source, **decoding: Any) -> str: ...
    def describe(self, medium: Source | list[Source], examples: Examples = (), **decoding: Any) -> str | list[str]:
        """What happens in a clip or a sound, which a path names by its ending; a list in gives a list out, batched.

        `examples` as in `caption`.
        """
        return self._task("describe", _part, medium, examples, decoding)

    @overload
    def translate(self, text: list[str], to: str, **decoding: Any) -> list[str]: ...
    @overload
    def translate(self, text: str, to: str, **decoding: Any) -> str: ...
    def translate(self, text: str | list[str], to: str, **decoding: Any) -> str | list[str]:
        """A text in another language, which is named as in training ("German"); a list in gives a list out, batched."""
        return self._about("translate", text, decoding, to=to)

    @overload
    def summarize(self, text: list[str], **decoding: Any) -> list[str]: ...
    @overload
    def summarize(self, text: str, **decoding: Any) -> str: ...
    def summarize(self, text: str | list[str], **decoding: Any) -> str | list[str]:
        """A text in short; a list in gives a list out, batched."""
        return self._about("summarize", text, decoding)

    def ask(
        self,
        question: str,
        *,
        image: Source | Sequence[Source] = (),
        audio: Source | Sequence[Source] = (),
        video: Source | Sequence[Source] = (),
        text: str = "",
        examples: Sequence[tuple[Prompt, str]] = (),
        **decoding: Any,
    ) -> str:
        """The answer to a question about pictures, sounds and videos: one, or a list, of each; or about a text.

        Args:
            question: The question.
            image, audio, video: What it is about; they stand before it.
            text: What it is about too; it stands below the question, as in rows with `instruction` and `input`.
            examples: Prompts as `generate` takes them, each with its right answer, which stand before all (few-shot).
            decoding: Settings of Decoding.
        """
        parts: list[Part] = [*_parts(Image, image), *_parts(Audio, audio), *_parts(Video, video)]
        asked = TASKS["ask"].conversation(*parts, prompt=f"{question}\n{text}" if text else question)
        return self.reply([few_shot([(_prompt(one), answer) for one, answer in examples], asked)], **decoding)[0]

    def generate(self, prompt: Prompt, **decoding: Any) -> str:
        """What the model says to a prompt of text and media in any order."""
        return self.reply([_prompt(prompt)], **decoding)[0]

    @overload
    def complete(self, text: list[str], **decoding: Any) -> list[str]: ...
    @overload
    def complete(self, text: str, **decoding: Any) -> str: ...
    def complete(self, text: str | list[str], **decoding: Any) -> str | list[str]:
        """How a text goes on, as plain texts do that the model has learned; a list in gives a list out, batched."""
        self.require_answers()
        prompts = [self.processor.encode_beginning(one) for one in (text if isinstance(text, list) else [text])]
        found = [answers[0].text for answers in self.engine.run(prompts, Decoding(**decoding))]
        return found if isinstance(text, list) else found[0]

    def answers(self, prompt: Prompt, **decoding: Any) -> list[Answer]:
        """All `n` answers to a prompt, with their tokens, how they ended and, if asked for, log-probabilities."""
        return self.engine.run([self.processor.encode_prompt(_prompt(prompt))], Decoding(**decoding))[0]

    def stream(self, prompt: Prompt, **decoding: Any) -> Iterator[str]:
        """As `generate`, piece by piece as it is decoded."""
        return self._pieces(self.processor.encode_prompt(_prompt(prompt)), Decoding(**decoding))

    def stream_completion(self, text: str, **decoding: Any) -> Iterator[str]:
        """As `complete`, piece by piece as it is decoded."""
        self.require_answers()
        return self._pieces(self.processor.encode_beginning(text), Decoding(**decoding))

    def _pieces(self, prompt: Example, decoding: Decoding) -> Iterator[str]:
        told = ""
        for answer in self.engine.stream(prompt, decoding):
            text = settled(answer, decoding.stop)
            if len(text) > len(told):
                yield text[len(told) :]
                told = text

    def reply(self, conversations: Sequence[Sequence[Message]], **decoding: Any) -> list[str]:
        """The assistant's next message in each conversation. Raises MediaError, TooLongError, ConfigError."""
        return self.reply_examples([self.processor.encode_prompt(c) for c in conversations], Decoding(**decoding))

    def reply_examples(self, prompts: Sequence[Example], decoding: Decoding) -> list[str]:
        """As `reply`, for prompts that are encoded already."""
        self.require_answers()
        return [answers[0].text.strip() for answers in self.engine.run(prompts, decoding)]

    def require_answers(self) -> None:
        """Raises ConfigError for a model that can be asked nothing."""
        if not self.model.config.answers:
            raise ConfigError(
                "this model pairs media with texts alone and answers nothing; use embed or classify, or "
                "eval --task retrieve"
            )

    def embed(self, source: Embedded | list[Embedded]) -> torch.Tensor:
        """The unit vector (width,) of a text (a str is one) or a medium; those (n, width) of a list, batched.

        A path names a picture, sound or clip by its ending; bytes, arrays and PIL images are pictures. Where the model
        pairs media with texts (config.pair), those that belong together are near to each other, in whatever kinds; else
        a vector is the mean of the GPT's last hidden states over the tokens of its source.
        """
        every = [self._prepared(_embeddable(one)) for one in (source if isinstance(source, list) else [source])]
        vectors = torch.stack(self._vectors(every)) if every else torch.empty(0)
        return vectors if isinstance(source, list) else vectors[0]

    @torch.inference_mode()
    def retrieve(
        self,
        query: Embedded,
        sources: Iterable[Embedded],
        most: int = 5,
        lost: Callable[[int, MediaError], None] | None = None,
    ) -> list[tuple[int, float]]:
        """Which sources a text or medium is nearest to: their places and similarities (cosine), the nearest first.

        Args:
            query: As `embed` takes it.
            sources: Any number of them; they are decoded and embedded a group at a time.
            most: How many are told.
            lost: Is told the place of each that cannot be decoded, and why; without it, the first such is an error.
        """
        vector, every = self.embed(query), enumerate(sources)
        near: list[tuple[int, float]] = []
        while group := list(islice(every, GROUP)):
            prepared: dict[int, Prepared] = {}
            for place, source in group:
                try:
                    prepared[place] = self._prepared(_embeddable(source))
                except MediaError as error:
                    if lost is None:
                        raise
                    lost(place, error)
            vectors = self._vectors(list(prepared.values()))
            near += [(place, float(own @ vector)) for place, own in zip(prepared, vectors, strict=True)]
        return sorted(near, key=lambda found: -found[1])[:most]

    def _prepared(self, part: Part) -> Prepared:
        """What the vector of a part is made from. Raises MediaError, TooLongError."""
        if self.model.pair is None:
            return self.processor.encode_prompt([Message("user", (part,))])
        return self._text(part.text) if isinstance(part, Text) else self.processor.media_input(part)

    @torch.inference_mode()
    def _vectors(self, sources: Sequence[Prepared]) -> list[torch.Tensor]:
        vectors: dict[int, torch.Tensor] = {}
        device = self.model.device
        texts = {i: one for i, one in enumerate(sources) if isinstance(one, torch.Tensor)}
        media = {i: one.to(device) for i, one in enumerate(sources) if isinstance(one, MediaInput)}
        if self.model.pair is not None and texts:
            vectors |= zip(texts, self.model.pair.texts(list(texts.values())), strict=True)
        if media:
            vectors |= zip(media, self.model.media_vectors(list(media.values())), strict=True)
        for i, one in enumerate(sources):
            if isinstance(one, Example):
                hidden = self.model.hidden(collate([one]).to(device))
                vectors[i] = F.normalize(hidden.mean(dim=0).float(), dim=0)
        return [vectors[i] for i in range(len(sources))]

    def _text(self, text: str) -> torch.Tensor:
        """The token ids of a text as they were in training: with the end token."""
        ids, most = [*self.tokenizer.encode(text), self.tokenizer.end], self.model.config.gpt.context
        if len(ids) > most:
            raise TooLongError(f"{shown(text)}: {len(ids)} tokens, more than the context of {most}; shorten it")
        return torch.tensor(ids, device=self.model.device)

    @torch.inference_mode()
    def classify(
        self,
        source: Source | Text,
        labels: Sequence[str],
        template: str = "{}",
        examples: Sequence[tuple[Source | Text, str]] = (),
    ) -> dict[str, float]:
        """How likely each label is for a medium or a text, the likeliest first; together they are 1.

        Where the model pairs media with texts, by the similarity of the source and the label's text (Radford et al.
        2021): softmax over the labels, at the learned temperature. Else by the likelihood of the label as the GPT's
        answer: that of all its tokens and its end, so that the shares are those of the model's own answers, were it to
        give one of the labels. They are not divided by the number of tokens, as is done with models that never learned
        the task (Brown et al. 2020): the later tokens of a long label are nearly certain once it has begun, and their
        mean would make it likelier the longer it is.

        Args:
            source: A path names a picture, sound or clip by its ending; bytes, arrays and PIL images are pictures. Text
                is asked just as it stands, as rows with `text` and `label` are learned.
            labels: What it may be.
            template: The text that the model was trained to see with such a medium, "{}" standing for the label: "a
                photo of a {}."
            examples: Sources with their labels, which stand before this one (few-shot).

        Raises:
            ConfigError: No label, a template without "{}", or examples for a model that pairs media with texts.
        """
        if not labels or "{}" not in template:
            raise ConfigError(f"classify: needs labels, and {{}} in the template; not {labels!r}, {template!r}")
        labels = list(dict.fromkeys(labels))
        texts = [template.replace("{}", label) for label in labels]
        part = _shown(source)
        if self.model.pair is not None:
            if examples:
                raise ConfigError("classify: a model that pairs media with texts takes no examples; leave them out")
            vectors = torch.stack(self._vectors([self._prepared(one) for one in (part, *map(Text, texts))]))
            scores = self.model.pair.logits(vectors[:1], vectors[1:])[0]
        else:
            before = [(_classed(_shown(one)), template.replace("{}", label)) for one, label in examples]
            asked = few_shot(before, _classed(part))
            scores = self.likelihoods(self.processor.encode_prompt(asked), texts)
        order = scores.argsort(descending=True, stable=True).tolist()
        return {labels[i]: share for i, share in zip(order, scores.softmax(0)[order].tolist(), strict=True)}

    def likelihoods(self, prompt: Example, answers: Sequence[str]) -> torch.Tensor:
        """Log-probability (answers,) of each whole answer to a prompt, which is encoded once for all."""
        return self.log_likelihoods([self.processor.encode_answer(prompt, answer) for answer in answers])

    def log_likelihoods(self, examples: Sequence[Example]) -> torch.Tensor:
        """Log-probability (examples,) of all of each example's supervised tokens."""
        return torch.stack([own.sum() for own in self.log_probabilities(examples)])

    @torch.inference_mode()
    def log_probabilities(self, examples: Sequence[Example]) -> list[torch.Tensor]:
        """For each example that of its supervised tokens (tokens,); media that they share are encoded once."""
        batch = collate(examples).to(self.model.device)
        targets = batch.targets
        places = zip(self.model.hidden(batch, targets - 1).split(ROWS), batch.ids[targets].split(ROWS), strict=True)
        chosen = torch.cat(
            [
                self.model.gpt.head(hidden).float().log_softmax(1).gather(1, ids[:, None])[:, 0]  # rows
                for hidden, ids in places
            ]
        )  # targets
        counts = [int(learn.sum()) for learn in batch.supervised.split(batch.lengths)]
        return list(chosen.split(counts))

    def save(self, directory: str | Path) -> None:
        """Write the checkpoint: one directory that `mmgpt.load` reads."""
        checkpoint.save(directory, self.model, self.tokenizer, self.training)
        if self.card is not None:
            with atomic_write(Path(directory) / CARD) as path:
                path.write_text(self.card, encoding="utf-8")

    def push_to_hub(self, repo_id: str, **settings: Any) -> "CommitInfo":
        """Upload the model as it is now, with a model card, to owner/name on the Hugging Face Hub.

        The settings (licence, data_licence, datasets, private, tag, token), result and errors are those of
        `mmgpt.sharing.push`. The card is the README.md of the directory that the model was loaded from, if there was
        one, else it is made of what its run told.
        """
        with TemporaryDirectory() as folder:
            self.save(folder)
            return push(folder, repo_id, **settings)

    def _task(
        self,
        task: str,
        part: Callable[[Source], Part],
        source: Source | list[Source],
        examples: Examples,
        decoding: dict[str, Any],
    ) -> Any:
        def asked(one: Source) -> list[Message]:
            return TASKS[task].conversation(part(one))

        before = [(asked(one), answer) for one, answer in examples]
        sources = source if isinstance(source, list) else [source]
        answers = self.reply([few_shot(before, asked(one)) for one in sources], **decoding)
        return answers if isinstance(source, list) else answers[0]

    def _about(self, task: str, text: str | list[str], decoding: dict[str, Any], **words: str) -> Any:
        texts = text if isinstance(text, list) else [text]
        answers = self.reply([TASKS[task].about(one, **words) for one in texts], **decoding)
        return answers if isinstance(text, list) else answers[0]


def load(
    directory: str | Path,
    device: str | torch.device | None = None,
    int8: bool = False,
    revision: str | None = None,
) -> Assistant:
    """A trained model from its directory or from the Hugging Face Hub, on the GPU if there is one.

    Args:
        directory: A checkpoint, or a run that holds one; or owner/name on the Hub, which is fetched once and kept by
            huggingface_hub. owner/name@revision is one of its revisions.
        device: Where to put it.
        int8: Compute the GPT's linear layers in int8, on the CPU: about twice as fast, and nearly as exact.
        revision: A branch, tag or commit of the Hub; None is its main branch.

    Raises:
        CheckpointError: There is no checkpoint, or not a whole one.
        ConfigError: int8 is asked for where it does not run, or a revision of a directory.
    """
    if int8 and torch.device(device or "cpu").type != "cpu":
        raise ConfigError(f"int8 runs on the CPU only, not on {device}; leave one of the two out")
    files = checkpoint.locate(directory, revision)
    model, tokenizer = checkpoint.load(files)
    if int8:
        from mmgpt.gpt.quantize import quantize_int8

        quantize_int8(model.gpt)
    else:
        from mmgpt.gpt.packed import pack

        model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        pack(model.gpt)
    ours = (files / "training.json").is_file()
    training = checkpoint.read_training(files) if ours else {"begun_from": [origin(directory)]}
    card = Path(directory) / CARD
    return Assistant(model, tokenizer, training, card.read_text(encoding="utf-8") if card.is_file() else None)


def _parts(kind: type[T], source: Any) -> list[T]:
    sources = source if isinstance(source, list | tuple) else [source]
    return [_made(kind, item) for item in sources]


def _made(kind: type[T], source: Any) -> T:
    return source if isinstance(source, kind) else kind(source)


def _part(source: Source) -> Part:
    """The medium that a path, by its ending, bytes, an array or a PIL image is."""
    if isinstance(source, Image | Audio | Video):
        return source
    return medium_of(source, Image) if isinstance(source, str | Path) else Image(source)


def _shown(source: Source | Text) -> Part:
    return source if isinstance(source, Text) else _part(source)


def _classed(part: Part) -> list[Message]:
    """How the class of a medium, or a text, is asked for."""
    return [Message("user", (part,))] if isinstance(part, Text) else TASKS["classify"].conversation(part)


def _embeddable(source: Embedded) -> Part:
    return Text(source) if isinstance(source, str) else _shown(source)


def _prompt(prompt: Prompt) -> list[Message]:
    parts = [prompt] if isinstance(prompt, str | Text | Image | Audio | Video) else list(prompt)
    return [Message.of("user", *parts)]
