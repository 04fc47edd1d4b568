"""A first spec: written for models that can be merged, with their base found out, and passing `check`."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml

from evosearch.errors import InputError
from evosearch.preflight.check import check
from evosearch.search.progress import Silent
from evosearch.service.init import init
from evosearch.service.init_draft import InitReport
from evosearch.service.init_models import NO_BASE

World = Callable[..., Path]
Evosearch = Callable[..., tuple[int, str, str]]


@pytest.fixture
def home(world: World, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with base, expert1 and expert2 and their suite, as working directory."""
    folder = world().parent
    monkeypatch.chdir(folder)
    return folder


def made(home: Path, *models: str, **options: object) -> InitReport:
    suite = yaml.safe_load((home / "world.yaml").read_text())["suite"]
    return init(models, home / "new.yaml", Silent(), suite=str((home / suite).resolve()), **options)  # type: ignore[arg-type]


def test_the_base_is_found_and_the_spec_passes_check(home: Path) -> None:
    report = made(home, "./expert1", "./base", "./expert2")
    assert (report.base, report.models, report.method) == ("./base", ("./expert1", "./expert2"), "task_arithmetic")
    found = check(home / "new.yaml", False, Silent())
    assert found.ok, found.problems
    data = yaml.safe_load((home / "new.yaml").read_text())
    assert data["recipe"]["base_model"] == "./base"
    assert list(data) == ["name", "recipe", "optimizer", "suite", "budget", "promotion"]
    lines = (home / "new.yaml").read_text().splitlines()
    keys = [index for index, line in enumerate(lines) if line[:1].isalpha()]
    assert all(lines[index - 1].startswith("# ") for index in keys)  # a reason for every key
    assert len(report.notes) >= 6


def test_without_a_gradient_there_are_few_numbers(home: Path) -> None:
    suite = home / yaml.safe_load((home / "world.yaml").read_text())["suite"]
    data = yaml.safe_load(suite.read_text()) | {"fitness": "score"}
    suite.write_text(yaml.safe_dump(data))
    report = made(home, "./expert1", "./expert2", base="./base")
    assert (report.optimizer, report.dimensions) == ("cma_es", 2 * 3)
    spec = yaml.safe_load((home / "new.yaml").read_text())
    assert spec["budget"] == {"candidates": 100}
    assert "which has no derivative" in (home / "new.yaml").read_text()


def test_two_models_alone_are_averaged_unless_the_user_knows_their_base(home: Path) -> None:
    asked: list[Sequence[str]] = []

    def ask(question: str, answers: Sequence[str]) -> str:
        asked.append(answers)
        return NO_BASE

    report = made(home, "./expert1", "./expert2", ask=ask)
    assert asked == [["./expert1", "./expert2", NO_BASE]]
    assert (report.base, report.method) == (None, "linear")


def test_models_that_cannot_be_merged_are_errors_and_nothing_is_written(home: Path) -> None:
    from transformers import LlamaForCausalLM

    shutil.copytree(home / "expert2", home / "deeper", symlinks=False)
    config = json.loads((home / "deeper" / "config.json").read_text())
    other = LlamaForCausalLM.config_class.from_dict(config | {"num_hidden_layers": 4})
    LlamaForCausalLM(other).save_pretrained(home / "deeper")
    with pytest.raises(InputError, match="cannot be merged: 3 and 4 layers"):
        made(home, "./expert1", "./deeper", base="./base")
    stranger = LlamaForCausalLM(LlamaForCausalLM.config_class.from_dict(config))
    shutil.copytree(home / "expert2", home / "stranger", symlinks=False)
    stranger.save_pretrained(home / "stranger")
    with pytest.raises(InputError, match="are not related"):
        made(home, "./expert1", "./stranger", base="./base")
    with pytest.raises(InputError, match=r"one model, '\./expert1', and its base is not known.*--base MODEL"):
        made(home, "./expert1")
    with pytest.raises(InputError, match="no such folder"):
        made(home, "./nowhere", "./expert1")
    with pytest.raises(InputError, match=r"--suite: no suite 'quikstart'.*Did you mean 'quickstart'\?"):
        init(["./expert1", "./expert2"], home / "new.yaml", Silent(), base="./base", suite="quikstart")
    assert not (home / "new.yaml").exists()


def test_a_file_is_never_overwritten(home: Path, evosearch: Evosearch) -> None:
    (home / "new.yaml").write_text("mine")
    code, _, err = evosearch("init", "./expert1", "./expert2", "--base", "./base", "-o", home / "new.yaml")
    assert code == 2
    assert "new.yaml: exists already" in err
    assert (home / "new.yaml").read_text() == "mine"
