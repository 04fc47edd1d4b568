"""Greedy generation with a key-value cache, stopping where lm-eval's Hugging Face model stops.

Prompts are read as a trie, each distinct prefix once; then every prompt takes its own keys and values from there, and
all that ended in one run are continued together, a row that is done leaving the batch. Rows differ in length, and masks
keep them from seeing their padding, which is never run. Models that take no such mask (`attention.py`) get batches of
prompts of one length. Either way a row is computed as it would be alone, but for float rounding: what lm-eval gets at
batch size 1 is what we get at any.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from evosearch.errors import CandidateError
from evosearch.evaluation.engine.attention import (
    KVStack,
    Mode,
    Placed,
    forward,
    limit_of,
    masks,
    mode_of,
    new_cache,
    reread_at,
)
from evosearch.evaluation.engine.head import body, check_head, head_logits
from evosearch.evaluation.engine.loglikelihood import ScoreOptions
from evosearch.evaluation.engine.out_of_memory import out_of_memory
from evosearch.evaluation.engine.prefix_tree import as_tree, distinct_prefixes
from evosearch.evaluation.types import Tokens

_PROMPT_TOKENS = 8192  # of one run of prompts, unless told: the more of them, the more rows are continued together

# What a checkpoint's generation_config may hold without changing greedy decoding as it is written here.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (None, 1, 1.0),
    "encoder_repetition_penalty": (None, 1, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "num_beams": (None, 1),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "max_new_tokens": (None,),
    "bad_words_ids": (None,),
    "sequence_bias": (None,),
    "suppress_tokens": (None, []),
    "begin_suppress_tokens": (None, []),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "exponential_decay_length_penalty": (None,),
    "guidance_scale": (None, 1, 1.0),
    "stop_strings": (None,),
}


@dataclass(frozen=True)
class Stop:
    """A stop string; lm-eval looks for it in the text of the last few tokens."""

    text: str
    lookback: int  # tokens decoded to look for it: its own length in tokens plus two


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt to be continued greedily."""

    prompt: tuple[int, ...]
    stops: tuple[Stop, ...]  # in lm-eval's order: the text is cut at each in turn
    max_new_tokens: int


class Decoder:
    """Tokens → text, as the tokenizer does; short look-backs are remembered, since they recur all the time."""

    def __init__(self, tokenizer: Any) -> None:
        self._decode = tokenizer.decode
        self.tail: Callable[[tuple[int, ...]], str] = lru_cache(maxsize=1 << 16)(
            lambda ids: str(self._decode(list(ids)))
        )

    def text(self, tokens: Sequence[int]) -> str:
        """The whole continuation, special tokens left out."""
        return str(self._decode(list(tokens), skip_special_tokens=True))


@dataclass(frozen=True)
class _Row:
    """A request's row: which one, and where its prompt's last tokens are in the run's nodes."""

    request: int
    places: Tensor  # (length of the prompt - kept tokens,)


@dataclass(frozen=True)
class _Batch:
    """One run of prompts, and the rows that are continued from it; none where it is only read by later runs."""

    placed: Placed | None  # None: `prompts` are plain rows
    prompts: Tensor  # (B, L) of plain rows
    rows: tuple[_Row, ...]


@dataclass
class GenerationPlan:
    """Distinct requests laid out in batches, in the mode that a model is run in; reused for every candidate."""

    requests: tuple[GenerationRequest, ...]
    first: tuple[int, ...]  # request → the first one equal to it, which is the one that runs
    decoder: Decoder
    options: ScoreOptions
    _laid: dict[tuple[Mode, torch.device], tuple[_Batch, ...]] = field(default_factory=dict)

    def mode(self, model: Any) -> Mode:
        """The mode this model is run in: prompts as tries, or in rows of one length."""
        return "tree" if mode_of(model, *self._longest, self.options.modes) == "tree" else "rows"

    @cached_property
    def _longest(self) -> tuple[tuple[int, ...], int]:
        """The longest prompt, and the most tokens that any prompt and its continuation come to."""
        prompt = max((request.prompt for request in self.requests), key=len)
        return prompt, max(len(request.prompt) + request.max_new_tokens for request in self.requests)

    def batches(self, mode: Mode, device: torch.device) -> tuple[_Batch, ...]:
        """What is run in a mode on a device, laid out once."""
        if (mode, device) not in self._laid:
            lay_out = self._trees if mode == "tree" else self._plain
            self._laid[mode, device] = tuple(lay_out(device))
        return self._laid[mode, device]

    def _trees(self, device: torch.device) -> Iterator[_Batch]:
        """Requests of equal room to grow make a tree: they are likely one task's, and stop at about the same time."""
        by_room: dict[int, list[int]] = {}
        for index in dict.fromkeys(self.first):
            by_room.setdefault(self.requests[index].max_new_tokens, []).append(index)
        tokens = self._prompt_tokens(device)
        for room, indices in by_room.items():
            longest = max(len(self.requests[index].prompt) for index in indices) + room
            rows = max(min(self.options.generation_rows, self.options.cached_tokens // longest), 1)
            # One row, however wide, before several runs: a run is what is continued together.
            layout = as_tree([self.requests[index].prompt for index in indices], tokens, rows, wide=tokens)
            ending: list[list[_Row]] = [[] for _ in layout.runs]
            for index in indices:
                last = layout.stretches[self.requests[index].prompt][-1]
                ending[last.run].append(_Row(index, torch.from_numpy(last.places).to(device)))
            for run, own in zip(layout.runs, ending, strict=True):
                placed = Placed.on(device, run)
                yield _Batch(placed, placed.ids, tuple(own))

    def _prompt_tokens(self, device: torch.device) -> int:
        return self.options.batch_tokens or max(self.options.budget(device).tokens, _PROMPT_TOKENS)

    def _plain(self, device: torch.device) -> Iterator[_Batch]:
        """Batches of prompts of one length, under the budget when grown to their full length."""
        nowhere = torch.zeros(0, dtype=torch.long)
        by_length: dict[int, list[int]] = {}
        for index in dict.fromkeys(self.first):
            by_length.setdefault(len(self.requests[index].prompt), []).append(index)
        for length, indices in sorted(by_length.items(), reverse=True):
            longest = length + max(self.requests[index].max_new_tokens for index in indices)
            rows = min(self.options.generation_rows, self.options.cached_tokens // longest)
            rows = max(min(rows, self._prompt_tokens(device) // length), 1)
            for start in range(0, len(indices), rows):
                own = indices[start : start + rows]
                prompts = torch.tensor([self.requests[index].prompt for index in own], device=device)
                yield _Batch(None, prompts, tuple(_Row(index, nowhere) for index in own))


def lay_out_generations(
    requests: Sequence[GenerationRequest], decoder: Decoder, options: ScoreOptions
) -> GenerationPlan:
    """A plan for requests; equal ones run once."""
    seen: dict[GenerationRequest, int] = {}
    first = tuple(seen.setdefault(request, index) for index, request in enumerate(requests))
    return GenerationPlan(tuple(requests), first, decoder, options)


@torch.inference_mode()
def generate(model: Any, plan: GenerationPlan) -> tuple[list[str], Tokens]:
    """The text that each request's prompt is continued with, cut at its stop strings, and the work done.

    Args:
        model: a causal transformers model, in evaluation mode.

    Raises:
        CandidateError: logits are not finite, or the checkpoint's generation_config asks for more than greedy decoding.
    """
    if not plan.requests:
        return [], Tokens()
    end = _end_tokens(model)
    made: dict[int, list[int]] = {}
    forwarded = padded = 0
    path = KVStack()
    for batch in plan.batches(plan.mode(model), model.device):
        check_head(model, batch.prompts)
        start = _plain_start(model, batch) if batch.placed is None else _tree_start(model, batch, path)
        forwarded += batch.prompts.numel() if batch.placed is None else batch.placed.run.tokens
        padded += 0 if batch.placed is None else batch.placed.run.padding
        if start is not None:
            rows, run = _continue(model, start, batch, plan, end)
            made.update(zip((row.request for row in batch.rows), rows, strict=True))
            forwarded += run
    texts = {index: _cut(plan.decoder.text(tokens), plan.requests[index]) for index, tokens in made.items()}
    lengths = [len(plan.requests[i].prompt) + len(made[i]) - 1 for i in plan.first]
    # The last token made is never run, so a request needs its prompt and all but one of its tokens.
    distinct = distinct_prefixes([(*plan.requests[i].prompt, *tokens[:-1]) for i, tokens in made.items()])
    return [texts[i] for i in plan.first], Tokens(forwarded, padded, distinct, sum(lengths))


@dataclass
class _Rows:
    """Rows that are being continued: their cache, and what their next tokens see of it.

    `positions` and `seen` are None for rows of one length, which see everything; `ids` are the tokens of such rows.
    """

    hidden: Tensor  # (B, hidden size) of the last token
    cache: Any  # keys and values (B, heads, K, head size), or whatever the model keeps; None: it is read anew each time
    lengths: Tensor  # (B,) tokens so far
    positions: Tensor | None = None  # (B, K)
    seen: Tensor | None = None  # (B, K)
    ids: Tensor | None = None  # (B, K)

    def keep(self, rows: Tensor) -> None:
        """Drop all other rows."""
        if self.cache is not None:
            for layer in self.cache.layers:  # each on the device of its layer
                layer.batch_select_indices(rows.to(getattr(layer, "device", rows.device)))
        self.lengths = self.lengths[rows]
        self.positions, self.seen, self.ids = (
            None if some is None else some[rows] for some in (self.positions, self.seen, self.ids)
        )

    def step(self, model: Any, ids: Tensor) -> int:
        """Run one more token of each row, ids (B,); returns how many tokens that took."""
        mask = None
        if self.ids is not None:
            self.ids = torch.cat([self.ids, ids[:, None]], dim=1)
            if self.cache is None or self.ids.shape[1] == reread_at(model):
                anew = _read_rows(model, self.ids, self.cache is not None)
                self.hidden, self.cache, self.lengths = anew.hidden, anew.cache, anew.lengths
                return self.ids.numel()
        elif self.positions is not None and self.seen is not None:
            self.positions = torch.cat([self.positions, self.lengths[:, None]], dim=1)
            self.seen = torch.cat([self.seen, torch.ones_like(self.seen[:, :1])], dim=1)
            mask = masks(model, self.seen[:, None], self.lengths[:, None], self.positions, self.positions.shape[1])
        out = body(model)(
            input_ids=ids[:, None],
            attention_mask=mask,
            position_ids=self.lengths[:, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        self.hidden, self.lengths = out.last_hidden_state[:, -1], self.lengths + 1
        return len(ids)


def _read_rows(model: Any, ids: Tensor, cached: bool) -> _Rows:
    """Rows of one length, ids (B, L), to be continued with a cache or without one."""
    cache, (count, length) = new_cache(model, by_mask=False) if cached else None, ids.shape
    out = body(model)(input_ids=ids, past_key_values=cache, use_cache=cached)
    lengths = torch.full((count,), length, device=ids.device)
    return _Rows(out.last_hidden_state[:, -1], cache, lengths, ids=ids)


_caching: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


def _continues(model: Any, ids: Tensor) -> bool:
    """Whether rows can be continued from their cache, tried once for each model on the first tokens of ids (B, L).

    Some models keep a state of another kind, and ignore a cache or take it wrongly.
    """
    if model not in _caching:
        few = ids[:1, :4].repeat(2, 2)  # (2, up to 8)
        few[1] = few[1].flip(0)
        expected = _read_rows(model, few, False).hidden
        if not bool(torch.isfinite(expected).all()):
            return True  # broken weights: the first logits will say so
        try:
            rows = _read_rows(model, few[:, :1], True)
            for column in few[:, 1:-1].unbind(1):
                rows.step(model, column)
            rows.keep(torch.tensor([1], device=ids.device))
            rows.step(model, few[1:, -1])
            _caching[model] = bool((rows.hidden - expected[1:]).abs().max() <= limit_of(model, expected))
        except (TypeError, ValueError, RuntimeError, LookupError, AttributeError) as error:
            if out_of_memory(error):
                raise  # says nothing of the cache
            _caching[model] = False
    return _caching[model]


def _plain_start(model: Any, batch: _Batch) -> _Rows:
    """Rows of one length, from their prompts."""
    return _read_rows(model, batch.prompts, _continues(model, batch.prompts))


def _tree_start(model: Any, batch: _Batch, path: KVStack) -> _Rows | None:
    """Rows from a run of their prompts' trie: each takes the keys and values of its own path, padded behind."""
    from transformers import DynamicCache

    assert batch.placed is not None
    hidden, cache = forward(model, batch.placed, path, cached=True)
    if not batch.rows:
        return None
    assert cache is not None
    keep, width, device = batch.placed.run.keep, batch.placed.ids.shape[1], hidden.device
    sizes = torch.tensor([len(row.places) for row in batch.rows], device=device)
    index = torch.zeros(len(batch.rows), keep + int(sizes.max()), dtype=torch.long, device=device)  # (B, K)
    index[:, :keep] = torch.arange(keep, device=device)
    for number, row in enumerate(batch.rows):
        index[number, keep : keep + len(row.places)] = keep + row.places % width
    source = torch.stack([row.places[-1] // width for row in batch.rows])[:, None]  # (B, 1) which row of the run
    own = DynamicCache()
    for number, layer in enumerate(cache.layers):  # (rows, heads, keep + T, head size) → (B, heads, K, head size)
        picked = (source.to(layer.keys.device), slice(None), index.to(layer.keys.device))
        own.update(layer.keys[picked].transpose(1, 2), layer.values[picked].transpose(1, 2), number)
    positions = torch.arange(index.shape[1], device=device).expand_as(index)
    last = torch.stack([row.places[-1] for row in batch.rows])
    return _Rows(hidden[last], own, keep + sizes, positions, positions < (keep + sizes)[:, None])


def _continue(
    model: Any, rows: _Rows, batch: _Batch, plan: GenerationPlan, end: frozenset[int]
) -> tuple[list[list[int]], int]:
    """The tokens that each row is continued with, and how many were run for it."""
    requests = [plan.requests[row.request] for row in batch.rows]
    active = list(range(len(requests)))
    made: list[list[int]] = [[] for _ in active]
    forwarded = 0
    while True:
        best, tokens = head_logits(model, rows.hidden).max(dim=-1)  # (B,) each
        if not bool(torch.isfinite(best).all()):  # max passes NaN on
            raise CandidateError("score", "logits are not finite while generating: the weights blew up")
        for row, token in zip(active, tokens.tolist(), strict=True):
            made[row].append(token)
        keep = [i for i, row in enumerate(active) if not _done(made[row], requests[row], plan.decoder, end)]
        if not keep:
            return made, forwarded
        if len(keep) < len(active):
            kept = torch.tensor(keep, dtype=torch.long, device=tokens.device)
            active, tokens = [active[i] for i in keep], tokens[kept]
            rows.keep(kept)
        forwarded += rows.step(model, tokens)


def _done(tokens: list[int], request: GenerationRequest, decoder: Decoder, end: frozenset[int]) -> bool:
    if tokens[-1] in end or len(tokens) >= request.max_new_tokens:
        return True
    return any(stop.text in decoder.tail(tuple(tokens[-stop.lookback :])) for stop in request.stops)


def _cut(text: str, request: GenerationRequest) -> str:
    for stop in request.stops:
        if stop.text:
            text = text.split(stop.text)[0]
    return text


def _end_tokens(model: Any) -> frozenset[int]:
    """The model's own end-of-sequence tokens, which end a row as the stop strings do."""
    config = model.generation_config
    for name, allowed in _NEUTRAL.items():
        value = getattr(config, name, None)
        if value not in allowed:
            raise CandidateError(
                "score", f"generation_config.{name} is {value!r}: only plain greedy decoding is scored"
            )
    end = config.eos_token_id
    return frozenset(() if end is None else [end] if isinstance(end, int) else end)
