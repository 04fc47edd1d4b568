"""Registered versions: description, tags, rollback and forced promotions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evosearch.errors import TrackingError
from evosearch.evaluation.statistics.intervals import Interval
from evosearch.tracking.client import connect, find_runs
from evosearch.tracking.mlflow import MlflowMirror, Registry
from evosearch.tracking.version_texts import VersionTexts

NewStore = Callable[[str], str]
Story = Any  # conftest.Story
LONG_S = 400.0


def texts(story: Story, **more: Any) -> VersionTexts:
    scores = {"test": Interval(54.216, 1.6, 51.0, 57.3, 240)}
    licences = {"zoo:tiny/base": "apache-2.0", "org/other": None}
    return VersionTexts("night", story.search_id, "#2", ("2 beats every comparator.",), scores, licences, **more)


@pytest.fixture
def uri(story: Story, new_store: NewStore) -> str:
    story.all()
    found = new_store("store")
    MlflowMirror(found, "nights", story.url, story.search_id, "night").close(LONG_S)
    return found


@pytest.fixture
def register(story: Story, uri: str, tmp_path: Path) -> Callable[..., str]:
    folder = tmp_path / "artifacts"
    folder.mkdir()
    (folder / "recipe.yaml").write_text("merge_method: linear\n")

    def call(candidate: str, **more: Any) -> str:
        about = {"search_id": story.search_id, "candidate": candidate, "recipe_id": f"id{candidate}"}
        return Registry(uri).register("night", **about, artifact_dir=folder, texts=texts(story, **more))

    return call


def role(uri: str, version: str) -> str:
    client = connect(uri)
    return str(client.get_run(client.get_model_version("night", version).run_id).data.tags["role"])


def test_a_version_says_what_it_is(uri: str, register: Callable[..., str]) -> None:
    assert register("2") == "1"
    client = connect(uri)
    found = client.get_model_version("night", "1")
    experiment = client.get_experiment_by_name("nights").experiment_id
    assert "**#2** of the search **night**." in found.description
    assert "2 beats every comparator." in found.description
    assert "score on test: 54.22 [51.00, 57.30], 240 items" in found.description
    assert "zoo:tiny/base: apache-2.0, org/other: none stated" in found.description
    (own,) = find_runs(client, [experiment], "tags.kind = 'search'")
    training = "?workflowType=machine_learning)"
    for path in (found.run_id, f"{found.run_id}/artifacts/model", f"{own.info.run_id}/artifacts/report.html"):
        assert f"(#/experiments/{experiment}/runs/{path}{training}" in found.description
    assert f"(#/experiments/{experiment}/runs?viewStateShareKey=" in found.description
    assert found.tags["gate"] == "promoted"
    assert found.tags["score/test"] == "54.22 [51.00, 57.30]"
    assert found.tags["title"] == "#2"
    assert "forced" not in found.tags


def test_a_rollback_moves_alias_and_roles(uri: str, register: Callable[..., str]) -> None:
    assert (register("2"), register("4")) == ("1", "2")
    assert (role(uri, "1"), role(uri, "2")) == ("former champion", "champion")
    registry = Registry(uri)
    assert registry.promote("night", "1", "2 was slow") == "2"
    champion = registry.champion("night")
    assert champion is not None
    assert (champion.version, champion.tags["promoted_again"]) == ("1", "2 was slow")
    assert (role(uri, "1"), role(uri, "2")) == ("champion", "former champion")
    with pytest.raises(TrackingError, match=r"--to 7: 'night' has no such version.*Versions: 1, 2"):
        registry.promote("night", "7", "")
    with pytest.raises(TrackingError, match="'day' has no such version"):
        registry.promote("day", "1", "")


def test_a_rollback_needs_no_run(uri: str, register: Callable[..., str]) -> None:
    assert (register("2"), register("4")) == ("1", "2")
    client = connect(uri)
    client.delete_run(client.get_model_version("night", "2").run_id)
    assert Registry(uri).promote("night", "1", "why") == "2"
    assert role(uri, "1") == "champion"


def test_a_forced_promotion_stays_visible(uri: str, register: Callable[..., str]) -> None:
    assert register("4", forced="needed today") == "1"
    found = connect(uri).get_model_version("night", "1")
    assert found.description.startswith("**Promoted by hand against the gate:** needed today")
    assert (found.tags["forced"], found.tags["reason"], found.tags["gate"]) == ("true", "needed today", "overruled")
    assert register("2") == "2"
    assert register("2", forced="again") == "2"  # a version that is there already says so, too
    assert connect(uri).get_model_version("night", "2").tags["reason"] == "again"
    assert connect(uri).get_model_version("night", "1").tags["forced"] == "true"
