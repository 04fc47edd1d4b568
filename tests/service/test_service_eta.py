"""The ETA that a run prints once its first baselines are scored."""

import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from evosearch.search.progress import Progress, Silent
from evosearch.service.run import run

World = Callable[..., Path]


class Heard(Silent):
    """Watcher that keeps notes, with the stage of progress at the time."""

    def __init__(self) -> None:
        self.stage, self.notes = "", list[tuple[str, str]]()

    def update(self, progress: Progress) -> None:
        self.stage = progress.stage

    def note(self, text: str) -> None:
        self.notes.append((self.stage, text))


@pytest.mark.parametrize("parts", [None, 2])
def test_a_run_prints_its_eta_and_price_once(world: World, parts: int | None) -> None:
    workers = {"executor": "local", "threads": 1, "price_per_hour": 3600.0}
    spec = world(workers=workers, **({"search_minibatches": parts} if parts else {}))
    heard = Heard()
    began = datetime.now().astimezone()
    run(spec, heard)
    told = [(stage, text) for stage, text in heard.notes if "candidates per hour" in text]
    assert len(told) == 1
    stage, text = told[0]
    assert stage == "baselines"
    found = re.fullmatch(r"about ([\d,]+) candidates per hour with 1 worker: (.+), until (\S+ \S+), for (.+)", text)
    assert found
    assert re.fullmatch(r"(\d+ h )?(\d+ min)?( ?[\d.]+ s)?", found[2]), "no 0.0 hours"
    rate, price = float(found[1].replace(",", "")), float(found[4])
    assert rate > 0
    assert price >= 18 * 3600.0 / rate * 0.99, "eighteen candidates, and what comes before and after them"
    assert (
        datetime.fromisoformat(found[3]).astimezone() - began
    ).total_seconds() >= price - 1.0  # an hour costs as many as it has seconds


def test_a_run_that_has_all_its_scores_prints_no_eta(world: World) -> None:
    spec = world()
    run(spec, Silent())
    heard = Heard()
    run(spec, heard)
    assert not [text for _, text in heard.notes if "candidates per hour" in text]
