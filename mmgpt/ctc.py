"""CTC beside the GPT's loss: an encoder's own tokens are to spell the answer, in its order.

So an encoder of few recordings learns to hear, or to read lips, before the GPT has learned where to look; recognisers
are trained like this since Watanabe et al. 2017 (hybrid CTC/attention). Answers are the GPT's alone.

Of a clip the tokens of a frame follow each other, and those of the sound track follow all frames.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmgpt.batch import Batch
from mmgpt.config import LossPer
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
        heard = [name for name in IN_TIME if name in widths]
        self.heads = nn.ModuleDict({name: nn.Linear(widths[name], vocabulary + 1) for name in heard})
        if not self.heads:
            raise ConfigError("model.ctc: sounds and clips alone can be spelled; configure model.audio or model.video")

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
            inputs = torch.tensor([place for place, _ in some], device=total.device)
            counts = torch.tensor([len(answer) for _, answer in some])
            lengths = torch.tensor([batch.media[modality].inputs[place].grid.count for place, _ in some])
            with torch.autocast(total.device.type, enabled=False):
                own = tokens[modality][inputs].to(torch.promote_types(tokens[modality].dtype, torch.float32))
                logits = head(own.to(head.weight.dtype)).log_softmax(-1)  # documents, tokens, vocabulary + 1
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
