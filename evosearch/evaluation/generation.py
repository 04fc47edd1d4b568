"""Greedy generation with a key-value cache, stopping where lm-eval's Hugging Face model stops.

Prompts of one length make a batch, so nothing is padded and every row is computed as it would be alone; a row that is
done leaves the batch. What lm-eval gets at batch size 1 is what we get at any.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from evosearch.errors import CandidateError
from evosearch.evaluation.head import check_head, head_logits
from evosearch.evaluation.loglikelihood import ScoreOptions, distinct_prefixes
from evosearch.evaluation.types import Tokens

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
class _Batch:
    requests: tuple[int, ...]  # index of the first request of each row
    prompts: Tensor  # (B, L)


@dataclass(frozen=True)
class GenerationPlan:
    """Distinct requests laid out in batches of one prompt length; reused for every candidate."""

    requests: tuple[GenerationRequest, ...]
    first: tuple[int, ...]  # request → the first one equal to it, which is the one that runs
    batches: tuple[_Batch, ...]
    decoder: Decoder


def lay_out_generations(
    requests: Sequence[GenerationRequest], decoder: Decoder, options: ScoreOptions
) -> GenerationPlan:
    """Requests → batches of prompts of equal length, under the token budget when grown to their full length."""
    seen: dict[GenerationRequest, int] = {}
    first = tuple(seen.setdefault(request, index) for index, request in enumerate(requests))
    distinct = sorted(seen.values(), key=lambda i: (-len(requests[i].prompt), requests[i].max_new_tokens, i))
    groups: list[list[int]] = []
    for index in distinct:
        length, longest = len(requests[index].prompt), 0
        if groups and len(requests[groups[-1][0]].prompt) == length:
            longest = max(requests[i].max_new_tokens for i in (*groups[-1], index)) + length
        if longest and (len(groups[-1]) + 1) * longest <= options.batch_tokens:
            groups[-1].append(index)
        else:
            groups.append([index])
    batches = tuple(_Batch(tuple(group), torch.tensor([requests[i].prompt for i in group])) for group in groups)
    return GenerationPlan(tuple(requests), first, batches, decoder)


@torch.inference_mode()
def generate(model: Any, plan: GenerationPlan) -> tuple[list[str], Tokens]:
    """The text that each request's prompt is continued with, cut at its stop strings, and the work done.

    Args:
        model: a causal transformers model, in evaluation mode.

    Raises:
        CandidateError: logits are not finite, or the checkpoint's generation_config asks for more than greedy decoding.
    """
    end = _end_tokens(model)
    made: dict[int, list[int]] = {}
    forwarded = 0
    for batch in plan.batches:
        check_head(model, batch.prompts.to(model.device))
        rows, run = _run(model, batch, plan, end)
        made.update(zip(batch.requests, rows, strict=True))
        forwarded += run
    texts = {index: _cut(plan.decoder.text(tokens), plan.requests[index]) for index, tokens in made.items()}
    lengths = [len(plan.requests[i].prompt) + len(made[i]) - 1 for i in plan.first]
    # The last token made is never run, so a request needs its prompt and all but one of its tokens.
    distinct = distinct_prefixes([(*plan.requests[i].prompt, *tokens[:-1]) for i, tokens in made.items()])
    return [texts[i] for i in plan.first], Tokens(forwarded, 0, distinct, sum(lengths))


def _run(model: Any, batch: _Batch, plan: GenerationPlan, end: frozenset[int]) -> tuple[list[list[int]], int]:
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    active = list(range(len(batch.requests)))
    made: list[list[int]] = [[] for _ in active]
    ids, forwarded = batch.prompts.to(model.device), 0
    while active:
        out = model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
        forwarded += ids.numel()
        best, tokens = head_logits(model, out.last_hidden_state[:, -1]).max(dim=-1)  # (B,) each
        if not bool(torch.isfinite(best).all()):  # max passes NaN on
            raise CandidateError("score", "logits are not finite while generating: the weights blew up")
        for row, token in zip(active, tokens.tolist(), strict=True):
            made[row].append(token)
        keep = [
            i
            for i, row in enumerate(active)
            if not _done(made[row], plan.requests[batch.requests[row]], plan.decoder, end)
        ]
        if len(keep) < len(active):
            kept = torch.tensor(keep, dtype=torch.long, device=ids.device)
            active, tokens = [active[i] for i in keep], tokens[kept]
            if active:
                cache.batch_select_indices(kept)
        ids = tokens[:, None]
    return made, forwarded


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
