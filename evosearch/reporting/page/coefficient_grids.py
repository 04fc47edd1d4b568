"""Coefficients of a recipe by layer and module, as far as the recipe alone shows them: no model is opened.

A setting is a number, a list over depth, or entries with a filter for a kind of tensor; holes write one list with a
value for every layer, and single values for what is outside of the layers (see `search/space/depth.py`, `kinds.py`).
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from evosearch.recipe.blocks import Block, blocks
from evosearch.recipe.parameters import Setting, evaluate
from evosearch.recipe.schema import Recipe

ALL, ENDS = "all modules", "outside of layers"
OTHER = "all other modules"
SHARED = "all models"
LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|layer)\.(\d+)\.(.+)")
POINT = re.compile(r"\[point (\d+)\]$")
DEEP = re.compile(r"\[(?:layer|group|\S+) \d+\]$")
FIRST = re.compile(r"emb|wte|wpe|embeddings")
LAST = re.compile(r"lm_head|embed_out|output|head|norm|ln_f")

Values = dict[tuple[str, str], float]  # (row, column) → coefficient


@dataclass(frozen=True)
class Grid:
    """The numbers of one parameter of one parent.

    Attributes:
        parent: Its reference, or `all models`.
        parameter: Such as `weight`.
        rows: Modules.
        columns: The end before the layers, layers from 0, and the ends after them.
        values: (row, column) → number; where there is none, another row has it.
    """

    parent: str
    parameter: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: Mapping[tuple[str, str], float]


def grids(recipe: Recipe, genome: Iterable[str] = ()) -> list[Grid]:
    """Return the grids of a recipe, parents in its order.

    Args:
        recipe: A merge; a route has none.
        genome: Names of the dimensions, which tell lists over layers from gradients over a few points.
    """
    if recipe.routing is not None:
        return []
    all_blocks, names = blocks(recipe), list(genome)
    settings = [setting for block in all_blocks for _, _, setting in _settings(block)]
    depth = _depth(settings, names)
    found: dict[tuple[str, str], Values] = {}
    start = 0
    for block in all_blocks:
        spans = [entry.layers for entry in block.entries if entry.layers is not None]
        count = spans[0][1] - spans[0][0] if spans else depth
        for parent, parameter, setting in _settings(block):
            cells = found.setdefault((parent, parameter), {})
            for (row, column), value in _cells(setting, count).items():
                cells.setdefault((row, str(int(column) + start) if column.isdigit() else column), value)
        start += count if spans else 0
    order = _order(names)
    return [_grid(parent, parameter, values, order) for (parent, parameter), values in found.items() if values]


def _settings(block: Block) -> Iterator[tuple[str, str, Setting]]:
    """Yield (parent, parameter, setting) of the entries' own parameters, then of those that all of them share."""
    for entry in block.entries:
        for name, setting in entry.own.items():
            yield entry.model, name, setting
    for scope in block.shared:
        for name, setting in scope.items():
            yield SHARED, name, setting


def _depth(settings: Sequence[Setting], genome: Sequence[str]) -> int:
    """Return the number of layers, as far as lists over layers tell it; else that of a gradient's points, or 1."""
    lengths = [len(one) for setting in settings for _, one in _entries(setting) if isinstance(one, list | tuple)]
    points = {int(found[1]) + 1 for name in genome if (found := POINT.search(name))}
    over_layers = [length for length in lengths if length not in points]
    if any(DEEP.search(name) and not POINT.search(name) for name in genome) and over_layers:
        return max(over_layers)
    return max(lengths, default=1)


def _entries(setting: Setting) -> list[tuple[str | None, Setting]]:
    """Return (filter, value) of every entry; the filter is None for all tensors."""
    if isinstance(setting, list | tuple) and setting and isinstance(setting[0], Mapping):
        return [(None if one["filter"] in (None, "*") else one["filter"], one["value"]) for one in setting]
    return [(None, setting)]


def _cells(setting: Setting, layers: int) -> Values:
    """Return (row, column) → number of one setting over a run of layers."""
    entries = _entries(setting)
    fallback = next((value for pattern, value in entries if pattern is None), None)
    named = [_place(pattern) for pattern, _ in entries if pattern is not None]
    only = not any(kind == "module" for kind, _ in named)
    found: Values = {}
    for pattern, value in entries:
        kind, name = ("module", ALL if only else OTHER) if pattern is None else _place(pattern)
        if pattern is not None and isinstance(value, list | tuple) and value == fallback:
            continue  # written only so that a shorter filter of an end does not match
        if kind == "end":
            number = _number(value, 1.0)
            cells = {} if number is None else {(ALL if only else ENDS, name): number}
        elif kind == "layer":
            layer, _, module = name.partition(" ")
            number = _number(value, int(layer) / max(1, layers - 1))
            cells = {} if number is None else {(module, layer): number}
        else:
            spread = {str(at): _number(value, at / max(1, layers - 1)) for at in range(layers)}
            cells = {(name, column): number for column, number in spread.items() if number is not None}
        for key, number in cells.items():
            found.setdefault(key, number)
    return found


def _place(pattern: str) -> tuple[str, str]:
    """Return what a filter names: (`layer`, `3 mlp.up_proj`), (`end`, `lm_head`) or (`module`, `q_proj`)."""
    inside = LAYER.search(pattern)
    plain = pattern.removesuffix(".weight").strip(".")
    if inside:
        return "layer", f"{inside[1]} {inside[2].removesuffix('.weight')}"
    last = plain.rpartition(".")[2]
    if last in ("norm", "ln_f", "final_layernorm", "lm_head", "embed_out") or FIRST.search(last):
        return "end", last
    return "module", plain


def _number(value: Setting, position: float) -> float | None:
    found = evaluate(value, "", min(1.0, position))
    return None if found is None or isinstance(found, bool | str) else float(found)


def _order(genome: Sequence[str]) -> dict[str, int]:
    """Return module → place, as the dimensions have them: in the order of the model (`[q_proj 0]`)."""
    found: dict[str, int] = {}
    for name in genome:
        module, _, layer = name.rpartition("[")[2].removesuffix("]").rpartition(" ")
        if layer.isdigit():
            found.setdefault(module.rpartition(".")[2], len(found))
    return found


def _grid(parent: str, parameter: str, values: Values, order: Mapping[str, int]) -> Grid:
    rows = tuple(dict.fromkeys(row for row, _ in values))
    rows = tuple(sorted(rows, key=lambda row: (row in (ENDS, OTHER), order.get(row.rpartition(".")[2], len(order)))))
    columns = {column for _, column in values}
    ends = sorted(column for column in columns if not column.isdigit())
    first = [name for name in ends if FIRST.search(name) and not LAST.fullmatch(name)]
    last = sorted((name for name in ends if name not in first), key=lambda name: "head" in name or "out" in name)
    layers = sorted((name for name in columns if name.isdigit()), key=int)
    return Grid(parent, parameter, rows, (*first, *layers, *last), values)
