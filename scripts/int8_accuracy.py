"""What int8 costs a captioning model in accuracy: the same checkpoint in float32 and in int8, on the dev split.

    python scripts/int8_accuracy.py runs/flickr8k FOLDER

Agreement is that of the likeliest next token at every token of the human captions. FOLDER is as for `mmgpt train`.
"""

import sys

import torch
from rich.progress import track

import mmgpt
from mmgpt.assistant import Assistant
from mmgpt.batch import collate
from mmgpt.content import Message
from mmgpt.data.readers import read_samples
from mmgpt.data.sample import Sample
from mmgpt.evaluation.asking import answer_all
from mmgpt.evaluation.metrics.captions import bleu, cider
from mmgpt.generation import Decoding
from mmgpt.run_config import DataConfig


@torch.inference_mode()
def likeliest(assistant: Assistant, sample: Sample) -> torch.Tensor:
    """The likeliest token at each supervised place of the sample's first caption."""
    batch = collate([assistant.processor.encode([*sample.prompt, Message.of("assistant", sample.references[0])])])
    return assistant.model.gpt.head(assistant.model.hidden(batch)[batch.targets - 1]).argmax(dim=-1)


def main(checkpoint: str, folder: str) -> None:
    samples = read_samples(DataConfig(format="captions", path=folder), "dev")
    truths = [sample.references for sample in samples]
    found = []
    for int8 in (False, True):
        assistant = mmgpt.load(checkpoint, "cpu", int8=int8)
        found.append(torch.cat([likeliest(assistant, sample) for sample in track(samples, transient=True)]))
        answered = answer_all(assistant, samples, Decoding(beams=3), "asking").answered
        captions = [one.prediction for one in answered]
        print(
            f"{'int8' if int8 else 'float32':8} CIDEr-D {100 * cider(captions, truths).value:.1f}, "
            f"BLEU-4 {100 * bleu(captions, truths)[3].value:.1f} on {len(samples)} dev pictures"
        )
    same = (found[0] == found[1]).float().mean()
    print(f"the same likeliest token at {100 * same:.2f} % of {len(found[0]):,} places")


if __name__ == "__main__":
    main(*sys.argv[1:])
