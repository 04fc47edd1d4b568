"""Searches of other tools become specs that parse, with a search space; what cannot is refused by name."""

import shutil
from pathlib import Path

import pytest
import yaml

from evosearch.checkpoints.families.llama import FAMILY
from evosearch.errors import SpecError
from evosearch.merging.registry import specs
from evosearch.search.progress import Silent
from evosearch.search.space.space import SearchSpace
from evosearch.service.import_spec import ImportReport, import_spec
from evosearch.spec.spec import SearchSpec, load_spec

CONFIGS = Path(__file__).parent / "imports"
TASKS = Path(__file__).parents[2] / "evals" / "tiny"
SHAPE = FAMILY.shape({"num_hidden_layers": 6})
NAMED = {"zoo:tiny/reverse": 6, "zoo:tiny/sort": 6}

# file → method or routing, number of search parameters, optimizer, candidates
EXPECTED = {
    "evolve_linear": ("linear", 2, "cma_es", 100),
    "evolve_task_arithmetic": ("task_arithmetic", 2 * 3 * 3, "cma_es", 100),
    "evolve_ties_smooth": ("ties", 2 * 2 * 3, "cma_es", 100),
    "evolve_dare_ties": ("dare_ties", 4, "cma_es", 100),
    "evolve_slerp": ("slerp", 3, "cma_es", 100),
    "evolve_slerp_three": ("multislerp", 3, "cma_es", 100),
    "mergenetic_slerp": ("slerp", 11, "cma_es", 100),
    "mergenetic_languages": ("dare_ties", 6, "nsga2", 4),
    "mergenetic_objectives": ("dare_ties", 4, "nsga2", 32),
    "auto_merge_lfs": ({"choices": ["linear", "task_arithmetic", "ties"]}, 1 + 2 * 3 * 4, "cat_cma", 500),
    "auto_merge_lfs_multiobj": ({"choices": ["linear", "task_arithmetic", "ties"]}, 1 + 2 * 3 * 4, "nsga2", 500),
    "auto_merge_dis": (None, 23, "cat_cma", 200),
}


def imported(stem: str, folder: Path) -> tuple[ImportReport, SearchSpec]:
    report = import_spec(CONFIGS / f"{stem}.yaml", folder / f"{stem}.yaml", Silent(), TASKS)
    return report, load_spec(Path(report.out))


@pytest.mark.parametrize("stem", EXPECTED)
def test_a_search_of_another_tool_becomes_a_spec(stem: str, tmp_path: Path, zoo_cache: Path) -> None:
    method, count, optimizer, candidates = EXPECTED[stem]
    report, spec = imported(stem, tmp_path)
    assert spec.template.get("merge_method") == method
    space = SearchSpace.from_template(spec.template, SHAPE, specs(), spec.where, NAMED)
    assert len(space.dimensions) == count
    assert (spec.config.optimizer.name, spec.config.budget.candidates) == (optimizer, candidates)
    spec.config.optimizer.check(space.dimensions, spec.objective_count)
    assert all(task.metric for task in spec.suite.tasks)
    text = Path(report.out).read_text()
    assert all(change.split()[0] in text for change in report.changes)  # the file says what changed, too
    assert "&id" not in text, "an alias is hard to edit"


def test_every_file_is_tested() -> None:
    assert sorted(EXPECTED) == sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def test_what_changes_is_said_with_its_key(tmp_path: Path, zoo_cache: Path) -> None:
    report, spec = imported("evolve_dare_ties", tmp_path)
    assert report.tool == "mergekit-evolve"
    said = {change.partition(":")[0] for change in report.changes}
    assert {"models", "weight", "dare_ties", "int8_mask", "limit", "start", "budget", "optimizer", "splits"} <= said
    assert spec.frame.parents == ("zoo:tiny/reverse", "zoo:tiny/sort")
    assert spec.frame.tokenizer_source == "zoo:tiny/base"


def test_a_negative_weight_is_an_unlearning_target(tmp_path: Path, zoo_cache: Path) -> None:
    _, spec = imported("evolve_slerp_three", tmp_path)
    assert [task.unlearn for task in spec.suite.tasks] == [True, False]


def test_public_benchmarks_are_searched_on_other_documents_than_they_are_tested_on(tmp_path: Path) -> None:
    path = tmp_path / "public.yaml"
    path.write_text(
        "genome: {models: [a/b, c/d], merge_method: linear}\n"
        "tasks: [gsm8k, {name: arc_easy, metric: 'acc_norm,none'}, {name: mmlu}]\n"
    )
    report = import_spec(path, tmp_path / "new.yaml", Silent())
    suite = yaml.safe_load(Path(report.suite).read_text())
    given = {task["task"]: (task["chance"], task["documents_from"]["search"]) for task in suite["tasks"]}
    assert given == {"gsm8k": (0.0, "train"), "arc_easy": (0.25, "train"), "mmlu": (0.25, "validation")}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("merge_method: linear\nmodels: []\n", r"not a search of a known tool.*evosearch merge FILE OUT"),
        (
            "tasks: [a]\ngenome: {models: [a/b], merge_method: tise, base_model: c/d}\n",
            r"merge_method.*Did you mean 'ties'\?",
        ),
        ("tasks: [a]\ngenome: {models: [a/b], merge_method: ties}\n", r"genome\.base_model: missing"),
        ("tasks: []\ngenome: {models: [a/b], merge_method: linear}\n", r"tasks: .*at least 1 item"),
        ("tasks: [a]\ngenome: {models: [a/b, c/d], merge_method: slerp, smooth: true}\n", r"genome\.smooth: not valid"),
        (
            "pop_size: 1\nn_iter: 1\nmodels: {a: b/c}\nbase_model: d/e\ndatasets: {a: x.csv}\n",
            r"tasks: no tasks of lm-eval",
        ),
        ("strategy: prune\nstrategies: {prune: {}}\n", r"strategy: 'prune' has no equivalent"),
        ("strategy: normal_models\nstrategies: {}\n", r"one merge, not a search"),
        ("strategy: lfs\nstrategies:\n  lfs: !include no/lfs.yaml\n", r"lfs\.yaml"),
    ],
)
def test_what_cannot_be_imported_is_refused_and_nothing_is_written(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "their.yaml").write_text(text)
    with pytest.raises(SpecError, match=message):
        import_spec(tmp_path / "their.yaml", tmp_path / "new.yaml", Silent())
    assert [path.name for path in tmp_path.iterdir()] == ["their.yaml"]


def test_no_file_is_overwritten(tmp_path: Path) -> None:
    shutil.copy(CONFIGS / "evolve_linear.yaml", tmp_path / "evolve.yaml")
    (tmp_path / "new-suite.yaml").write_text("mine")
    with pytest.raises(SpecError, match=r"new-suite\.yaml: exists already"):
        import_spec(tmp_path / "evolve.yaml", tmp_path / "new.yaml", Silent(), TASKS)
    assert not (tmp_path / "new.yaml").exists()
    assert (tmp_path / "new-suite.yaml").read_text() == "mine"
