"""What every reader of data returns: one exchange to learn from or to be asked."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from mmgpt.content import Content, Medium, Message, Part, Text, text_of
from mmgpt.errors import DataError


@dataclass(frozen=True)
class Sample:
    """A prompt, and every right answer to it; DataError without any.

    Args:
        prompt: The messages up to and including the user's last one, with their media.
        answers: All right answers, which may have media in them. In training each is a document of its own, sharing the
            prompt's media; in evaluation the texts of all are references. Without a prompt each is a document to
            continue.
        task: Name of the task; scores are reported per task.
        where: Where the sample comes from, for error messages: "file:line" or "world 17".
        group: Names samples that evaluation reports apart from the rest of their task; "" for those of the rest.
        kinds: What kind of sample it is, where the data tell: {"question type": "how many"}; scores are told by kind.
        votes: What each of the people said who were asked, where the data tell (VQA's ten). They are scored against and
            never learned from.
        more: Further samples of the same media, the very same parts. In training these are then decoded and encoded
            once for all of them, and each answer is a document that sees none of the others.
    """

    prompt: tuple[Message, ...]
    answers: tuple[Content, ...]
    task: str
    where: str
    group: str = ""
    votes: tuple[str, ...] = ()
    kinds: Mapping[str, str] = field(default_factory=dict)
    more: tuple["Sample", ...] = ()

    def __post_init__(self) -> None:
        if not self.answers:
            raise DataError(f"{self.where}: no answer, so there is nothing to learn; add one or remove the sample")

    def texts(self) -> list[str]:
        """All text of the sample, prompts and answers; what a tokenizer is trained on."""
        return [part.text for one in self.exchanges for part in one._parts() if isinstance(part, Text)]

    def media(self) -> list[Medium]:
        """All media of the sample, those of the prompt before those of the answers."""
        return [part for part in self._parts() if not isinstance(part, Text)]

    @property
    def exchanges(self) -> tuple["Sample", ...]:
        """It alone, and each of those that share its media alone: what is asked one by one."""
        return (replace(self, more=()), *self.more) if self.more else (self,)

    @property
    def references(self) -> tuple[str, ...]:
        """The texts of the answers."""
        return tuple(map(text_of, self.answers))

    def _parts(self) -> Iterator[Part]:
        for message in self.prompt:
            yield from message.parts
        for answer in self.answers:
            yield from (Text(answer),) if isinstance(answer, str) else answer
