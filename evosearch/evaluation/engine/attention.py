"""How a model is run on a layout of token sequences: with tree masks where it takes them, in plainer modes where not.

tree     every distinct prefix once, packed with tree masks: models that attend by mask, to everything before, through
         sliding windows, or either by layer
prefix   what many sequences share once, as a key-value cache; the rest as plain rows: models that keep a cache of
         another kind, or take no mask of ours
rows     every distinct sequence by itself: models that compute with the length of their input (rotary scaling by
         length, beyond their first context)

That a mode gives what the model's own forward gives is not taken on trust: it is tried on every model, and the next
plainer one is taken where it does not.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from evosearch.checkpoints.families.registry import all_families
from evosearch.evaluation.engine.head import body
from evosearch.evaluation.engine.out_of_memory import out_of_memory
from evosearch.evaluation.engine.prefix_tree import Layout, Run, Tokens, as_rows, as_tree, by_length, distinct_prefixes

Mode = Literal["tree", "prefix", "rows"]
MODES: tuple[Mode, ...] = ("tree", "prefix", "rows")

_BY_MASK = ("sdpa", "eager")  # attention implementations that add a mask of any shape to the scores
_FULL, _SLIDING = "full_attention", "sliding_attention"
_BY_LENGTH = ("dynamic", "longrope")  # rotary scalings that look at how long the input is
_REREAD = ("phi3", "phi4_multimodal", "phimoe")  # model types that read a growing input anew, see `reread_at`
_PROBE = 8  # tokens
_TOLERANCE = {torch.float32: 1e-4}  # of the largest hidden state; half precision:
_ROUGH = 5e-2


@dataclass(frozen=True)
class Budget:
    """How much is run at once. None of it changes a result beyond float rounding."""

    tokens: int  # in one forward pass: of plain rows with their padding, of tries without
    cached: int  # keys and values of a batch of rows, in tokens


def lay_out(sequences: Sequence[Tokens], mode: Mode, budget: Budget) -> Layout:
    """The runs of distinct sequences in a mode."""
    if mode == "rows":
        return by_length(sequences, budget.tokens)
    tree = as_tree(sequences, budget.tokens)
    return tree if mode == "tree" else as_rows(tree, budget.tokens, budget.cached)


@dataclass
class Placed:
    """A run's tensors on a device, made once."""

    run: Run
    ids: Tensor  # (B, T)
    positions: Tensor  # (B, T)
    ends: Tensor | None  # (B, T)

    @classmethod
    def on(cls, device: torch.device, run: Run) -> "Placed":
        ids, positions = (torch.from_numpy(array.copy()).to(device) for array in (run.ids, run.positions))
        return cls(run, ids, positions, None if run.ends is None else torch.from_numpy(run.ends).to(device))


@dataclass
class KVStack:
    """Keys and values of the tokens that led to a run, and how many there are; the last of a stack is the deepest."""

    stack: list[tuple[int, Any]] = field(default_factory=list)  # (tokens, cache)

    def at(self, tokens: int) -> Any | None:
        """The cache of so many tokens, deeper ones dropped; None at the root."""
        while self.stack and self.stack[-1][0] > tokens:
            self.stack.pop()
        assert tokens == (self.stack[-1][0] if self.stack else 0), "runs are not in depth-first order"
        return self.stack[-1][1] if self.stack else None


def forward(model: Any, placed: Placed, path: KVStack, cached: bool = False) -> tuple[Tensor, Any | None]:
    """Final hidden states (B · T, hidden size) of a run, and the cache that holds its path and itself.

    Args:
        path: the keys and values that earlier runs left; this run's are added where it is to be kept.
        cached: return a cache in any case; without, it is None where nothing is before the run or after it.
    """
    run = placed.run
    before = path.at(run.keep)
    cache = None
    if before is not None:
        cache = fork(before)
        if placed.ids.shape[0] > 1:
            cache.batch_repeat_interleave(placed.ids.shape[0])
    elif run.kept or cached:
        cache = new_cache(model, by_mask=run.ends is not None)
    mask = None
    if run.ends is not None:
        assert placed.ends is not None
        mask = _tree_mask(model, placed.ends, placed.positions, run.keep, int(run.positions.max()))
    out = body(model)(
        input_ids=placed.ids,
        attention_mask=mask,
        position_ids=placed.positions,
        past_key_values=cache,
        use_cache=cache is not None,
    )
    if run.kept:
        path.stack.append((run.keep + placed.ids.shape[1], cache))
    hidden: Tensor = out.last_hidden_state  # (B, T, hidden size)
    return hidden.flatten(0, 1), cache


def new_cache(model: Any, by_mask: bool) -> Any:
    """An empty key-value cache.

    Where masks decide what is seen, every layer keeps every token; else each layer keeps what its kind needs.
    """
    from transformers import DynamicCache

    config = _text(model)
    plain = not _window(config) and _kinds(config) == {_FULL} and type(model).__name__ in all_families()
    return DynamicCache() if by_mask or plain else DynamicCache(config=model.config)


def fork(cache: Any) -> Any:
    """A cache that may grow on its own; the tensors of the two are shared until then."""
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    if any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers):
        return copy.deepcopy(cache)  # a state that is updated in place
    other = copy.copy(cache)
    other.layers = [copy.copy(layer) for layer in cache.layers]
    return other


def _tree_mask(model: Any, ends: Tensor, positions: Tensor, keep: int, deepest: int) -> Tensor | dict[str, Tensor]:
    """Masks (B, 1, T, keep + T) of pieces of a trie behind `keep` tokens: all of those, and each node's own path."""
    rows, width = ends.shape
    order = torch.arange(width, device=ends.device)
    path = (order[None, :] <= order[:, None]) & (order[:, None] < ends[:, None, :])  # (B, T, T)
    seen = torch.cat([path.new_ones(rows, width, keep), path], dim=2)
    keys = torch.cat([torch.arange(keep, device=ends.device).expand(rows, keep), positions], dim=1)  # (B, keep + T)
    return masks(model, seen, positions, keys, deepest)


def masks(model: Any, seen: Tensor, queries: Tensor, keys: Tensor, deepest: int) -> Tensor | dict[str, Tensor]:
    """What to pass as `attention_mask`: one float mask (B, 1, Q, K), or one for each kind of layer.

    Args:
        seen: (B, Q, K) what each query sees where nothing slides.
        queries, keys: (B, Q) and (B, K) positions. A layer with a window of w sees keys at distance below w.
        deepest: no query is at a larger position: windows that reach to the beginning need not be looked at.
    """
    config = _text(model)
    kinds, window = _kinds(config), _window(config)
    found = {_FULL: seen}
    if _SLIDING in kinds and window and deepest >= window:
        found[_SLIDING] = seen & (queries.int()[:, :, None] - keys.int()[:, None, :] < window)
    if kinds == {_SLIDING}:
        return _added(found.get(_SLIDING, seen), model.dtype)
    if kinds == {_FULL} or found.get(_SLIDING, seen) is seen:
        return _added(seen, model.dtype)
    return {kind: _added(mask, model.dtype) for kind, mask in found.items()}


def _added(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """Boolean (B, Q, K) → what is added to attention scores: 0, or the least there is."""
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


def _text(model: Any) -> Any:
    """The config of the part that reads text: a model that also sees has one of its own for that."""
    return model.config.get_text_config(decoder=True)


def _own(config: Any, name: str) -> Any:
    """A key that this kind of config knows; checkpoints carry others on, which their models ignore."""
    return getattr(config, name, None) if hasattr(type(config), name) else None


def _window(config: Any) -> int | None:
    """How many tokens a layer sees that does not see all; None where all do."""
    found = [_own(config, name) for name in ("sliding_window", "attention_chunk_size")]
    return min((size for size in found if size), default=None)


def _kinds(config: Any) -> set[str]:
    """The kinds of attention among a model's layers."""
    kinds = _own(config, "layer_types")
    if kinds:
        return set(kinds)
    return {_SLIDING} if _own(config, "sliding_window") else {_FULL}


@dataclass(frozen=True)
class _Proof:
    """What was found right of a model, on sequences of so many tokens."""

    mode: Mode
    tokens: int


_proofs: WeakKeyDictionary[Any, dict[tuple[Any, ...], _Proof]] = WeakKeyDictionary()


def mode_of(model: Any, tokens: Tokens, length: int, allowed: Sequence[Mode] = MODES) -> Mode:
    """The mode a model is run: the first of those allowed that applies and proves right.

    Args:
        tokens: any sequence that will be run, to try the modes on.
        length: of the longest sequence there will be.
        allowed: modes to choose from, most efficient first; where none of them is right, the one that is.
    """
    found = "rows" if _looks_at_length(_text(model), length) else _right(model, tokens, length)
    return next((mode for mode in allowed if MODES.index(mode) >= MODES.index(found)), found)


def _right(model: Any, tokens: Tokens, length: int) -> Mode:
    """The most efficient mode that was tried and found right, remembered for other weights of the same model."""
    config = _text(model)
    key = (config._attn_implementation, model.dtype, tuple(sorted(_kinds(config))), _window(config))
    size = _probe_length(model, length)
    known = _proofs.setdefault(model, {})
    if key not in known or known[key].tokens < size:
        found = _first_right(model, _probes(tokens, size))
        if found is None:  # broken weights, on which nothing can be tried: whoever reads a log-likelihood will say so
            return "rows"
        known[key] = _Proof(found, size)
    return known[key].mode


def _probe_length(model: Any, length: int) -> int:
    """How long a sequence must be to show all that a model does with as many as `length` tokens.

    Of our own families it is known that nothing but a window depends on it; others are tried at the full length.
    """
    kind, window = type(model), _window(_text(model))
    if kind.__name__ not in all_families() or not kind.__module__.startswith("transformers."):
        return max(length, _PROBE)
    return min(length, window + _PROBE) if window and length > window else _PROBE


def _probes(tokens: Tokens, size: int) -> list[Tokens]:
    """Four sequences of so many tokens: all share a quarter, and two pairs share a half."""
    distinct = list(dict.fromkeys((*tokens, 0, 1, 2)))
    one = tuple(distinct[i % len(distinct)] for i in range(size))
    half, quarter = size // 2, size // 4
    other = one[:quarter] + one[quarter:][::-1]
    return [one, other, *(each[:half] + each[half + 1 :] + each[:1] for each in (one, other))]


@torch.inference_mode()
def _first_right(model: Any, probes: list[Tokens]) -> Mode | None:
    """The first mode that gives what the model's own forward gives; None where that is not finite."""
    size, nodes = len(probes[0]), distinct_prefixes(probes)
    expected = _states(model, by_length(probes, size), probes)
    if not bool(torch.isfinite(expected).all()):
        return None
    limit = limit_of(model, expected)
    tree = as_tree(probes, nodes - 1, beside=nodes)  # a part is cached; two rows behind it, each with two branches
    for mode in MODES[:-1]:
        if mode == "tree" and not _takes_masks(model):
            continue
        try:
            got = _states(model, tree if mode == "tree" else as_rows(tree, nodes, nodes * size), probes)
        except (TypeError, ValueError, RuntimeError, LookupError, AttributeError) as error:
            if out_of_memory(error):
                raise  # says nothing of the mode
            continue  # a forward that knows nothing of such masks or caches
        if bool((got - expected).abs().max() <= limit):
            return mode
    return "rows"


def limit_of(model: Any, expected: Tensor) -> float:
    """How far hidden states may be from those expected and still be the same but for rounding."""
    return _TOLERANCE.get(model.dtype, _ROUGH) * float(expected.abs().max())


def _states(model: Any, layout: Layout, sequences: Sequence[Tokens]) -> Tensor:
    """Final hidden states (Σ length, hidden size) of sequences, one after the other."""
    path = KVStack()
    hidden = [forward(model, Placed.on(model.device, run), path)[0] for run in layout.runs]
    parts = [hidden[part.run][torch.from_numpy(part.places)] for one in sequences for part in layout.stretches[one]]
    return torch.cat(parts).float()


def _takes_masks(model: Any) -> bool:
    config = _text(model)
    return config._attn_implementation in _BY_MASK and _kinds(config) <= {_FULL, _SLIDING}


def _looks_at_length(config: Any, length: int) -> bool:
    """Whether rotary positions of an input this long depend on its length.

    transformers recomputes the frequencies of the whole input from the largest position in it.
    """
    named = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if not isinstance(named, dict):
        return False
    for rope in [named, *(value for value in named.values() if isinstance(value, dict))]:
        if rope.get("rope_type", rope.get("type")) in _BY_LENGTH:
            first = rope.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", None
            )
            if length > (first or config.max_position_embeddings):
                return True
    return False


def reread_at(model: Any) -> int | None:
    """The length at which an input's keys and values are void, its rotary positions being others from there on.

    As these families' `generate` has it: their `prepare_inputs_for_generation` drops the cache there, once.
    """
    config = _text(model)
    first = getattr(config, "original_max_position_embeddings", None)
    return first + 1 if first and config.model_type in _REREAD and _looks_at_length(config, first + 1) else None
