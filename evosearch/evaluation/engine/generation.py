"""Greedy generation with a key-value cache, stopping where lm-eval's Hugging Face model stops.

Prefill runs the prompts as a trie, each distinct prefix once. Every prompt then gets a copy of its keys and values, and
all prompts that end in the same run are decoded together; finished rows leave the batch. Rows differ in length: masks
hide the padding of their caches, which is never run. Models that do not accept such masks (`modes.py`) get batches of
equally long prompts. In both cases, each row is computed as if it were alone, up to float rounding: the results equal
lm-eval's at batch size 1.
"""

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from evosearch.errors import CandidateError
from evosearch.evaluation.engine.attention import KVStack, forward, masks, new_cache
from evosearch.evaluation.engine.generation_plan import Decoder, GenerationPlan, GenerationRequest, PromptBatch
from evosearch.evaluation.engine.head import body, check_head, head_logits
from evosearch.evaluation.engine.modes import recompute_at, tolerance_of
from evosearch.evaluation.engine.out_of_memory import out_of_memory
from evosearch.evaluation.engine.runs import distinct_prefixes
from evosearch.evaluation.types import Tokens

# Values of a checkpoint's generation_config that do not change greedy decoding.
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


@torch.inference_mode()
def generate(model: Any, plan: GenerationPlan) -> tuple[list[str], Tokens]:
    """Continue each request's prompt greedily.

    Args:
        model: A causal transformers model in evaluation mode.
        plan: The requests, laid out.

    Returns:
        The generated text of each request, cut at its stop strings, and token counts.

    Raises:
        CandidateError: Logits are not finite, or the checkpoint's generation_config is not plain greedy decoding.
    """
    generated, tokens = generate_tokens(model, plan)
    texts: dict[int, str] = {}
    for index in dict.fromkeys(plan.first):
        texts[index] = plan.requests[index].cut(plan.decoder.text(generated[index]))
    return [texts[index] for index in plan.first], tokens


@torch.inference_mode()
def generate_tokens(model: Any, plan: GenerationPlan) -> tuple[list[tuple[int, ...]], Tokens]:
    """Return the generated tokens of each request, up to the one that ends the answer, and token counts.

    The last token is an end-of-sequence token, the one that completes a stop string, or the `max_new_tokens`-th. See
    `generate` for arguments and errors.
    """
    if not plan.requests:
        return [], Tokens()
    end = _end_tokens(model)
    generated: dict[int, list[int]] = {}
    forwarded = padded = 0
    prefixes = KVStack()
    for batch in plan.batches(plan.mode(model), model.device):
        check_head(model, batch.prompts)
        start = _prefill_rows(model, batch) if batch.on_device is None else _prefill_tree(model, batch, prefixes)
        forwarded += batch.prompts.numel() if batch.on_device is None else batch.on_device.run.tokens
        padded += 0 if batch.on_device is None else batch.on_device.run.padding
        if start is not None:
            rows, run = _decode(model, start, batch, plan, end)
            generated.update(zip((row.request for row in batch.rows), rows, strict=True))
            forwarded += run
    lengths = [len(plan.requests[i].prompt) + len(generated[i]) - 1 for i in plan.first]
    # The last generated token is never run, so a request needs its prompt and all generated tokens but one.
    distinct = distinct_prefixes([(*plan.requests[i].prompt, *tokens[:-1]) for i, tokens in generated.items()])
    return [tuple(generated[i]) for i in plan.first], Tokens(forwarded, padded, distinct, sum(lengths))


@dataclass
class _Rows:
    """Rows being decoded: their cache, and the keys in it that the next token of each row attends to.

    For rows of equal length, `positions` and `seen` are None (they attend to everything), and `ids` has their tokens.
    """

    hidden: Tensor  # (B, hidden size) of the last token
    cache: Any  # keys and values (B, heads, K, head size) or another state; None: recompute the rows at every step
    lengths: Tensor  # (B,) tokens so far
    positions: Tensor | None = None  # (B, K)
    seen: Tensor | None = None  # (B, K)
    ids: Tensor | None = None  # (B, K)

    def keep(self, rows: Tensor) -> None:
        """Keep the rows with these indices."""
        if self.cache is not None:
            for layer in self.cache.layers:  # each on the device of its layer
                layer.batch_select_indices(rows.to(getattr(layer, "device", rows.device)))
        self.lengths = self.lengths[rows]
        self.positions, self.seen, self.ids = (
            None if some is None else some[rows] for some in (self.positions, self.seen, self.ids)
        )

    def step(self, model: Any, ids: Tensor) -> int:
        """Run one more token of each row, ids (B,), and return the number of tokens run."""
        mask = None
        if self.ids is not None:
            self.ids = torch.cat([self.ids, ids[:, None]], dim=1)
            if self.cache is None or self.ids.shape[1] == recompute_at(model):
                fresh = _run_rows(model, self.ids, self.cache is not None)
                self.hidden, self.cache, self.lengths = fresh.hidden, fresh.cache, fresh.lengths
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


def _run_rows(model: Any, ids: Tensor, cached: bool) -> _Rows:
    """Run rows of equal length, ids (B, L), to be decoded with or without a cache."""
    cache, (count, length) = new_cache(model, by_mask=False) if cached else None, ids.shape
    out = body(model)(input_ids=ids, past_key_values=cache, use_cache=cached)
    lengths = torch.full((count,), length, device=ids.device)
    return _Rows(out.last_hidden_state[:, -1], cache, lengths, ids=ids)


_cache_works: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


def _supports_cache(model: Any, ids: Tensor) -> bool:
    """Whether a model decodes correctly from its cache, tested once per model on the first tokens of ids (B, L).

    Some models keep another kind of state, and ignore a cache or use it incorrectly.
    """
    if model not in _cache_works:
        few = ids[:1, :4].repeat(2, 2)  # (2, up to 8)
        few[1] = few[1].flip(0)
        expected = _run_rows(model, few, False).hidden
        if not bool(torch.isfinite(expected).all()):
            return True  # broken weights, reported with the first logits
        try:
            rows = _run_rows(model, few[:, :1], True)
            for column in few[:, 1:-1].unbind(1):
                rows.step(model, column)
            rows.keep(torch.tensor([1], device=ids.device))
            rows.step(model, few[1:, -1])
            _cache_works[model] = bool((rows.hidden - expected[1:]).abs().max() <= tolerance_of(model, expected))
        except (TypeError, ValueError, RuntimeError, LookupError, AttributeError) as error:
            if out_of_memory(error):
                raise  # unrelated to the cache
            _cache_works[model] = False
    return _cache_works[model]


def _prefill_rows(model: Any, batch: PromptBatch) -> _Rows:
    """Prefill prompts of equal length."""
    return _run_rows(model, batch.prompts, _supports_cache(model, batch.prompts))


def _prefill_tree(model: Any, batch: PromptBatch, prefixes: KVStack) -> _Rows | None:
    """Prefill a run of the prompts' trie; each row copies the keys and values of its own path, padded on the right."""
    from transformers import DynamicCache

    assert batch.on_device is not None
    hidden, cache = forward(model, batch.on_device, prefixes, cached=True)
    if not batch.rows:
        return None
    assert cache is not None
    keep, width, device = batch.on_device.run.prefix_tokens, batch.on_device.ids.shape[1], hidden.device
    sizes = torch.tensor([len(row.places) for row in batch.rows], device=device)
    index = torch.zeros(len(batch.rows), keep + int(sizes.max()), dtype=torch.long, device=device)  # (B, K)
    index[:, :keep] = torch.arange(keep, device=device)
    for number, row in enumerate(batch.rows):
        index[number, keep : keep + len(row.places)] = keep + row.places % width
    source = torch.stack([row.places[-1] // width for row in batch.rows])[:, None]  # (B, 1) row of the run
    own = DynamicCache()
    for number, layer in enumerate(cache.layers):  # (rows, heads, keep + T, head size) → (B, heads, K, head size)
        picked = (source.to(layer.keys.device), slice(None), index.to(layer.keys.device))
        own.update(layer.keys[picked].transpose(1, 2), layer.values[picked].transpose(1, 2), number)
    positions = torch.arange(index.shape[1], device=device).expand_as(index)
    last = torch.stack([row.places[-1] for row in batch.rows])
    return _Rows(hidden[last], own, keep + sizes, positions, positions < (keep + sizes)[:, None])


def _decode(
    model: Any, rows: _Rows, batch: PromptBatch, plan: GenerationPlan, end: frozenset[int]
) -> tuple[list[list[int]], int]:
    """Decode all rows to their end; return the generated tokens of each row, and the number of tokens run."""
    requests = [plan.requests[row.request] for row in batch.rows]
    active = list(range(len(requests)))
    generated: list[list[int]] = [[] for _ in active]
    forwarded = 0
    while True:
        best, tokens = head_logits(model, rows.hidden).max(dim=-1)  # (B,) each
        if not bool(torch.isfinite(best).all()):  # max propagates NaN
            raise CandidateError("score", "logits are not finite during generation: the weights overflow")
        for row, token in zip(active, tokens.tolist(), strict=True):
            generated[row].append(token)
        keep = [i for i, row in enumerate(active) if not _done(generated[row], requests[row], plan.decoder, end)]
        if not keep:
            return generated, forwarded
        if len(keep) < len(active):
            kept = torch.tensor(keep, dtype=torch.long, device=tokens.device)
            active, tokens = [active[i] for i in keep], tokens[kept]
            rows.keep(kept)
        forwarded += rows.step(model, tokens)


def _done(tokens: list[int], request: GenerationRequest, decoder: Decoder, end: frozenset[int]) -> bool:
    if tokens[-1] in end or len(tokens) >= request.max_new_tokens:
        return True
    return any(stop.text in decoder.tail(tuple(tokens[-stop.lookback :])) for stop in request.stops)


def _end_tokens(model: Any) -> frozenset[int]:
    """The end-of-sequence tokens of the model's generation_config, which end a row like stop strings."""
    config = model.generation_config
    for name, allowed in _NEUTRAL.items():
        value = getattr(config, name, None)
        if value not in allowed:
            what = f"generation_config.{name} is {value!r}: only plain greedy decoding is supported"
            raise CandidateError("score", what)
    end = config.eos_token_id
    return frozenset(() if end is None else [end] if isinstance(end, int) else end)
