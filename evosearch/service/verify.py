"""`evosearch verify`: rebuild an exported recipe, and compare models, weights and scores with what its file records."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from evosearch import documents
from evosearch.errors import EvosearchError, InputError, RecipeError
from evosearch.evaluation.harness.harness import Harness
from evosearch.evaluation.suites.suite import Suite, load_suite
from evosearch.evaluation.types import ItemBatch, ScoreCard
from evosearch.execution.worker import Worker
from evosearch.materialize.on_disk import digest_weights
from evosearch.merging.registry import specs
from evosearch.promotion.attestation import attestation_of, signed_statement, statement_of
from evosearch.recipe import checks, files
from evosearch.recipe.provenance import KEY, Provenance, RecordedScore, RecordedSuite, unpack
from evosearch.recipe.schema import Recipe
from evosearch.reporting.openings import record_reread
from evosearch.search.progress import Watcher
from evosearch.search.protocols import Job
from evosearch.setup.executors import worker_config
from evosearch.setup.models import Models, open_models
from evosearch.setup.recorded_inputs import Mismatch, changed_recipe, changed_weights
from evosearch.spec.config import WorkersConfig
from evosearch.untrusted import read_bytes

CLOSE = 1e-9  # difference of an item's metric; rights and wrongs are exact


@dataclass(frozen=True)
class ScorePair:
    """The score on one split: recorded, and found here."""

    recorded: float
    found: float


@dataclass(frozen=True)
class VerifyReport:
    """Result of a verification, as `evosearch verify --json` prints it.

    Attributes:
        recipe: The recipe's file.
        equal: Nothing that was compared differs.
        compared: What was compared: `inputs`, `weights`, `items`, `scores`, `signature`.
        weights_sha256: Digest of the rebuilt weights; None if the models differ, so that nothing was rebuilt.
        scores: Split → scores, with `--scores`.
        differences: Everything that differs.
        signed_by: Id of the key that signed the recipe, with `--key`.
    """

    recipe: str
    equal: bool
    compared: tuple[str, ...]
    weights_sha256: str | None = None
    scores: Mapping[str, ScorePair] = field(default_factory=dict)
    differences: tuple[Mismatch, ...] = ()
    signed_by: str | None = None


@dataclass
class _Findings:
    compared: list[str] = field(default_factory=list)
    differences: list[Mismatch] = field(default_factory=list)
    weights_sha256: str | None = None
    scores: dict[str, ScorePair] = field(default_factory=dict)
    signed_by: str | None = None

    def add(self, what: str, found: list[Mismatch]) -> None:
        self.compared.append(what)
        self.differences += found


def verify(
    path: Path,
    watcher: Watcher,
    scores: bool = False,
    suite: Path | None = None,
    allow_pickle: bool = False,
    key: Path | None = None,
) -> VerifyReport:
    """Rebuild an exported recipe on this machine and compare it with its section `provenance`.

    Models are fetched, and their weights, configs and tokenizers compared; if they are equal, the recipe is merged, in
    memory, tensor by tensor. With `scores`, the merge is scored again on every recorded split and compared per item.

    Args:
        path: The recipe's file.
        watcher: Shows progress and notes.
        scores: Score the merge again; scoring on `test` is recorded.
        suite: The suite's file; default: the one that the recipe's file names.
        allow_pickle: Read pickled weights of models without safetensors.
        key: Public key that must have signed the attestation next to the recipe.

    Raises:
        InputError: The file has no section `provenance`, or a model or the suite cannot be read.
        EvosearchError: The merge cannot be scored.
    """
    recipe, recorded = files.load(path), files.load_provenance(path)
    if recorded is None:
        what = "no section with digests to compare"
        raise RecipeError(f"{path}: {KEY}", what, "A recipe that `evosearch export` wrote", "Export the recipe again")
    measured = _suite(recorded, path, suite, watcher) if scores else None
    for text in checks.check(recipe, specs(), f"{path}: "):
        watcher.note(text)
    found = _Findings()
    if key is not None:
        found.signed_by, differing = _check_signature(path, key)
        found.add("signature", differing)
    models = open_models(recipe, str(path), watcher, allow_pickle)
    inputs = changed_recipe(recorded, models, models.identify(recipe))
    found.add("inputs", inputs)
    if not inputs:  # the rest would differ as well, and say nothing new
        watcher.preparing("merging", 0.0)
        weights = digest_weights(recipe, {name: models.checkpoints[name] for name in recipe.references()})
        watcher.preparing("merging", 1.0)
        found.weights_sha256 = weights.weights_sha256
        found.add("weights", changed_weights(recorded, weights))
        if measured is not None:
            _compare_scores(found, recipe, recorded, models, measured, path, watcher)
    return VerifyReport(
        recipe=str(path),
        equal=not found.differences,
        compared=tuple(found.compared),
        weights_sha256=found.weights_sha256,
        scores=found.scores,
        differences=tuple(found.differences),
        signed_by=found.signed_by,
    )


def _check_signature(path: Path, key: Path) -> tuple[str | None, list[Mismatch]]:
    """Compare a recipe's file with the statement that a key signed; return the key's id, and what differs.

    Raises:
        InputError: There is no attestation, or it or the key cannot be read.
    """
    file = attestation_of(path)
    if not file.is_file():
        raise InputError(str(file), "no such file", "The attestation of `evosearch export --sign`, next to the recipe")
    key_id, signed = signed_statement(file, key)
    if signed is None:
        return None, [Mismatch("signature", str(file), "by another key, or of another statement", f"key {key_id[:12]}")]
    content = read_bytes(path, RecipeError, documents.MAX_BYTES)
    section = documents.validate(Provenance, documents.read_all(path, RecipeError)[-1][KEY], str(path), RecipeError)
    now = statement_of(content, path.name, section)
    then = {one["name"]: one["digest"] for one in signed.get("subject", ()) if isinstance(one, dict)}
    differing = [
        Mismatch("signature", f"{file}: {one['name']}", str(then.get(one["name"])), str(one["digest"]))
        for one in now["subject"]
        if then.get(one["name"]) != one["digest"]
    ]
    return key_id, differing


def _suite(recorded: Provenance, path: Path, given: Path | None, watcher: Watcher) -> tuple[RecordedSuite, Suite]:
    """Return the record of the suite, and the suite.

    Raises:
        InputError: There are no scores to compare, or the suite cannot be read.
    """
    then = recorded.suite
    if then is None or not recorded.scores:
        raise InputError("--scores", f"{path} records no scores", next="Remove the option")
    file = given or (Path(then.file) if then.file else None)
    if file is None or not file.is_file():
        what = f"the suite '{then.name}' is not here" + (f": no file {file}" if file else "")
        raise InputError(f"{path}: {KEY}.suite", what, next="Name its file with --suite")
    watcher.note(f"scored with the tasks of {file}; task files are code")
    return then, load_suite(file)


def _compare_scores(
    found: _Findings,
    recipe: Recipe,
    recorded: Provenance,
    models: Models,
    measured: tuple[RecordedSuite, Suite],
    path: Path,
    watcher: Watcher,
) -> None:
    """Score the merge on every recorded split, if the suite has the recorded items.

    Raises:
        EvosearchError: The merge cannot be scored.
    """
    then, suite = measured
    differing = []
    if suite.digest() != then.digest:
        differing.append(Mismatch("suite", str(suite.source), then.digest, suite.digest()))
    suite = suite.without_teachers()
    harness = Harness(suite)
    batches = {split: harness.batch(split) for split in recorded.scores}
    for split, batch in batches.items():
        now = {items.task: items.digest for items in batch.sets}
        was = then.items.get(split, {})
        differing += [
            Mismatch("items", f"{split}/{task}", was.get(task), now.get(task))
            for task in recorded.scores[split].tasks  # not those without right answers
            if now.get(task) != was.get(task)
        ]
    found.add("items", differing)
    if differing:
        return
    worker = Worker(worker_config(WorkersConfig(), models, suite, recipe.output_dtype), harness=harness)
    for split, batch in batches.items():
        worker.scorer.prepare(batch)
        if split == "test":
            record_reread(batch, f"verify {path}")
            watcher.note("test split: this evaluation is recorded")
        outcome = worker.run(Job(f"verify@{split}", recipe, batch))
        if outcome.card is None:
            assert outcome.failure is not None
            raise EvosearchError(f"{path}: {outcome.failure.stage}: {outcome.failure.reason}")
        card, was_scored = outcome.card, recorded.scores[split]
        assert card.score is not None, "a suite without teachers has right answers"
        found.scores[split] = ScorePair(was_scored.value, card.score)
        found.differences += _changed_scores(split, was_scored, card, batch, path)
    found.compared.append("scores")


def _changed_scores(
    split: str, then: RecordedScore, card: ScoreCard, batch: ItemBatch, path: Path
) -> Iterator[Mismatch]:
    """Yield every item whose metric differs, or the tasks whose means do if the file does not have the items."""
    for items in batch.sets:
        if items.task not in then.tasks:
            continue
        was, name = then.tasks[items.task], f"{split}/{items.task}"
        now = card.tasks[items.task]
        if was.metric != now.metric:
            yield Mismatch("score", f"{name} metric", was.metric, now.metric)
        elif items.task in then.values:
            values = _values(then.values[items.task], len(items), f"{path}: {KEY}.scores.{split}.values.{items.task}")
            for doc_id, one, other in zip(items.doc_ids, values, card.columns[items.task][now.metric], strict=True):
                if not math.isclose(one, float(other), abs_tol=CLOSE):
                    yield Mismatch("item", f"{name} document {doc_id}", f"{one:g}", f"{float(other):g}")
        elif not math.isclose(was.value, now.value, abs_tol=CLOSE):
            yield Mismatch("score", f"{name} {was.metric}", f"{was.value:.6f}", f"{now.value:.6f}")


def _values(text: str, count: int, where: str) -> tuple[float, ...]:
    """Return the recorded values of items.

    Raises:
        RecipeError: They are damaged.
    """
    try:
        found = unpack(text)
    except ValueError as exc:
        raise RecipeError(where, f"cannot be read: {exc}", next="Export the recipe again") from None
    if len(found) != count:
        raise RecipeError(where, f"{len(found)} values for {count} items", next="Export the recipe again")
    return found
