"""`benchmarks.methods`: sweeps from the registry, resumable results, the table, and one cell on the built-in models."""

import json
from pathlib import Path

import pytest

from benchmarks.board.problems import zoo
from benchmarks.methods import __main__ as program
from benchmarks.methods.measuring import digest
from benchmarks.methods.sweep import allowed, default, recipe_of, sweep
from benchmarks.methods.table import page
from benchmarks.methods.worlds import PROBLEMS, World
from evosearch.checkpoints.tokenizers.loading import load_tokenizer
from evosearch.errors import InputError
from evosearch.evaluation.types import SPLITS
from evosearch.merging.registry import specs
from evosearch.moments.sample_tokens import read_tokens
from evosearch.recipe.shapes import MethodSpec, Param

EXPERTS = ("one", "two", "three", "four")
SAMPLE = {"text": "sample.jsonl", "documents": 8}


@pytest.mark.parametrize("name", sorted(specs()))
def test_every_method_has_defaults_and_a_sweep_within_its_bounds(name: str) -> None:
    spec = specs()[name]
    settings = sweep(spec, 9)
    assert settings[0] == default(spec)
    assert 1 <= len(settings) <= 9
    assert all(setting not in settings[:index] for index, setting in enumerate(settings))
    assert len(settings) == 9 or all(param.kind in ("bool", "choice") for param in spec.parameters.values())
    recipe = recipe_of(spec, settings[0], "base", EXPERTS, 3, SAMPLE)
    assert (recipe.sample is not None) == bool(spec.statistic)
    assert len(recipe.models) == min(4, spec.models[1] or 4)
    assert recipe.seed == (3 if spec.random else 0)
    found = allowed(spec, "base", EXPERTS, 3, 9, SAMPLE)
    assert len(found) >= (len(settings) + 1) // 2, "at most half of a sweep is refused"


def test_a_new_method_needs_no_entry() -> None:
    parameters = {
        "weight": Param(0.0, 1.5, per_model=True),
        "share": Param(0.2, 0.4),
        "steps": Param(1, 9, default=3, kind="int"),
        "rule": Param(default="a", kind="choice", choices=("a", "b")),
        "endless": Param(0.0, None, default=2.0),
    }
    spec = MethodSpec("new", "", parameters)
    assert default(spec) == {"weight": 1.0, "share": pytest.approx(0.3)}
    first, *drawn = sweep(spec, 9)
    assert first == default(spec)
    assert len({setting["weight"] for setting in drawn}) == 8
    assert all(0.2 < setting["share"] < 0.4 and setting["steps"] in range(1, 10) for setting in drawn)
    assert {setting["rule"] for setting in drawn} == {"a", "b"}
    assert not any("endless" in setting for setting in drawn)
    assert digest(spec, {"test": 9}, 9) != digest(spec, {"test": 9}, 8)


def result(method: str, seed: int, test: float, lead: float) -> dict[str, object]:
    scored = {"setting": {}, "validation": test, "test": {"score": [test, test - 1, test + 1], "tasks": {}}}
    about = {"problem": "zoo", "method": method, "seed": seed, "date": "2026-11-30 22:00 UTC", "models": 4, "of": 4}
    gain, leads = [0.0, -1.0, 1.0], [lead, lead - 1, lead + 1]
    return about | {"digest": "d", "best": scored, "default": scored, "gain": gain, "lead": leads, "seconds": 9.0}


def test_the_table_lists_losers_and_what_was_refused() -> None:
    refused = {"problem": "zoo", "method": "slow", "seed": 0, "date": "2026-11-29 22:00 UTC", "refused": "too few"}
    found = [result("bad", 0, 10.0, -30.0), result("good", 0, 50.0, 3.0), result("good", 1, 60.0, 0.5), refused]
    text = page(found, "python -m benchmarks.methods")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert rows == [
        "| `good` | 4 of 4 | 2 | 55.0 [50.0, 60.0] | 55.0 [50.0, 60.0] | +0.0 [+0.0, +0.0] "
        "| +1.8 [+0.5, +3.0] | 1 of 2 |",
        "| `bad` | 4 of 4 | 1 | 10.0 | 10.0 | +0.0 | -30.0 | 0 of 1 |",
    ]
    assert "*2026-11-29 to 2026-11-30 · `python -m benchmarks.methods --problem zoo`*" in text
    assert "- `slow`: too few" in text


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    file.write_text(json.dumps(result("good", 0, 50.0, 3.0)) + "\n{}\n")
    with pytest.raises(InputError, match=r"results\.jsonl: line 2: not a result"):
        program.read(file)


@pytest.mark.parametrize("arguments", [["--methods", "tise"], ["--settings", "0"], ["--documents", "train=3"]])
def test_a_mistake_on_the_command_line_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        program.main(arguments)
    assert stop.value.code == 2


@pytest.fixture
def few(tmp_path: Path, zoo_cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments for small cells on the zoo of seed 0."""
    for name in ("EVOSEARCH_DATA", "EVOSEARCH_TASKS", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "")  # put back what the program changes
    counts = ["--problem", "zoo", "--seeds", "0", "--documents", "search=4,validation=10,test=20"]
    return [*counts, "--results", str(tmp_path / "results.jsonl"), "--work", str(tmp_path / "work")]


def test_a_cell_is_measured_once(tmp_path: Path, few: list[str]) -> None:
    """`ties` on the zoo of seed 0, with few documents; the second run finds its result."""
    arguments = [*few, "--methods", "ties", "--settings", "3", "--page", str(tmp_path / "page.md")]
    assert program.main(arguments) == 0
    (line,) = (tmp_path / "results.jsonl").read_text().splitlines()
    found = json.loads(line)
    assert (found["settings"], found["models"], found["failed"]) == (3, 4, [])
    assert found["best"]["validation"] >= found["default"]["validation"]
    low, high = found["best"]["test"]["score"][1:]
    assert low <= found["best"]["test"]["score"][0] <= high
    assert set(found["best"]["test"]["tasks"]) == {"reverse", "sort", "deal", "median"}
    before = PROBLEMS["zoo"].text
    assert before in (tmp_path / "page.md").read_text()
    assert program.main(arguments) == 0
    assert (tmp_path / "results.jsonl").read_text().splitlines() == [line]


def test_methods_with_statistics_are_measured_like_the_others(tmp_path: Path, few: list[str]) -> None:
    """The sample is all tasks' prompts of `search`; each statistic is computed once a model, however many settings."""
    names = ["fisher", "rebasin_activations", "rebasin_weights", "regmean", "regmean_plus"]
    assert program.main([*few, "--methods", *names, "--settings", "2"]) == 0
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    found = {result["method"]: result for result in map(json.loads, lines)}
    assert list(found) == names
    models = {name: (one["models"], one["settings"], one["failed"]) for name, one in found.items()}
    assert models["fisher"] == models["regmean"] == models["regmean_plus"] == (4, 2, [])
    assert models["rebasin_activations"] == (1, 2, [])
    assert models["rebasin_weights"] == (1, 1, [])
    work = tmp_path / "work" / "zoo-0"
    files = len(list((work / "statistics" / "statistics").iterdir()))
    assert files == 4 + 4 + 2 + 2, "fisher and regmean: every expert; activations: base and expert; plus: every setting"
    texts = [json.loads(line)["text"] for line in (work / "sample-0.jsonl").read_text().splitlines()]
    assert len(set(texts)) == 16
    assert [text[0] for text in texts] == [text[0] for text in texts[:4]] * 4, "the tasks take turns"


def test_the_sample_is_read_as_the_tasks_are_asked(tmp_path: Path, zoo_cache: Path) -> None:
    world = World(zoo.make(0, tmp_path), {"search": 3, "validation": 1, "test": 1}, 0, tmp_path, 1)
    recipe = recipe_of(specs()["fisher"], {}, world.given.base, world.given.experts, 0, world.sample)
    assert world.card(recipe, "validation").score is not None
    tokenizer = load_tokenizer(Path(world.given.base))
    assert recipe.sample is not None
    sets = {split: world.harness.batch(split).sets for split in SPLITS}
    asked = [world.harness.prompts(own.task, "search", 3, tokenizer, 64) for own in sets["search"]]
    in_turn = tuple(prompt for prompts in zip(*asked, strict=True) for prompt in prompts)
    assert read_tokens(recipe.sample, tokenizer, 64) == in_turn
    hashes = {split: {one for own in found for one in own.doc_hashes} for split, found in sets.items()}
    assert hashes["search"].isdisjoint(hashes["validation"] | hashes["test"])
