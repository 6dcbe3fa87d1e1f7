"""CTC beside the GPT's loss: an encoder's own tokens are to spell the answer, in its order.

So an encoder of few recordings learns to hear, or to read lips, before the GPT has learned where to look; recognisers
are trained like this since Watanabe et al. 2017 (hybrid CTC/attention). Answers are the GPT's alone.

Of a clip whose sound track is heard, it is the track that spells: the path would else begin in the frames, which come
first, by what is usually said. Of one that is only seen, the tokens of a frame follow each other.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmgpt.batch import Batch
from mmgpt.config import LossPer
from mmgpt.encoders.base import ragged
from mmgpt.errors import ConfigError

IN_TIME = ("audio", "video")  # modalities whose tokens follow each other in time


class CTC(nn.Module):
    """Connectionist temporal classification (Graves et al. 2006) of the encoders' tokens.

    Logits of all tokens of a batch are in memory at once: choose a small vocabulary.

    Args:
        vocabulary: Number of token ids; one more is the blank, which stands between tokens.
        widths: Width of each encoder's tokens, by modality; those without time are left out.

    Raises:
        ConfigError: There is neither a sound nor a video encoder.
    """

    def __init__(self, vocabulary: int, widths: Mapping[str, int]):
        super().__init__()
        self.blank = vocabulary
        self.heads = nn.ModuleDict()
        for name in IN_TIME:
            if name in widths:
                self.add(name, widths[name])
        if not self.heads:
            raise ConfigError("model.ctc: sounds and clips alone can be spelled; configure model.audio or model.video")

    def add(self, modality: str, width: int) -> None:
        """A head for an encoder whose tokens have this width; none where they have no time."""
        if modality in IN_TIME:
            self.heads[modality] = nn.Linear(width, self.blank + 1)

    def loss(self, batch: Batch, tokens: Mapping[str, Tensor], per: LossPer = "token") -> Tensor:
        """Sum over the documents of -log p(what is supervised in them | their sound or clip), in nats.

        Documents with several media, or none, are left out, and those whose tokens are too few to spell the answer. So
        are media whose encoder is not trained, or whose head is not: nothing could be learned, or from a head that
        knows nothing.

        Args:
            batch: The documents.
            tokens: The encoders' tokens (inputs, tokens, width) of the batch's media, by modality.
            per: "document": each is divided by the number of its supervised tokens.
        """
        total = next(self.parameters()).new_zeros(())
        for modality, head in self.heads.items():
            if modality not in tokens or not (tokens[modality].requires_grad and head.weight.requires_grad):
                continue
            some = [
                (own[0][1], answer)
                for own, answer in zip(batch.shown, batch.answers, strict=True)
                if len(own) == 1 and own[0][0] == modality
            ]
            if not some:
                continue
            inputs = [place for place, _ in some]
            counts = torch.tensor([len(answer) for _, answer in some])
            grids = [batch.media[modality].inputs[place].grid for place, _ in some]
            spans = [slice(grid.count - grid.suffix if grid.suffix else 0, grid.count) for grid in grids]
            spelling, lengths = ragged([tokens[modality][i, span] for i, span in zip(inputs, spans, strict=True)])
            with torch.autocast(total.device.type, enabled=False):
                logits = head(spelling.to(head.weight.dtype)).log_softmax(-1)  # documents, tokens, vocabulary + 1
                lost = F.ctc_loss(
                    logits.transpose(0, 1),
                    torch.cat([answer for _, answer in some]),
                    lengths,
                    counts,
                    self.blank,
                    reduction="none",
                    zero_infinity=True,
                )
            if per == "document":
                lost = lost / counts.to(lost.device)
            total = total + lost.sum()
        return total
