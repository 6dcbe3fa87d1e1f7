"""The engine: requests of any length and modality share one cache and are decoded together, each as if it were alone.

One step of the engine is one forward pass. Its flat batch mixes the next token of all who decode with a piece of the
prompts of those who have just come, so nobody waits for a batch to end (continuous batching; Yu et al. 2022, Orca).
Rows 0..n of the cache are in use, without holes. What a prompt shares with one before, it does not compute again.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmgpt.batch import Example, MediaInput
from mmgpt.errors import ConfigError
from mmgpt.generation.beam import Beams
from mmgpt.generation.constraints import Constraint, choices, json_schema, regex
from mmgpt.generation.decoding import Answer, Decoding
from mmgpt.generation.prefix import BLOCK, Store, block_keys
from mmgpt.generation.sampling import Sampling
from mmgpt.gpt import Cache, Media
from mmgpt.model import MultimodalGPT
from mmgpt.processor import TooLongError
from mmgpt.tokenizer import Tokenizer

PREFILL_TOKENS = 512  # of prompts in one step while others decode: they are held up no longer than by so many
ALONE_TOKENS = 4096  # of prompts in one step while nobody decodes
MEDIA_AT_ONCE = 32  # go through an encoder together
GUESSED_TOKENS = 16  # a step with more tokens than this costs more than guesses save
CAPACITY_STEP = 64  # tokens; the cache's capacity is a multiple of it


@dataclass(eq=False)
class Request:
    """One prompt and what has come of it. `answers` are complete once `done`; `error` is why they never will be."""

    prompt: Example
    decoding: Decoding
    searches: "list[Search]" = field(default_factory=list)
    error: ConfigError | None = None

    @property
    def done(self) -> bool:
        return all(search.done for search in self.searches)

    @property
    def answers(self) -> list[Answer]:
        """The answers, as they stand if not done."""
        return [answer for search in self.searches for answer in search.state.answers]

    @property
    def length(self) -> int:
        """Tokens of the answers so far; a beam search has none before it is done."""
        return sum(len(search.state.tokens) for search in self.searches if isinstance(search.state, Sampling))


@dataclass(eq=False)
class Search:
    """One row, or the rows of a beam search, on their way through the engine."""

    request: Request
    state: Sampling | Beams
    keys: list[bytes]  # of the prompt's blocks
    total: int  # tokens of prompt and answer at most
    rows: list[int] = field(default_factory=list)  # of the cache; the first `alive` are in use
    alive: int = 1
    fed: int = 0  # tokens of the prompt that the cache holds
    features: list[Tensor] = field(default_factory=list)  # (features, width) of each medium of the prompt
    guesses: list[int] = field(default_factory=list)
    done: bool = False

    @property
    def prompt(self) -> Example:
        return self.request.prompt

    @property
    def prefilling(self) -> bool:
        return self.fed < len(self.prompt)


class Engine:
    """Decodes requests with one model. Not to be used from several threads at once, but for `prepare`.

    Args:
        model: The model, in evaluation mode.
        tokenizer: Its tokenizer.
        rows: Most answers (and beams) decoded at once.
        cache_bytes: Most memory of the cache; requests wait for room in it.
        store_bytes: Most memory of what is kept for prompts that begin alike, and as much for features of media.
    """

    def __init__(
        self,
        model: MultimodalGPT,
        tokenizer: Tokenizer,
        *,
        rows: int = 32,
        cache_bytes: int = 2 << 30,
        store_bytes: int = 256 << 20,
    ):
        self.model, self.tokenizer, self.rows, self.cache_bytes = model, tokenizer, rows, cache_bytes
        self.crossing = model.config.gpt.cross is not None
        self.blocks, self.features = Store(store_bytes), Store(store_bytes)
        self.waiting: deque[Search] = deque()
        self.active: list[Search] = []
        self.cache: Cache = model.gpt.cache(0, 0)
        self._weights = self._weights_now()

    def submit(self, prompt: Example, decoding: Decoding | None = None) -> Request:
        """Put a prompt in line. Raises TooLongError if it leaves no room to answer, ConfigError if it never can fit."""
        request = self.prepare(prompt, decoding or Decoding())
        self.enter(request)
        return request

    def enter(self, request: Request) -> None:
        """Put a request in line that `prepare` made."""
        self.waiting.extend(request.searches)

    @torch.inference_mode()
    def cancel(self, request: Request) -> None:
        """Stop work on a request; its answers stay as they stand."""
        for search in request.searches:
            search.done = True
        self.waiting = deque(search for search in self.waiting if not search.done)
        self._leave()

    def run(
        self, prompts: Sequence[Example], decoding: Decoding | Sequence[Decoding] | None = None
    ) -> list[list[Answer]]:
        """The answers to each prompt, decoded alike or each in its own way. No work is begun if one cannot be."""
        each = [decoding or Decoding()] * len(prompts) if isinstance(decoding, Decoding | None) else decoding
        requests = [self.prepare(*pair) for pair in zip(prompts, each, strict=True)]
        for request in requests:
            self.enter(request)
        try:
            while not all(request.done for request in requests):
                self.step()
                _raise_error(requests)
        finally:  # whoever is interrupted leaves nothing behind
            for request in requests:
                self.cancel(request)
        return [request.answers for request in requests]

    def stream(self, prompt: Example, decoding: Decoding | None = None) -> Iterator[Answer]:
        """The first answer to a prompt as it grows, after each step; an abandoned stream is cancelled."""
        request = self.submit(prompt, decoding)
        try:
            while not request.done:
                self.step()
                _raise_error([request])
                yield request.answers[0]
        finally:
            self.cancel(request)

    @torch.inference_mode()
    def step(self) -> None:
        """One forward pass: who waits is let in, prompts go on, and who decodes gets a token or more."""
        self._admit()
        feeds = self._feeds()
        if not feeds:
            return
        logits = self._forward(feeds)
        likeliest = logits.argmax(dim=-1).tolist()
        start = 0
        for search, feed in feeds:
            count = sum(map(len, feed))
            if search.prefilling:
                search.fed += count
                if search.prefilling:
                    continue
                self._keep(search)
                search.features, count = [], 1
            try:
                self._advance(search, logits[start : start + count], likeliest[start : start + count])
            except ConfigError as error:  # a constraint that became too complex; whoever shares the batch goes on
                search.request.error = error
            start += count
        for request in {search.request for search, _ in feeds if search.request.error is not None}:
            self.cancel(request)
        self._leave()

    # Letting in and out

    def prepare(self, prompt: Example, decoding: Decoding) -> Request:
        """A request that is not in line yet: what of it needs no model, in any thread. Raises as `submit` does."""
        room = min(decoding.max_new_tokens, self.model.config.gpt.context - len(prompt))
        if room < 1:
            raise TooLongError(
                f"{prompt.where or 'prompt'}: {len(prompt)} tokens leave no room to answer in the context of "
                f"{self.model.config.gpt.context}; shorten it"
            )
        total = len(prompt) + room
        needed = decoding.beams * (_rounded(total) + self._media_tokens(prompt)) * self.cache.token_bytes
        if needed > self.cache_bytes or decoding.beams > self.rows:
            raise ConfigError(
                f"{prompt.where or 'prompt'}: {decoding.beams} rows of {total} tokens ({needed:,} bytes) do not fit "
                f"the engine's {self.rows} rows and {self.cache_bytes:,} bytes; ask for fewer"
            )
        request, keys = Request(prompt, decoding), block_keys(prompt)
        states = (
            [Beams(decoding, room, self.tokenizer)]
            if decoding.beams > 1
            else [
                Sampling(prompt.ids, decoding, number, room, self.tokenizer, self._constraint(decoding))
                for number in range(decoding.n)
            ]
        )
        request.searches = [Search(request, state, keys, total) for state in states]
        return request

    def _constraint(self, decoding: Decoding) -> Constraint | None:
        if decoding.choices:
            return choices(self.tokenizer, decoding.choices)
        if decoding.regex is not None:
            return regex(self.tokenizer, decoding.regex)
        return None if decoding.json_schema is None else json_schema(self.tokenizer, decoding.json_schema)

    def _admit(self) -> None:
        """Let in who has waited longest, as far as there is room; who begins like one under way waits for him."""
        if not self.active and (now := self._weights_now()) != self._weights:
            self._weights = now  # the model has learned: what was kept is of no use
            self.blocks.clear()
            self.features.clear()
        coming = {key for search in self.active if search.prefilling for key in search.keys}
        admitted: list[Search] = []
        held: list[Search] = []
        while self.waiting:
            search = self.waiting.popleft()
            missing = next((key for key in search.keys if key not in self.blocks), None)
            if missing in coming:
                held.append(search)
            elif self._make_room(search):
                coming.update(search.keys)
                admitted.append(search)
            else:
                self.waiting.appendleft(search)
                break
        self.waiting.extendleft(reversed(held))
        for search in admitted:
            self._recall(search)
        self._encode(admitted)

    def _make_room(self, search: Search) -> bool:
        """Give a search its rows, behind those in use; the cache grows if it must and may."""
        used = sum(len(other.rows) for other in self.active)
        rows = used + search.state.rows
        capacity = _rounded(max([search.total, *(other.total for other in self.active)]))
        media = max(self._media_tokens(other.prompt) for other in [search, *self.active])
        if rows > self.rows:
            return False
        if rows > self.cache.rows or capacity > self.cache.capacity or media > self.cache.media_capacity:
            most = min(self.rows, self.cache_bytes // ((capacity + media) * self.cache.token_bytes))
            if rows > most:
                return False
            rows = min(most, 1 << (rows - 1).bit_length())
            self.cache = self.cache.grown(rows, capacity, media)
        search.rows = list(range(used, used + search.state.rows))
        self.active.append(search)
        return True

    def _leave(self) -> None:
        """Take out who is done, and move the last rows into the holes."""
        gone = [search for search in self.active if search.done]
        if not gone:
            return
        self.active = [search for search in self.active if not search.done]
        for search in gone:
            for row in search.rows:
                self.cache.clear(row)
        holes = sorted(row for search in gone for row in search.rows)
        owners = {row: (search, place) for search in self.active for place, row in enumerate(search.rows)}
        for row in sorted(owners, reverse=True):
            if not holes or holes[0] > row:
                break
            search, place = owners[row]
            hole = holes.pop(0)
            self.cache.copy(row, hole)
            self.cache.clear(row)
            search.rows[place] = hole

    # What is fed

    def _feeds(self) -> list[tuple[Search, list[list[int]]]]:
        """Who is fed what in this step: for each row alive, its tokens."""
        decoding = [search for search in self.active if not search.prefilling]
        budget = PREFILL_TOKENS if decoding else ALONE_TOKENS
        tokens = sum(search.alive for search in decoding)
        feeds: list[tuple[Search, list[list[int]]]] = []
        for search in self.active:
            if search.prefilling:
                if budget > 0:
                    piece = search.prompt.ids[search.fed : search.fed + budget]
                    budget -= len(piece)
                    feeds.append((search, [piece]))
            elif isinstance(search.state, Beams):
                feeds.append((search, [[token] for token in search.state.last_tokens]))
            else:
                search.guesses = search.state.guess(GUESSED_TOKENS - tokens)
                tokens += len(search.guesses)
                feeds.append((search, [[search.state.tokens[-1], *search.guesses]]))
        return feeds

    def _forward(self, feeds: list[tuple[Search, list[list[int]]]]) -> Tensor:
        """Logits (places, vocabulary) after each fed token that a next one is chosen from, search by search."""
        device = self.model.device
        parts = sorted(
            ((search.rows[i], search, piece) for search, feed in feeds for i, piece in enumerate(feed)),
            key=lambda part: part[0],
        )
        layout = self.cache.extend([len(piece) for _, _, piece in parts], [row for row, _, _ in parts])
        x = self.model.gpt.embed(torch.tensor([token for _, _, piece in parts for token in piece], device=device))
        places: dict[int, list[int]] = {}  # of a row's tokens in the flat batch
        start = 0
        for row, search, piece in parts:
            places[row] = list(range(start, start + len(piece)))
            if search.prefilling and search.features and not self.crossing:
                self._splice(x[start : start + len(piece)], search)
            start += len(piece)
        wanted: list[int] = []
        for search, feed in feeds:
            if not search.prefilling:
                wanted += [place for row in search.rows[: len(feed)] for place in places[row]]
            elif search.fed + len(feed[0]) == len(search.prompt):
                wanted.append(places[search.rows[0]][-1])
        at = torch.tensor(wanted, dtype=torch.long, device=device)
        media = self._media([search for _, search, _ in parts])
        return self.model.gpt.head(self.model.gpt.transform(x, layout, media, at))

    def _splice(self, x: Tensor, search: Search) -> None:
        """Put features of media over the slots in x (tokens, width), which begins at the prompt's token `fed`."""
        for (first, item), features in zip(search.prompt.media, search.features, strict=True):
            start, end = max(first, search.fed), min(first + item.slots, search.fed + len(x))
            if start < end:
                x[start - search.fed : end - search.fed] = features[start - first : end - first].to(x.dtype)

    def _media(self, searches: list[Search]) -> Media | None:
        """What new prompts look at, where the model has cross-attention; it is told once, with their first piece."""
        features: list[Tensor] = []
        since: list[Tensor] = []
        lengths: list[int] = []
        for search in searches:
            new = search.features if self.crossing and search.fed == 0 else []
            places = [first for first, _ in search.prompt.media] if new else []
            since += [
                part.new_full((len(part),), first, dtype=torch.long) for part, first in zip(new, places, strict=True)
            ]
            features += new
            lengths.append(sum(map(len, new)))
        if not features:
            return None
        index = torch.arange(sum(lengths), device=features[0].device)
        return Media(torch.cat(features), index, lengths, torch.cat(since))

    # What comes of it

    def _advance(self, search: Search, logits: Tensor, likeliest: list[int]) -> None:
        state = search.state
        if isinstance(state, Sampling):
            row = search.rows[0]
            right = state.advance(logits, likeliest, search.guesses)
            if search.guesses:
                self.cache.truncate(row, self.cache.lengths[row] - len(search.guesses) + right)
                search.guesses = []
            search.done = state.finish is not None
            return
        parents = state.advance(logits)
        search.done = state.done
        if search.done:
            return
        rows, prompt = search.rows, len(search.prompt)
        new = range(search.alive, len(parents))
        for child in new:  # hypotheses that come to life; only the first step has them, all from the prompt's row
            self.cache.copy(rows[parents[child]], rows[child])
        self.cache.permute(
            {rows[child]: rows[parent] for child, parent in enumerate(parents) if child not in new}, prompt
        )
        for row in rows[len(parents) : search.alive]:
            self.cache.clear(row)
        search.alive = len(parents)

    # What is kept

    def _recall(self, search: Search) -> None:
        """Put the part of the prompt that is known already into the search's row."""
        row = search.rows[0]
        if self.crossing and search.prompt.media:
            if (media := self.blocks.get(_media_key(search.prompt))) is None:
                return
            since = [first for first, item in search.prompt.media for _ in range(item.features)]
            self.cache.write_media(row, media, torch.tensor(since, device=media.device))
        for key in search.keys:
            if (block := self.blocks.get(key)) is None:
                break
            self.cache.write(row, block)
        search.fed = self.cache.lengths[row]

    def _keep(self, search: Search) -> None:
        """Keep the blocks of a prompt that is in the cache now."""
        for place, key in enumerate(search.keys):
            if key not in self.blocks:
                self.blocks.put(key, self.cache.read(search.rows[0], place * BLOCK, (place + 1) * BLOCK))
        if self.crossing and search.prompt.media:
            self.blocks.put(_media_key(search.prompt), self.cache.read_media(search.rows[0]))

    def _encode(self, searches: list[Search]) -> None:
        """Features of the media that the searches have yet to feed; each medium is encoded once, and kept."""
        searches = [search for search in searches if self._needs_features(search)]
        wanted = {item.digest: item for search in searches for _, item in search.prompt.media}
        found = {key: features for key in wanted if (features := self.features.get(key)) is not None}
        by_modality: dict[str, list[MediaInput]] = {}
        for key, item in wanted.items():
            if key not in found:
                by_modality.setdefault(item.modality, []).append(item)
        for modality, items in by_modality.items():
            for start in range(0, len(items), MEDIA_AT_ONCE):
                some = items[start : start + MEDIA_AT_ONCE]
                features = self.model.encode_media(modality, [item.to(self.model.device) for item in some])
                for item, part in zip(some, features.split([item.features for item in some]), strict=True):
                    found[item.digest] = part.clone()
                    self.features.put(item.digest, found[item.digest])
        for search in searches:
            search.features = [found[item.digest] for _, item in search.prompt.media]

    def _needs_features(self, search: Search) -> bool:
        if self.crossing:
            return bool(search.prompt.media) and not self.cache.media_lengths[search.rows[0]]
        return any(first + item.slots > search.fed for first, item in search.prompt.media)

    # Sizes

    def _media_tokens(self, prompt: Example) -> int:
        """What the prompt looks at beside its sequence."""
        return sum(item.features for _, item in prompt.media) if self.crossing else 0

    def _weights_now(self) -> int:
        """Changes whenever a parameter does: torch counts how often each was written."""
        return sum(parameter._version for parameter in self.model.parameters() if not parameter.is_inference())


def _raise_error(requests: Sequence[Request]) -> None:
    for request in requests:
        if request.error is not None:
            raise request.error


def _media_key(prompt: Example) -> bytes:
    return b"".join(item.digest for _, item in prompt.media)


def _rounded(tokens: int) -> int:
    return -(-tokens // CAPACITY_STEP) * CAPACITY_STEP
