"""`check` counts the tokens of a candidate before any model runs; `score` then takes as many."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from evosearch.preflight.check import CheckReport, check
from evosearch.search.progress import Silent
from evosearch.service.score import score

World = Callable[..., Path]
SPLITS = ("search", "validation", "test")


def tokens(result: CheckReport) -> dict[str, dict[str, int]]:
    assert result.problems == ()
    found: dict[str, dict[str, int]] = result.forecast["tokens"]
    assert tuple(found) == SPLITS
    return found


def with_tasks(folder: Path, *names: str) -> Path:
    """The world's suite with some of its tasks."""
    suite = yaml.safe_load((folder / "suite.yaml").read_text())
    suite["tasks"] = [task for task in suite["tasks"] if task["name"] in names]
    path = folder / f"{'_'.join(names)}.yaml"
    path.write_text(yaml.safe_dump(suite))
    return path


def test_a_spec_and_its_suite_have_the_same_token_counts(world: World) -> None:
    spec = world()
    of_spec = tokens(check(spec, dry_run=False, watcher=Silent()))
    suite, model = spec.parent / "suite.yaml", str(spec.parent / "base")
    assert tokens(check(suite, dry_run=False, watcher=Silent(), model=model)) == of_spec
    assert [of_spec[split]["items"] for split in SPLITS] == [16, 20, 40]
    assert of_spec["search"]["generated_at_most"] == 8 * 3  # eight prompts, max_gen_toks 3


def test_log_likelihoods_take_what_was_forecast(world: World) -> None:
    folder = world().parent
    suite = with_tasks(folder, "choice")
    forecast = tokens(check(suite, dry_run=False, watcher=Silent(), model=str(folder / "base")))
    taken = score(str(folder / "base"), suite, "search", None, Silent()).tokens
    expected = forecast["search"]
    assert (taken.requested, taken.distinct) == (expected["requested"], expected["distinct"])
    # 4 letters and `?` a document, then nothing or `a`: the last token of a continuation is never run
    assert expected["requested"] == 8 * (6 + 5 + 5)
    assert expected["distinct"] < 8 * 6
    assert expected["generated_at_most"] == 0


def test_generation_takes_no_more_than_was_forecast(world: World) -> None:
    folder = world().parent
    suite = with_tasks(folder, "generate")
    forecast = tokens(check(suite, dry_run=False, watcher=Silent(), model=str(folder / "base")))["search"]
    taken = score(str(folder / "base"), suite, "search", None, Silent()).tokens
    assert forecast["requested"] <= taken.requested <= forecast["requested"] + forecast["generated_at_most"]
    assert forecast["distinct"] <= taken.distinct <= forecast["distinct"] + forecast["generated_at_most"]
    # the prompts, and with the right answer once for each of its two ends: a newline and the end of the sequence
    assert forecast["requested"] == 8 * 5 + 8 * 2 * 6


def test_equal_prompts_are_continued_once(world: World) -> None:
    folder = world().parent
    path = with_tasks(folder, "generate")
    once = tokens(check(path, dry_run=False, watcher=Silent(), model=str(folder / "base")))["search"]
    suite = yaml.safe_load(path.read_text())
    again = {"task": "w_generate", "name": "again", "report_only": True}
    path.write_text(yaml.safe_dump(suite | {"tasks": [*suite["tasks"], again]}))
    twice = tokens(check(path, dry_run=False, watcher=Silent(), model=str(folder / "base")))["search"]
    assert twice["requested"] == once["requested"] + 8 * 5
    assert (twice["distinct"], twice["generated_at_most"]) == (once["distinct"], once["generated_at_most"])


def test_a_suite_alone_is_checked_without_a_model(world: World) -> None:
    suite = world().parent / "suite.yaml"
    result = check(suite, dry_run=False, watcher=Silent())
    assert tokens(result) == {"search": {"items": 16}, "validation": {"items": 20}, "test": {"items": 40}}
    assert any("--model" in note for note in result.notes)
    data = yaml.safe_load(suite.read_text())
    broken = suite.with_name("broken.yaml")
    broken.write_text(yaml.safe_dump(data | {"documents": {"search": 60, "validation": 10, "test": 20}}))
    found = check(broken, dry_run=False, watcher=Silent())
    assert not found.ok
    assert found.problems[0].where == f"{broken}: tasks[0].documents.search"


def test_config_and_tokenizer_are_enough(world: World, tmp_path: Path) -> None:
    folder = world().parent
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in (folder / "base").iterdir():
        if file.suffix != ".safetensors":
            shutil.copyfile(file, bare / file.name)
    suite = folder / "suite.yaml"
    full = tokens(check(suite, dry_run=False, watcher=Silent(), model=str(folder / "base")))
    assert tokens(check(suite, dry_run=False, watcher=Silent(), model=str(bare))) == full
    short = json.loads((bare / "config.json").read_text()) | {"max_position_embeddings": 6}
    (bare / "config.json").write_text(json.dumps(short))
    found = check(suite, dry_run=False, watcher=Silent(), model=str(bare))
    assert found.ok  # prompts of five tokens are cut on the left, as lm-eval cuts them
    assert tokens(found)["search"]["requested"] < full["search"]["requested"]


@pytest.mark.parametrize("model", ["no/such/folder/here", "./nowhere"])
def test_a_missing_model(world: World, model: str) -> None:
    found = check(world().parent / "suite.yaml", dry_run=False, watcher=Silent(), model=model)
    assert [problem.where for problem in found.problems] == [model]


def test_model_is_only_valid_with_a_suite(world: World) -> None:
    found = check(world(), dry_run=False, watcher=Silent(), model="zoo:tiny/base")
    assert [problem.where for problem in found.problems] == ["--model"]
    assert "is only valid with a suite" in found.problems[0].what


def test_the_table_and_the_json_on_the_command_line(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from evosearch.cli.main import main

    folder = world().parent
    arguments = ["check", str(folder / "suite.yaml"), "--model", str(folder / "base")]
    assert run(main, arguments, monkeypatch) == 0
    text = capsys.readouterr().out
    assert "generated at most" in text
    assert run(main, [*arguments, "--json"], monkeypatch) == 0
    found = json.loads(capsys.readouterr().out)["forecast"]["tokens"]
    row = next(line.split() for line in text.splitlines() if line.startswith("test"))
    assert row[1:] == [f"{found['test'][key]:,}" for key in ("items", "requested", "distinct", "generated_at_most")]
    assert run(main, arguments[:2], monkeypatch) == 0
    assert "--model REFERENCE" in capsys.readouterr().out
    choice = with_tasks(folder, "choice")
    forecast = tokens(check(choice, dry_run=False, watcher=Silent(), model=str(folder / "base")))["search"]
    assert run(main, ["score", str(folder / "base"), str(choice)], monkeypatch) == 0
    said = f"{forecast['requested']} requested, {forecast['distinct']} distinct"
    assert said in capsys.readouterr().out


def run(main: Callable[[], int | None], arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.argv", ["evosearch", *arguments])
    try:
        return int(main() or 0)
    except SystemExit as stop:
        return int(stop.code or 0)
