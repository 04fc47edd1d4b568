"""Every form of mergekit 0.1.5's examples and documentation, read as it is and merged by both, tensor by tensor.

The recipes are ours; their forms are those of `examples/*.yml`, of README and of `docs/*.md` there. Vocabularies
have tests of their own (`test_materialize_vocabulary_mergekit.py`), and so have methods with random masks.
"""

import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from evosearch.checkpoints.reader import Checkpoint
from evosearch.errors import RecipeError
from evosearch.materialize.inputs import Opener
from evosearch.materialize.on_disk import write_checkpoint
from evosearch.materialize.plan import donor_of
from evosearch.merging.registry import specs
from evosearch.recipe import checks, files
from evosearch.recipe.mergekit import from_mergekit
from evosearch.recipe.schema import Recipe

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "numpy.core is deprecated", DeprecationWarning)  # mergekit.io.lazy_unpickle
    import yaml
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge

Family = dict[str, Checkpoint]
Tensors = dict[str, torch.Tensor]
END = ("model.norm.weight", "lm_head.weight")
UNITS = {torch.float32: 0.0, torch.bfloat16: 2**-7}  # tolerance: one unit in the last place, relative

GRADIENT = """
        merge_method: slerp
        base_model: BASE
        parameters:
          t:
            - filter: self_attn
              value: [0, 0.25, 0.6, 1]
            - filter: mlp
              value: [1, 0.75, 0.4, 0]
            - value: 0.35
        dtype: float16
        """

EXAMPLES = {
    "arcee_fusion.yml": """
        models:
          - model: BASE
          - model: ONE
        merge_method: arcee_fusion
        base_model: BASE
        dtype: bfloat16
        """,
    "bio-merge.yml": """
        models:
          - model: ONE
            parameters:
              density: 0.4
              weight: 0.7
          - model: TWO
            parameters:
              density: 0.6
              weight: 0.45
        merge_method: ties
        base_model: BASE
        parameters:
          normalize: false
          int8_mask: true
        dtype: float16
        """,
    "gradient-slerp.yml": """
        slices:
          - sources:
              - model: BASE
                layer_range: [0, 4]
              - model: ONE
                layer_range: [0, 4]
        """
    + GRADIENT,
    "gradient-slerp.yml, by models": """
        models:
          - model: BASE
          - model: ONE
        """
    + GRADIENT,
    "linear.yml": """
        models:
          - model: ONE
            parameters:
              weight: 0.9
          - model: TWO
            parameters:
              weight: 0.2
          - model: THREE
            parameters:
              weight: 0.45
        merge_method: linear
        dtype: float16
        """,
    "orcamini-platy-44layer.yml": """
        slices:
          - sources:
            - model: ONE
              layer_range: [0, 3]
          - sources:
            - model: TWO
              layer_range: [2, 4]
        merge_method: passthrough
        dtype: float16
        """,
    "ties.yml": """
        models:
          - model: ONE
            parameters:
              density: [1, 0.6, 0.2] # gradient
              weight: 1.0
          - model: TWO
            parameters:
              density: 0.45
              weight: [0, 0.2, 0.8, 1] # gradient
          - model: THREE
            parameters:
              density: 0.3
              weight:
                - filter: mlp
                  value: 0.6
                - value: 0
        merge_method: ties
        base_model: BASE
        parameters:
          normalize: true
          int8_mask: true
        dtype: float16
        """,
}
GRADIENTS_AT_THE_END = {"ties.yml"}  # final norm and head differ, on purpose: mergekit takes the first value there


def form(
    method: str, models: str = "[{model: ONE, <1>}, {model: TWO, <2>}]", base: bool = True, shared: str = ""
) -> str:
    own = models.replace("<1>", "parameters: {weight: 0.7}").replace("<2>", "parameters: {weight: 0.45}")
    parts = [f"merge_method: {method}", f"models: {own}", "dtype: float32"]
    parts += ["base_model: BASE"] if base else []
    parts += [f"parameters: {{{shared}}}"] if shared else []
    return "{" + ", ".join(parts) + "}"


PLAIN = "[{model: ONE}, {model: TWO}]"
DENSE = PLAIN.replace("ONE", "ONE, parameters: {weight: 0.7, density: 0.5}").replace(
    "TWO", "TWO, parameters: {weight: 0.45, density: 0.8}"
)
CRUMBS = DENSE.replace("density: 0.5", "density: 0.5, gamma: 0.02").replace("density: 0.8", "density: 0.8, gamma: 0.05")
ALL_GAMMA = DENSE.replace("density: 0.5", "density: 0.9, gamma: 0.2")
MASKS = DENSE.replace("0.5}", "1.0}").replace("0.8}", "1.0}")  # at a density of 1 nothing is drawn
DOCUMENTATION = {  # of docs/merge_methods.md: every method with every parameter that it lists
    "linear": form("linear", base=False),
    "linear, not normalized": form("linear", base=False, shared="normalize: false"),
    "slerp": form("slerp", "[{model: ONE}]", shared="t: 0.3"),
    "slerp, both listed": form("slerp", "[{model: BASE}, {model: ONE}]", shared="t: 0.3"),
    "nuslerp": form("nuslerp", base=False),
    "nuslerp of task vectors": form("nuslerp"),
    "nuslerp by columns": form("nuslerp", shared="nuslerp_flatten: false"),
    "nuslerp by rows": form("nuslerp", base=False, shared="nuslerp_flatten: false, nuslerp_row_wise: true"),
    "multislerp": form("multislerp", base=False),
    "multislerp of task vectors": form("multislerp", shared="normalize_weights: true, eps: 1.0e-6"),
    "karcher": form("karcher", PLAIN, base=False),
    "karcher, limited": form("karcher", PLAIN, base=False, shared="max_iter: 3, tol: 1.0e-3"),
    "task_arithmetic": form("task_arithmetic", shared="lambda: 0.8"),
    "ties": form("ties", DENSE, shared="lambda: 0.8"),
    "dare_linear": form("dare_linear", MASKS, shared="lambda: 0.8, rescale: true"),
    "dare_linear, not rescaled": form("dare_linear", MASKS, shared="rescale: false"),
    "dare_ties": form("dare_ties", MASKS, shared="lambda: 0.8"),
    "breadcrumbs": form("breadcrumbs", CRUMBS, shared="lambda: 0.8"),
    "breadcrumbs, gamma above 1 - density": form("breadcrumbs", ALL_GAMMA),
    "breadcrumbs_ties": form("breadcrumbs_ties", CRUMBS, shared="lambda: 0.8"),
    "sce": form("sce", PLAIN, shared="select_topk: 0.6"),
    "ram": form("ram", PLAIN, shared="epsilon: 1.0e-5"),
    "ramplus_tl": form("ramplus_tl", PLAIN, shared="epsilon: 1.0e-3, r: 0.15, alpha: 0.3"),
    "model_stock": form("model_stock", PLAIN),
    "model_stock by rows": form("model_stock", PLAIN, shared="filter_wise: true"),
    "nearswap": form("nearswap", "[{model: ONE}]", shared="t: 0.005"),
    "arcee_fusion": form("arcee_fusion", "[{model: ONE}]"),
    "passthrough": form("passthrough", "[{model: ONE}]", base=False),
    "passthrough, scaled": form(
        "passthrough", "[{model: ONE}]", base=False, shared="scale: [{filter: down_proj, value: 0.5}, {value: 1.0}]"
    ),
    "README: precedence of scopes": """
        slices:
          - sources:
              - {model: BASE, layer_range: [0, 2]}
              - {model: ONE, layer_range: [0, 2], parameters: {weight: 0.9}}
              - {model: TWO, layer_range: [0, 2]}
            parameters: {weight: 0.3}
          - sources:
              - {model: BASE, layer_range: [2, 4]}
              - {model: ONE, layer_range: [2, 4]}
              - {model: TWO, layer_range: [2, 4], parameters: {weight: 0.15}}
        merge_method: task_arithmetic
        base_model: BASE
        parameters: {weight: 0.6}
        dtype: float32
        """,
    "README: out_dtype": form("task_arithmetic").replace("dtype: float32", "dtype: float32, out_dtype: bfloat16"),
}


def named(text: str, family: Family) -> str:
    for name, folder in zip(("BASE", "ONE", "TWO", "THREE"), family, strict=True):
        text = text.replace(name, folder)
    return text


def in_float32(text: str) -> str:
    return text.replace("dtype: float16", "dtype: float32").replace("dtype: bfloat16", "dtype: float32")


def by_mergekit(text: str, out: Path) -> Tensors:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = MergeConfiguration.model_validate(yaml.safe_load(text))
        options = MergeOptions(device="cpu", quiet=True, copy_tokenizer=False, write_model_card=False)
        run_merge(config, str(out), options)
    return {name: tensor for file in out.glob("*.safetensors") for name, tensor in load_file(file).items()}


def by_us(recipe: Recipe, out: Path) -> Tensors:
    checks.check(recipe, specs())
    write_checkpoint(recipe, Opener(out.parent / "cache").inputs(recipe), out, donor_of(recipe))
    return load_file(out / "model.safetensors")


def assert_same(ours: Tensors, theirs: Tensors, but: tuple[str, ...] = ()) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        if name in but:
            assert not torch.allclose(tensor, theirs[name], rtol=0.0, atol=1e-3), f"{name} is equal"
            continue
        unit = UNITS[tensor.dtype]
        torch.testing.assert_close(
            tensor.float(), theirs[name].float(), rtol=unit, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_gives_mergekits_weights(name: str, untied: Family, tmp_path: Path) -> None:
    text = in_float32(named(EXAMPLES[name], untied))
    recipe = from_mergekit(text, name, specs())
    but = END if name in GRADIENTS_AT_THE_END else ()
    assert_same(by_us(recipe, tmp_path / "ours"), by_mergekit(text, tmp_path / "theirs"), but)


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name != "arcee_fusion.yml"])
def test_every_example_in_half_precision(name: str, untied: Family, tmp_path: Path) -> None:
    """As they are written. Rounding decides entries near a cut or a vote: magnitudes of 11 bits are often equal."""
    text = named(EXAMPLES[name], untied)
    ours = by_us(from_mergekit(text, name, specs()), tmp_path / "ours")
    theirs = by_mergekit(text, tmp_path / "theirs")
    compared = [key for key in ours if not (name in GRADIENTS_AT_THE_END and key in END)]
    assert all(tensor.dtype == theirs[key].dtype == torch.float16 for key, tensor in ours.items())
    pairs = [(ours[key].float(), theirs[key].float()) for key in compared]
    differ = sum(int((~torch.isclose(one, two, rtol=2**-9, atol=1e-4)).sum()) for one, two in pairs)
    entries = sum(one.numel() for one, _ in pairs)
    assert differ <= (0.01 * entries if "ties" in text else 0), f"{differ} of {entries} entries differ"


def test_mergekits_arcee_fusion_ignores_the_type_of_its_output(untied: Family, tmp_path: Path) -> None:
    """It writes float32, from a mixture of types that decides which entries are important: no oracle but in float32."""
    text = named(EXAMPLES["arcee_fusion.yml"], untied)
    assert {tensor.dtype for tensor in by_mergekit(text, tmp_path / "theirs").values()} == {torch.float32}
    ours = by_us(from_mergekit(text, "arcee_fusion.yml", specs()), tmp_path / "ours")
    assert {tensor.dtype for tensor in ours.values()} == {torch.bfloat16}


@pytest.mark.parametrize("name", DOCUMENTATION)
def test_every_form_of_the_documentation_gives_mergekits_weights(name: str, untied: Family, tmp_path: Path) -> None:
    text = named(DOCUMENTATION[name], untied)
    recipe = from_mergekit(text, name, specs())
    assert_same(by_us(recipe, tmp_path / "ours"), by_mergekit(text, tmp_path / "theirs"))


def test_every_method_of_mergekit_is_in_the_list() -> None:
    listed = {yaml.safe_load(text)["merge_method"] for text in (*EXAMPLES.values(), *DOCUMENTATION.values())}
    known = {spec.mergekit.name for spec in specs().values() if spec.mergekit is not None}
    assert known - listed == {"della", "della_linear"}  # they draw at every density: see tests/merging


STAGES = """
name: first
merge_method: linear
models:
  - model: ONE
  - model: TWO
parameters:
  weight: 0.5
dtype: float32
---
name: second
merge_method: slerp
base_model: first
models:
  - model: THREE
parameters:
  t: 0.4
dtype: float32
---
merge_method: dare_ties
base_model: BASE
models:
  - model: second
    parameters: {density: 1.0, weight: 0.6}
  - model: TWO
    parameters: {density: 1.0, weight: 0.5}
dtype: float32
"""


def test_stages_of_one_file_give_mergekits_weights(untied: Family, tmp_path: Path) -> None:
    """docs/multimerge.md: a file of several documents, whose names are models of later ones."""
    text = named(STAGES, untied)
    (tmp_path / "stages.yaml").write_text(text)
    ours = by_us(files.load(tmp_path / "stages.yaml"), tmp_path / "ours")
    theirs: Tensors = {}
    for stage in text.split("---"):
        for name in ("first", "second"):
            stage = stage.replace(f"model: {name}", f"model: {tmp_path / name}")
        data = yaml.safe_load(stage)
        out = tmp_path / str(data.pop("name", "last"))
        theirs = by_mergekit(yaml.safe_dump(data), out)
    assert_same(ours, theirs)


def test_methods_that_a_user_wrote_for_mergekit_are_refused_by_name(untied: Family) -> None:
    """docs/create_a_merge_method.md: Python that mergekit loads; here, an entry point of another package."""
    recipe = from_mergekit(named(form("weighted_average"), untied), "own.yml", specs())
    with pytest.raises(RecipeError, match=r"merge_method: unknown method 'weighted_average'.*Known methods"):
        checks.check(recipe, specs(), "own.yml")


def test_a_gradient_at_the_end_is_ours(untied: Family, tmp_path: Path) -> None:
    """What differs in `ties.yml`: with the ends of its gradients written out, both give the same weights."""
    text = in_float32(named(EXAMPLES["ties.yml"], untied))
    ours = by_us(from_mergekit(text, "ties.yml", specs()), tmp_path / "ours")
    ends = "\n".join(f"                - {{filter: {name}, value: LAST}}" for name in END)
    for gradient, last in (("[1, 0.6, 0.2]", "0.2"), ("[0, 0.2, 0.8, 1]", "1")):
        entries = ends.replace("LAST", last) + f"\n                - value: {gradient}"
        text = text.replace(f" {gradient} # gradient", f"\n{entries}")
    assert_same(ours, by_mergekit(text, tmp_path / "theirs"))
