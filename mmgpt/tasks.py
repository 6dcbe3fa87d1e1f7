"""The tasks by name: how a user asks for them. A task is a template that makes a conversation, nothing more."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mmgpt.content import Content, Message, Part


@dataclass(frozen=True)
class Task:
    """A way to use the model: the wordings of the request (the first is the default) and how answers are scored.

    Answers of tasks that are `exact` are right or wrong; others are more or less right. Where `likelihood` is measured
    nothing is said: it counts how likely the model thinks the truth.
    """

    prompts: tuple[str, ...]
    metrics: tuple[str, ...]
    exact: bool = False
    likelihood: bool = False

    def wording(self, number: int | None) -> str:
        """A wording of the request, always the same for a number; the default for None.

        Of as many numbers as there are wordings each has another, in an order that is drawn anew each time: where they
        took turns, and classes do so too, the wording would tell the class.
        """
        if number is None:
            return self.prompts[0]
        turn, place = divmod(number, len(self.prompts))
        return random.Random(turn).sample(self.prompts, len(self.prompts))[place]

    def conversation(self, *parts: Part, prompt: str | None = None) -> list[Message]:
        """The conversation that asks for this task about the parts, media first."""
        return [Message.of("user", *parts, prompt or self.prompts[0])]

    def about(self, text: str, **words: str) -> list[Message]:
        """The conversation that asks for this task about a text, which stands below the request.

        So do rows with `instruction` and `input` (see mmgpt.data.rows). `words` are put into the wording: to="German".
        """
        return [Message.of("user", f"{self.prompts[0].format(**words)}\n{text}")]


def few_shot(examples: Iterable[tuple[Sequence[Message], Content]], asked: Sequence[Message]) -> list[Message]:
    """The conversation that asks after examples (Brown et al. 2020): each is what was asked, and its answer."""
    before = [message for prompt, answer in examples for message in (*prompt, _answer(answer))]
    return [*before, *asked]


def _answer(content: Content) -> Message:
    return Message.of("assistant", *((content,) if isinstance(content, str) else content))


RETRIEVE = "retrieve"  # what is evaluated of a model that pairs media with texts; nothing is asked
CAPTION_METRICS = ("cider", "bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "meteor")
TASKS = {
    "caption": Task(
        (
            "Describe the picture.",
            "What is in the picture?",
            "What does the picture show?",
        ),
        CAPTION_METRICS,
    ),
    "describe": Task(
        (
            "Describe what happens.",
            "What happens in the video?",
            "What do you see and hear?",
        ),
        CAPTION_METRICS,
    ),
    "transcribe": Task(
        (
            "Transcribe the speech.",
            "What is said?",
            "Write down what you hear.",
        ),
        ("wer", "cer"),
        exact=True,
    ),
    "classify": Task(
        (
            "What is this?",
            "Which kind is it?",
        ),
        ("accuracy", "macro_f1"),
        exact=True,
    ),
    "translate": Task(("Translate into {to}.",), ("translation_bleu", "chrf")),
    "summarize": Task(("Summarize the text.",), ("rouge_l",)),
    "ask": Task(("",), ("exact_match", "f1", "vqa"), exact=True),
    "write": Task(("",), ("bleu_4",)),
    "continue": Task(("",), ("perplexity", "bits_per_byte", "bits_per_character"), likelihood=True),
}


def task_of(instruction: str) -> str | None:
    """The task of texts that an instruction in its own words asks for; None where it is none's."""
    for task in ("translate", "summarize"):
        wording = TASKS[task].prompts[0]
        before, to, after = wording.partition("{to}")
        if instruction == wording or (to and instruction.startswith(before) and instruction.endswith(after)):
            return task
    return None
