"""Plan of greedy generation: requests, laid out in batches that are decoded together."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from evosearch.evaluation.engine.attention import DeviceRun
from evosearch.evaluation.engine.modes import mode_of
from evosearch.evaluation.engine.prefix_tree import as_tree
from evosearch.evaluation.engine.score_options import Mode, ScoreOptions

_PROMPT_TOKENS = 8192  # minimum tokens of a run of prompts; larger runs decode more rows together


@dataclass(frozen=True)
class Stop:
    """A stop string; lm-eval searches the text of the last few tokens for it."""

    text: str
    lookback: int  # number of last tokens to search: the stop string's length in tokens plus two


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt to be continued greedily."""

    prompt: tuple[int, ...]
    stops: tuple[Stop, ...]  # in lm-eval's order: the text is cut at each one in turn
    max_new_tokens: int

    def cut(self, text: str) -> str:
        """Return the text up to its stop strings."""
        for stop in self.stops:
            if stop.text:
                text = text.split(stop.text)[0]
        return text


class Decoder:
    """Detokenizer; `tail` caches the text of the last few tokens, which recurs often."""

    def __init__(self, tokenizer: Any) -> None:
        self._decode = tokenizer.decode
        self.tail: Callable[[tuple[int, ...]], str] = lru_cache(maxsize=1 << 16)(
            lambda ids: str(self._decode(list(ids)))
        )

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of a complete continuation, without special tokens."""
        return str(self._decode(list(tokens), skip_special_tokens=True))


@dataclass(frozen=True)
class PromptRow:
    """The row of one request in a run of prompts."""

    request: int  # index of the request
    places: Tensor  # (prompt length - cached prefix,) indices of the prompt's last tokens in the run's flattened rows


@dataclass(frozen=True)
class PromptBatch:
    """One run of prompts, and the rows decoded from it; no rows if it is only a prefix of later runs."""

    on_device: DeviceRun | None  # None if `prompts` are plain rows
    prompts: Tensor  # (B, L) token ids
    rows: tuple[PromptRow, ...]


@dataclass
class GenerationPlan:
    """Distinct requests laid out in batches, in the model's execution mode; reused for every candidate."""

    requests: tuple[GenerationRequest, ...]
    first: tuple[int, ...]  # request → the first equal request; only that one runs
    decoder: Decoder
    options: ScoreOptions
    _laid: dict[tuple[Mode, torch.device], tuple[PromptBatch, ...]] = field(default_factory=dict)

    def mode(self, model: Any) -> Mode:
        """Return this model's mode: prompts as tries, or as rows of equal length."""
        return "tree" if mode_of(model, *self._longest, self.options.modes) == "tree" else "rows"

    @cached_property
    def _longest(self) -> tuple[tuple[int, ...], int]:
        """The longest prompt, and the maximum length of a prompt with its continuation."""
        prompt = max((request.prompt for request in self.requests), key=len)
        return prompt, max(len(request.prompt) + request.max_new_tokens for request in self.requests)

    def batches(self, mode: Mode, device: torch.device) -> tuple[PromptBatch, ...]:
        """Return the batches for a mode and a device, laid out once."""
        if (mode, device) not in self._laid:
            lay_out = self._trees if mode == "tree" else self._plain
            self._laid[mode, device] = tuple(lay_out(device))
        return self._laid[mode, device]

    def _trees(self, device: torch.device) -> Iterator[PromptBatch]:
        """One tree for each `max_new_tokens`: such requests likely belong to one task and stop at a similar length."""
        by_limit: dict[int, list[int]] = {}
        for index in dict.fromkeys(self.first):
            by_limit.setdefault(self.requests[index].max_new_tokens, []).append(index)
        tokens = self._prompt_tokens(device)
        for limit, indices in by_limit.items():
            longest = max(len(self.requests[index].prompt) for index in indices) + limit
            rows = max(min(self.options.generation_rows, self.options.cached_tokens // longest), 1)
            # Prefer one wide row to several runs, since the rows of a run are decoded together.
            layout = as_tree([self.requests[index].prompt for index in indices], tokens, rows, wide=tokens)
            rows_of: list[list[PromptRow]] = [[] for _ in layout.runs]
            for index in indices:
                last = layout.stretches[self.requests[index].prompt][-1]
                rows_of[last.run].append(PromptRow(index, torch.from_numpy(last.places).to(device)))
            for run, own in zip(layout.runs, rows_of, strict=True):
                on_device = DeviceRun.on(device, run)
                yield PromptBatch(on_device, on_device.ids, tuple(own))

    def _prompt_tokens(self, device: torch.device) -> int:
        return self.options.batch_tokens or max(self.options.budget(device).tokens, _PROMPT_TOKENS)

    def _plain(self, device: torch.device) -> Iterator[PromptBatch]:
        """Batches of equally long prompts, within the budget even at their maximum length."""
        no_places = torch.zeros(0, dtype=torch.long)
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
                yield PromptBatch(None, prompts, tuple(PromptRow(index, no_places) for index in own))


def lay_out_generations(
    requests: Sequence[GenerationRequest], decoder: Decoder, options: ScoreOptions
) -> GenerationPlan:
    """Plan generation requests; equal requests run once."""
    seen: dict[GenerationRequest, int] = {}
    first = tuple(seen.setdefault(request, index) for index, request in enumerate(requests))
    return GenerationPlan(tuple(requests), first, decoder, options)
