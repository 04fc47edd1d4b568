"""Execution modes of a model on sequences with shared prefixes, and the choice of the most efficient correct one.

tree     every distinct prefix once, packed with tree masks: for models that accept custom masks, with full attention,
         sliding windows, or a mix by layer
prefix   shared prefixes once, as a key-value cache, and the rest as plain rows: for models with another kind of cache,
         or without custom masks
rows     every distinct sequence by itself: for models whose output depends on the length of their input (rotary
         scaling by length, beyond the original context)

Each mode is tested on every model: if its hidden states differ from those of the model's own forward, the next simpler
mode is used.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from evosearch.checkpoints.families.registry import family_of_model
from evosearch.evaluation.engine.attention import (
    FULL,
    SLIDING,
    DeviceRun,
    KVStack,
    forward,
    layer_kinds,
    text_config,
    window_of,
)
from evosearch.evaluation.engine.out_of_memory import out_of_memory
from evosearch.evaluation.engine.prefix_tree import as_tree
from evosearch.evaluation.engine.runs import Layout, Tokens, as_rows, by_length, distinct_prefixes
from evosearch.evaluation.engine.score_options import MODES, Budget, Mode

_BY_MASK = ("sdpa", "eager")  # attention implementations that add an arbitrary mask to the scores
_BY_LENGTH = ("dynamic", "longrope")  # rotary scalings that depend on the input's length
_PROBE = 8  # minimum tokens of a probe sequence
_TOLERANCE = {torch.float32: 1e-4}  # relative to the largest hidden state
_TOLERANCE_HALF = 5e-2  # the same in half precision


def lay_out(sequences: Sequence[Tokens], mode: Mode, budget: Budget) -> Layout:
    """Lay out distinct sequences for a mode."""
    if mode == "rows":
        return by_length(sequences, budget.tokens)
    tree = as_tree(sequences, budget.tokens)
    return tree if mode == "tree" else as_rows(tree, budget.tokens, budget.cached)


@dataclass(frozen=True)
class _Tested:
    """The most efficient correct mode of a model, tested on sequences of `tokens` tokens."""

    mode: Mode
    tokens: int


_tested: WeakKeyDictionary[Any, dict[tuple[Any, ...], _Tested]] = WeakKeyDictionary()


def mode_of(model: Any, tokens: Tokens, length: int, allowed: Sequence[Mode] = MODES) -> Mode:
    """Return the execution mode of a model: the first allowed one that is correct.

    Args:
        model: A causal transformers model in evaluation mode.
        tokens: Any sequence that will be run, used to test the modes.
        length: Length of the longest sequence that will be run.
        allowed: Modes to choose from, most efficient first; ignored if none of them is correct.
    """
    found = "rows" if _depends_on_length(text_config(model), length) else _correct(model, tokens, length)
    return next((mode for mode in allowed if MODES.index(mode) >= MODES.index(found)), found)


def _correct(model: Any, tokens: Tokens, length: int) -> Mode:
    """The most efficient correct mode, cached for other weights of the same model object."""
    config = text_config(model)
    key = (config._attn_implementation, model.dtype, tuple(sorted(layer_kinds(config))), window_of(config))
    size = _probe_length(model, length)
    known = _tested.setdefault(model, {})
    if key not in known or known[key].tokens < size:
        found = _first_correct(model, _probes(tokens, size))
        if found is None:  # broken weights cannot be tested; they are reported with the first log-likelihood
            return "rows"
        known[key] = _Tested(found, size)
    return known[key].mode


def _probe_length(model: Any, length: int) -> int:
    """Length of a sequence that is representative of sequences of up to `length` tokens.

    In the registered families only a window depends on length; other models are tested at the full length.
    """
    window = window_of(text_config(model))
    if family_of_model(model) is None:
        return max(length, _PROBE)
    return min(length, window + _PROBE) if window and length > window else _PROBE


def _probes(tokens: Tokens, size: int) -> list[Tokens]:
    """Four sequences of `size` tokens: all share a quarter, and two pairs share a half."""
    distinct = list(dict.fromkeys((*tokens, 0, 1, 2)))
    one = tuple(distinct[i % len(distinct)] for i in range(size))
    half, quarter = size // 2, size // 4
    other = one[:quarter] + one[quarter:][::-1]
    return [one, other, *(each[:half] + each[half + 1 :] + each[:1] for each in (one, other))]


@torch.inference_mode()
def _first_correct(model: Any, probes: list[Tokens]) -> Mode | None:
    """The first mode that reproduces the model's own forward; None if the forward's output is not finite."""
    size, nodes = len(probes[0]), distinct_prefixes(probes)
    expected = _states(model, by_length(probes, size), probes)
    if not bool(torch.isfinite(expected).all()):
        return None
    limit = tolerance_of(model, expected)
    tree = as_tree(probes, nodes - 1, off_path=nodes)  # a cached prefix, and two rows behind it with two branches each
    for mode in MODES[:-1]:
        if mode == "tree" and not _takes_masks(model):
            continue
        try:
            got = _states(model, tree if mode == "tree" else as_rows(tree, nodes, nodes * size), probes)
        except (TypeError, ValueError, RuntimeError, LookupError, AttributeError) as error:
            if out_of_memory(error):
                raise  # unrelated to the mode
            continue  # the forward does not support such masks or caches
        if bool((got - expected).abs().max() <= limit):
            return mode
    return "rows"


def tolerance_of(model: Any, expected: Tensor) -> float:
    """Return the maximum deviation of hidden states that is attributed to rounding."""
    return _TOLERANCE.get(model.dtype, _TOLERANCE_HALF) * float(expected.abs().max())


def _states(model: Any, layout: Layout, sequences: Sequence[Tokens]) -> Tensor:
    """Final hidden states (Σ length, hidden size) of sequences, one after the other."""
    prefixes = KVStack()
    hidden = [forward(model, DeviceRun.on(model.device, run), prefixes)[0] for run in layout.runs]
    stretches = [stretch for sequence in sequences for stretch in layout.stretches[sequence]]
    return torch.cat([hidden[each.run][torch.from_numpy(each.places)] for each in stretches]).float()


def _takes_masks(model: Any) -> bool:
    config = text_config(model)
    return config._attn_implementation in _BY_MASK and layer_kinds(config) <= {FULL, SLIDING}


def _depends_on_length(config: Any, length: int) -> bool:
    """Whether the rotary frequencies of an input of this length depend on the length.

    If so, transformers computes the frequencies of all positions from the largest one.
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


def recompute_at(model: Any) -> int | None:
    """Return the length at which the cache becomes invalid because rotary frequencies change; None if never.

    This reproduces `generate` of these families: `prepare_inputs_for_generation` drops the cache once, at this length.
    """
    config, family = text_config(model), family_of_model(model)
    first = getattr(config, "original_max_position_embeddings", None)
    recomputes = family is not None and family.recomputes_cache
    return first + 1 if first and recomputes and _depends_on_length(config, first + 1) else None
