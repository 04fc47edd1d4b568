"""Consistency checks of a finished search in the ledger, in MLflow's runs and in its model registry.

Every check raises a `SearchError` that names the inconsistent candidates.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evosearch.devcluster.mlflow_rest import Rest
from evosearch.errors import SearchError
from evosearch.search.ledger.events import Event
from evosearch.search.ledger.ledger import Ledger
from evosearch.tracking.metrics import FRACTION, POINTS, readable


def read(url: str, name: str) -> list[Event]:
    """All events of a search; empty if it has not started."""
    with Ledger.open(url) as ledger:
        found = ledger.search_by_name(name)
        return ledger.events(found.search_id) if found else []


def of_type(events: Sequence[Event], *types: str) -> list[dict[str, Any]]:
    """Payloads of all events with one of these types."""
    return [event.payload for event in events if event.type in types]


def unanswered(events: Sequence[Event]) -> set[str]:
    """Candidates and baselines that have no result on `search` yet, queued or running."""
    begun = {payload["candidate"] for payload in of_type(events, "asked", "baseline") if not _needs_none(payload)}
    answers = of_type(events, "scored", "failed")
    return begun - {answer["candidate"] for answer in answers if answer["split"] == "search"}


def check_ledger(events: Sequence[Event], candidates: int) -> str:
    """Check that no candidate is lost or recorded twice, and that the job of the lost node was retried.

    Returns:
        A summary of the results.

    Raises:
        SearchError: A check failed.
    """
    proposed = of_type(events, "asked")
    if len(proposed) != candidates or len({payload["candidate"] for payload in proposed}) != candidates:
        raise SearchError(f"{len(proposed)} candidates were proposed, not {candidates}")
    if lost := unanswered(events):
        raise SearchError(f"lost: {', '.join(sorted(lost))} have no result")
    answers = of_type(events, "scored", "failed")
    times = Counter((answer["candidate"], answer["split"], answer.get("minibatch")) for answer in answers)
    if twice := [key for key, count in times.items() if count > 1]:
        raise SearchError(f"recorded twice: {twice}")
    if failed := of_type(events, "failed"):
        raise SearchError(f"failed: {[(one['candidate'], one['reason']) for one in failed]}")
    reported = [one["candidate"] for payload in of_type(events, "told") for one in payload["observations"]]
    if sorted(reported) != sorted(payload["candidate"] for payload in proposed):
        raise SearchError(f"reported to the optimizer: {sorted(reported)}, not the proposed candidates")
    retried = of_type(events, "retried")
    if not retried:
        raise SearchError("no 'retried' event for the candidate whose node was lost")
    reasons = sorted({f"{one['candidate']}: {one['reason']}" for one in retried})
    return f"{len(answers)} results, none lost, none duplicated; retried: {'; '.join(reasons)}"


def check_mirror(rest: Rest, experiment: str, events: Sequence[Event]) -> str:
    """Check that MLflow has one run per candidate, with the same scores as the ledger, rounded."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for run in rest.runs(experiment):
        tags = {tag["key"]: tag["value"] for tag in run["data"].get("tags", ())}
        if "recipe_id" in tags:  # otherwise it is the run of the search itself
            runs.setdefault(tags["candidate_id"], []).append(run)
    ours = {payload["candidate"] for payload in of_type(events, "asked", "baseline")}
    if runs.keys() != ours or any(len(found) > 1 for found in runs.values()):
        missing, unknown = sorted(ours - runs.keys()), sorted(runs.keys() - ours)
        twice = sorted(name for name, found in runs.items() if len(found) > 1)
        counts = f"{len(runs)} candidates in MLflow, {len(ours)} in the ledger"
        raise SearchError(f"{counts}; missing {missing[:9]}, unknown {unknown[:9]}, duplicated {twice[:9]}")
    scored = of_type(events, "scored")
    for payload in scored:
        (run,) = runs[payload["candidate"]]
        metrics = {metric["key"]: metric["value"] for metric in run["data"].get("metrics", ())}
        values = {"score": (payload["score"], POINTS), "fitness": (payload["fitness"]["value"], FRACTION)}
        for name, (exact, decimals) in values.items():
            value = None if exact is None else readable(exact, decimals)
            if (mirrored := metrics.get(f"{payload['split']}/{name}")) != value:
                what = f"candidate {payload['candidate']}, {payload['split']}/{name}"
                raise SearchError(f"{what}: {mirrored} in MLflow, {value} in the ledger")
    return f"{len(runs)} runs, {len(scored)} scores equal to the ledger's"


def check_registry(rest: Rest, name: str, events: Sequence[Event]) -> str:
    """Check that the promoted candidate is the registered champion and has a recipe artifact."""
    promoted = of_type(events, "promoted")
    if not promoted:
        raise SearchError(f"nothing was promoted: {of_type(events, 'gated', 'stopped')}")
    (winner,) = {payload["candidate"] for payload in promoted}
    aliases = rest.get("registered-models/get", name=name)["registered_model"].get("aliases", ())
    champion = {alias["alias"]: alias["version"] for alias in aliases}.get("champion")
    if champion is None:
        raise SearchError(f"registered model '{name}' has no alias 'champion'")
    version = rest.get("model-versions/get", name=name, version=champion)["model_version"]
    tags = {tag["key"]: tag["value"] for tag in version.get("tags", ())}
    if tags.get("candidate_id") != winner:
        raise SearchError(f"the champion is candidate {tags.get('candidate_id')}, but {winner} was promoted")
    listed = rest.get("artifacts/list", run_id=version["run_id"], path="model")
    files = {Path(file["path"]).name for file in listed.get("files", ())}
    if "recipe.yaml" not in files:
        raise SearchError(f"the champion has no recipe.yaml, only {sorted(files)}")
    return f"version {champion} of '{name}' is champion: candidate {winner}"


def _needs_none(payload: dict[str, Any]) -> bool:
    """Return whether an event needs no result: that of a duplicate candidate or a skipped baseline."""
    return payload.get("duplicate_of") is not None or bool(payload.get("skipped"))
