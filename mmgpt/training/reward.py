"""Learning by reward: from how well what the model says itself scores, instead of from the answers given."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmgpt.batch import Batch, Example, collate
from mmgpt.errors import DataError
from mmgpt.evaluation.metrics.captions import CiderD
from mmgpt.evaluation.metrics.text import chrf, exact_match, word_error_rate, word_f1
from mmgpt.generation import Answer, Decoding, Engine
from mmgpt.model import MultimodalGPT
from mmgpt.run_config import RewardConfig
from mmgpt.tasks import TASKS
from mmgpt.tokenizer import Tokenizer

ROWS = 256  # answers drawn at once
METRICS = {"chrf": chrf, "exact_match": exact_match, "f1": word_f1, "wer": word_error_rate}


@dataclass(frozen=True)
class Asked:
    """A prompt, and what is right to answer it."""

    prompt: Example
    references: tuple[str, ...]


@dataclass(frozen=True)
class Drawn:
    """Answers drawn to the prompts of a batch, as documents; the weight of each in the loss, and its reward."""

    batch: Batch
    weights: Tensor
    rewards: list[float]


class Rewards:
    """Draws answers to prompts and weighs each by how much better it scores than the others to its prompt.

    To descend the loss of answers so weighed is to ascend the expected reward: self-critical sequence training (Rennie
    et al. 2017), whose baseline is here the mean reward of the other draws (Kool et al. 2019; for captions, Luo 2020).

    Args:
        config: Which metric, and how answers are drawn.
        tokenizer: The model's.
        references: Of all training samples: CIDEr-D counts less what many of them say. Other metrics need none.
    """

    def __init__(self, config: RewardConfig, tokenizer: Tokenizer, references: Iterable[Sequence[str]] = ()):
        self.config = config
        self.tokenizer = tokenizer
        self.cider = CiderD(references) if config.metric == "cider" else None

    def draw(self, model: MultimodalGPT, batch: Batch, seed: str) -> Drawn:
        """Answers to each prompt of the batch, as the model, in evaluation mode, draws them.

        What is drawn depends on the seed, the prompt and its references alone, not on what shares the batch.
        """
        asked, count = self.prompts(batch), self.config.samples
        decodings = [
            Decoding(max_new_tokens=self.config.max_new_tokens, temperature=1.0, n=count, seed=_seed(seed, one))
            for one in asked
        ]
        examples, weights, rewards = [], [], []
        for one, answers in zip(asked, self._answers(model, asked, decodings), strict=True):
            scores = self.scores([answer.text for answer in answers], one.references)
            whole = sum(scores)
            examples += [self._document(one.prompt, answer) for answer in answers]
            # What it has above the mean of the others; the draws to a prompt count as one document.
            weights += [(score - (whole - score) / (count - 1)) / count for score in scores]
            rewards += scores
        return Drawn(collate(examples).to(batch.ids.device), torch.tensor(weights, device=batch.ids.device), rewards)

    def greedy(self, model: MultimodalGPT, batch: Batch) -> list[float]:
        """The reward of the likeliest answer to each prompt of the batch, by a model in evaluation mode."""
        asked = self.prompts(batch)
        decodings = [Decoding(max_new_tokens=self.config.max_new_tokens)] * len(asked)
        answered = zip(asked, self._answers(model, asked, decodings), strict=True)
        return [self.scores([answer.text], one.references)[0] for one, (answer,) in answered]

    def scores(self, answers: Sequence[str], references: Sequence[str]) -> list[float]:
        """How well each answer to one prompt scores, from 0 on: the higher the better."""
        if self.cider is not None:
            return [self.cider(answer, references) for answer in answers]
        scores = METRICS[self.config.metric](answers, [references] * len(answers)).alone()
        return [max(0.0, 1 - score) for score in scores] if self.config.metric == "wer" else scores

    def prompts(self, batch: Batch) -> list[Asked]:
        """Each prompt of the batch once, with the answers that its documents give. Raises DataError for texts to be
        continued, which have none.
        """
        found: dict[tuple[object, ...], Asked] = {}
        for example in batch.examples:
            if example.task in TASKS and TASKS[example.task].likelihood:
                raise DataError("reward: plain text answers nothing, so there is nothing to reward; leave it out")
            end = len(example) - example.supervised[::-1].index(True)
            start = max((i + 1 for i in range(end) if not example.supervised[i]), default=0)  # of the last answer
            opening = self.tokenizer.opening("assistant")
            if example.ids[max(0, start - len(opening)) : start] != opening or any(
                place >= start for place, _ in example.media
            ):
                raise DataError("reward: an answer with media in it cannot be drawn again; leave such samples out")
            media = example.media
            prompt = replace(example, ids=example.ids[:start], supervised=[False] * start, media=media)
            reference = self.tokenizer.decode(example.ids[start : end - 1]).strip()  # but for the end token
            name = (*prompt.ids, *((place, id(item)) for place, item in media))
            known = found.get(name)
            found[name] = Asked(prompt, (*(known.references if known else ()), reference))
        return list(found.values())

    def _answers(
        self, model: MultimodalGPT, asked: Sequence[Asked], decodings: Sequence[Decoding]
    ) -> list[list[Answer]]:
        engine = Engine(model, self.tokenizer, rows=ROWS)
        # Without its cache: what was cast for decoding could not be learned from.
        device = model.device.type
        with torch.autocast(device, enabled=torch.is_autocast_enabled(device), cache_enabled=False):
            return engine.run([one.prompt for one in asked], decodings)

    def _document(self, prompt: Example, answer: Answer) -> Example:
        tokens = [*answer.tokens, self.tokenizer.end] if answer.finish == "stop" else answer.tokens
        return replace(prompt, ids=[*prompt.ids, *tokens], supervised=[*prompt.supervised, *[True] * len(tokens)])


def _seed(seed: str, asked: Asked) -> int:
    """By what is the same of a sample wherever it is met: its media may be pixels, or tokens that were kept of them."""
    return random.Random(f"{seed} {asked.prompt.ids} {asked.references}").getrandbits(62)
