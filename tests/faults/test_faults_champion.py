"""Only a model that beats the registered champion replaces it, even if the tracking store was down meanwhile."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from evosearch.promotion.promote import Champion
from evosearch.search.ledger.events import Event
from evosearch.service import run as run_module
from evosearch.service.run import run
from evosearch.setup import trackers
from evosearch.setup.prepare import Prepared
from evosearch.tracking.model_registry import Registry

World = Callable[..., Path]
Events = Callable[[Path], list[Event]]
PROMOTION = {"finalists": 1, "register_as": "night"}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (run_module, trackers):
        monkeypatch.setattr(module, "PATIENCE_S", 1.0)


class Notes:
    """Watcher that collects all notes."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)

    def update(self, *_: Any) -> None: ...

    def preparing(self, *_: Any) -> None: ...

    def close(self) -> None: ...


class Impatient(Notes):
    """Watcher that interrupts the search when the search stage begins."""

    def update(self, progress: Any) -> None:
        if progress.stage == "search":
            raise KeyboardInterrupt


def test_a_champion_that_cannot_be_read_is_neither_compared_nor_replaced(
    planted: World, events: Events, server: Any, tmp_path: Path
) -> None:
    uri = server.another_store(tmp_path / "store")
    first = planted("first", tracking={"uri": uri}, promotion=PROMOTION)
    assert run(first, Notes()).promoted
    registry = Registry(uri)
    champion = registry.champion("night")
    assert champion is not None

    # A weaker champion, from an unknown search: the base model.
    artifacts = tmp_path / "weak"
    artifacts.mkdir()
    recipe = next(
        e.payload["recipe"] for e in events(first) if e.type == "baseline" and e.payload["candidate"] == "base"
    )
    (artifacts / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    own = {"search_id": champion.search_id, "recipe_id": "weak", "artifact_dir": artifacts}
    assert registry.register("night", candidate="base", **own) == "2"

    # While the store is down, the champion is neither compared nor replaced.
    with pytest.raises(KeyboardInterrupt):  # start while the store is up, since a search does not start without it
        run(planted("second", tracking={"uri": uri}, promotion=PROMOTION), Impatient())
    away = {"uri": "http://127.0.0.1:9"}
    notes = Notes()
    second = planted("second", tracking=away, promotion=PROMOTION)
    assert run(second, notes).promoted
    assert any("the current champion of 'night' cannot be read" in note for note in notes.texts)
    gates = [event.payload for event in events(second) if event.type == "gated"]
    assert [c["role"] for gate in gates for c in gate["comparisons"] if c["role"] == "champion"] == []

    # When the store is available again, the gate repeats its decision with the champion: another test opening.
    second = planted("second", tracking={"uri": uri}, promotion=PROMOTION)
    assert run(second, Notes()).promoted
    recorded = events(second)
    gates = [event.payload for event in recorded if event.type == "gated"]
    assert len(gates) == 2
    winner = gates[1]["promoted"]
    against = [c for c in gates[1]["comparisons"] if c["role"] == "champion" and c["challenger"] == winner]
    assert [comparison["beats"] for comparison in against] == [True]
    opened = [event.payload for event in recorded if event.type == "test_opened"]
    assert [("champion" in entry["candidates"]) for entry in opened] == [False, True]
    assert opened[1]["count"] == opened[0]["count"] + 1
    now = registry.champion("night")
    assert now is not None
    assert now.version == "3"

    # Running the first search again changes nothing: the champion comes from the second search.
    notes = Notes()
    assert run(first, notes).promoted
    assert any("the champion of 'night' was promoted later and is kept" in note for note in notes.texts)
    assert registry.champion("night") == now


def test_the_scores_of_an_earlier_champion_are_not_those_of_the_next(
    planted: World, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another search has registered its winner since this one's gate decided, and this one's is not registered yet."""
    spec = planted("night", promotion={"finalists": 1}, budget={"candidates": 6}, baselines={"scales": []})
    parents: list[str] = []

    def run_against(index: int) -> list[Event]:
        def champion(prepared: Prepared, *_: Any) -> Champion:
            baseline = [one for one in prepared.baselines if one.kind == "parent"][index]
            assert baseline.recipe is not None
            parents.append(baseline.name)
            return Champion(baseline.recipe, prepared.models.identify(baseline.recipe))

        monkeypatch.setattr(run_module, "current_champion", champion)
        assert run(spec, Notes()).promoted
        return events(spec)

    run_against(0)
    assert len([e for e in run_against(0) if e.type == "gated"]) == 1, "the same champion: nothing changes"
    recorded = run_against(1)
    cards = {e.payload["candidate"]: e.payload for e in recorded if e.type == "scored" and e.payload["split"] == "test"}
    gates = [e.payload for e in recorded if e.type == "gated"]
    names = [one["comparator"] for gate in gates for one in gate["comparisons"] if one["role"] == "champion"]
    assert names[0] == "champion"
    assert len(set(names)) == len(gates) == 2
    for name, parent in ((names[0], parents[0]), (names[-1], parents[-1])):
        assert cards[name]["score"] == cards[parent]["score"]
        assert cards[name]["recipe_id"] == cards[parent]["recipe_id"]
    assert len([e for e in run_against(1) if e.type == "gated"]) == 2


def test_a_champion_is_compared_by_a_search_in_another_folder(
    planted: World, events: Events, server: Any, tmp_path: Path
) -> None:
    """Its recipe names models relative to where it was exported; they are recognized by their weights."""
    tracking = {"uri": server.another_store(tmp_path / "store")}
    assert run(planted("first", tracking=tracking, promotion=PROMOTION), Notes()).promoted
    spec = planted("second", tracking=tracking, promotion=PROMOTION)
    models = Path(yaml.safe_load(spec.read_text())["recipe"]["base_model"]).parent
    shutil.copytree(models, tmp_path / "another" / "folder")
    spec.write_text(spec.read_text().replace(str(models), str(tmp_path / "another" / "folder")))
    notes = Notes()
    run(spec, notes)
    assert not [note for note in notes.texts if "other models" in note]
    gates = [event.payload for event in events(spec) if event.type == "gated"]
    assert any(one["role"] == "champion" for gate in gates for one in gate["comparisons"])


def test_a_finished_run_does_not_merge_its_winner_again(planted: World, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = planted("done")
    out = Path(run(spec, Notes()).exported["recipe"])
    first = yaml.safe_load(out.read_text())["provenance"]

    def refused(*_: Any) -> None:
        raise AssertionError("merged again")

    monkeypatch.setattr("evosearch.reporting.export.digest_weights", refused)
    assert run(spec, Notes()).promoted
    assert yaml.safe_load(out.read_text())["provenance"] == first
    out.write_text(out.read_text().replace(f"torch: {first['versions']['torch']}", "torch: '0.1'"))
    with pytest.raises(AssertionError, match="merged again"):
        run(spec, Notes())
