"""`evosearch report`: where it writes, what it refuses, and its copy in MLflow."""

import json
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evosearch.reporting.page.contents import Bullets, Chart
from evosearch.reporting.page.facts import Facts
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.progress import Silent
from evosearch.service.report_losses import losses_section
from evosearch.service.report_page import log_page
from evosearch.service.run import run
from evosearch.setup.loading import read_search
from evosearch.spec.spec import load_spec

World = Callable[..., Path]
Command = Callable[..., tuple[int, str, str]]
SMALL: dict[str, Any] = {"budget": {"candidates": 4}, "optimizer": {"name": "random"}, "promotion": {"finalists": 1}}


def test_the_command_writes_the_page_and_says_where(
    world: World, evosearch: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = world(**SMALL)
    run(spec, Silent())
    code, out, err = evosearch("report", "world")
    page = load_spec(spec).run_dir.folder / "report.html"
    assert (code, out) == (0, f"wrote {page}\n"), err
    first = page.read_text()
    assert first.startswith("<!doctype html>")
    assert page.stat().st_mode & 0o077 == 0

    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: bool(opened.append(url)))
    other = tmp_path / "other.html"
    code, out, err = evosearch("report", spec, "-o", other, "--open", "--json")
    found = json.loads(out)
    assert code == 0
    assert opened == [other.as_uri()]
    assert "no browser was found" in err
    assert (found["search"], found["out"], found["bytes"]) == ("world", str(other), other.stat().st_size)


def test_weights_are_compared_on_request_and_only_those_of_the_search(
    world: World, evosearch: Command, tmp_path: Path
) -> None:
    spec = world(**SMALL)
    run(spec, Silent())
    out = tmp_path / "page.html"
    code, _, err = evosearch("report", spec, "-o", out, "--analyze")
    assert code == 0, err
    page = out.read_text()
    assert "Size of the change, ‖τ‖ / ‖θ₀‖" in page
    assert "Sign conflicts and cosines" in page
    (spec.parent / "expert1").unlink()
    (spec.parent / "expert1").symlink_to((spec.parent / "expert2").resolve())
    before = out.stat().st_mtime_ns
    code, _, err = evosearch("report", spec, "-o", out, "--analyze")
    assert code == 2
    assert "weights have changed since the search" in err
    assert out.stat().st_mtime_ns == before


def test_losses_between_the_models_are_those_that_the_search_measured(
    world: World, evosearch: Command, tmp_path: Path
) -> None:
    spec = world(**SMALL)
    suite = spec.parent / "suite.yaml"
    suite.write_text(f"{suite.read_text()}fitness: gold_logprob\n")
    run(spec, Silent())
    out = tmp_path / "page.html"
    code, _, err = evosearch("report", spec, "-o", out, "--losses")
    assert code == 0, err
    run_dir = load_spec(spec).run_dir
    with Ledger.open(run_dir.ledger, read_only=True) as ledger:
        facts = Facts.read(ledger, read_search(ledger, run_dir)[0])
        section = losses_section(ledger, facts.search_id, Silent())
        ends = [facts.card(name, "search") for name in ("base", str(facts.searched))]
    _, bullets, chart = section.blocks
    assert isinstance(bullets, Bullets)
    assert isinstance(chart, Chart)
    to_winner = chart.data[0]
    assert to_winner["x"] == pytest.approx([index / 10 for index in range(11)])
    losses = [-card.fitness.value for card in ends if card is not None]
    assert [to_winner["y"][0], to_winner["y"][-1]] == pytest.approx(losses, rel=1e-5)
    assert bullets.texts[0].startswith(f"base → #{facts.searched}: barrier ")
    assert bullets.texts[1].startswith("expert1 → expert2: barrier ")
    assert chart.table.rows[0][1] == f"{losses[0]:.4f}"
    assert all(text.split(":")[0] in out.read_text() for text in bullets.texts)

    before = out.read_bytes()
    suite.write_text(suite.read_text().replace("fitness: gold_logprob", "fitness: margin"))
    code, _, err = evosearch("report", spec, "-o", out, "--losses")
    assert code == 2
    assert f"{suite}: the suite is gone, or has changed since the search. Restore it, or leave out --losses" in err
    assert out.read_bytes() == before


def test_bad_input_exits_with_2_and_writes_nothing(world: World, evosearch: Command, tmp_path: Path) -> None:
    code, _, err = evosearch("report", "nothing", "-o", tmp_path / "page.html")
    assert code == 2
    assert "nothing" in err
    assert not (tmp_path / "page.html").exists()
    spec = world(**SMALL)
    run(spec, Silent())
    (tmp_path / "folder").mkdir()
    for out, said in ((tmp_path / "none" / "page.html", "No such file"), (tmp_path / "folder", "it is a folder")):
        code, _, err = evosearch("report", spec, "-o", out)
        assert code == 2
        assert "--output" in err
        assert said in err
    assert list((tmp_path / "folder").iterdir()) == []


def test_the_end_of_a_run_logs_the_page_in_mlflow(world: World, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'store' / 'mlflow.db'}"
    spec = world(**SMALL | {"tracking": {"uri": uri}})
    report = run(spec, Silent())
    client = MlflowClient(tracking_uri=uri)
    experiments = [one.experiment_id for one in client.search_experiments()]
    (found,) = client.search_runs(experiments, f"tags.`evosearch.search_id` = '{report.search_id}'")
    assert "report.html" in [one.path for one in client.list_artifacts(found.info.run_id)]
    page = Path(client.download_artifacts(found.info.run_id, "report.html", str(tmp_path))).read_text()
    assert page.startswith("<!doctype html>")
    assert "points on the test split" in page


def test_a_store_that_fails_is_a_note(world: World, tmp_path: Path) -> None:
    from dataclasses import replace

    spec = world(**SMALL)
    report = run(spec, Silent())
    notes: list[str] = []

    class Notes(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    store = tmp_path / "broken.db"
    store.write_text("no database")
    with Ledger.open(report.ledger, read_only=True) as ledger:
        run_dir = replace(load_spec(spec).run_dir, tracking=f"sqlite:///{store}")
        log_page(run_dir, ledger, report.search_id, Notes())
    assert len(notes) == 1
    assert "the report was not logged" in notes[0]
    assert store.read_text() == "no database"
