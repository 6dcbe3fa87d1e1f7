"""Beam search over the cache: each prompt keeps its best unfinished continuations, and the best finished ones."""

import torch

from mmgpt.batch import Batch
from mmgpt.gpt import Documents
from mmgpt.model import MultimodalGPT


@torch.inference_mode()
def beam_search(
    model: MultimodalGPT, prompts: Batch, end: int, beams: int, max_new_tokens: int, length_penalty: float
) -> list[list[int]]:
    """The best continuation of each prompt by log-probability / tokens ** length_penalty, without the end token.

    A prompt is done when no unfinished hypothesis can still beat its `beams` best finished ones, or when its room is
    used up; unfinished hypotheses then count too.
    """
    room = [min(max_new_tokens, model.config.gpt.context - length) for length in prompts.lengths]
    cache = model.gpt.cache(len(room), max(length + new for length, new in zip(prompts.lengths, room, strict=True)))
    ends = torch.tensor(prompts.lengths, device=model.device).cumsum(0) - 1
    logits = model.gpt.head(model.hidden(prompts, cache)[ends]).float()  # rows, vocabulary

    finished: list[list[tuple[float, list[int]]]] = [[] for _ in room]
    # Each row of the cache is one hypothesis: (prompt, log-probability, tokens).
    hypotheses: list[tuple[int, float, list[int]]] = [(prompt, 0.0, []) for prompt, new in enumerate(room) if new > 0]
    cache.select([prompt for prompt, _, _ in hypotheses])
    logits = logits[[prompt for prompt, _, _ in hypotheses]]
    while hypotheses:
        # More candidates than beams, so that `beams` go on even if each hypothesis could end here.
        best = logits.log_softmax(dim=-1).topk(min(2 * beams, logits.shape[-1]), dim=-1)
        candidates: dict[int, list[tuple[float, int, int]]] = {}  # prompt -> (log-probability, row, token)
        for row, (prompt, score, _) in enumerate(hypotheses):
            own = zip(best.values[row].tolist(), best.indices[row].tolist(), strict=True)
            candidates.setdefault(prompt, []).extend((score + gain, row, token) for gain, token in own)
        survivors: list[tuple[int, float, list[int]]] = []
        rows: list[int] = []
        for prompt, options in candidates.items():
            options.sort(key=lambda option: -option[0])
            kept = 0
            for score, row, token in options[: 2 * beams]:
                tokens = hypotheses[row][2]
                if token == end:
                    finished[prompt].append((score / (len(tokens) + 1) ** length_penalty, tokens))
                elif kept < beams:
                    kept += 1
                    survivors.append((prompt, score, [*tokens, token]))
                    rows.append(row)
        for prompt in candidates:
            finished[prompt] = sorted(finished[prompt], key=lambda hypothesis: -hypothesis[0])[:beams]
        going_prompts = {
            prompt
            for prompt, score, tokens in survivors
            if len(tokens) < room[prompt]
            # The most that is left to gain: no more loss of probability, and the longest answer to divide it by.
            and (len(finished[prompt]) < beams or score / room[prompt] ** length_penalty > finished[prompt][-1][0])
        }
        for prompt, score, tokens in survivors:
            if len(tokens) >= room[prompt]:
                finished[prompt].append((score / len(tokens) ** length_penalty, tokens))
        going = [i for i, (prompt, _, _) in enumerate(survivors) if prompt in going_prompts]
        hypotheses = [survivors[i] for i in going]
        if hypotheses:
            cache.select([rows[i] for i in going])
            ids = torch.tensor([tokens[-1] for _, _, tokens in hypotheses], device=model.device)
            x = model.gpt.transform(model.gpt.embed(ids), Documents([1] * len(hypotheses)), cache)
            logits = model.gpt.head(x).float()
    return [max(found, key=lambda hypothesis: hypothesis[0])[1] if found else [] for found in finished]
