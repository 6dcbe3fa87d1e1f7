"""The decoding loop. It knows token ids, the model and the cache; text and conversations are its callers' matter."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mmgpt.batch import Batch
from mmgpt.errors import ConfigError
from mmgpt.generation.beam import beam_search
from mmgpt.gpt import Documents
from mmgpt.model import MultimodalGPT


@dataclass(frozen=True)
class Decoding:
    """How new tokens are chosen.

    Args:
        max_new_tokens: Most tokens to add; a prompt near the end of the context gets as many as fit.
        temperature: 0 takes the likeliest token (greedy); above, tokens are drawn from softmax(logits / temperature).
        top_k: Draw among the k likeliest alone; 0 means all.
        top_p: Draw among the fewest tokens that hold this probability (Holtzman et al. 2020).
        beams: Width of the beam search; 1 means none. Not together with a temperature.
        length_penalty: Beams are ranked by log-probability / tokens ** length_penalty.
        seed: Of the draws. Each prompt draws from its own stream, so its answer does not depend on its batch.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    beams: int = 1
    length_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.beams < 1 or self.top_k < 0:
            raise ConfigError("decoding: max_new_tokens and beams must be at least 1, top_k at least 0")
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ConfigError("decoding: temperature must not be negative, top_p must be above 0 and at most 1")
        if self.length_penalty < 0:
            raise ConfigError("decoding: length_penalty must not be negative")
        if self.beams > 1 and self.temperature > 0:
            raise ConfigError("decoding: beam search does not sample; use beams=1 or temperature=0")


def generate(model: MultimodalGPT, prompts: Batch, end: int, decoding: Decoding) -> list[list[int]]:
    """The new tokens of each prompt, without the end token; the same for a prompt alone or in any batch."""
    if decoding.beams > 1:
        return beam_search(model, prompts, end, decoding.beams, decoding.max_new_tokens, decoding.length_penalty)
    answers: list[list[int]] = [[] for _ in prompts.lengths]
    for step in decode(model, prompts, end, decoding):
        for row, token in step:
            answers[row].append(token)
    return answers


@torch.inference_mode()
def decode(model: MultimodalGPT, prompts: Batch, end: int, decoding: Decoding) -> Iterator[list[tuple[int, int]]]:
    """Step by step, the new (prompt number, token) pairs; a prompt that reached its end gives no more of them."""
    room = [min(decoding.max_new_tokens, model.config.gpt.context - length) for length in prompts.lengths]
    cache = model.gpt.cache(len(room), max(length + new for length, new in zip(prompts.lengths, room, strict=True)))
    ends = torch.tensor(prompts.lengths, device=model.device).cumsum(0) - 1
    logits = model.gpt.head(model.hidden(prompts, cache)[ends])  # rows, vocabulary
    draws = [torch.Generator().manual_seed(decoding.seed) for _ in room]
    rows = list(range(len(room)))  # the prompt that each row of the cache belongs to
    alive = [new > 0 for new in room]
    count = 0
    while any(alive):
        tokens = _choose(logits, decoding, [draws[row] for row in rows])
        count += 1
        step = []
        for place, row in enumerate(rows):
            if alive[row] and tokens[place] == end:
                alive[row] = False
            elif alive[row]:
                step.append((row, tokens[place]))
                alive[row] = count < room[row]
        if step:
            yield step
        # Finished rows are carried along until half are done: moving the cache costs more than their share of a step.
        if sum(alive) <= len(rows) // 2:
            kept = [place for place, row in enumerate(rows) if alive[row]]
            cache.select(kept)
            rows, tokens = [rows[place] for place in kept], [tokens[place] for place in kept]
        if rows and any(alive):
            ids = torch.tensor(tokens, device=model.device)
            logits = model.gpt.head(model.gpt.transform(model.gpt.embed(ids), Documents([1] * len(rows)), cache))


def _choose(logits: Tensor, decoding: Decoding, draws: list[torch.Generator]) -> list[int]:
    """One token for each row of logits (rows, vocabulary)."""
    if decoding.temperature == 0:
        return logits.argmax(dim=-1).tolist()
    scores, order = (logits.float().cpu() / decoding.temperature).sort(dim=-1, descending=True)
    if decoding.top_k:
        scores[:, decoding.top_k :] = -torch.inf
    probabilities = scores.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities  # of the likelier tokens
    probabilities = probabilities.masked_fill(before >= decoding.top_p, 0.0)
    chosen = [torch.multinomial(row, 1, generator=draw) for row, draw in zip(probabilities, draws, strict=True)]
    return order.gather(1, torch.stack(chosen)).squeeze(1).tolist()
