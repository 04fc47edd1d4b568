"""zipit: two models whose units are merged by correlation, across and within models (ZipIt!, Stoica et al. 2023)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from evosearch.errors import CandidateError
from evosearch.merging.method_parameters import Parameters
from evosearch.merging.registry import Site, merge_method
from evosearch.merging.sums import weighted_sum
from evosearch.merging.symmetries import RESIDUAL, Axes, groups_at, layer_of
from evosearch.merging.unit_sets import Sets, of_attention, of_hidden, of_residual
from evosearch.merging.zipping import zipped
from evosearch.recipe.shapes import INPUTS, Param


@dataclass(frozen=True)
class Zip:
    """The survey's fact of a tensor.

    Attributes:
        applies: Whether the tensor is in the part that is zipped.
        rows: Sets of its outputs, or None.
        columns: Sets of its inputs, or None.
    """

    applies: bool
    rows: Sets | None = None
    columns: Sets | None = None


@dataclass(frozen=True)
class _Place:
    """A site with its layer of the output, and the groups of its dimensions, named by that layer."""

    site: Site
    layer: int | None
    axes: Axes


def survey(sites: Sequence[Site]) -> list[Zip]:
    """Match the units of the layers that are zipped.

    Raises:
        CandidateError: The symmetries of the architecture are not known, or `depth` differs between tensors.
    """
    depths = sorted({site.parameters["depth"] for site in sites})
    if len(depths) > 1:
        reason = f"zipit: depth is one number for the whole model, got {depths[0]:g} to {depths[-1]:g}"
        raise CandidateError("materialize", reason)
    places = list(_places(sites))
    layers = [place.layer for place in places if place.layer is not None]
    count = 1 + max(layers, default=-1)
    end = int(depths[0] * count + 0.5)  # layers that are zipped
    sets, outside = dict(_sets(places, end)), 0
    facts = list[Zip]()
    for place in places:
        if place.layer is not None:
            outside = count - 1  # embeddings go with the first layer, final norm and head with the last
        applies = (outside if place.layer is None else place.layer) < end
        known = [sets.get(group) if group is not None else None for group in place.axes]
        rows, columns = (known[0], known[1] if len(known) > 1 else None) if applies else (None, None)
        facts.append(Zip(applies, rows, columns))
    return facts


def _places(sites: Sequence[Site]) -> Iterator[_Place]:
    """Yield every site with its layer, counted in the output: a slice may take any layers of both models."""
    layer, current = -1, None
    for site in sites:
        own = [layer_of(parent.tensor) for parent in site.parameters.parents]
        if own[0] is not None and own != current:
            layer, current = layer + 1, own
        named = [
            group if group in (None, RESIDUAL) else f"{str(group).partition('.')[0]}.{layer}"
            for group in groups_at(site)
        ]
        yield _Place(site, None if own[0] is None else layer, tuple(named))


def _sets(places: Sequence[_Place], end: int) -> Iterator[tuple[str, Sets]]:
    """Yield group → sets for the residual stream and for the layers before `end`."""
    read = [place for place in places if len(place.site.statistics) == 2]
    p = places[0].site.parameters
    if end and p.choice("residual") == "match":
        streams = [(one.site.statistics[0], one.site.statistics[1]) for one in read if one.axes[1] == RESIDUAL]
        yield RESIDUAL, p.recall_of_all(f"zipit residual {p.sample}", False, partial(of_residual, streams))
    sizes = {place.axes[0]: place.site for place in places}
    for place in read:
        kind, _, layer = str(place.axes[1]).partition(".")
        if kind == RESIDUAL or place.layer is None or place.layer >= end:
            continue
        own = place.site.parameters
        alpha, beta = own["alpha"], own["beta"]
        key = f"zipit {alpha} {beta} {own.sample}"
        if kind == "hidden":
            yield f"hidden.{layer}", own.recall_of_all(key, False, partial(_hidden, place.site, alpha, beta))
            continue
        rows = sizes[f"keys.{layer}"].parents[0]().shape[0]
        found = own.recall_of_all(key, False, partial(_heads, place.site, rows // own.head_size, alpha, beta))
        yield from ((f"keys.{layer}", found[0]), (f"queries.{layer}", found[1]))


def _hidden(site: Site, alpha: float, beta: float) -> Sets:
    first, second = (load() for load in site.statistics)
    return of_hidden(first, second, alpha, beta)


def _heads(site: Site, keys: int, alpha: float, beta: float) -> tuple[Sets, Sets]:
    first, second = (load() for load in site.statistics)
    return of_attention(first, second, site.parameters.head_size, keys, alpha, beta)


@merge_method(
    "zipit",
    paper="arXiv:2305.03053",
    summary="Merges two independently trained models, each unit with the one of either model that acts most alike.",
    takes_base=False,
    aligns=True,
    models=(2, 2),
    parameters={
        "weight": Param(0.0, 1.5, default=1.0, per_model=True, strict=True),
        "depth": Param(0.0, 1.0, default=1.0, strict=True),
        "alpha": Param(0.0, 1.0, default=0.0, strict=True),
        "beta": Param(0.0, 1.0, default=1.0, strict=True),
        "residual": Param(default="match", kind="choice", choices=("match", "keep")),
    },
    survey=survey,
    statistic=INPUTS,
)
def zipit(base: Tensor | None, parents: Sequence[Tensor], p: Parameters) -> Tensor:
    """Return W* = Σ_m M_m W_m U_m in the first `depth` of the layers, and the first model behind them.

    M averages the units of each set by the models' weights, U undoes it (Stoica et al. 2023, section 4.1); see
    `greedy_matching.py` for the sets, `unit_sets.py` for the units. A layer's `alpha` and `beta` are those at its `o`
    and `down`. Of the paper's partial zip, which ends in a head for each model, the first model's head is kept. With
    `residual: keep`, the residual streams have one order already, as those of fine-tunes and of re-based models.

    Raises:
        CandidateError: All weights are zero.
    """
    weights, fact = p.each("weight"), p.survey
    if not sum(weights) > 0.0:
        raise CandidateError("materialize", f"zipit: weights {weights} sum to zero, which they are divided by")
    if fact is not None and not fact.applies:
        return parents[0].to(p.dtype, copy=True)
    if fact is None or (fact.rows is None and fact.columns is None):
        return weighted_sum(parents, [w / sum(weights) for w in weights], p)
    return zipped(parents, weights, fact.rows, fact.columns, p.dtype)
