"""The HTML report: content of every section from real small searches, escaping, no network, missing parts."""

import json
import re
import shutil
import subprocess
from base64 import b64encode
from collections.abc import Callable
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from evosearch.reporting.page.contents import Chart, Code, Section, Table
from evosearch.reporting.page.facts import Facts
from evosearch.reporting.page.figures import label
from evosearch.reporting.page.forest import ALL, leads
from evosearch.reporting.page.sections import sections
from evosearch.reporting.page.write import NOT_OPENED, NOT_SCORED, page_of
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.progress import Silent
from evosearch.service.run import run
from evosearch.spec.spec import load_spec
from tests.early_ledger import EarlyLedger

World = Callable[..., Path]
KEYS = ["verdict", "lead", "curve", "splits", "coefficients", "route", "importance", "weights", "losses"]
KEYS += ["front", "guards", "spending", "failures", "recipe", "reproduce"]
ROUTE = {"search": True, "models": ["./expert1", "./expert2"], "repeats": 1, "max_hops": 5, "encoding": "threshold"}
TENSORS = {"low": 0.0, "high": 1.5, "per": "tensor"}
KINDS: dict[str, dict[str, Any]] = {
    "gradient": {
        "recipe": {
            "merge_method": "task_arithmetic",
            "base_model": "./base",
            "models": [{"model": f"./expert{i}", "parameters": {"weight": TENSORS}} for i in (1, 2)],
        },
        "optimizer": {"name": "gradient", "population": 2, "batch": 6, "rate": 0.1},
        "budget": {"candidates": 8},
    },
    "objectives": {
        "objectives": ["choice", "generate"],
        "optimizer": {"name": "nsga2", "population": 6, "seed": 1},
        "budget": {"candidates": 48},
    },
    "route": {
        "recipe": {"routing": ROUTE},
        "optimizer": {"name": "random", "seed": 1},
        "baselines": {"base_model": "./base"},
        "budget": {"candidates": 4},
    },
}


class Page(HTMLParser):
    """Tags with their attributes, and the text of scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script" and self.cdata_elem == "script":
            self.scripts[-1] += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def guarded(folder: Path) -> str:
    suite = yaml.safe_load((folder / "suite.yaml").read_text())
    suite["guards"] = [{"task": "generate", "max_drop": 30.0}]
    (folder / "guarded.yaml").write_text(yaml.safe_dump(suite, sort_keys=False))
    return "guarded.yaml"


def made(spec: Path) -> tuple[dict[str, Section], Facts, str]:
    """Return the sections, the facts and the page of a finished search; its ledger is read, and nothing else."""
    run_dir = load_spec(spec).run_dir
    with Ledger.open(run_dir.ledger, read_only=True) as ledger:
        info = ledger.search_by_name(run_dir.name)
        assert info is not None
        facts = Facts.read(ledger, info.search_id)
        found = sections(facts, (NOT_OPENED, NOT_SCORED))
        return {section.key: section for section in found}, facts, page_of(ledger, info.search_id)


def text_of(section: Section) -> str:
    """Return the texts of a section, those of tables and charts included."""
    return json.dumps([vars(block) for block in section.blocks], default=str, ensure_ascii=False)


def charts(section: Section) -> list[Chart]:
    return [block for block in section.blocks if isinstance(block, Chart)]


@pytest.fixture(scope="module")
def kept() -> dict[str, Any]:
    return {}


@pytest.fixture
def small(world: World, kept: dict[str, Any]) -> tuple[dict[str, Section], Facts, str]:
    """A search with a guard, made once, and read after its models are gone."""
    if not kept:
        spec = world(suite=guarded(world().parent), budget={"candidates": 48})
        run(spec, Silent())
        for model in ("base", "expert1", "expert2"):
            (spec.parent / model).unlink()
        kept["made"] = made(spec)
    found: tuple[dict[str, Section], Facts, str] = kept["made"]
    return found


# --- one search ---


def test_sections_are_in_order_and_on_the_page(small: tuple[dict[str, Section], Facts, str]) -> None:
    found, _, page = small
    assert list(found) == KEYS
    ids = [attributes["id"] for attributes in Page(page).named("section")]
    links = [attributes["href"] for attributes in Page(page).named("a")]
    assert ids == KEYS
    assert {f"#{key}" for key in KEYS} <= set(links)


def test_the_verdict_has_the_gates_figures(small: tuple[dict[str, Section], Facts, str]) -> None:
    found, facts, page = small
    text = text_of(found["verdict"])
    decision = facts.decision
    assert decision is not None
    assert f"{facts.state.score(decision.winner, 'test'):.1f} points on the test split" in text
    own = [one for one in decision.comparisons if one.challenger == decision.winner]
    parent = min((one for one in own if one.role == "parent"), key=lambda one: one.difference)
    within = f"(95% interval of the lead {parent.lower:+.1f} to {parent.upper:+.1f})"
    assert f"by {abs(parent.difference):.1f} points {within}" in text
    assert ("leads the best parent" in text) == (parent.difference >= 0)
    assert ("Promoted: " in text) == (decision.promoted is not None)
    assert ("is not clearly better than" in text) == (not all(one.beats for one in own))
    assert "This test set has been opened" in page
    assert "parent:0" not in text, "models have names"
    assert "48 candidates proposed by cma_es" in text


def test_leads_are_those_of_the_gate(small: tuple[dict[str, Section], Facts, str]) -> None:
    found, facts, _ = small
    (chart,) = charts(found["lead"])
    assert facts.decision is not None
    names = {facts.label(name) for name in facts.comparators("test")}
    assert {"base", "parent expert1", "parent expert2", "uniform average"} <= names
    recorded = {one.comparator: one for one in facts.decision.comparisons if one.challenger == facts.decision.winner}
    rows = {(row[0], row[1]): row for row in chart.table.rows}
    assert {task for task, _ in rows} == {ALL, "choice", "generate"}
    for name, one in recorded.items():
        assert rows[ALL, facts.label(name)][4] == f"{one.difference:+.1f} [{one.lower:+.1f}, {one.upper:+.1f}]"
    assert ("choice", "ensemble of all parents") in rows
    assert ("generate", "ensemble of all parents") not in rows
    assert "left out for generate" in text_of(found["lead"])


def test_the_curve_ends_at_all_items_and_has_the_baselines(small: tuple[dict[str, Section], Facts, str]) -> None:
    found, facts, _ = small
    (chart,) = charts(found["curve"])
    proposed = [name for name, one in facts.state.candidates.items() if one.duplicate_of is None]
    spent = sum(facts.state.cards[name, "search"].items for name in proposed if (name, "search") in facts.state.cards)
    dots = next(trace for trace in chart.data if trace["name"] == "candidates")
    assert dots["x"][-1] == spent
    best = next(trace for trace in chart.data if trace["name"] == "best so far")
    assert best["y"] == sorted(best["y"])
    assert best["y"][-1] == pytest.approx(max(dots["y"]))
    lines = [trace["name"] for trace in chart.data if trace.get("mode") == "lines"]
    assert any(name.startswith("best parent expert") for name in lines)
    assert any(name.startswith("uniform average") for name in lines)


def test_splits_show_every_finalist_and_the_worth_of_picking(small: tuple[dict[str, Section], Facts, str]) -> None:
    found, facts, _ = small
    (chart,) = charts(found["splits"])
    assert {label(facts.label(row.candidate)) for row in facts.board.finalists} <= {one["name"] for one in chart.data}
    worth = re.search(
        r"Picking the best of (\d+) candidates by 16 items is worth ([\d.]+) points", text_of(found["splits"])
    )
    assert worth
    assert int(worth[1]) > 10
    assert 0.0 < float(worth[2]) < 100.0


def test_coefficients_are_those_of_the_recipe_at_every_layer(small: tuple[dict[str, Section], Facts, str]) -> None:
    found, facts, _ = small
    (chart,) = charts(found["coefficients"])
    assert facts.searched is not None
    assert [row[0] for row in chart.table.rows] == ["expert1", "expert2"]
    genome = facts.state.proposal(facts.searched).genome
    for index, row in enumerate(chart.table.rows):
        wanted = [genome[f"models[{index}].weight[group {group}]"] for group in (0, 0, 1)]
        inside = [cell for cell, name in zip(row, chart.table.headings, strict=True) if name.startswith("layer ")]
        assert inside == [f"{float(value):.3g}" for value in wanted]


def test_the_importance_of_dimensions_sums_to_one(small: tuple[dict[str, Section], Facts, str]) -> None:
    found, facts, _ = small
    chart = charts(found["importance"])[0]
    names = {
        name.replace(f"models[{n}]", f"expert{n + 1}") for name in facts.state.proposal("0").genome for n in (0, 1)
    }
    assert {row[0] for row in chart.table.rows} == {name for name in names if name.startswith("expert")}
    assert sum(float(row[1]) for row in chart.table.rows) == pytest.approx(1.0, abs=1e-3)


def test_slices_have_every_candidate_and_the_winner(small: tuple[dict[str, Section], Facts, str]) -> None:
    found, facts, _ = small
    chart = charts(found["importance"])[1]
    told = {
        name: one.fitness.value
        for name, one in facts.state.reported.items()
        if one.fitness is not None and facts.state.candidates[name].duplicate_of is None
    }
    panels = [trace for trace in chart.data if len(trace["x"]) > 1]
    assert len(panels) == len(facts.state.proposal("0").genome)
    for trace in panels:
        assert sorted(trace["y"]) == pytest.approx(sorted(told.values()), rel=1e-5)
    marks = [trace for trace in chart.data if len(trace["x"]) == 1]
    assert facts.searched is not None
    assert {trace["x"][0] for trace in marks} == set(facts.state.proposal(facts.searched).genome.values())
    titles = [axis["title"]["text"] for key, axis in chart.layout.items() if key.startswith("xaxis")]
    assert facts.label(facts.searched) in chart.title, "what the star is"
    assert {row[0] for row in chart.table.rows} == set(titles)
    counts = [int(row[2]) for row in chart.table.rows if row[0] == titles[0]]
    assert sum(counts) == len(told)


def test_guards_time_failures_recipe_and_reproduction(small: tuple[dict[str, Section], Facts, str]) -> None:
    found, facts, page = small
    guards = [block for block in found["guards"].blocks if isinstance(block, Table)]
    assert [row[0] for row in guards[0].rows] == ["generate"]
    assert guards[1].rows[0][-1] in ("yes", "no")
    (time,) = charts(found["spending"])
    assert [row[0] for row in time.table.rows] == ["baselines", "search", "validation", "test"]
    assert sum(int(row[1]) for row in time.table.rows) == len(facts.state.cards)
    assert "every evaluation succeeded" in text_of(found["failures"])
    (code,) = [block for block in found["recipe"].blocks if isinstance(block, Code)]
    assert facts.recipe is not None
    assert yaml.safe_load(code.text) == facts.recipe.to_dict()
    reproduce = text_of(found["reproduce"])
    assert facts.search_id in reproduce
    assert all(sha in reproduce for sha in facts.state.inputs.values())
    assert "has one objective" in text_of(found["front"])
    assert "--analyze" in page


def test_a_page_runs_two_scripts_of_ours_and_fetches_nothing(small: tuple[dict[str, Section], Facts, str]) -> None:
    page = Page(small[2])
    assert not {"img", "link", "iframe", "object", "embed", "base", "form", "source"} & {tag for tag, _ in page.tags}
    assert not any("src" in attributes or "srcset" in attributes for _, attributes in page.tags)
    assert all(str(attributes["href"]).startswith("#") for attributes in page.named("a"))
    style = small[2].partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    kinds = [attributes.get("type") for attributes in page.named("script")]
    running = [text for text, kind in zip(page.scripts, kinds, strict=True) if kind != "application/json"]
    hashes = {b64encode(sha256(text.encode()).digest()).decode() for text in running}
    policy = next(str(one["content"]) for one in page.named("meta") if "http-equiv" in one)
    assert len(running) == 2
    assert set(re.findall(r"'sha256-([^']+)'", policy)) == hashes
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "connect-src" not in policy


def test_every_chart_is_one_that_plotly_accepts_and_has_a_text_alternative(
    small: tuple[dict[str, Section], Facts, str],
) -> None:
    import plotly.graph_objects as go

    drawn = [chart for section in small[0].values() for chart in charts(section)]
    page = Page(small[2])
    boxes = [one for one in page.named("div") if one.get("class") == "chart"]
    assert len(boxes) == len(drawn) == 7
    for chart, box in zip(drawn, boxes, strict=True):
        go.Figure(list(chart.data), chart.layout)  # raises for a key or a value that Plotly does not have
        assert box["role"] == "img"
        assert box["aria-label"] == chart.summary
        assert len(chart.table.rows) > 0
    figures = [one for one in page.named("script") if one.get("class") == "figure"]
    assert [one["data-box"] for one in figures] == [box["id"] for box in boxes]


def test_a_browser_draws_every_chart_under_the_policy(
    small: tuple[dict[str, Section], Facts, str], tmp_path: Path
) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium is installed")
    page = tmp_path / "page.html"
    page.write_text(small[2])
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    options += ["--enable-logging=stderr", "--virtual-time-budget=10000", "--dump-dom"]
    shown = subprocess.run([browser, *options, page.as_uri()], capture_output=True, text=True, timeout=300)
    drawn = Page(shown.stdout)
    boxes = [one for one in drawn.named("div") if "chart" in str(one.get("class")).split()]
    assert len(boxes) == 7
    assert all("js-plotly-plot" in str(box["class"]).split() for box in boxes), "a chart was not drawn"
    console = [line for line in shown.stderr.splitlines() if "CONSOLE" in line]
    assert console == [], "neither an error of a script nor a violation of the policy"


# --- other kinds of search ---


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_of_search_have_their_parts(kind: str, world: World) -> None:
    spec = world(kind, **KINDS[kind])
    run(spec, Silent())
    found, facts, page = made(spec)
    assert Page(page).named("section")
    if kind == "gradient":
        assert "Mean over" in text_of(found["importance"])
        (chart,) = charts(found["importance"])
        assert len(chart.table.rows) == len(facts.state.proposal("0").genome)
        maps = charts(found["coefficients"])
        assert facts.searched is not None
        assert [one.title for one in maps] == ["weight of expert1", "weight of expert2"]
        genome = facts.state.proposal(facts.searched).genome
        rows = {row[0]: row for row in maps[1].table.rows}
        q_proj = next(row for name, row in rows.items() if name.endswith("q_proj"))
        layers = [heading.startswith("layer ") for heading in maps[1].table.headings]
        shown = [cell for cell, inside in zip(q_proj, layers, strict=True) if inside]
        assert shown == [f"{float(genome[f'models[1].weight[q_proj {n}]']):.3g}" for n in range(3)]
        ends = [cell for cell in rows["outside of layers"][1:] if cell]
        names = ("embed_tokens", "norm", "lm_head")
        assert sorted(ends) == sorted(f"{float(genome[f'models[1].weight[{end}]']):.3g}" for end in names)
        (curve,) = charts(found["curve"])
        assert "gradient steps" in [trace["name"] for trace in curve.data]
    if kind == "objectives":
        (chart,) = charts(found["front"])
        members = [row for row in facts.board.rows if row.pareto]
        assert len(chart.data[1]["x"]) == len(members)
    if kind == "route":
        (drawn,) = charts(found["route"])
        assert facts.searched_recipe is not None
        assert facts.searched_recipe.routing is not None
        hops = facts.searched_recipe.routing.hops
        assert [row[2] for row in drawn.table.rows] == [str(hop.layer) for hop in hops]
        assert "it is drawn below" in text_of(found["coefficients"])


def test_names_of_models_are_text(world: World) -> None:
    spec = world("evil")
    folder = spec.parent
    name = "expert1 <script>alert(1)<img src=x onerror=alert(2)>"
    (folder / name).symlink_to((folder / "expert1").resolve())
    data = yaml.safe_load(spec.read_text())
    data["recipe"]["models"][0]["model"] = f"./{name}"
    data["budget"] = {"candidates": 6}
    spec.write_text(yaml.safe_dump(data, sort_keys=False))
    run(spec, Silent())
    _, facts, text = made(spec)
    assert any("<script>" in reference for reference in facts.state.inputs)
    page = Page(text)
    assert not page.named("img")
    kinds = [attributes.get("type") for attributes in page.named("script")]
    assert kinds.count(None) == 2
    assert "&lt;script&gt;alert(1)" in text
    for script, kind in zip(page.scripts, kinds, strict=True):
        if kind == "application/json":
            assert "<" not in script
            figure = json.loads(script)
            assert "<img" not in json.dumps(figure), "Plotly reads some HTML in labels"


# --- missing parts ---


@pytest.mark.parametrize("until", ["asked", "finalist", "gated"])
def test_a_search_that_has_not_ended_has_a_page(until: str, world: World, tmp_path: Path) -> None:
    spec = world("short", budget={"candidates": 6})
    run(spec, Silent())
    run_dir = load_spec(spec).run_dir
    with Ledger.open(run_dir.ledger, read_only=True) as ledger:
        info = ledger.search_by_name("short")
        assert info is not None
        events = ledger.events(info.search_id)
        end = next(event.seq for event in events if event.type == until)
        early = EarlyLedger(ledger, end)
        page = page_of(early, info.search_id)  # type: ignore[arg-type]
        facts = Facts.read(early, info.search_id)  # type: ignore[arg-type]
        found = {section.key: text_of(section) for section in sections(facts, (NOT_OPENED, NOT_SCORED))}
        assert bool(leads(facts)[0]) == (until != "asked")
    assert [attributes["id"] for attributes in Page(page).named("section")] == KEYS
    if until == "asked":
        assert "No candidate of short has a score yet" in found["verdict"]
        for key in ("lead", "splits", "coefficients", "importance", "recipe"):
            assert "eft out" in found[key], key
    else:
        assert "The search has not ended: in the lead is #" in found["verdict"] or until == "gated"
        assert f"the {facts.split} split" in found["lead"]
