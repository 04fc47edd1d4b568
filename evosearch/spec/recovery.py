"""Error recovery: sets aside the invalid keys of a spec, so that the rest can be checked too."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from evosearch import documents
from evosearch.errors import InputError, RecipeError, SpecError
from evosearch.evaluation.suites.suite import Suite
from evosearch.recipe.schema import Recipe
from evosearch.search.space.template import without_parameters
from evosearch.spec.config import SpecFile
from evosearch.spec.diagnostics import Diagnostics
from evosearch.spec.spec import STAGE_KEYS, SearchSpec, load_suite_of, search_of, stage_references
from evosearch.spec.stages import StagedSpec, StagesFile, parse

# Values that replace those of invalid required keys, and cause no further problems
PLACEHOLDERS: dict[str, Any] = {
    "name": "unnamed",
    "optimizer": {"name": "random"},
    "budget": {"candidates": 1},
    "suite": "",
}
NO_SUITE = Suite.model_validate(
    {
        "name": "none",
        "tasks": [{"task": "none", "metric": "acc", "chance": 0.0}],
        "documents": {"search": 1, "validation": 1, "test": 1},
    }
)


@dataclass(frozen=True)
class Recovered:
    """A spec without its invalid keys.

    Attributes:
        spec: The spec; None if its recipe or stages cannot be read.
        suite: The spec's suite; None if it cannot be loaded (`spec.suite` is then `NO_SUITE`).
    """

    spec: SearchSpec | StagedSpec | None
    suite: Suite | None


def read(path: Path, diagnostics: Diagnostics) -> Recovered:
    """Read a spec file and recover from its problems; see `recover`."""
    data = diagnostics.attempt(lambda: documents.read(path, SpecError))
    return Recovered(None, None) if data is None else recover(path, data, diagnostics)


def recover(path: Path, data: Mapping[str, Any], diagnostics: Diagnostics) -> Recovered:
    """The spec in `data`; its problems are recorded. A spec with problems must not be run, only checked further."""
    try:
        spec = parse(path, data)
    except InputError as error:
        diagnostics.add(error)
        found = _without_problems(path, data, diagnostics)
    else:
        found = Recovered(spec, spec.suite)
    return replace(found, spec=_without_unknown(found.spec, diagnostics))


def _without_unknown(spec: SearchSpec | StagedSpec | None, diagnostics: Diagnostics) -> SearchSpec | StagedSpec | None:
    """The spec without unknown keys of its recipe, which are recorded: its holes can then be checked too."""
    if not isinstance(spec, SearchSpec) or spec.is_route:
        return spec
    found = documents.problems(Recipe, without_parameters(spec.template), spec.where, RecipeError)
    unknown = [(keys, error) for keys, error in found if error.what == documents.UNKNOWN]
    if not unknown:
        return spec
    template: dict[str, Any] = deepcopy(dict(spec.template))
    for keys, error in unknown:
        diagnostics.add(error)
        node: Any = template
        for key in keys[:-1]:
            node = node[key]
        del node[keys[-1]]
    return replace(spec, template=template)


def _without_problems(path: Path, data: Mapping[str, Any], diagnostics: Diagnostics) -> Recovered:
    named = data.get("suite")
    suite = diagnostics.attempt(lambda: load_suite_of(path, named)) if isinstance(named, str) else None
    config = _valid_config(path, data, diagnostics)
    if isinstance(config, StagesFile):
        return Recovered(StagedSpec(path, config, suite or NO_SUITE), suite)
    if config is None or any(True for _ in stage_references(config.recipe)):
        return Recovered(None, suite)
    bare = config.model_copy(update={"search_minibatches": None, "objectives": None})  # these depend on the suite
    for one in (config, bare) if suite is not None else (bare,):
        spec = diagnostics.attempt(partial(search_of, path, one, suite or NO_SUITE))
        if spec is not None:
            return Recovered(spec, suite)
    return Recovered(None, suite)


def _valid_config(path: Path, data: Mapping[str, Any], diagnostics: Diagnostics) -> SpecFile | StagesFile | None:
    """The config without its invalid keys; None if the recipe or the stages are invalid."""
    model: type[SpecFile] | type[StagesFile] = StagesFile if "stages" in data else SpecFile
    left = {key: deepcopy(value) for key, value in data.items() if model is SpecFile or key not in STAGE_KEYS}
    while found := documents.problems(model, left, str(path), SpecError):
        for _, error in found:
            diagnostics.add(error)
        if not _set_aside(model, left, found):
            return None
    return model.model_validate(left)


def _set_aside(
    model: type[SpecFile] | type[StagesFile],
    data: dict[str, Any],
    found: Sequence[tuple[tuple[str | int, ...], InputError]],
) -> bool:
    """Remove invalid keys from a document, or replace them; return False if neither is possible."""
    unknown = [keys for keys, error in found if error.what == documents.UNKNOWN]
    for keys in unknown:
        node: Any = data
        for key in keys[:-1]:
            node = node[key]
        del node[keys[-1]]
    if unknown:  # the other problems are found again in the next round
        return True
    for top in {keys[0] if keys else None for keys, _ in found}:
        if top in PLACEHOLDERS and data.get(top) != PLACEHOLDERS[top]:
            data[top] = deepcopy(PLACEHOLDERS[top])
        elif not isinstance(top, str) or top not in data or model.model_fields[top].is_required():
            return False
        else:
            del data[top]
    return True
