"""`init`: a first search spec for given models, with a reason for every choice."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evosearch.checkpoints import references
from evosearch.checkpoints.reader import Checkpoint
from evosearch.checkpoints.references import default_cache
from evosearch.checkpoints.tokenizers import tokenizer
from evosearch.errors import CheckpointError, InputError, SpecError, did_you_mean, in_one
from evosearch.evaluation.harness.harness import Harness
from evosearch.execution.loaders import register_schemes
from evosearch.materialize.inputs import Opener
from evosearch.preflight.licences import NOT_STATED, cards_of
from evosearch.recipe.schema import Recipe
from evosearch.recipe.shapes import Place
from evosearch.search.optimizers.registry import AUTO
from evosearch.search.progress import Watcher
from evosearch.search.sampling import BACKWARD
from evosearch.setup.find_base import FoundBase, by_cards, by_weights, of_adapters
from evosearch.setup.lineage import check_lineage
from evosearch.setup.models import open_models
from evosearch.setup.prepare import Prepared, prepare_with
from evosearch.spec.diagnostics import Diagnostics
from evosearch.spec.draft import Section, free_path, local_reference, name_of, parsed, render, write_new
from evosearch.spec.spec import SearchSpec

Ask = Callable[[str, Sequence[str]], str]  # (question, answers) → one of the answers
EVALS = Path(__file__).resolve().parents[2] / "evals"  # the suites of a checkout
ZOO = "zoo:"
OF_ZOO, GENERAL = "quickstart", "reasoning"  # suites that are taken if none is named
NO_BASE = "none of these"
GRADIENT = "gradient"
STEPS = 64  # of the gradient
CANDIDATES_PER_NUMBER, FEWEST, MOST = 8, 100, 400  # without a gradient
GROUPS = 4
HIGHEST = 1.5  # weight of a task vector


@dataclass(frozen=True)
class InitReport:
    """Result of `init`.

    Attributes:
        out: The spec.
        models: The models that are merged.
        base: Their base; None without one.
        method: Merge method.
        optimizer: Optimizer.
        dimensions: Number of search parameters.
        suite: The suite.
        notes: What was found and chosen, one sentence each.
    """

    out: str
    models: tuple[str, ...]
    base: str | None
    method: str
    optimizer: str
    dimensions: int
    suite: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Found:
    """What the models show.

    Attributes:
        parents: The models that are merged, as given.
        base: Their base.
        opened: Reference → checkpoint, also of the base.
        union: Why the output needs a vocabulary of its own; None if all tokenizers agree.
    """

    parents: tuple[str, ...]
    base: FoundBase | None
    opened: dict[str, Checkpoint]
    union: str | None

    @property
    def first(self) -> Checkpoint:
        return next(iter(self.opened.values()))


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
    found = _look(models, base, watcher, ask, allow_pickle)
    _check_mergeable(found, watcher, allow_pickle, allow_unrelated)
    suite_path, why_suite = _suite_of(suite, found, ask)
    draft = _Draft(out, found, local_reference(str(suite_path), out.parent), why_suite)
    prepared = _prepared(draft.text(), out, watcher, allow_pickle, None)
    draft = replace(draft, optimizer=prepared.optimizer.name)
    if draft.optimizer != GRADIENT:
        draft = replace(draft, obstacle=prepared.choice.why)
        prepared = _prepared(draft.text(), out, watcher, allow_pickle, prepared.harness)
    draft = replace(draft, prepared=prepared, licences=_licences(prepared.spec))
    _prepared(draft.text(), out, watcher, allow_pickle, prepared.harness)
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
    prepared = prepare_with(diagnostics, spec, _Quiet(watcher), allow_pickle, (lambda: loaded) if loaded else None)
    diagnostics.raise_all(str(out))
    assert prepared is not None
    return prepared


@dataclass(frozen=True)
class _Quiet:
    """Watcher that shows preparations, and no notes: drafts are prepared more than once."""

    watcher: Watcher

    def update(self, progress: Any) -> None:
        self.watcher.update(progress)

    def note(self, text: str) -> None:
        """Drop a note."""

    def preparing(self, what: str, fraction: float) -> None:
        self.watcher.preparing(what, fraction)

    def close(self) -> None:
        """Leave the watcher open."""


# --- the models ---


def _look(models: Sequence[str], base: str | None, watcher: Watcher, ask: Ask | None, allow_pickle: bool) -> _Found:
    register_schemes()
    opener = Opener(default_cache(), watcher.preparing, allow_pickle)
    named = list(dict.fromkeys(_with_base(model, base) for model in models))
    opened, problems = dict[str, Checkpoint](), list[InputError]()
    for reference in named:
        try:
            opened[reference] = opener.open(reference)
        except InputError as error:
            problems.append(error)
    if problems:
        raise in_one("init", problems)
    found = FoundBase(base, "it was named") if base else _find_base(opened, ask)
    if found is not None and found.reference not in opened:
        opened = {found.reference: opener.open(found.reference), **opened}
    parents = tuple(reference for reference in named if found is None or reference != found.reference)
    if not parents:
        raise CheckpointError("init", "the only model is its own base", next="Name the fine-tuned models")
    if found is None and len(parents) < 2:
        what = f"one model, '{parents[0]}', and its base is not known"
        raise CheckpointError("init", what, "Two or more models, or one with its base", "Add a model, or --base MODEL")
    ordered = [found.reference, *parents] if found else list(parents)
    opened = {reference: opened[reference] for reference in ordered}
    return _Found(parents, found, opened, _union(list(opened.values())))


def _with_base(reference: str, base: str | None) -> str:
    """Return `model+adapter` for an adapter alone: on the named base, or on the one that its config names."""
    model, adapter = references.split(reference)
    if adapter is not None:
        return reference
    try:
        references.resolve_settings(model, default_cache())
    except CheckpointError as error:
        try:
            folder = references.resolve_adapter_settings(model, default_cache())
        except CheckpointError:
            raise error from None
        from evosearch.checkpoints.adapters.adapter_config import read_config

        under = base or read_config(folder).base_name
        if not under:
            what = "this is an adapter, and its config names no base model"
            raise CheckpointError(reference, what, next="Name the base: --base MODEL") from None
        return f"{under}+{reference}"
    return reference


def _find_base(opened: dict[str, Checkpoint], ask: Ask | None) -> FoundBase | None:
    names = list(opened)
    found = of_adapters(names) or by_cards(names) or by_weights(opened)
    if found is None and ask is not None and len(names) > 1:
        question = "Neither the model cards nor the weights show a common base. Which of these is the base?"
        answer = ask(question, [*names, NO_BASE])
        found = None if answer == NO_BASE else FoundBase(answer, "it was chosen")
    return found


def _union(checkpoints: Sequence[Checkpoint]) -> str | None:
    first = checkpoints[0]
    for other in checkpoints[1:]:
        for name in first.shape.names(Place.EMBEDDINGS):
            rows = [each.tensors[name].shape[0] for each in (first, other) if name in each.tensors]
            if len(set(rows)) > 1:
                return f"'{first.reference}' and '{other.reference}' have {rows[0]:,} and {rows[1]:,} tokens"
        difference = tokenizer.difference(first.tokenizer_folder, other.tokenizer_folder)
        if difference:
            return f"'{first.reference}' and '{other.reference}' differ: {difference}"
    return None


def _check_mergeable(found: _Found, watcher: Watcher, allow_pickle: bool, allow_unrelated: bool) -> None:
    """Check that the models have the same tensors, and share a base.

    Raises:
        InputError: They cannot be merged; the message says why.
    """
    opened = open_models(Recipe.model_validate(_recipe(found, 1.0)), "init", _Quiet(watcher), allow_pickle)
    if not allow_unrelated:
        check_lineage(opened, "init")


def _recipe(found: _Found, weight: Any, local: Callable[[str], str] = str) -> dict[str, Any]:
    """Return the recipe as plain data, with the same weight for every model."""
    base = {} if found.base is None else {"base_model": local(found.base.reference)}
    listed = [{"model": local(model), "parameters": {"weight": weight}} for model in found.parents]
    union = {} if found.union is None else {"tokenizer": {"source": "union"}}
    method = "linear" if found.base is None else "task_arithmetic"
    return {"merge_method": method, **base, "models": listed, **union}


def _licences(spec: SearchSpec) -> str:
    cards = cards_of(spec)
    listed = ", ".join(f"{name}: {licence or NOT_STATED}" for name, licence in cards.licences.items())
    different = {licence for licence in cards.licences.values() if licence}
    advice = " They differ: check that they allow a common derivative." if len(different) > 1 else ""
    return f"Licences according to the model cards: {listed}.{advice}"


# --- the suite ---


def _suite_of(named: str | None, found: _Found, ask: Ask | None) -> tuple[Path, str]:
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


# --- the draft ---


@dataclass(frozen=True)
class _Draft:
    """A spec in the making.

    Attributes:
        out: Its file.
        found: What the models show.
        suite: The suite's path as the spec writes it.
        why_suite: Why it was taken.
        optimizer: The optimizer; `auto` as long as it is not known whether there is a gradient.
        obstacle: Why there is none; empty if there is one.
        prepared: The same draft, prepared; None at first.
        licences: A sentence on the licences.
    """

    out: Path
    found: _Found
    suite: str
    why_suite: str
    optimizer: str = AUTO
    obstacle: str = ""
    prepared: Prepared | None = None
    licences: str = ""

    def text(self) -> str:
        name = name_of(self.out)
        sections = [
            Section("name", name, ("Name of the search, of its folder under runs/, and of its MLflow experiment.",)),
            Section("recipe", _recipe(self.found, self._hole(), self._local), self._why_recipe()),
            Section("optimizer", {"name": self.optimizer, "seed": 0}, self._why_optimizer()),
            Section("suite", self.suite, (self.why_suite,)),
            Section("budget", self._budget(), self._why_budget()),
            Section("promotion", {"register_as": name}, ("The champion's name in the model registry.",)),
        ]
        return render(self._head(), sections)

    def report(self) -> InitReport:
        assert self.prepared is not None
        base = self.found.base.reference if self.found.base else None
        method = str(_recipe(self.found, 1.0)["merge_method"])
        notes = (*self._head()[1:-1], *self._why_recipe(), *self._why_optimizer(), *self._why_budget())
        count = len(self.prepared.space.dimensions)
        name = self.prepared.optimizer.name
        return InitReport(str(self.out), self.found.parents, base, method, name, count, self.suite, notes)

    def _local(self, reference: str) -> str:
        pieces = [piece for piece in references.split(reference) if piece is not None]
        if reference not in pieces and "+".join(pieces) != reference:
            pieces = [reference]  # a task vector alone names its base itself
        return "+".join(local_reference(piece, self.out.parent) for piece in pieces)

    def _hole(self) -> dict[str, Any]:
        layers = self.found.first.shape.num_layers
        high = HIGHEST if self.found.base else 1.0
        start = {} if self.found.base else {"init": round(1 / len(self.found.parents), 4)}
        if not self.obstacle:
            return {"low": 0.0, "high": high, **start, "per": "tensor"}
        return {"low": 0.0, "high": high, **start, "per": "group", "groups": min(GROUPS, layers), "ends": "shared"}

    def _head(self) -> list[str]:
        found, first = self.found, self.found.first
        lines = [
            "A first search spec, written by `evosearch init`. Everything in it may be changed.",
            f"Models: {first.shape.architecture}, {first.shape.num_layers} layers each.",
        ]
        if found.base:
            lines.append(f"Base: {self._local(found.base.reference)}, since {found.base.why}.")
        else:
            lines.append(
                "Base: none was found; with one (--base), task vectors and a sweep of their scale are possible."
            )
        if self.licences:
            lines.append(self.licences)
        return [*lines, f"Next: evosearch check {self.out}, then evosearch run {self.out}"]

    def _why_recipe(self) -> tuple[str, ...]:
        if self.found.base:
            why = "task_arithmetic adds each model's change from the base, times a weight."
        else:
            why = "linear averages the models with weights, which needs no base."
        layers = self.found.first.shape.num_layers
        if not self.obstacle:
            holes = "A weight for every tensor of every model: a gradient finds any number of them at the same cost."
        else:
            parts = min(GROUPS, layers)
            holes = f"A weight for each of {parts} runs of layers: few numbers, since there is no gradient."
        union = f"tokenizer: the models' tokens are united: {self.found.union}." if self.found.union else ""
        return tuple(filter(None, (why, holes, union)))

    def _why_optimizer(self) -> tuple[str, ...]:
        if not self.obstacle:
            return ("gradient: fitness and merge have a derivative (docs/guides/optimizers.md).",)
        return (f"{self.optimizer}, which needs no derivative: {self.obstacle}.",)

    def _budget(self) -> dict[str, int]:
        if self.prepared is None:
            return {"items": 10**9}  # of a draft that is only prepared
        if self.obstacle:
            return {"candidates": self._candidates()}
        return {"items": self._items()}

    def _candidates(self) -> int:
        assert self.prepared is not None
        return max(FEWEST, min(MOST, CANDIDATES_PER_NUMBER * len(self.prepared.space.dimensions)))

    def _items(self) -> int:
        """Return the item evaluations of `STEPS` steps, and of the scorings on the held-back part between them."""
        assert self.prepared is not None
        steps, options = self.prepared.steps, self.prepared.optimizer.options
        assert steps is not None
        batch = sum(map(len, steps.batches[: steps.shards]))
        held = len(steps.held_back) if steps.held_back is not None else 0
        total = STEPS * (1 + BACKWARD) * batch + STEPS // int(options["check_every"]) * held
        return math.ceil(total / 100) * 100

    def _why_budget(self) -> tuple[str, ...]:
        if self.prepared is None:
            return ()
        scored = sum(baseline.recipe is not None for baseline in self.prepared.baselines)
        first = f"{scored} baselines are scored before, and do not count."
        if self.obstacle:
            count = len(self.prepared.space.dimensions)
            return (f"{CANDIDATES_PER_NUMBER} candidates for each of {count} numbers, {FEWEST} to {MOST}. {first}",)
        return (f"About {STEPS} steps of the gradient, each as dear as three scorings of its documents. {first}",)
