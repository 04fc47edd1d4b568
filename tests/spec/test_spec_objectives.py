"""A search with two objectives, end to end: reported, replayed, shown; and the objectives that a spec may name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from evosearch.cli.main import app
from evosearch.errors import InputError
from evosearch.reporting.leaderboard import leaderboard
from evosearch.reporting.pareto_table import pareto_rows
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.pareto import dominates
from evosearch.search.progress import Silent
from evosearch.service.run import run
from evosearch.setup.prepare import prepare
from evosearch.spec.spec import load_spec

World = Callable[..., Path]
OPTIMIZER = {"name": "nsga2", "population": 4, "seed": 1}
CHANGES: dict[str, Any] = {
    "optimizer": OPTIMIZER,
    "objectives": ["choice", "generate"],
    "budget": {"candidates": 12},
    "baselines": {"scales": [0.5]},
}


def events(spec: Path, kind: str) -> list[dict[str, Any]]:
    run_dir = load_spec(spec).run_dir
    with Ledger.open(run_dir.ledger, read_only=True) as ledger:
        info = ledger.search_by_name(run_dir.name)
        assert info is not None
        return [event.payload for event in ledger.events(info.search_id) if event.type == kind]


def test_the_optimizer_gets_each_objective_and_the_search_ends_with_a_pareto_set(world: World) -> None:
    spec = world(name="two", **CHANGES)
    report = run(spec, Silent())
    cards = {payload["candidate"]: payload for payload in events(spec, "scored") if payload["split"] == "search"}
    seen = {told["candidate"]: told for payload in events(spec, "told") for told in payload["observations"]}
    assert len(seen) == 12
    for name, told in seen.items():
        original = next(p["duplicate_of"] for p in events(spec, "asked") if p["candidate"] == name) or name
        card = cards[original]
        assert told["objectives"] == [card["task_fitness"]["choice"], card["task_fitness"]["generate"]]
        # the fitness of this suite is the mean of the tasks' log-probabilities
        assert told["value"] == pytest.approx(sum(one["value"] for one in told["objectives"]) / 2)
        assert all(one["n"] == 8 and one["stderr"] > 0 for one in told["objectives"])
    rows = leaderboard(load_spec(spec).run_dir).rows
    values = {name: tuple(one["value"] for one in told["objectives"]) for name, told in seen.items()}
    undominated = {name for name, one in values.items() if not any(dominates(other, one) for other in values.values())}
    assert {row.candidate for row in rows if row.pareto} == undominated
    assert 1 <= len(undominated) < 12
    assert all(row.pareto is None and row.objectives == {} for row in rows if row.kind != "candidate")
    found = report.pareto
    assert {one.candidate for one in found} <= undominated
    assert [one.objectives["choice"].value for one in found] == sorted(
        (one.objectives["choice"].value for one in found), reverse=True
    )
    assert report.finalists[0].candidate in cards  # chosen by fitness


def test_a_stopped_search_resumes_exactly(world: World) -> None:
    whole, cut = world(name="whole", **CHANGES), world(name="cut", **(CHANGES | {"budget": {"candidates": 6}}))
    run(whole, Silent())
    run(cut, Silent())
    run(world(name="cut", **CHANGES), Silent())
    asked = [[payload["genome"] for payload in events(spec, "asked")] for spec in (whole, cut)]
    assert asked[0] == asked[1]
    told = [
        [(one["candidate"], one["objectives"]) for payload in events(spec, "told") for one in payload["observations"]]
        for spec in (whole, cut)
    ]
    assert told[0] == told[1]


def test_on_minibatches_each_objective_is_corrected_by_the_baselines(world: World) -> None:
    spec = world(name="parts", search_minibatches=2, **CHANGES)
    run(spec, Silent())
    parts = {
        payload["candidate"]: payload for payload in events(spec, "scored") if payload.get("minibatch") is not None
    }
    first = events(spec, "told")[0]["observations"]
    for index, task in enumerate(("choice", "generate")):
        shifts = [
            told["objectives"][index]["value"] - parts[told["candidate"]]["task_fitness"][task]["value"]
            for told in first
        ]
        assert shifts == pytest.approx([shifts[0]] * len(shifts))  # one correction for all of a generation
        assert shifts[0] != 0.0
    assert any(row.pareto for row in leaderboard(load_spec(spec).run_dir).rows)


def test_the_set_is_shown_on_the_command_line_and_on_a_page(world: World, tmp_path: Path) -> None:
    spec, page = world(name="shown", **CHANGES), tmp_path / "pareto.html"
    run(spec, Silent())
    found = leaderboard(load_spec(spec).run_dir)
    members = [one.candidate for one in pareto_rows(found.rows)]
    shown = CliRunner().invoke(app, ["leaderboard", str(spec), "--page", str(page)], env={"COLUMNS": "140"})
    assert shown.exit_code == 0, shown.output
    table = shown.output[shown.output.index("Pareto set") :].splitlines()
    header = next(index for index, line in enumerate(table) if line.split()[:1] == ["candidate"])  # the title may wrap
    assert table[header].split() == ["candidate", "choice", "generate", "score", "fitness"]
    assert [line.split()[0] for line in table[header + 1 : header + 1 + len(members)]] == [
        f"#{name}" for name in members
    ]
    text = page.read_text()
    assert text.count('class="set"') == len(members)  # each recipe once
    assert "<script" not in text
    assert "http" not in text
    rows = CliRunner().invoke(app, ["leaderboard", str(spec), "--json"])
    assert {row["candidate"] for row in json.loads(rows.stdout)["rows"] if row["pareto"]} >= set(members)


def test_a_page_of_a_search_with_one_objective_is_refused(world: World, tmp_path: Path) -> None:
    spec = world(name="one", budget={"candidates": 6})
    run(spec, Silent())
    shown = CliRunner().invoke(app, ["leaderboard", str(spec), "--page", str(tmp_path / "p.html")])
    assert isinstance(shown.exception, InputError)
    assert "--page: 'one' has no Pareto set: it has one objective" in str(shown.exception)
    assert all(row.pareto is None for row in leaderboard(load_spec(spec).run_dir).rows)


def test_a_search_without_objectives_keeps_its_id(world: World) -> None:
    assert "objectives" not in load_spec(world(name="plain")).identity()
    assert load_spec(world(name="several", **CHANGES)).identity()["objectives"] == ["choice", "generate"]


@pytest.mark.parametrize(
    ("objectives", "said"),
    [
        (["choice"], r"objectives: .*at least 2"),
        (["choice", "generate", "score", "fitness", "choice"], r"objectives: .*at most 4"),
        (["choice", "choice"], r"objectives\[1\]: 'choice' is given twice"),
        (
            ["choice", "genrate"],
            r"objectives\[1\]: unknown objective 'genrate'.*choice, generate.*Did you mean 'generate'",
        ),
        (["choice", "hops"], r"objectives\[1\]: 'hops' is the length of a route, and the recipe is a merge"),
        (["choice", "beside"], r"objectives\[1\]: 'beside' is report_only.*Add a guard"),
    ],
)
def test_objectives_that_cannot_be_measured_are_refused(world: World, objectives: list[str], said: str) -> None:
    path = world(name="wrong")
    suite = yaml.safe_load((path.parent / "suite.yaml").read_text())
    suite["tasks"].append({"task": "w_choice", "name": "beside", "metric": "acc", "report_only": True})
    (path.parent / "suite_beside.yaml").write_text(yaml.safe_dump(suite))
    with pytest.raises(InputError, match=said):
        load_spec(world(name="wrong", suite="suite_beside.yaml", **(CHANGES | {"objectives": objectives})))


def test_an_optimizer_of_one_objective_is_refused(world: World) -> None:
    spec = world(name="cma", **(CHANGES | {"optimizer": {"name": "cma_es"}}))
    with pytest.raises(
        InputError, match=r"cma.yaml: optimizer.name: cma_es takes one objective, but the spec has 2.*nsga2"
    ):
        prepare(load_spec(spec), Silent())
