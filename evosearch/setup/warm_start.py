"""Warm start: begin at the best candidate of another search, and tell the optimizer its other candidates.

The other search is read once, when a search first starts, and recorded: it may change or vanish later, and a resume
reads the record.

Numbers are transferred from the other winner's recipe, tensor by tensor, so that the two spaces may divide the tensors
in different ways (`transfer.py`); everything else is transferred by the names of dimensions. A fitness is transferred
only if it would be the same here: the values give the same recipe (by recipe_id), and it was scored on the same
questions. With `search_minibatches`, the minibatches must be the same too.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from evosearch.errors import InputError, SpecError
from evosearch.materialize.plan import TensorOp
from evosearch.recipe.schema import Recipe
from evosearch.recipe.shapes import Scalar
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.optimizer_config import OptimizerConfig
from evosearch.search.progress import Watcher
from evosearch.search.records import KnownCandidate, WarmStart
from evosearch.search.space.dimensions import Dimension, Genome
from evosearch.search.state import SearchState
from evosearch.setup.loading import read_search
from evosearch.setup.prepare import Prepared
from evosearch.setup.transfer import fixed_otherwise, transferred
from evosearch.spec.lookup import find, recorded_names
from evosearch.spec.run_dir import RunDir
from evosearch.spec.spec import SearchSpec


def found_before(prepared: Prepared, watcher: Watcher) -> WarmStart | None:
    """The warm start of a search that has not started yet; None if it has, as it is recorded then.

    Raises:
        SpecError: See `look_up`.
    """
    started = prepared.spec.name in recorded_names(prepared.spec.run_dir.ledger)
    return None if started else look_up(prepared, watcher)


def look_up(prepared: Prepared, watcher: Watcher) -> WarmStart | None:
    """Read the search that the spec's `warm_start` names, if any.

    Raises:
        SpecError: There is no such search, it is this one, it has not scored a candidate, or it has no dimension in
            common with this one.
    """
    spec = prepared.spec
    named, where = spec.config.optimizer.warm_start, spec.at("optimizer.warm_start")
    if named is None:
        return None
    other, search_id, state = _read(prepared, named, where)
    ranked = _ranked(state)
    if not ranked:
        raise SpecError(where, f"got '{named}', which has not scored a candidate yet", next="Run it first")
    best = state.winner.candidate if state.winner and state.winner.candidate in state.candidates else ranked[0]
    proposal = state.proposal(best)
    theirs = Recipe.model_validate(proposal.recipe)
    shared = _shared(prepared, proposal.genome) | _by_tensor(prepared, theirs)
    if not shared:
        ours = ", ".join(dimension.name for dimension in prepared.space.dimensions[:3])
        what = f"got '{named}', which has no dimension in common with this search"
        raise SpecError(where, what, f"A search with some of these: {ours}, …", "Name another, or remove it")
    known, why = _known(prepared, state, ranked)
    warm = WarmStart(other, search_id, prepared.space.clip(shared), known)
    taken = f"{len(shared)} of {len(prepared.space.dimensions)} values from its candidate {best}"
    if others := _others(prepared, warm.start, theirs):
        taken += f", which has another {' and '.join(others)}"
    watcher.note(f"warm start from '{other}': {taken}; {why or f'{len(known)} known candidates'}")
    return warm


def _read(prepared: Prepared, named: str, where: str) -> tuple[str, str, SearchState]:
    """Name, search_id and state of the other search."""
    spec, itself = prepared.spec, SpecError(where, f"got '{named}', which is this search itself", "Another search")
    if named == spec.name:
        raise itself
    try:
        run_dir = _find(spec, named)
        if (run_dir.name, run_dir.ledger) == (spec.name, spec.run_dir.ledger):
            raise itself
        with Ledger.open(run_dir.ledger, named, read_only=True) as ledger:
            search_id, state = read_search(ledger, run_dir)
    except InputError as error:
        if error is itself:
            raise
        _, _, key = error.where.partition(": ")
        what = f"{key}: {error.what}" if key else error.what
        raise SpecError(where, f"got '{named}': {what}", error.allowed, error.next) from None
    return run_dir.name, search_id, state


def _find(spec: SearchSpec, named: str) -> RunDir:
    """The other search: by name in the spec's own ledger, or by name, folder or spec file elsewhere."""
    own = spec.run_dir
    if spec.stage is not None and spec.warm_stage is not None:
        return replace(own, name=f"{spec.stage.pipeline}.{spec.warm_stage}")
    return replace(own, name=named) if named in recorded_names(own.ledger) else find(_from(spec.file, named))


def _from(file: Path, named: str) -> str:
    """Resolve a path from the spec's own folder; leave names as they are."""
    path = os.path.expanduser(named)
    is_path = path.startswith(("./", "../")) or path.endswith((".yaml", ".yml"))
    return os.path.normpath(file.absolute().parent / path) if is_path else path


def _ranked(state: SearchState) -> list[str]:
    """Scored candidates, best first: by guard violation, then by fitness, then in the order they were proposed."""
    found = {name: evidence for name in state.candidates if (evidence := state.evidence(name)) is not None}
    return sorted(found, key=lambda name: (found[name][0], -found[name][1], int(name)))


def _shared(prepared: Prepared, genome: Mapping[str, Scalar]) -> Genome:
    """The values of the dimensions in common, clipped to this search's bounds."""
    found = {}
    for dimension in prepared.space.dimensions:
        if dimension.name in genome and _of_kind(dimension, genome[dimension.name]):
            found[dimension.name] = dimension.clip(genome[dimension.name])
    return found


def _by_tensor(prepared: Prepared, theirs: Recipe) -> Genome:
    """The numbers of another recipe in this search's dimensions; empty if it has other models or is a route."""
    plans = _plans(prepared, prepared.space.initial(), theirs)
    return {} if plans is None else transferred(prepared.space.dimensions, *plans)


def _others(prepared: Prepared, start: Genome, theirs: Recipe) -> tuple[str, ...]:
    """The parameters that keep other values than in another recipe, such as a `lambda` that both fix."""
    plans = _plans(prepared, start, theirs)
    return () if plans is None else fixed_otherwise(*plans)


def _plans(prepared: Prepared, genome: Genome, theirs: Recipe) -> tuple[Sequence[TensorOp], Sequence[TensorOp]] | None:
    """Operations of our recipe of a genome and of another one; None if that has other models or is a route."""
    space, models, where = prepared.space, prepared.models, prepared.spec.where
    if prepared.spec.is_route or theirs.routing or not set(theirs.references()) <= models.checkpoints.keys():
        return None
    ours = space.with_derivatives(genome)
    if ours.merge_method != theirs.merge_method:
        return None
    return models.plan(ours, where), models.plan(theirs, where)


def _of_kind(dimension: Dimension, value: Scalar) -> bool:
    """Whether a dimension can take a value: one of its choices, or any number."""
    if dimension.kind == "categorical":
        return dimension.contains(value)
    return not isinstance(value, bool | str)


def _known(prepared: Prepared, state: SearchState, ranked: list[str]) -> tuple[tuple[KnownCandidate, ...], str]:
    """The candidates whose fitness is valid here too, best first; if there are none, the reason."""
    theirs, ours = state.spec, prepared.spec.identity()
    if _questions(theirs, state.circumstances.batches.get("search")) != _questions(
        ours, prepared.ranked["search"].digest
    ):
        return (), "it was scored on other questions, so fitness is not transferred"
    if _minibatches(theirs) != _minibatches(ours):
        return (), "its search_minibatches differ, so fitness is not transferred"
    if theirs.get("objectives") != ours.get("objectives") and "objectives" in ours:
        return (), "its objectives differ, so fitness is not transferred"
    found = []
    for name in ranked:
        reported, genome = state.reported.get(name), _same_recipe(prepared, state, name)
        if reported is not None and reported.fitness is not None and genome is not None:
            objectives = reported.objectives if "objectives" in ours else ()
            found.append(KnownCandidate(replace(reported, objectives=objectives), genome))
    return tuple(found), "" if found else "its recipes differ, so fitness is not transferred"


def _questions(identity: Mapping[str, Any], batch: str | None) -> tuple[Any, ...]:
    """Everything that a fitness depends on, except the recipe."""
    suite = identity["suite"]
    return suite["digest"], suite["weights"], suite["chances"], batch


def _minibatches(identity: Mapping[str, Any]) -> tuple[int, int] | None:
    """Number of minibatches and the seed that draws them; None for the full split."""
    count, seed = identity.get("search_minibatches"), OptimizerConfig.model_fields["seed"].default
    return None if count is None else (count, identity["optimizer"].get("seed", seed))


def _same_recipe(prepared: Prepared, state: SearchState, name: str) -> Genome | None:
    """A candidate's genome in this search's dimensions, if it gives the same recipe."""
    space, theirs = prepared.space, state.proposal(name).genome
    genome = {d.name: theirs.get(d.name, d.init) for d in space.dimensions}
    if not all(d.contains(genome[d.name]) for d in space.dimensions):
        return None
    clipped = space.clip(genome)
    return clipped if prepared.models.identify(space.fill(clipped)) == state.recipe_ids[name] else None
