"""Teachers of a search's tasks, as its suite names them.

A teacher is one of the models that the recipe, or a baseline, is made of. Its distributions are those of the baseline
that is this model alone, in the vocabulary of the candidates.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from evosearch.errors import InputError, SuiteError, did_you_mean, in_one
from evosearch.evaluation.suites.suite import Suite
from evosearch.evaluation.suites.teacher_keys import AUTO, TeacherFitness
from evosearch.evaluation.types import Teacher
from evosearch.recipe.files import STAGE, anchor
from evosearch.search.baselines import Baseline
from evosearch.spec.spec import SearchSpec

if TYPE_CHECKING:
    from evosearch.setup.prepare import Prepared

SINGLE = ("base", "parent", "stage")  # baselines that are a single model
PARENTS = ("parent", "stage")  # those among which `auto` chooses


def named_teachers(spec: SearchSpec) -> dict[str, str]:
    """Return task → reference of its teacher, or `auto`; empty if the fitness needs no teachers."""
    suite = spec.suite
    if not isinstance(suite.fitness, TeacherFitness):
        return {}
    winners = spec.stage.winners if spec.stage else {}
    local = {f"{STAGE}{name}": winner.reference(name) for name, winner in winners.items()}
    return {
        task.name: AUTO if written == AUTO else str(anchor({"model": written}, spec.file.parent, local)["model"])
        for task in suite.fitted
        if (written := suite.fitness.teacher(task.name)) is not None
    }


def check_teachers(spec: SearchSpec, baselines: Sequence[Baseline]) -> None:
    """Check that every teacher is a model of the search, and that `auto` has parents to choose from.

    Raises:
        SuiteError: A teacher is another model, or there is no parent.
        Problems: Several of these.
    """
    known, found = _single(baselines, SINGLE), list[InputError]()
    for task, reference in named_teachers(spec).items():
        where = _where(spec.suite, task)
        if reference == AUTO and not _single(baselines, PARENTS):
            found.append(SuiteError(where, "got 'auto', and this search has no parents to choose from"))
        elif reference != AUTO and reference not in known:
            what = f"'{reference}' is not a model of this search"
            allowed = f"{AUTO}, or a model of the recipe, written as there: {', '.join(known)}"
            found.append(SuiteError(where, what, allowed, did_you_mean(reference, list(known))))
    if found:
        raise in_one(spec.suite.source, found)


def parents_of(prepared: "Prepared") -> dict[str, Baseline]:
    """Return reference → baseline of the models among which `auto` chooses, in the recipe's order."""
    return _single(prepared.baselines, PARENTS)


def teachers_of(prepared: "Prepared", chosen: Mapping[str, str]) -> dict[str, Teacher]:
    """Return task → teacher.

    Args:
        prepared: The search.
        chosen: Task → reference of its teacher.
    """
    found: dict[str, Teacher] = {}
    known = _single(prepared.baselines, SINGLE)
    for task, reference in chosen.items():
        recipe = known[reference].recipe
        assert recipe is not None
        found[task] = Teacher(reference, prepared.models.identify(recipe), recipe)
    return found


def provisional_teachers(prepared: "Prepared") -> dict[str, Teacher]:
    """Return task → a teacher for a dry run: the first parent in place of `auto`."""
    first = next(iter(parents_of(prepared)), "")
    named = named_teachers(prepared.spec)
    return teachers_of(prepared, {task: first if own == AUTO else own for task, own in named.items()})


def _single(baselines: Sequence[Baseline], kinds: Sequence[str]) -> dict[str, Baseline]:
    """Reference → the baseline that is this model alone; a stage's winner may be made of several."""
    found = [(baseline.recipe, baseline) for baseline in baselines if baseline.kind in kinds]
    return {
        recipe.models[0].model: baseline
        for recipe, baseline in found
        if recipe is not None and recipe.merge_method == "linear" and len(recipe.models) == 1
    }


def _where(suite: Suite, task: str) -> str:
    keys = () if isinstance(suite.fitness, TeacherFitness) and suite.fitness.teachers == AUTO else (task,)
    return suite.where("fitness", "teachers", *keys)
