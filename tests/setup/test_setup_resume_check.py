"""A killed search resumes as if it had not been killed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evosearch.errors import LedgerError
from evosearch.reporting.report import CandidateCounts
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.progress import Silent
from evosearch.service.run import run
from evosearch.spec.spec import load_spec

World = Callable[..., Path]
# Between two runs of one search: times and workers; the count, which is of all searches; folders (ids follow content).
MAY_DIFFER = ("seconds", "worker", "count", "recipe")


class Killed(BaseException):
    """Simulates SIGKILL: the program does not catch it."""


def record(spec: Path) -> dict[str, list[Any]]:
    """Proposals, scores and reports of a search in order, without times and workers."""
    run_dir = load_spec(spec).run_dir
    with Ledger.open(run_dir.ledger, read_only=True) as ledger:
        info = ledger.search_by_name(run_dir.name)
        assert info is not None
        events = ledger.events(info.search_id)
    kinds = ("baseline", "asked", "scored", "told", "finalist", "test_opened", "gated", "failed")
    found: dict[str, list[Any]] = {kind: [] for kind in kinds}
    for event in events:
        if event.type in found:
            found[event.type].append({key: value for key, value in event.payload.items() if key not in MAY_DIFFER})
    found["scored"].sort(key=lambda payload: (payload["split"], payload["candidate"]))
    return found


@pytest.fixture(scope="module")
def uninterrupted() -> dict[str, Any]:
    return {}


def test_run_records_and_reports(world: World) -> None:
    spec = world()
    report = run(spec, Silent())
    assert report.candidates == CandidateCounts(18, 18, 0, 0)
    assert report.stopped == "candidates"
    assert set(report.baselines) == {"base", "parent:0", "parent:1", "uniform", "scale:0.30", "scale:0.60"}
    found = record(spec)
    assert len(found["asked"]) == 18
    assert [len(told["observations"]) for told in found["told"]] == [6, 6, 6]
    assert len(found["finalist"]) in (2, 3), "two, and the answer unless it is one of them"
    opened = found["test_opened"]
    assert len(opened) == 1
    assert {"base", "parent:0", "parent:1", "uniform"} <= set(opened[0]["candidates"])
    assert len({(payload["candidate"], payload["split"]) for payload in found["scored"]}) == len(found["scored"])
    lines = (load_spec(spec).run_dir.folder / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["seq"] for line in lines] == list(range(1, len(lines) + 1))


# Commits of one uninterrupted run: 1 item sets and start, then baselines, asks, scores, tells, finalists, gate.
@pytest.mark.parametrize(
    ("commit", "before"),
    [
        (2, True),
        (4, False),
        (9, True),
        (10, False),
        (16, True),
        (17, False),
        (27, True),
        (33, False),
        (42, True),
        (47, False),
    ],
)
def test_killed_at_any_commit_it_resumes(
    world: World, uninterrupted: dict[str, Any], commit: int, before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not uninterrupted:
        whole = world(name="whole")
        run(whole, Silent())
        uninterrupted.update(record(whole))
    spec = world(name="killed")
    append, count = Ledger.append, 0

    def dying(self: Ledger, *args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == commit and before:
            raise Killed
        events = append(self, *args, **kwargs)
        if count == commit:
            raise Killed
        return events

    monkeypatch.setattr(Ledger, "append", dying)
    with pytest.raises(Killed):
        run(spec, Silent())
    monkeypatch.setattr(Ledger, "append", append)
    report = run(spec, Silent())
    assert report.candidates.proposed == 18
    assert record(spec) == uninterrupted


def test_finished_search_is_only_read(world: World) -> None:
    spec = world()
    first = run(spec, Silent())
    before = record(spec)
    again = run(spec, Silent())
    assert record(spec) == before
    assert again.candidates.resumed == 18
    assert again.gate == first.gate


def test_larger_budget_continues_the_same_search(world: World) -> None:
    whole = world(name="long", budget={"candidates": 24})
    run(whole, Silent())
    spec = world(name="short", budget={"candidates": 15})
    assert run(spec, Silent()).candidates.proposed == 15
    spec = world(name="short", budget={"candidates": 24})
    assert run(spec, Silent()).candidates.proposed == 24
    genomes = [[payload["genome"] for payload in record(path)["asked"]] for path in (whole, spec)]
    assert genomes[0] == genomes[1]


def test_another_search_under_the_same_name_stops_and_names_the_key(world: World) -> None:
    spec = world(budget={"candidates": 6})
    run(spec, Silent())
    before = record(spec)
    changed = world(budget={"candidates": 6}, optimizer={"name": "cma_es", "population": 6, "sigma": 0.3, "seed": 1})
    with pytest.raises(LedgerError, match=r"optimizer.sigma: this is another search.*0\.2.*0\.3"):
        run(changed, Silent())
    assert record(spec) == before


def test_changed_parent_stops_and_is_named(world: World, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    spec = world(budget={"candidates": 6})
    run(spec, Silent())
    link = spec.parent / "expert2"
    source = link.resolve()
    link.unlink()
    shutil.copytree(source, link)
    tensors = load_file(link / "model.safetensors")
    tensors["model.norm.weight"] += 1.0
    save_file(tensors, link / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LedgerError, match="expert2: its weights changed since this search started"):
        run(spec, Silent())


def test_a_record_that_cannot_be_replayed_stops_or_continues_from_the_best(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evosearch.errors import ReplayError
    from evosearch.search.optimizer_config import create
    from evosearch.service import phases

    run(world(budget={"candidates": 12}), Silent())
    spec = world(budget={"candidates": 24})

    def drifting(config: Any, *args: Any, **kwargs: Any) -> Any:
        """Simulates another build of the optimizer's library, which proposes other genomes from the same seed."""
        return create(config.model_copy(update={"seed": config.seed + 1}), *args, **kwargs)

    monkeypatch.setattr(phases, "create", drifting)
    with pytest.raises(ReplayError, match="--continue-from-best"):
        run(spec, Silent())
    assert len(record(spec)["asked"]) == 12
    report = run(spec, Silent(), continue_from_best=True)
    assert report.candidates.proposed == 24
    found = record(spec)
    assert len({payload["candidate"] for payload in found["asked"]}) == 24
    assert len({(payload["candidate"], payload["split"]) for payload in found["scored"]}) == len(found["scored"])
    assert run(spec, Silent()).candidates.resumed == 24  # the restart itself is replayed
