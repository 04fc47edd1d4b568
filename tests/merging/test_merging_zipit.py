"""ZipIt!: greedy matching, merging and unmerging, and merges of models whose units are known to be equal."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from evosearch.checkpoints.reader import Checkpoint
from evosearch.checkpoints.tokenizers.loading import load_tokenizer
from evosearch.errors import CandidateError, RecipeError
from evosearch.materialize.in_memory import ResidentModel
from evosearch.merging import greedy_matching
from evosearch.merging.greedy_matching import Similarities, matched
from evosearch.merging.methods import zipit
from evosearch.merging.registry import specs
from evosearch.merging.unit_sets import Sets, by_query, of_attention, of_hidden, of_residual
from evosearch.merging.zipping import zipped
from evosearch.recipe.files import load
from evosearch.recipe.mergekit import to_mergekit
from evosearch.search.progress import Silent
from evosearch.service.merge import merge
from evosearch.setup.models import open_models
from tests.merging.test_merging_rebasin import FAMILIES, permuted, planted

torch.set_num_threads(1)


def draws(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_the_paper(matrix: Tensor, alpha: float, beta: float) -> list[set[int]]:
    """Greedy matching as section 4.3 states it, with lists of sets, and a similarity for every pair of them."""
    size = len(matrix)
    sets = {unit: {unit} for unit in range(size)}
    similar = {(i, j): float(matrix[i, j]) for i in range(size) for j in range(i + 1, size)}
    spent, budget = [0, 0], int(beta * size / 4 + 1e-9)

    def within(i: int, j: int) -> int | None:
        models = {unit >= size // 2 for unit in sets[i] | sets[j]}
        return int(models.pop()) if len(models) == 1 else None

    for _ in range(size // 2):
        allowed = {pair: value for pair, value in similar.items() if (m := within(*pair)) is None or spent[m] < budget}
        i, j = max(allowed, key=lambda pair: (allowed[pair], -pair[0], -pair[1]))
        if (model := within(i, j)) is not None:
            spent[model] += 1
        rest = [k for k in sets if k not in (i, j)]
        old = {k: min(similar.get(ordered(i, k), -2.0), similar.get(ordered(j, k), -2.0)) for k in rest}
        similar = {pair: value for pair, value in similar.items() if not {i, j} & set(pair)}
        if alpha > 0:
            similar |= {ordered(i, k): value * alpha for k, value in old.items()}
        sets[i] |= sets.pop(j)
    return [sets[first] for first in sorted(sets)]


def ordered(i: int, j: int) -> tuple[int, int]:
    return min(i, j), max(i, j)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("half", [1, 2, 9, 20])
def test_matching_is_the_papers(alpha: float, beta: float, half: int) -> None:
    for seed in range(5):
        x = draws(seed, 12, 2 * half) + draws(seed + 100, 12, 1)
        matrix = torch.corrcoef(x.t()).reshape(2 * half, 2 * half)
        found = matched(Similarities.of(matrix), alpha, beta)
        expected = by_the_paper(matrix.float(), alpha, beta)
        assert [set(torch.where(found == index)[0].tolist()) for index in range(half)] == expected
        assert sorted(set(found.tolist())) == list(range(half))
        if beta == 0.0 and alpha == 0.0:
            assert found[:half].tolist() == list(range(half)), "one unit of each model, in the first one's order"
            assert sorted(found[half:].tolist()) == list(range(half))


def test_correlations_are_those_of_the_concatenation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(greedy_matching, "BLOCK", 3)
    first, second = draws(0, 40, 7), draws(1, 40, 7)
    first[:, 2] = first[:, 4] = 0.0
    second[:, 5] = 0.0
    second[:, 6] = 2.0
    found = Similarities.correlations(first, second)
    live = [0, 1, 3, 5, 6, 7, 8, 9, 10, 11]
    expected = torch.corrcoef(torch.cat([first, second], dim=1).t())
    rows = torch.stack([torch.from_numpy(found.row(unit)) for unit in range(14)])
    for one in live:
        for other in set(live) - {one}:
            tie = greedy_matching.TIE if abs(one - other) == 7 else 0.0
            assert rows[one, other] == pytest.approx(float(expected[one, other]) + tie, abs=1e-6)
    assert rows[2, 4] == rows[4, 12] == pytest.approx(1.0), "equal constants"
    assert rows[2, 13] == rows[4, 13] == 0.0, "another constant"
    assert rows[2, live].max() <= greedy_matching.TIE


def matrices(sets: Sets) -> tuple[Tensor, Tensor]:
    """M (n, 2n) and its pseudoinverse U (2n, n), from their definition."""
    units = torch.cat(sets.of)
    indicator = torch.nn.functional.one_hot(units, sets.count).double()
    merging = (indicator / indicator.sum(dim=0)).t()
    return merging, torch.linalg.pinv(merging)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_layers_are_merged_and_unmerged_by_m_and_its_pseudoinverse(alpha: float) -> None:
    inner = of_hidden(draws(0, 30, 6), draws(1, 30, 6), alpha, 1.0)
    outer = of_hidden(draws(2, 30, 8), draws(3, 30, 8), alpha, 1.0)
    parents = [draws(4, 8, 6), draws(5, 8, 6)]
    (_, unmerge), (merging, _) = matrices(inner), matrices(outer)
    blocks = torch.block_diag(*parents).double()
    found = zipped(parents, [1.0, 1.0], outer, inner, torch.float32)
    torch.testing.assert_close(found.double(), merging @ blocks @ unmerge, rtol=1e-5, atol=1e-6)
    biases = [draws(6, 8), draws(7, 8)]
    torch.testing.assert_close(
        zipped(biases, [2.0, 2.0], outer, None, torch.float32).double(), merging @ torch.cat(biases).double()
    )


def test_a_set_without_weight_has_the_mean_of_its_units() -> None:
    sets = Sets((torch.tensor([0, 1, 1, 2]), torch.tensor([0, 3, 3, 0])))
    parents = [torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([16.0, 32.0, 64.0, 128.0])]
    assert zipped(parents, [0.0, 1.0], sets, None, torch.float32).tolist() == [72.0, 3.0, 8.0, 48.0]
    assert zipped(parents, [1.0, 1.0], sets, None, torch.float32)[0] == pytest.approx((1 + 16 + 128) / 3)
    assert zipped(parents, [2.0, 1.0], sets, None, torch.float32)[0] == pytest.approx((2 + 16 + 128) / 4)


def gated(x: Tensor, gate: Tensor, up: Tensor) -> Tensor:
    return torch.nn.functional.silu(x @ gate.t()) * (x @ up.t())


def mlp(seed: int, order: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """gate, up (12, 5) and down (4, 12) of an MLP with 6 different units, each twice, in some order."""
    gate, up, down = draws(seed, 6, 5).repeat(2, 1), draws(seed + 1, 6, 5).repeat(2, 1), draws(seed + 2, 4, 12)
    return gate[order], up[order], down[:, order]


def test_redundant_models_are_merged_without_loss() -> None:
    """Section 3: if half of the units of both models are redundant, the merge is their mean in function."""
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    both, x = (mlp(10, torch.arange(12)), mlp(20, order)), draws(30, 64, 5)
    hidden = [gated(x, gate, up) for gate, up, _ in both]
    sets = of_hidden(hidden[0], hidden[1], 0.0, 1.0)
    for own in sets.of:
        assert len(own.unique()) == 6, "duplicates within each model"
    assert not set(sets.of[0].tolist()) & set(sets.of[1].tolist())
    weights = [1.0, 1.0]
    gate, up = (zipped([one[k] for one in both], weights, sets, None, torch.float32) for k in (0, 1))
    down = zipped([one[2] for one in both], weights, None, sets, torch.float32)
    mean = sum(own @ one[2].t() for own, one in zip(hidden, both, strict=True)) / 2
    torch.testing.assert_close(gated(x, gate, up) @ down.t(), mean, rtol=1e-4, atol=1e-5)
    across = of_hidden(hidden[0], hidden[1], 0.0, 0.0)
    assert all(sorted(own.tolist()) == list(range(12)) for own in across.of), "no budget within models"


def test_heads_move_in_groups_and_their_queries_within() -> None:
    size, keys, each = 4, 3, 2
    one = draws(0, 50, keys * each, size)
    groups, queries = torch.tensor([2, 0, 1]), torch.tensor([[1, 0], [0, 1], [1, 0]])
    other = one.view(50, keys, each, size)[:, groups]
    other = torch.stack([other[:, g, queries[g]] for g in range(keys)], dim=1)
    found, rows = of_attention(one.flatten(1), other.flatten(1), size, keys, 0.0, 0.0)
    assert found.of[0].tolist() == list(range(keys * size))
    assert found.of[1].view(keys, size)[:, 0].div(size, rounding_mode="floor").tolist() == groups.tolist()
    moved = rows.of[1].view(-1, size)[:, 0].div(size, rounding_mode="floor").view(keys, each)
    assert moved.tolist() == [[2 * int(g) + int(q) for q in queries[i]] for i, g in enumerate(groups)]
    assert rows.of[1].view(-1, size).diff(dim=1).unique().tolist() == [1], "dimensions within a head stay"
    assert by_query(one.flatten(1), other.flatten(1), size).diagonal().allclose(torch.ones(12, dtype=torch.float64))


def test_a_duplicated_head_is_merged_within_its_model() -> None:
    one, other = draws(0, 50, 4, 4), draws(1, 50, 4, 4)
    one[:, 3] = one[:, 0]
    found, _ = of_attention(one.flatten(1), other.flatten(1), 4, 4, 0.0, 1.0)
    heads = found.of[0].view(4, 4)[:, 0]
    assert heads[3] == heads[0]
    across, _ = of_attention(one.flatten(1), other.flatten(1), 4, 4, 0.0, 0.0)
    assert len(across.of[0].unique()) == 16


def test_the_residual_stream_is_permuted_only() -> None:
    one, order = draws(0, 60, 9), torch.randperm(9, generator=torch.Generator().manual_seed(1))
    one[:, 2] = one[:, 7] = 0.0
    found = of_residual([(lambda: one, lambda: one[:, order])])
    live = torch.tensor([unit not in (2, 7) for unit in order.tolist()])
    assert torch.equal(found.of[1][live], order[live])
    same = of_residual([(lambda: one, lambda: one)])
    assert torch.equal(same.of[1], torch.arange(9)), "units that do not vary keep their place"


@pytest.fixture
def write(world: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """`write([FOLDER, FOLDER], KEY=VALUE…)` writes a recipe of zipit with a sample; `parameters` are those of zipit."""

    def writing(models: Sequence[Path], weights: Sequence[float] = (), **parameters: Any) -> Path:
        load_tokenizer(world().parent / "base").save_pretrained(models[0])
        draw = random.Random(3)
        texts = "\n\n".join("".join(draw.choices("abcdefghij=?.", k=30)) for _ in range(20))
        (tmp_path / "texts.txt").write_text(texts)
        entries: list[dict[str, Any]] = [{"model": str(model)} for model in models]
        for entry, weight in zip(entries, weights, strict=False):
            entry["parameters"] = {"weight": weight}
        data: dict[str, Any] = {"merge_method": "zipit", "models": entries, "sample": {"text": "texts.txt"}}
        if parameters:
            data["parameters"] = parameters
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(data))
        return path

    return writing


def merged(path: Path, out: Path) -> dict[str, Tensor]:
    merge(path, out, Silent())
    found: dict[str, Tensor] = load_file(out / "model.safetensors")
    return found


@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_planted_permutation_is_undone(
    architecture: str, write: Callable[..., Path], random_model: Callable[..., Path], tmp_path: Path
) -> None:
    base = random_model(architecture, spread=0.3)
    one = Checkpoint.open(base)
    other = permuted(base, planted(one), tmp_path / "other")
    for name, tensor in merged(write([base, other]), tmp_path / "out").items():
        assert torch.equal(tensor, one.load(name)), name
    for name, tensor in merged(write([base, other], [0.3, 1.1], alpha=0.2, beta=0.5), tmp_path / "more").items():
        torch.testing.assert_close(tensor, one.load(name), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("given", [{}, {"alpha": 0.4, "beta": 1.0}, {"residual": "keep"}, {"depth": 0.5}])
def test_a_model_with_itself_is_itself(
    given: dict[str, Any], write: Callable[..., Path], random_model: Callable[..., Path], tmp_path: Path
) -> None:
    base, copy = random_model("LlamaForCausalLM", spread=0.3), random_model("LlamaForCausalLM", spread=0.3)
    for name, tensor in merged(write([base, copy], **given), tmp_path / "out").items():
        assert torch.equal(tensor, Checkpoint.open(base).load(name)), name


def test_layers_behind_the_depth_are_the_first_models(
    write: Callable[..., Path], random_model: Callable[..., Path], tmp_path: Path
) -> None:
    base, other = random_model("LlamaForCausalLM"), random_model("LlamaForCausalLM", seed=4)
    one = Checkpoint.open(base)
    count = one.shape.num_layers
    none = merged(write([base, other], depth=0.0), tmp_path / "none")
    assert all(torch.equal(tensor, one.load(name)) for name, tensor in none.items())
    part = merged(write([base, other], depth=1 / count), tmp_path / "part")
    whole = merged(write([base, other]), tmp_path / "whole")
    for name, tensor in part.items():
        spec = one.shape.by_name[name]
        first = spec.layer == 0 if spec.layer is not None else spec.place == "embeddings"
        assert torch.equal(tensor, whole[name] if first else one.load(name)), name
        assert not torch.equal(whole[name], one.load(name)), name


def test_layers_of_slices_may_differ_between_the_models(
    write: Callable[..., Path], random_model: Callable[..., Path], tmp_path: Path
) -> None:
    base = random_model("LlamaForCausalLM", spread=0.3, num_hidden_layers=4)
    other = permuted_layers(base, tmp_path / "other")
    path = write([base, other])
    data = yaml.safe_load(path.read_text())
    del data["models"]
    ranges = [([0, 2], [2, 4]), ([2, 4], [0, 2])]
    data["slices"] = [
        {"sources": [{"model": str(base), "layer_range": a}, {"model": str(other), "layer_range": b}]}
        for a, b in ranges
    ]
    path.write_text(yaml.safe_dump(data | {"parameters": {"residual": "keep"}}))
    found = merged(path, tmp_path / "out")
    one = Checkpoint.open(base)
    assert all(torch.equal(found[name], one.load(name)) for name in found if "layers" not in name)
    assert found.keys() == one.tensors.keys()


def permuted_layers(base: Path, out: Path) -> Path:
    """A copy of a model."""
    plan = planted(Checkpoint.open(base))
    return permuted(base, type(plan)({}), out)


def test_numbers_vary_without_another_pass_or_matching(
    write: Callable[..., Path], random_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, other = random_model("LlamaForCausalLM"), random_model("LlamaForCausalLM", seed=4)
    path = write([base, other])
    recipe = load(path)
    models = open_models(recipe, str(path), Silent())
    calls = list[str]()
    for name in ("of_hidden", "of_attention", "of_residual"):
        original = getattr(zipit, name)
        monkeypatch.setattr(zipit, name, lambda *a, n=name, o=original: (calls.append(n), o(*a))[1])
    resident = ResidentModel(models.checkpoints, models.donor, example=recipe)
    weights = list[Tensor]()
    for weight, depth in ((1.0, 1.0), (0.5, 1.0), (0.5, 0.5), (1.0, 1.0)):
        entries = [recipe.models[0].model_copy(update={"parameters": {"weight": weight}}), recipe.models[1]]
        resident.materialize(recipe.model_copy(update={"models": tuple(entries), "parameters": {"depth": depth}}))
        weights.append(resident.model.model.layers[0].mlp.gate_proj.weight.clone())
    layers = Checkpoint.open(base).shape.num_layers
    assert {name: calls.count(name) for name in calls} == {
        "of_residual": 1,
        "of_hidden": layers,
        "of_attention": layers,
    }
    assert torch.equal(weights[0], weights[3])
    assert not torch.equal(weights[0], weights[1])
    resident.materialize(recipe.model_copy(update={"parameters": {"beta": 0.5}}))
    assert calls.count("of_hidden") == 2 * layers
    assert calls.count("of_residual") == 1


def test_bytes_do_not_depend_on_threads(
    write: Callable[..., Path], random_model: Callable[..., Path], tmp_path: Path
) -> None:
    path = write([random_model("LlamaForCausalLM"), random_model("LlamaForCausalLM", seed=4)], alpha=0.2)
    merged(path, tmp_path / "one")
    torch.set_num_threads(2)
    try:
        merged(path, tmp_path / "two")
    finally:
        torch.set_num_threads(1)
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"depth": 1.5}, "parameters.depth"),
        ({"alpha": -0.1}, "parameters.alpha"),
        ({"beta": 2}, "parameters.beta"),
        ({"residual": "mean"}, "parameters.residual"),
        ({"dept": 0.5}, "Did you mean 'depth'?"),
    ],
)
def test_a_bad_value_is_refused(
    given: dict[str, Any],
    message: str,
    write: Callable[..., Path],
    random_model: Callable[..., Path],
    tmp_path: Path,
    evosearch: Callable[..., tuple[int, str, str]],
) -> None:
    models = [random_model("LlamaForCausalLM"), random_model("LlamaForCausalLM", seed=4)]
    code, _, errors = evosearch("merge", write(models, **given), tmp_path / "out")
    assert code == 2
    assert message in " ".join(errors.split())
    assert not (tmp_path / "out").exists()


def test_what_it_cannot_merge_is_refused(
    write: Callable[..., Path], random_model: Callable[..., Path], tmp_path: Path
) -> None:
    base, other = random_model("LlamaForCausalLM"), random_model("LlamaForCausalLM", seed=4)
    with pytest.raises(CandidateError, match=r"depth is one number for the whole model, got 0\.5 to 1"):
        merged(write([base, other], depth=[{"filter": "mlp", "value": 0.5}, {"value": 1.0}]), tmp_path / "out")
    with pytest.raises(CandidateError, match="sum to zero"):
        merged(write([base, other], [0.0, 0.0]), tmp_path / "out")
    with pytest.raises(RecipeError, match="zipit"):
        merged(write([base, other, random_model("LlamaForCausalLM", seed=5)]), tmp_path / "out")
    with pytest.raises(CandidateError, match=r"the symmetries of .* are not known"):
        merged(write([random_model("GPT2LMHeadModel"), random_model("GPT2LMHeadModel", seed=2)]), tmp_path / "out")
    path = write([base, other])
    shape = open_models(load(path), str(path), Silent()).shape
    with pytest.raises(RecipeError, match=r"no equivalent of the method 'zipit'.*Export the merged checkpoint"):
        to_mergekit(load(path), shape, specs())
