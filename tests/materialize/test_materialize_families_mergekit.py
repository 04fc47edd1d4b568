"""Comparison with mergekit, tensor by tensor, in the families that it supports.

mergekit 0.1.5 requires the masks of old GPT-NeoX files and stacked experts on disk; it supports only tied heads for
Gemma, and only untied ones for Phi and Phi-3.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from evosearch.checkpoints.reader import Checkpoint
from evosearch.materialize.on_disk import write_checkpoint
from evosearch.merging.registry import specs
from evosearch.recipe.mergekit import to_mergekit
from evosearch.recipe.schema import Recipe
from evosearch.search.space.space import SearchSpace

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "numpy.core is deprecated", DeprecationWarning)  # mergekit.io.lazy_unpickle
    import yaml
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge
    from mergekit.merge_methods.registry import registered_methods

EITHER = (
    *("GPT2LMHeadModel", "Gemma2ForCausalLM", "Gemma3ForCausalLM", "LlamaForCausalLM", "MistralForCausalLM"),
    *("Olmo2ForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"),
)
TIED = (*EITHER, "GemmaForCausalLM")
UNTIED = (*EITHER, "PhiForCausalLM", "Phi3ForCausalLM")
METHODS = ("linear", "task_arithmetic", "ties")  # in every family; all methods in FOUR
FOUR = (
    *(("LlamaForCausalLM", False), ("Qwen2ForCausalLM", True)),  # Qwen2: tied, with biases and grouped-query attention
    *(("MistralForCausalLM", False), ("GPT2LMHeadModel", True)),
)
# Units in the last place of the largest numbers of the models, below 8: 2⁻²¹ each.
ULP = 2.0**-21
WEIGHTS = ({"weight": [0.2, 0.9, 0.6]}, {"weight": [{"filter": "mlp", "value": 0.3}, {"value": 0.8}]})
NEGATIVE = ({"weight": 0.9}, {"weight": -0.4})


@dataclass(frozen=True)
class Case:
    """A recipe: parameters of each model and of all, and the tolerance in `ULP`."""

    models: tuple[dict[str, Any], ...]
    shared: dict[str, Any] = field(default_factory=dict)
    ulps: float = 1
    base: bool = True


def with_each(of: tuple[dict[str, Any], ...], **parameters: Any) -> tuple[dict[str, Any], ...]:
    return tuple(one | parameters for one in of)


SPARSE = {"normalize": True, "rescale": "l1", "lambda": 0.8}
CASES: dict[str, tuple[Case, ...]] = {
    "linear": (
        Case(WEIGHTS, base=False),
        Case(NEGATIVE, {"normalize": False}, base=False),
    ),
    "task_arithmetic": (Case(WEIGHTS, {"normalize": True, "lambda": 1.3}), Case(NEGATIVE)),
    "ties": (
        Case(with_each(WEIGHTS, density=[0.3, 0.8]), SPARSE),
        Case(with_each(NEGATIVE, density=0.4), {"normalize": False, "lambda": 1.3}),
    ),
    # Masks differ, so that only a density of 1 has equal weights; `test_merging_dare.py` compares equal masks.
    "dare_linear": (Case(with_each(WEIGHTS, density=1.0), SPARSE), Case(NEGATIVE, {"rescale": "l1"})),
    "dare_ties": (Case(with_each(WEIGHTS, density=1.0), SPARSE), Case(NEGATIVE, {"rescale": "l1"})),
    "della": (Case(with_each(WEIGHTS, density=1.0, epsilon=0.1), SPARSE), Case(NEGATIVE, {"rescale": "l1"})),
    "della_linear": (Case(with_each(WEIGHTS, density=1.0, epsilon=0.1), SPARSE), Case(NEGATIVE, {"rescale": "l1"})),
    "breadcrumbs": (
        Case(with_each(WEIGHTS, density=0.7, gamma=[0.05, 0.1]), SPARSE),
        Case(with_each(NEGATIVE, density=0.9), {"lambda": 0.5}),
    ),
    "breadcrumbs_ties": (
        Case(with_each(WEIGHTS, density=0.7, gamma=[0.05, 0.1]), SPARSE),
        Case(with_each(NEGATIVE, density=0.9), {"lambda": 0.5}),
    ),
    "sce": (Case(({}, {}), {"select_topk": 0.4}), Case(({}, {}))),
    "ram": (Case(({}, {})), Case(({}, {}), {"epsilon": 0.05})),
    "ramplus": (Case(({}, {}), {"epsilon": 0.05, "r": 0.5, "alpha": 0.9}), Case(({}, {}))),
    "model_stock": (Case(({}, {})), Case(({}, {}), {"filter_wise": True})),
    "multislerp": (
        Case(WEIGHTS, {"normalize_weights": True, "eps": 1e-7}),
        Case(NEGATIVE, {"normalize_weights": False}, 2, base=False),
    ),
    "karcher": (Case(({}, {}), {"max_iter": 5, "tol": 1e-4}, 20, base=False),),
    "nuslerp": (
        Case(WEIGHTS, {"nuslerp_flatten": True}),
        Case(WEIGHTS, {"nuslerp_flatten": False, "nuslerp_row_wise": True}, 4),
        Case(NEGATIVE, base=False, ulps=8),
    ),
    "slerp": (Case(({},), {"t": [{"filter": "mlp", "value": [0.1, 0.8]}, {"value": 0.4}]}, 4),),
    "nearswap": (Case(({},), {"t": 0.02}),),
    "arcee_fusion": (Case(({},)),),
    "passthrough": (Case(({"scale": [{"filter": "mlp", "value": -0.5}, {"value": 1.0}]},), base=False),),
}


def by_mergekit(text: str, out: Path) -> dict[str, torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = MergeOptions(device="cpu", quiet=True, copy_tokenizer=False, write_model_card=False)
        run_merge(MergeConfiguration.model_validate(yaml.safe_load(text)), str(out), options)
    return {name: tensor for file in out.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize(("architecture", "tied"), [*((name, True) for name in TIED), *((n, False) for n in UNTIED)])
def test_tensor_by_tensor(architecture, tied, random_model, tmp_path):
    base = random_model(architecture, tie_word_embeddings=tied)
    folders = [base, *(random_model(architecture, seed=seed, near=base, spread=0.05) for seed in (1, 2))]
    models = {str(folder): Checkpoint.open(folder, str(folder)) for folder in folders}
    shape = models[str(base)].shape
    entries = [
        {"model": str(folders[1]), "parameters": {"weight": [0.2, 0.9, 0.6]}},
        {"model": str(folders[2]), "parameters": {"weight": [{"filter": "mlp", "value": 0.3}, {"value": 0.8}]}},
    ]
    for method in METHODS:
        data = {"merge_method": method, "models": entries}
        data |= {} if method == "linear" else {"base_model": str(base)}
        data |= {"parameters": {"density": 0.4}} if method == "ties" else {}
        recipe = Recipe.model_validate(data)
        write_checkpoint(recipe, models, tmp_path / "ours" / method, str(folders[1 if method == "linear" else 0]))
        ours = load_file(tmp_path / "ours" / method / "model.safetensors")
        theirs = by_mergekit(to_mergekit(recipe, shape, specs()), tmp_path / "theirs" / method)
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            assert tensor.dtype == theirs[name].dtype == torch.float32
            torch.testing.assert_close(
                tensor, theirs[name], rtol=0, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.mark.parametrize(("architecture", "tied"), [*((name, True) for name in TIED), *((n, False) for n in UNTIED)])
def test_a_number_for_every_tensor_or_module(architecture, tied, random_model, tmp_path):
    base = random_model(architecture, tie_word_embeddings=tied)
    folders = [base, *(random_model(architecture, seed=seed, near=base, spread=0.05) for seed in (1, 2))]
    models = {str(folder): Checkpoint.open(folder, str(folder)) for folder in folders}
    shape = models[str(base)].shape
    for per in ("tensor", "module"):
        holes = {"weight": {"low": 0.0, "high": 1.0, "per": per}}
        entries = [{"model": str(folder), "parameters": holes} for folder in folders[1:]]
        written = {"merge_method": "task_arithmetic", "base_model": str(base), "models": entries}
        space = SearchSpace.from_template(written, shape, specs())
        numbers = torch.rand(len(space.dimensions), generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        recipe = space.fill({d.name: value for d, value in zip(space.dimensions, numbers.tolist(), strict=True)})
        write_checkpoint(recipe, models, tmp_path / "ours" / per, str(base))
        ours = load_file(tmp_path / "ours" / per / "model.safetensors")
        theirs = by_mergekit(to_mergekit(recipe, shape, specs()), tmp_path / "theirs" / per)
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            torch.testing.assert_close(
                tensor, theirs[name], rtol=0, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
            )


def test_every_method_and_parameter_of_mergekit_is_compared():
    """Parameters that only tune its memory, and those that a method registers without using them, are left out."""
    unused = {"task_arithmetic": {"density", "rescale"}}  # in evosearch: an unknown parameter
    ours = {spec.mergekit.name: name for name, spec in specs().items() if spec.mergekit is not None}
    assert set(ours.values()) == CASES.keys()
    assert ours.keys() == {theirs.spec.name for theirs in registered_methods()}
    for theirs in registered_methods():
        name = ours[theirs.spec.name]
        known = {parameter.name for parameter in theirs.spec.parameters}
        set_here = {key for case in CASES[name] for given in (case.shared, *case.models) for key in given}
        assert known - {"int8_mask"} - unused.get(name, set()) == set_here & known, name
        for key in known - {"int8_mask"}:
            assert (key in specs()[name].parameters) == (key not in unused.get(name, set())), (name, key)


@pytest.fixture(scope="module", params=FOUR, ids=lambda family: family[0])
def family(request: pytest.FixtureRequest, random_model: Any) -> dict[str, Checkpoint]:
    """A base and two fine-tunes of it, by their paths."""
    architecture, tied = request.param
    base = random_model(architecture, tie_word_embeddings=tied)
    folders = [base, *(random_model(architecture, seed=seed, near=base, spread=0.05) for seed in (1, 2))]
    return {str(folder): Checkpoint.open(folder, str(folder)) for folder in folders}


@pytest.mark.parametrize(("method", "case"), [(name, i) for name, cases in CASES.items() for i in range(len(cases))])
def test_every_method_tensor_by_tensor(
    method: str, case: int, family: Mapping[str, Checkpoint], tmp_path: Path
) -> None:
    given, (base, *others) = CASES[method][case], family
    entries = [{"model": model, "parameters": own} for model, own in zip(others, given.models, strict=False)]
    data: dict[str, Any] = {"merge_method": method, "models": entries, "parameters": given.shared}
    recipe = Recipe.model_validate(data | ({"base_model": base} if given.base else {}))
    write_checkpoint(recipe, family, tmp_path / "ours", recipe.references()[0])
    ours = load_file(tmp_path / "ours" / "model.safetensors")
    theirs = by_mergekit(to_mergekit(recipe, family[base].shape, specs()), tmp_path / "theirs")
    assert ours.keys() == theirs.keys()
    unmerged = load_file(Path(recipe.references()[0]) / "model.safetensors")
    assert any(not torch.equal(tensor, unmerged[name]) for name, tensor in ours.items())
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype == torch.float32
        assert tensor.abs().max() < 8
        torch.testing.assert_close(
            tensor, theirs[name], rtol=0, atol=given.ulps * ULP, msg=lambda text, name=name: f"{name}: {text}"
        )
