"""Beam search: a prompt keeps its best unfinished continuations, and the best finished ones."""

from torch import Tensor

from mmgpt.generation.decoding import Answer, Decoding
from mmgpt.tokenizer import Tokenizer


class Beams:
    """The state of one prompt's beam search; each unfinished hypothesis has a row of the cache.

    Hypotheses are ranked by log-probability / tokens ** length_penalty, the end token counted. The search is done when
    no unfinished one can still beat the `beams` best finished ones, or when its room is used up; unfinished ones then
    count too.
    """

    def __init__(self, decoding: Decoding, room: int, tokenizer: Tokenizer):
        self.decoding, self.rows, self.room, self.tokenizer = decoding, decoding.beams, room, tokenizer
        self.ends = {tokenizer.end, *decoding.stop_tokens}
        self.alive: list[tuple[float, list[int]]] = [(0.0, [])]  # log-probability and tokens
        self.finished: list[tuple[float, list[int], bool]] = []  # score, tokens, and whether they came to an end
        self.done = False

    @property
    def last_tokens(self) -> list[int]:
        """The newest token of each hypothesis that is alive."""
        return [tokens[-1] for _, tokens in self.alive]

    @property
    def answers(self) -> list[Answer]:
        """The best answers, the best first."""
        best = sorted(self.finished, key=lambda hypothesis: -hypothesis[0])[: self.decoding.n]
        return [
            Answer(tokens, self.tokenizer.decode(tokens), "stop" if ended else "length") for _, tokens, ended in best
        ]

    def advance(self, logits: Tensor) -> list[int]:
        """Go on by one token from the logits (alive, vocabulary).

        Returns, for each hypothesis that is then alive, the number of the one that it continues.
        """
        beams, penalty = self.rows, self.decoding.length_penalty
        # More candidates than beams, so that `beams` go on even if each hypothesis could end here.
        best = logits.float().log_softmax(dim=-1).topk(min(beams + len(self.ends), logits.shape[-1]), dim=-1)
        candidates = [
            (score + gain, parent, token)
            for parent, (score, _) in enumerate(self.alive)
            for gain, token in zip(best.values[parent].tolist(), best.indices[parent].tolist(), strict=True)
        ]
        candidates.sort(key=lambda candidate: -candidate[0])
        survivors: list[tuple[float, int, list[int]]] = []
        for place, (score, parent, token) in enumerate(candidates):
            tokens = self.alive[parent][1]
            if token in self.ends:
                if place < beams:  # an end less likely than `beams` ways to go on is not taken, as is usual
                    self.finished.append((score / (len(tokens) + 1) ** penalty, tokens, True))
            elif len(survivors) < beams:
                survivors.append((score, parent, [*tokens, token]))
        self.finished = sorted(self.finished, key=lambda hypothesis: -hypothesis[0])[:beams]
        self.alive = [(score, tokens) for score, _, tokens in survivors]
        if not survivors or not self._can_improve(survivors[0]):
            if survivors and len(survivors[0][2]) >= self.room:
                self.finished += [(score / len(tokens) ** penalty, tokens, False) for score, tokens in self.alive]
            self.done = True
        return [parent for _, parent, _ in survivors]

    def _can_improve(self, best: tuple[float, int, list[int]]) -> bool:
        """Whether the best unfinished hypothesis may yet be among the best, if it lost no more of its probability."""
        score, _, tokens = best
        if len(tokens) >= self.room:
            return False
        longest = self.room**self.decoding.length_penalty
        return len(self.finished) < self.rows or score / longest > self.finished[-1][0]
