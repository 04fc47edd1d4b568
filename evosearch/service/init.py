"""`init`: a first search spec for given models, with a reason for every choice."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from evosearch.errors import SpecError, did_you_mean
from evosearch.evaluation.harness.harness import Harness
from evosearch.search.progress import Watcher
from evosearch.service.init_draft import Draft, InitReport
from evosearch.service.init_models import Ask, Found, check_mergeable, licences_of, look
from evosearch.service.watchers import OnlyPreparing
from evosearch.setup.prepare import Prepared, prepare_with
from evosearch.spec.diagnostics import Diagnostics
from evosearch.spec.draft import free_path, local_reference, parsed, write_new
from evosearch.spec.spec import SearchSpec

EVALS = Path(__file__).resolve().parents[2] / "evals"  # the suites of a checkout
ZOO = "zoo:"
OF_ZOO, GENERAL = "quickstart", "reasoning"  # suites that are taken if none is named
GRADIENT = "gradient"


def init(
    models: Sequence[str],
    out: Path,
    watcher: Watcher,
    base: str | None = None,
    suite: str | None = None,
    ask: Ask | None = None,
    allow_pickle: bool = False,
    allow_unrelated: bool = False,
) -> InitReport:
    """Look at models, and write a commented spec that `check` passes.

    Args:
        models: References of at least one model, or adapter.
        out: File to write, which must not exist.
        watcher: Shows what is being prepared.
        base: Their base; found out without it, as far as possible.
        suite: A suite's file, or the name of one in `evals/`.
        ask: Asks the user; None asks nothing.
        allow_pickle: Read pickled weights of models without safetensors.
        allow_unrelated: Merge models that share no base, which are refused otherwise.

    Raises:
        InputError: The models cannot be merged, the suite cannot be used, or the file exists. Nothing is written.
    """
    free_path(out)
    found = look(models, base, watcher, ask, allow_pickle)
    check_mergeable(found, watcher, allow_pickle, allow_unrelated)
    suite_path, why_suite = suite_of(suite, found, ask)
    draft = Draft(out, found, local_reference(str(suite_path), out.parent), why_suite)
    prepared = _prepared(draft.text(), out, watcher, allow_pickle, None)
    draft = replace(draft, optimizer=prepared.optimizer.name)
    if draft.optimizer != GRADIENT:
        draft = replace(draft, obstacle=prepared.choice.why)
        prepared = _prepared(draft.text(), out, watcher, allow_pickle, prepared.harness)
    draft = replace(draft, prepared=prepared, licences=licences_of(prepared.spec))
    # With the budget in place of a large one: its baselines, and the last check
    draft = replace(draft, prepared=_prepared(draft.text(), out, watcher, allow_pickle, prepared.harness))
    write_new([(out, draft.text())])
    return draft.report()


def _prepared(text: str, out: Path, watcher: Watcher, allow_pickle: bool, harness: Harness | None) -> Prepared:
    """Check a draft as `check` does, without a dry run.

    Raises:
        InputError: All problems of the draft.
    """
    diagnostics, spec = Diagnostics(), parsed(out, text)
    assert isinstance(spec, SearchSpec)
    loaded = harness or diagnostics.attempt(lambda: Harness(spec.suite))
    prepared = prepare_with(
        diagnostics, spec, OnlyPreparing(watcher), allow_pickle, (lambda: loaded) if loaded else None
    )
    diagnostics.raise_all(str(out))
    assert prepared is not None
    return prepared


def suite_of(named: str | None, found: Found, ask: Ask | None) -> tuple[Path, str]:
    """Return the suite's file, and why it was taken.

    Raises:
        SpecError: There is no such suite.
    """
    if named is not None:
        return _suite_file(named), "The tasks to score on."
    if all(reference.startswith(ZOO) for reference in found.opened):
        return _suite_file(OF_ZOO), "The tasks that the built-in models were trained on."
    if ask is not None and (known := sorted(_suites())):
        return _suite_file(
            ask("Which suite measures what the merge should be good at?", known)
        ), "The tasks to score on."
    why = "No suite was named, so this one of general reasoning was taken. Write one with the tasks that matter to you"
    if GENERAL not in _suites():
        what, next_step = "no suite was named, and there are none here to choose from", "Name one: --suite FILE"
        raise SpecError("--suite", what, "A suite's YAML file (docs/reference/suite.md)", next_step)
    return _suite_file(GENERAL), f"{why}: docs/reference/suite.md."


def _suite_file(named: str) -> Path:
    path = Path(named).expanduser()
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise SpecError("--suite", f"no file {path}", "A suite's YAML file, or the name of one in evals/")
        return path
    known = _suites()
    if named not in known:
        allowed = f"Known: {', '.join(sorted(known)) or 'none'}; or a suite's YAML file"
        raise SpecError("--suite", f"no suite '{named}'", allowed, did_you_mean(named, known))
    return known[named]


def _suites() -> dict[str, Path]:
    """Return name → file of the suites in `evals/` of the working directory and of the checkout."""
    return {path.stem: path for folder in (EVALS, Path("evals")) for path in sorted(folder.glob("*.yaml"))}
