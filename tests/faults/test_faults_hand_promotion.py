"""Promotions by hand in a real registry: they hold until the gate or a person decides otherwise."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evosearch.cli import promote as command
from evosearch.errors import InputError
from evosearch.search.progress import Silent
from evosearch.service.hand_promotion import force_promotion, promote_version
from evosearch.service.run import run
from evosearch.tracking.client import connect
from evosearch.tracking.model_registry import Registry

World = Callable[..., Path]


def test_a_forced_champion_and_the_way_back(planted: World, server: Any, tmp_path: Path) -> None:
    uri = server.another_store(tmp_path / "store")
    spec = planted("first", tracking={"uri": uri}, promotion={"finalists": 1, "register_as": "night"})
    report = run(spec, Silent())
    assert report.promoted
    assert report.winner is not None
    client, registry = connect(uri), Registry(uri)
    described = client.get_model_version("night", "1").description
    assert f"**{report.winner.title}** of the search **first**." in described
    assert "score on test:" in described
    assert all(reason in described for reason in report.gate.reasons) if report.gate else False
    assert report.mlflow is not None
    assert report.mlflow.startswith("http://127.0.0.1:5000/#/experiments/")

    other = next(row.candidate for row in report.leaderboard if row.kind == "base")
    forced = force_promotion(str(spec), other, "needed today", None, Silent())
    assert (forced.version, forced.before, forced.candidate) == ("2", "1", "base")
    found = client.get_model_version("night", "2")
    assert found.tags["reason"] == "needed today"
    champion = registry.champion("night")
    assert champion is not None
    assert (champion.version, champion.candidate) == ("2", "base")

    run(spec, Silent())  # changes nothing, since nothing new was decided
    again = registry.champion("night")
    assert again is not None
    assert again.version == "2"

    back = promote_version(str(spec), "1", "as before", None)
    assert (back.version, back.before) == ("1", "2")
    restored = registry.champion("night")
    assert restored is not None
    assert restored.candidate == report.winner.candidate


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "neither --to nor --force"),
        ({"to": "1", "force": True}, "both --to and --force"),
        ({"force": True}, "got no reason"),
        ({"force": True, "reason": " "}, "got no reason"),
        ({"to": "1", "candidate": "3"}, "given without --force"),
    ],
)
def test_options_that_name_no_promotion_are_refused(options: dict[str, Any], said: str) -> None:
    given = {"to": None, "force": False, "reason": None, "candidate": None} | options
    with pytest.raises(InputError, match=said):
        command._check(**given)
