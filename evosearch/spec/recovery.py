"""A spec read to its end: what is wrong in it is set aside, so that the rest can be judged as well."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from evosearch import documents
from evosearch.errors import InputError, SpecError
from evosearch.evaluation.suites.suite import Suite
from evosearch.spec.diagnostics import Findings
from evosearch.spec.spec import OF_A_STAGE, SearchSpec, SpecFile, load_suite_of, search_of, stage_references
from evosearch.spec.stages import StagedSpec, StagesFile, load

# In place of required keys that are wrong: they ask for nothing that could be wrong itself
STAND_INS: dict[str, Any] = {
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
class Read:
    """What there is to be looked at.

    Attributes:
        spec: None where the recipe, or the stages, cannot be made out.
        suite: the spec's own; None where it cannot be loaded (`spec` then has `NO_SUITE`).
    """

    spec: SearchSpec | StagedSpec | None
    suite: Suite | None


def read(path: Path, findings: Findings) -> Read:
    """The spec of a file, with its problems on the list; a spec that has any is there for the look alone."""
    try:
        spec = load(path)
    except InputError as error:
        findings.add(error)
        return _mended(path, findings)
    return Read(spec, spec.suite)


def _mended(path: Path, findings: Findings) -> Read:
    try:
        data = documents.read(path, SpecError)
    except InputError:  # which is on the list
        return Read(None, None)
    named = data.get("suite")
    suite = findings.attempt(lambda: load_suite_of(path, named)) if isinstance(named, str) else None
    config = _valid(path, data, findings)
    if isinstance(config, StagesFile):
        return Read(StagedSpec(path, config, suite or NO_SUITE), suite)
    if config is None or any(True for _ in stage_references(config.recipe)):
        return Read(None, suite)
    bare = config.model_copy(update={"search_minibatches": None, "objectives": None})  # which are of a suite's tasks
    for one in (config, bare) if suite is not None else (bare,):
        spec = findings.attempt(partial(search_of, path, one, suite or NO_SUITE))
        if spec is not None:
            return Read(spec, suite)
    return Read(None, suite)


def _valid(path: Path, data: dict[str, Any], findings: Findings) -> SpecFile | StagesFile | None:
    """The document without what is wrong in it; None where that is what a search is made of."""
    model: type[SpecFile] | type[StagesFile] = StagesFile if "stages" in data else SpecFile
    left = {key: value for key, value in deepcopy(data).items() if model is SpecFile or key not in OF_A_STAGE}
    while found := documents.problems(model, left, str(path), SpecError):
        for _, error in found:
            findings.add(error)
        if not _set_aside(model, left, found):
            return None
    return model.model_validate(left)


def _set_aside(
    model: type[SpecFile] | type[StagesFile],
    data: dict[str, Any],
    found: Sequence[tuple[tuple[str | int, ...], InputError]],
) -> bool:
    """Take out of a document what is wrong in it; False where nothing can take its place."""
    unknown = [keys for keys, error in found if error.what == "unknown key"]
    for keys in unknown:
        node: Any = data
        for key in keys[:-1]:
            node = node[key]
        del node[keys[-1]]
    if unknown:  # the rest is found again
        return True
    for top in {keys[0] if keys else None for keys, _ in found}:
        if top in STAND_INS and data.get(top) != STAND_INS[top]:
            data[top] = deepcopy(STAND_INS[top])
        elif not isinstance(top, str) or top not in data or model.model_fields[top].is_required():
            return False
        else:
            del data[top]
    return True
