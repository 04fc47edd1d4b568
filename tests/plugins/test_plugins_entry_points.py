"""Registrations by installed distributions."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from evosearch.checkpoints.families.registry import GROUP, all_families, family_of, family_of_model
from evosearch.errors import CheckpointError, RecipeError
from evosearch.plugins import load_entry_points

Install = Callable[..., None]
FAMILY = """
from evosearch.checkpoints.families.parts import family, llama_layer
FAMILY = family("{name}", lambda config, index: llama_layer())
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """`install(code, group="a.group", target="toy:THING", name="toy")`: a distribution NAME-models."""
    monkeypatch.syspath_prepend(tmp_path)
    made: list[str] = []

    def make(code: str, group: str = GROUP, target: str = "FAMILY", name: str = "toy") -> None:
        (tmp_path / f"{name}_module.py").write_text(code)
        folder = tmp_path / f"{name}-1.5.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-models\nVersion: 1.5\n")
        (folder / "entry_points.txt").write_text(f"[{group}]\n{name} = {name}_module:{target}\n")
        made.append(f"{name}_module")
        all_families.cache_clear()

    yield make
    all_families.cache_clear()
    for module in made:
        sys.modules.pop(module, None)


def test_a_family_of_another_distribution_is_registered(install: Install) -> None:
    before = dict(all_families())
    install(FAMILY.format(name="ToyForCausalLM"))
    family = family_of({"architectures": ["ToyForCausalLM"]}, "config.json")
    shape = family.shape({"num_hidden_layers": 2})
    assert (shape.architecture, shape.num_layers) == ("ToyForCausalLM", 2)
    assert all_families() == before | {"ToyForCausalLM": family}


def test_a_live_model_finds_its_family_by_its_class() -> None:
    toy = type("ToyForCausalLM", (), {"__module__": "transformers.models.toy"})
    llama = type("LlamaForCausalLM", (), {"__module__": "transformers.models.llama.modeling_llama"})
    other = type("LlamaForCausalLM", (), {"__module__": "elsewhere"})
    assert family_of_model(llama()) is all_families()["LlamaForCausalLM"]
    assert family_of_model(other()) is None
    assert family_of_model(toy()) is None


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import does_not_exist", "cannot load 'toy_module:FAMILY': ModuleNotFoundError: No module named 'does_not_ex"),
        ("FAMILIES = 1", "cannot load 'toy_module:FAMILY': AttributeError: .*Fix or uninstall toy-models 1.5"),
        ("FAMILY = 1", "got a int. A Family of evosearch.checkpoints"),
        (FAMILY.format(name="LlamaForCausalLM"), "LlamaForCausalLM is already registered by evosearch. Uninstall one"),
    ],
)
def test_a_broken_family_is_one_error_that_names_its_distribution(install: Install, code: str, message: str) -> None:
    install(code)
    source = r"entry point 'toy' of evosearch\.families \(from toy-models 1\.5\)"
    for _ in range(2):  # the error is not cached as success
        with pytest.raises(CheckpointError, match=f"^{source}: {message}"):
            all_families()


def test_two_distributions_that_register_one_architecture_are_both_named(install: Install) -> None:
    install(FAMILY.format(name="ToyForCausalLM"), name="toy")
    install(FAMILY.format(name="ToyForCausalLM"), name="zoo")
    message = (
        r"entry point 'zoo' .*zoo-models 1\.5\): ToyForCausalLM is already registered by entry point 'toy' .*toy-mod"
    )
    with pytest.raises(CheckpointError, match=message):
        all_families()


def test_entry_points_are_sorted_and_raise_the_given_error(install: Install) -> None:
    install("THING = 'second'", "evosearch.tests", "THING", "beta")
    install("THING = 'first'", "evosearch.tests", "THING", "alpha")
    found = list(load_entry_points("evosearch.tests"))
    assert [thing for _, thing in found] == ["first", "second"]
    assert found[0][0] == "entry point 'alpha' of evosearch.tests (from alpha-models 1.5)"
    install("raise SyntaxError('bad')", "evosearch.tests", "THING", "gamma")
    with pytest.raises(RecipeError, match=r"entry point 'gamma' .*: cannot load .*SyntaxError: bad"):
        list(load_entry_points("evosearch.tests", RecipeError))
    assert list(load_entry_points("evosearch.nothing")) == []
