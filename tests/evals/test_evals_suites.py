"""Every suite in `evals/` loads, and what README.md there states of suites is true."""

import re
from pathlib import Path

import pytest
import yaml

from evosearch.evaluation.suites.suite import load_suite

EVALS = Path(__file__).parents[2] / "evals"
SUITES = sorted(EVALS.glob("*.yaml"))
README = (EVALS / "README.md").read_text()
LISTED = re.findall(r"^\| `(\w+)` \|", README.split("## The suites")[1], re.MULTILINE)
LICENCES = r"MIT|Apache-2\.0|CC BY[\w .-]*|nothing to license|not redistributed"


def row(name: str) -> list[str]:
    """The cells of a suite's row in README's table."""
    (line,) = (line for line in README.splitlines() if line.startswith(f"| `{name}` |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def numbers(text: str) -> set[float]:
    return {float(number) for number in re.findall(r"\d+(?:\.\d+)?", text)}


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_it_loads_and_says_what_it_is_for(path: Path) -> None:
    assert load_suite(path).name == path.stem
    comment = [line for line in path.read_text().split("name:")[0].splitlines() if "yaml-language-server" not in line]
    assert comment, "the reference shows a suite's head comment"
    assert all(line.startswith("# ") for line in comment)


@pytest.mark.parametrize("name", LISTED)
def test_the_readme_describes_it(name: str) -> None:
    suite = load_suite(EVALS / f"{name}.yaml")
    _, measures, chance, licence, cost = row(suite.name)
    assert numbers(chance) == {round(task.chance, 3) for task in suite.scoring}
    assert re.search(LICENCES, licence)
    assert cost
    for task in suite.scoring:
        assert f"`{task.name}`" in measures or len(suite.scoring) == 1
    assert re.search(rf"^\*\*{suite.name}\*\* ", README, re.MULTILINE), "a paragraph of its own"


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_its_folders_are_next_to_it(path: Path) -> None:
    """A shipped suite works wherever the repository is, and loads no task code from outside."""
    for include in yaml.safe_load(path.read_text()).get("include", ()):
        assert (EVALS / include).resolve().parent == EVALS
