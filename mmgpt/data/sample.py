"""What every reader of data returns: one exchange to learn from or to be asked."""

from dataclasses import dataclass

from mmgpt.content import Message, Text
from mmgpt.errors import DataError


@dataclass(frozen=True)
class Sample:
    """A prompt, and every right answer to it; DataError without any.

    Args:
        prompt: The messages up to and including the user's last one, with their media.
        answers: All right answers. In training each is a document of its own, sharing the media; in evaluation all
            are references.
        task: Name of the task; scores are reported per task.
        where: Where the sample comes from, for error messages: "file:line" or "world 17".
        group: Names samples that evaluation reports apart from the rest of their task; "" for those of the rest.
        votes: What each of the people said who were asked, where the data tell (VQA's ten). They are scored against and
            never learned from.
    """

    prompt: tuple[Message, ...]
    answers: tuple[str, ...]
    task: str
    where: str
    group: str = ""
    votes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.answers:
            raise DataError(f"{self.where}: no answer, so there is nothing to learn; add one or remove the sample")

    def texts(self) -> list[str]:
        """All text of the sample, prompts and answers; what a tokenizer is trained on."""
        parts = (part for message in self.prompt for part in message.parts)
        return [*(part.text for part in parts if isinstance(part, Text)), *self.answers]
