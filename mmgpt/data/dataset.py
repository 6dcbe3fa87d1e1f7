"""Samples to examples: decoding and preprocessing, as the loader's workers do it, with broken samples told apart."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch.utils.data import Dataset

from mmgpt.batch import Example, MediaInput
from mmgpt.content import Content, Medium
from mmgpt.data.mixture import Mixture
from mmgpt.data.sample import Sample
from mmgpt.errors import MediaError
from mmgpt.processor import Processor, TooLongError


@dataclass(frozen=True)
class Broken:
    """A sample, or one of its answers, that could not be used, and why, in one line; `too_long`, though readable."""

    reason: str
    too_long: bool = False


class ExampleDataset(Dataset[list[Example | Broken]]):
    """Each sample as its examples: one per right answer, sharing the media, which are decoded once; with those of more
    samples of the same media behind them.

    Media that cannot be decoded and prompts longer than the context cost their own sample, answers that are too long
    or have such media in them themselves alone; none of them the run.
    """

    def __init__(self, samples: Sequence[Sample], processor: Processor):
        self.samples = samples
        self.processor = processor

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> list[Example | Broken]:
        return self.encode(self.sample(index))

    def sample(self, index: int) -> Sample:
        """Sample number `index`; the draws of a mixture go on beyond its length."""
        return self.samples.sample(index) if isinstance(self.samples, Mixture) else self.samples[index]

    def encode(self, sample: Sample) -> list[Example | Broken]:
        """The examples of any sample."""
        return [one for found in self.encode_each(sample) for one in found]

    def encode_each(self, sample: Sample) -> Iterator[list[Example | Broken]]:
        """Those of each of its exchanges, up to the first one with a medium that cannot be decoded."""
        shared: dict[Medium, MediaInput] = {}
        for one in sample.exchanges:
            try:
                prompt = self.processor.encode_prompt(one.prompt, where=one.where, shared=shared)
            except MediaError as error:
                yield [Broken(f"{one.where}: {error}")]
                return
            except TooLongError as error:
                yield [Broken(str(error), too_long=True)]
                continue
            yield [self._with_answer(replace(prompt, task=one.task), answer) for answer in one.answers]

    def _with_answer(self, prompt: Example, answer: Content) -> Example | Broken:
        try:
            return self.processor.encode_answer(prompt, answer)
        except MediaError as error:
            return Broken(f"{prompt.where}: {error}")
        except TooLongError as error:
            return Broken(str(error), too_long=True)
