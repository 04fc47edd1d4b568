"""`benchmarks.board`: entries, resumable results, the page, and a small board on the built-in models."""

import json
from dataclasses import replace

import pytest
import yaml

from benchmarks.board import __main__ as board
from benchmarks.board import results
from benchmarks.board.cells import Cell
from benchmarks.board.entries import Given, methods, optimizers, problems
from benchmarks.board.page import page
from evosearch.errors import CheckpointError, InputError, LedgerError, Problems, RecipeError, SpecError


@pytest.fixture
def given():
    suite = {"name": "made-up", "include": ["/tasks"], "tasks": [{"task": "a"}, {"task": "b"}]}
    return Given("base", ("one", "two"), suite | {"documents": {"search": 60, "validation": 100, "test": 400}})


def cell(method="per_tensor", optimizer="gradient", problem="zoo-1", seed=3, **changes):
    entries = {"problem": problems()[problem], "method": methods()[method], "optimizer": optimizers()[optimizer]}
    found = Cell(**entries, method_name=method, optimizer_name=optimizer, seed=seed, items=23_040, documents={})
    return replace(found, **changes)


# ---- entries and specs


def test_every_file_is_an_entry_and_its_spec_is_complete(given, tmp_path):
    assert {"zoo-0", "zoo-1", "zoo-2", "sentences", "eight"} <= set(problems())
    assert {"few_numbers", "per_tensor", "no_labels", "few_documents", "controls"} <= set(methods())
    assert {"random", "cma_es", "gradient", "auto"} <= set(optimizers())
    for method in methods():
        for optimizer in optimizers():
            one = cell(method, optimizer)
            file = one.write(given, tmp_path / one.name(given), threads=1)
            spec, suite = (yaml.safe_load((file.parent / name).read_text()) for name in ("spec.yaml", "suite.yaml"))
            assert len(spec["name"]) <= 64
            assert spec["optimizer"]["seed"] == suite["split_seed"] == 3
            assert spec["budget"] == {"items": 23_040}
            assert [model["model"] for model in spec["recipe"]["models"]] == ["one", "two"]


def test_a_method_replaces_what_is_told_and_single_splits(given):
    assert cell("few_documents").suite(given)["documents"] == {"search": 15, "validation": 15, "test": 400}
    assert cell("few_numbers_gold").suite(given)["fitness"] == "gold_logprob"
    few = cell("few_documents", documents={"test": 50}).suite(given)
    assert few["documents"] == {"search": 15, "validation": 15, "test": 50}
    weight = cell("few_numbers").spec(given, None, 1)["recipe"]["models"][0]["parameters"]["weight"]
    assert weight == {"low": 0.0, "high": 1.5, "per": "group", "groups": 3, "ends": "shared"}


def test_estimates_count_search_baselines_validation_and_test(given):
    one = cell()  # base, two experts, uniform, six scales; six finalists, three scales; winner, best scale
    expected = 23_040 + 2 * (60 * (4 + 6) + 100 * (4 + 3 + 6) + 400 * (4 + 2))
    assert one.evaluations(given) == expected
    assert cell("controls").evaluations(given) == expected + 2 * 23_040 + 2 * 400 * 2
    large = cell(documents={"search": 1_000})  # models are compared on 80 documents of each task
    assert large.evaluations(given) == expected + 2 * 20 * (4 + 6)


def test_a_problem_that_was_not_prepared_names_the_command(monkeypatch, tmp_path):
    from benchmarks.board import prepared

    (tmp_path / "eight_experts.yaml").write_text("recipe: {base_model: absent, models: []}")
    monkeypatch.setattr(prepared, "RECIPES", tmp_path)
    with pytest.raises(CheckpointError, match=r"absent: folder not found\. .*examples.eight_experts.prepare"):
        problems()["eight"].make(tmp_path)


# ---- results


def test_a_finished_cell_is_not_run_again_unless_its_settings_change(given, tmp_path):
    file, one = tmp_path / "folder" / "results.jsonl", cell()
    assert results.read(file) == []
    results.append(file, board.about(one, given) | {"seconds": 1.0})
    assert results.finished(results.read(file), one.key, one.digest(given))
    assert not results.finished(results.read(file), cell(seed=4).key, cell(seed=4).digest(given))
    changed = replace(one, method=replace(one.method, baselines={"trained": True}))
    assert not results.finished(results.read(file), changed.key, changed.digest(given))
    results.append(file, board.about(one, given) | {"seconds": 2.0})
    assert [found["seconds"] for found in results.read(file)] == [2.0]
    file.write_text(file.read_text() + "{")
    with pytest.raises(InputError, match=r"results.jsonl: line 3: not a result of the board"):
        results.read(file)


def test_only_a_refused_spec_is_a_result(given, tmp_path, monkeypatch):
    import evosearch

    def refuse(error):
        def run(spec):
            raise error

        monkeypatch.setattr(evosearch, "run", run)
        board.run_cell(cell(), given, tmp_path, 1, tmp_path / "results.jsonl")

    spec, recipe = SpecError("spec.yaml: budget", "too small"), RecipeError("spec.yaml: recipe", "has no derivative")
    ledger = LedgerError("ledger.db", "was written by an older evosearch")
    for error in (ledger, Problems("spec.yaml", [spec, ledger])):
        with pytest.raises(InputError, match="older evosearch"):
            refuse(error)
        assert results.read(tmp_path / "results.jsonl") == []
    refuse(Problems("spec.yaml", [spec, recipe]))
    assert "has no derivative" in results.read(tmp_path / "results.jsonl")[0]["refused"]


def made_up(method, seed, lead, promoted):
    """Result of a search whose finalist is ahead of the scale by `lead`."""
    intervals = {"score": [lead, lead - 2.0, lead + 2.0], "metric": [lead / 2, lead / 2 - 1, lead / 2 + 1]}
    return {
        "problem": f"zoo-{seed % 2}",
        "method": method,
        "optimizer": "gradient",
        "seed": seed,
        "items": 23_040,
        "digest": "0",
        "date": "2026-11-30 12:00 UTC",
        "seconds": 90.0,
        "evaluations": 1_000,
        "rank_correlation": None if seed else 0.9,
        "finalist": "7",
        "promoted": "7" if promoted else "scale:0.60",
        "documents": {"sort": 2000, "deal": 2000},
        "scores": {"test": {"7": 58.0 + lead, "scale:0.60": 58.0}},
        "leads": {"scale:0.60": intervals, "trained": {"score": [-5.0, -7.0, -3.0]}},
    }


def test_the_page_has_losers_medians_and_what_was_refused():
    found = [made_up("few_numbers", seed, lead, lead > 2) for seed, lead in enumerate((1.0, 3.0, -4.0))]
    found += [made_up("per_tensor", seed, lead, True) for seed, lead in enumerate((20.0, 22.0, 24.0))]
    refused = {"problem": "zoo-0", "method": "per_tensor", "optimizer": "tpe", "seed": 0, "items": 23_040}
    found += [refused | {"digest": "0", "date": "2026-11-29 12:00 UTC", "refused": "too many dimensions"}]
    text = page(found, problems(), methods(), optimizers())
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| `")]
    assert [row[0].strip("| ") for row in rows] == ["`per_tensor`", "`few_numbers`"], "best first"
    assert rows[0][2:9] == [
        "3",
        "80.0 [78.0, 82.0]",
        "+22.0 [+20.0, +24.0]",
        "3 of 3",
        "3 of 3",
        "+11.0 [+10.0, +12.0]",
        "0.90",
    ]
    assert rows[1][3:7] == ["59.0 [54.0, 61.0]", "+1.0 [-4.0, +3.0]", "1 of 3", "1 of 3"]
    assert "*2026-11-29 to 2026-11-30 · `python -m benchmarks.board --problems zoo-0 zoo-1`*" in text
    assert "- `per_tensor` with `tpe`: too many dimensions" in text
    assert "`few_numbers` with `gradient` leads training on the same documents by -5.0 [-5.0, -5.0]" in text
    assert "interval is above zero in 0 of 3" in text
    assert "- `few_numbers`: a number per group of layers and expert" in text


def test_a_part_of_the_board_is_every_second_cell():
    every = board.chosen(board.parse_arguments([]))
    assert len(every) == len(problems()) * len(methods()) * len(optimizers()) * 3
    halves = [board.chosen(board.parse_arguments(["--part", part])) for part in ("1/2", "2/2")]
    assert {one.key for half in halves for one in half} == {one.key for one in every}
    assert not {one.key for one in halves[0]} & {one.key for one in halves[1]}
    for wrong in (["--part", "3/2"], ["--documents", "train=5"]):
        with pytest.raises(SystemExit):
            board.parse_arguments(wrong)


# ---- a small board


@pytest.mark.slow
def test_a_small_board_runs_is_judged_and_resumes(zoo_cache, tmp_path, monkeypatch, capsys):
    for name in ("EVOSEARCH_RUNS", "EVOSEARCH_DATA", "EVOSEARCH_TASKS", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "")  # the command sets them
    arguments = ["--problems", "zoo-0", "--methods", "few_numbers", "--optimizers", "gradient", "--seeds", "0"]
    arguments += ["--items", "1500", "--documents", "search=20,validation=20,test=50", "--work", str(tmp_path / "work")]
    arguments += ["--results", str(tmp_path / "results.jsonl"), "--page", str(tmp_path / "board.md")]
    assert board.main([*arguments, "--plan"]) == 0
    assert "zoo-0, few_numbers, gradient, seed 0: about 0 minutes" in capsys.readouterr().err
    assert board.main(arguments) == 0
    (found,) = results.read(tmp_path / "results.jsonl")
    scale = next(name for name in found["leads"] if name.startswith("scale:"))
    test = found["scores"]["test"]
    low, high = found["leads"][scale]["score"][1:]
    assert low <= found["leads"][scale]["score"][0] <= high
    assert found["leads"][scale]["score"][0] == pytest.approx(test[found["finalist"]] - test[scale], abs=0.01)
    assert set(found["documents"].values()) == {50}
    assert "| `few_numbers` | `gradient` | 1 |" in (tmp_path / "board.md").read_text()
    before = (tmp_path / "results.jsonl").read_text()
    assert board.main(arguments) == 0
    assert (tmp_path / "results.jsonl").read_text() == before
    assert "seed 0: already finished" in capsys.readouterr().err
    assert json.loads(before)["stopped"] == "items"
