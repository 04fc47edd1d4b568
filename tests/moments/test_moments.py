"""Statistics of models over a sample: Fisher and Gram matrices against brute force, their files, and their merges."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from evosearch.checkpoints.cache.inventory import inventory, prune
from evosearch.checkpoints.reader import Checkpoint
from evosearch.errors import CheckpointError, RecipeError
from evosearch.materialize.in_memory import ResidentModel
from evosearch.materialize.skeleton import build, generation_folder
from evosearch.moments import sampled_moments
from evosearch.moments.files import open_moments, sums
from evosearch.moments.gram_matrices import add_gram_matrices, linear_layers, sharing
from evosearch.moments.sample_tokens import read_tokens
from evosearch.moments.sampled_moments import SampledMoments
from evosearch.moments.squared_gradients import add_squared_gradients, draws_of
from evosearch.recipe.files import load
from evosearch.recipe.sample import Sample
from evosearch.recipe.schema import Recipe
from evosearch.search.progress import Silent
from evosearch.service.merge import merge
from evosearch.setup.models import open_models

torch.set_num_threads(1)
World = Callable[..., Path]
DOCUMENTS = ((5, 6, 7, 8, 4), (9, 10, 4), (11,), (4, 12, 13, 6))


def live(folder: Path) -> tuple[Any, dict[str, Any], Checkpoint]:
    one = Checkpoint.open(folder)
    model = build(generation_folder(one), one.config, one.tensors, one.load, torch.float32)
    return model, {name: one.family.placement(name, one.config) for name in one.tensors}, one


def zeros(one: Checkpoint) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(info.shape) for name, info in one.tensors.items()}


def parameter(model: Any, place: Any) -> torch.Tensor:
    found = dict(model.named_parameters())[place.parameter]
    return found[place.index] if place.index else found


def squared(model: Any, places: dict[str, Any], tokens: tuple[int, ...], labels: list[int]) -> dict[str, torch.Tensor]:
    """Brute force: (Σ_t ∂ log p(y_t | x))² of one document, from the gradient of each position alone."""
    live = dict(model.named_parameters())
    total = {path: torch.zeros_like(one) for path, one in live.items()}
    for at, label in enumerate(labels):
        with torch.enable_grad():
            model.requires_grad_(True)
            likely = model(torch.tensor([tokens[: at + 1]])).logits[0, -1].log_softmax(-1)[label]
            for (path, _), grad in zip(
                live.items(), torch.autograd.grad(likely, list(live.values()), allow_unused=True), strict=True
            ):
                total[path] += 0.0 if grad is None else grad  # of an expert that reads no token
            model.requires_grad_(False)
    squares = {path: one.square() for path, one in total.items()}
    return {n: squares[p.parameter][p.index] if p.index else squares[p.parameter] for n, p in places.items()}


def drawn(model: Any, tokens: tuple[int, ...], uniform: torch.Tensor) -> list[int]:
    shares = model(torch.tensor([tokens])).logits[0].detach().double().softmax(-1).numpy()
    return [
        int(np.searchsorted(np.cumsum(own), u * own.sum(), side="right"))
        for own, u in zip(shares, uniform.tolist(), strict=True)
    ]


def test_fisher_is_brute_force(world: World) -> None:
    model, places, one = live(world().parent / "base")
    found, draws = zeros(one), draws_of("a sample")
    add_squared_gradients(model, DOCUMENTS, found, places, draws)
    expected = zeros(one)
    for index, tokens in enumerate(DOCUMENTS):
        own = squared(model, places, tokens, drawn(model, tokens, draws(index, len(tokens))))
        for name, square in own.items():
            expected[name] += square / len(tokens) / len(DOCUMENTS)
    for name, total in found.items():
        torch.testing.assert_close(total, expected[name], rtol=1e-4, atol=1e-9, msg=lambda text, n=name: f"{n}: {text}")
    assert not any(one.requires_grad or one.grad is not None for one in model.parameters())


def test_fisher_of_one_position_is_the_expectation_over_labels(world: World) -> None:
    model, places, one = live(world().parent / "base")
    count = 400
    found = zeros(one)
    add_squared_gradients(
        model, [(7,)] * count, found, places, lambda i, _: torch.tensor([(i + 0.5) / count], dtype=torch.float64)
    )
    shares = model(torch.tensor([[7]])).logits[0, -1].softmax(-1)
    expected = zeros(one)
    for label, share in enumerate(shares.tolist()):
        for name, square in squared(model, places, (7,), [label]).items():
            expected[name] += share * square
    for name, total in found.items():
        assert (total - expected[name]).norm() <= 0.05 * expected[name].norm(), name


@pytest.mark.parametrize("architecture", ["Qwen2ForCausalLM", "GPT2LMHeadModel", "Qwen3MoeForCausalLM"])
def test_fisher_of_other_families_with_ties_and_experts(architecture: str, random_model: Callable[..., Path]) -> None:
    model, places, one = live(random_model(architecture, tie_word_embeddings=True))
    found, draws = zeros(one), draws_of("b")
    add_squared_gradients(model, [(5, 6, 5, 7)], found, places, draws)
    expected = squared(model, places, (5, 6, 5, 7), drawn(model, (5, 6, 5, 7), draws(0, 4)))
    for name, total in found.items():
        torch.testing.assert_close(
            total, expected[name] / 4, rtol=1e-3, atol=1e-8, msg=lambda text, n=name: f"{n}: {text}"
        )
    assert not any(getattr(module, "sparse", False) for module in model.modules())


def test_gram_matrices_are_those_of_the_inputs_and_shared_where_these_are(world: World) -> None:
    model, places, _ = live(world().parent / "base")
    layers = linear_layers(model, places)
    first = sharing(model, layers, DOCUMENTS[0])
    attention, mlp = "model.layers.1.self_attn", "model.layers.1.mlp"
    assert first[f"{attention}.k_proj.weight"] == first[f"{attention}.v_proj.weight"] == f"{attention}.q_proj.weight"
    assert first[f"{mlp}.up_proj.weight"] == f"{mlp}.gate_proj.weight"
    assert first["lm_head.weight"] == "lm_head.weight"
    assert len({*first.values()}) == 3 * 4 + 1
    assert "model.embed_tokens.weight" not in first
    found = {
        name: torch.zeros(layers[name].weight.shape[1], layers[name].weight.shape[1]) for name in {*first.values()}
    }
    add_gram_matrices(model, DOCUMENTS, found, layers)
    rows, ends = [], []
    for tokens in DOCUMENTS:
        inner = model.model
        rows.append(inner.layers[0].input_layernorm(inner.embed_tokens(torch.tensor(tokens))))
        ends.append(inner(torch.tensor([tokens])).last_hidden_state[0])
    for name, own in (("model.layers.0.self_attn.q_proj.weight", rows), ("lm_head.weight", ends)):
        x = torch.cat(own)
        torch.testing.assert_close(found[name], x.t() @ x / len(x), rtol=1e-4, atol=1e-6)


# --- samples ---


def test_a_sample_of_texts_has_paragraphs_or_lines_and_limits(world: World, tmp_path: Path) -> None:
    from evosearch.checkpoints.tokenizers.loading import load_tokenizer

    tokenizer = load_tokenizer(world().parent / "base")
    plain, lines = tmp_path / "texts.txt", tmp_path / "texts.jsonl"
    plain.write_text("abc\nd\n\n\n\nefghij\n\nb")
    lines.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("abc\nd", "efghij", "", "b")))
    expected = tuple(tuple(tokenizer(text)["input_ids"][:4]) for text in ("abc\nd", "efghij", "b"))
    for path in (plain, lines):
        assert read_tokens(Sample(text=str(path), tokens=4), tokenizer, 64) == expected
        assert read_tokens(Sample(text=str(path), tokens=4, documents=2), tokenizer, 64) == expected[:2]
    lines.write_text('{"text": 3}\n')
    with pytest.raises(RecipeError, match=r"texts.jsonl: line 1: text: missing"):
        read_tokens(Sample(text=str(lines)), tokenizer, 64)
    plain.write_text("\n\n")
    with pytest.raises(RecipeError, match=r"recipe.sample: has no documents"):
        read_tokens(Sample(text=str(plain)), tokenizer, 64)


def test_a_sample_of_a_suite_has_the_prompts_of_its_search_split(world: World) -> None:
    from evosearch.checkpoints.tokenizers.loading import load_tokenizer
    from evosearch.evaluation.harness.harness import Harness
    from evosearch.evaluation.suites.suite import load_suite

    suite = world().parent / "suite.yaml"
    tokenizer = load_tokenizer(suite.parent / "base")
    found = read_tokens(Sample(suite=str(suite), task="generate", documents=5), tokenizer, 64)
    frozen = Harness(load_suite(suite)).freeze(Harness(load_suite(suite)).batch("search"), tokenizer, 64)
    assert found == tuple(request.prompt for request in frozen.generations[:5])
    choice = read_tokens(Sample(suite=str(suite), task="choice"), tokenizer, 64)
    assert [tokenizer.decode(tokens)[-1] for tokens in choice] == ["?"] * 8
    with pytest.raises(RecipeError, match=r"no task 'choise'.*choice, generate.*Did you mean 'choice'"):
        read_tokens(Sample(suite=str(suite), task="choise"), tokenizer, 64)


@pytest.mark.parametrize(
    ("sample", "problem"),
    [
        (None, r"sample: missing.*fisher needs the diagonal of the Fisher matrix over texts"),
        ({"text": "a.txt", "suite": "b.yaml"}, "exactly one of suite and text"),
        ({"suite": "b.yaml"}, "suite and task are given together"),
        ({"text": "a.txt", "task": "x"}, "task is not valid with text"),
        ({"text": "a.txt", "split": "test"}, "split"),
        ({"text": "nowhere.txt"}, "nowhere.txt"),
    ],
)
def test_a_wrong_sample_is_one_error(
    sample: Any, problem: str, world: World, evosearch: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    path = recipe_file(world, "fisher", sample=sample)
    code, _, errors = evosearch("merge", path, tmp_path / "out")
    assert code == 2
    assert re.search(problem, " ".join(errors.split()))
    assert not (tmp_path / "out").exists()


# --- files and merges ---


def recipe_file(world: World, method: str, name: str = "statistics.yaml", **changes: Any) -> Path:
    folder = world().parent
    (folder / "texts.txt").write_text("abcd?\n\nghij=b\n\nabc.def\n\nfe?dc=ba")
    data = {
        "merge_method": method,
        "models": [
            {"model": "./expert1", "parameters": {"weight": 0.6}},
            {"model": "./expert2", "parameters": {"weight": 0.9}},
        ],
        "sample": {"text": "texts.txt"},
    } | changes
    path = folder / name
    path.write_text(yaml.safe_dump({key: value for key, value in data.items() if value is not None}, sort_keys=False))
    return path


def brute(world: World, method: str) -> dict[str, torch.Tensor]:
    """The merge of `recipe_file`, from statistics in memory and numpy's own solver in float64."""
    folder, stats, weights = world().parent, [], (0.6, 0.9)
    models = [live(folder / name) for name in ("expert1", "expert2")]
    from evosearch.checkpoints.tokenizers.loading import load_tokenizer

    sample = Sample(text=str(folder / "texts.txt"))
    tokens = read_tokens(sample, load_tokenizer(folder / "expert1"), 64)
    digest = sampled_moments.digest_of(tokens)
    for model, places, one in models:
        if method == "fisher":
            own = zeros(one)
            add_squared_gradients(model, tokens, own, places, draws_of(digest))
        else:
            layers = linear_layers(model, places)
            own = {name: torch.zeros((layer.weight.shape[1],) * 2) for name, layer in layers.items()}
            add_gram_matrices(model, tokens, own, layers)
        stats.append(own)
    merged = {}
    for name in models[0][2].tensors:
        thetas = [one.load(name).double().numpy() for _, _, one in models]
        if method == "fisher":
            found = [own[name].double().numpy() for own in stats]
            floor = 1e-6 * np.mean(found)
            shares = [w * np.maximum(f, floor) for w, f in zip(weights, found, strict=True)]
            result = sum(t * s for t, s in zip(thetas, shares, strict=True)) / sum(shares)
        elif name in stats[0]:
            grams = []
            for w, own in zip(weights, stats, strict=True):
                g = own[name].double().numpy()
                grams.append(
                    w * (0.9 * g + (0.1 + 1e-6 * 0) * np.diag(np.diag(g)) + 1e-6 * np.diag(g).mean() * np.eye(len(g)))
                )
            result = sum(t @ g for t, g in zip(thetas, grams, strict=True)) @ np.linalg.inv(sum(grams))
        else:
            result = sum(w * t for w, t in zip(weights, thetas, strict=True)) / sum(weights)
        merged[name] = torch.from_numpy(result).float()
    return merged


@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_a_merge_on_disk_and_in_memory_is_the_closed_form(method: str, world: World, tmp_path: Path) -> None:
    path = recipe_file(world, method)
    merge(path, tmp_path / "out", Silent())
    found, expected = load_file(tmp_path / "out" / "model.safetensors"), brute(world, method)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(
            tensor, expected[name], rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )
    recipe = load(path)
    models = open_models(recipe, str(path), Silent())
    resident = ResidentModel(models.checkpoints, models.donor, example=recipe)
    resident.materialize(recipe)
    state = resident.model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in found.items())


def test_alpha_1_minimizes_the_difference_of_outputs() -> None:
    from evosearch.merging.method_parameters import Parameters
    from evosearch.merging.methods.regmean import regmean

    generator = torch.Generator().manual_seed(0)
    xs = [torch.randn(50, 6, generator=generator, dtype=torch.float64) for _ in range(2)]
    ws = [torch.randn(4, 6, generator=generator, dtype=torch.float64) for _ in range(2)]
    grams = tuple(x.t() @ x / 50 for x in xs)
    p = Parameters({"alpha": 1.0}, {"weight": (1.0, 1.0)}, torch.float64, statistics=grams)
    targets = torch.cat([x @ w.t() for x, w in zip(xs, ws, strict=True)])
    expected = np.linalg.lstsq(torch.cat(xs).numpy(), targets.numpy(), rcond=None)[0].T
    torch.testing.assert_close(regmean(None, ws, p), torch.from_numpy(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_conv1d_weights_are_merged_as_linear_ones(
    method: str, random_model: Callable[..., Path], tmp_path: Path
) -> None:
    base = random_model("GPT2LMHeadModel")
    other = random_model("GPT2LMHeadModel", seed=2, near=base)
    models = {str(path): Checkpoint.open(path) for path in (base, other)}
    recipe = Recipe.model_validate(
        {"merge_method": method, "models": [{"model": name} for name in models], "sample": {"text": "x"}}
    )
    assert recipe.sample is not None
    samples = SampledMoments(tmp_path, known={recipe.sample.key: DOCUMENTS})
    samples.attach(recipe.sample, models)
    resident = ResidentModel(models, str(base), example=recipe)
    resident.materialize(recipe)
    name = "transformer.h.1.mlp.c_fc.weight"  # (in, out)
    key = recipe.sample.key, "gram" if method == "regmean" else "fisher"
    first, second = (one.load(name).double() for one in models.values())
    one, two = (model.statistics[key].load(name).double() for model in models.values())
    if method == "regmean":
        assert one.shape == (first.shape[0],) * 2
        one, two = (
            0.9 * g + 0.1 * g.diagonal().diag() + 1e-6 * g.diagonal().mean() * torch.eye(len(g)) for g in (one, two)
        )
        expected = torch.linalg.solve(one + two, one @ first + two @ second)
    else:
        floor = 1e-6 * (one.mean() + two.mean()) / 2
        one, two = one.clamp_min(floor), two.clamp_min(floor)
        expected = (one * first + two * second) / (one + two)
    torch.testing.assert_close(resident.model.state_dict()[name], expected.float(), rtol=1e-4, atol=1e-5)


def test_statistics_are_computed_once_listed_and_pruned(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, built = recipe_file(world, "fisher"), []
    original = sampled_moments.build
    monkeypatch.setattr(sampled_moments, "build", lambda *args: built.append(args[0]) or original(*args))
    merge(path, tmp_path / "one", Silent())
    assert len(built) == 2
    again = recipe_file(
        world,
        "fisher",
        "again.yaml",
        models=[
            {"model": "./expert2", "parameters": {"weight": 0.2}},
            {"model": "./expert1", "parameters": {"weight": 1.1}},
        ],
    )
    merge(again, tmp_path / "two", Silent())
    assert len(built) == 2, "other weights in another order"
    cache = tmp_path / "cache"
    listed = [entry for entry in inventory(cache).entries if entry.kind == "statistics"]
    folder = world().parent
    assert sorted(entry.what for entry in listed) == [f"fisher of {folder}/expert1", f"fisher of {folder}/expert2"]
    recipe_file(world, "fisher", sample={"text": "texts.txt", "documents": 2})
    merge(path, tmp_path / "three", Silent())
    assert len(built) == 4, "another sample"
    assert prune(cache).drafts == 0


def test_a_damaged_file_is_computed_again_and_a_failed_one_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "statistics" / "x.safetensors"
    with sums(path, {"a": (2, 3), "b": (1,)}, {"c": "a"}) as totals:
        totals["a"] += 2.0
        totals["b"] += 1.0
    found = open_moments(path)
    assert found is not None
    assert torch.equal(found.load("c"), torch.full((2, 3), 2.0))
    assert (found.has("c"), found.has("d")) == (True, False)
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    assert open_moments(path) is None
    with pytest.raises(RuntimeError, match="stop"), sums(tmp_path / "statistics" / "y.safetensors", {"a": (2,)}, {}):
        raise RuntimeError("stop")
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_statistics_that_are_not_finite_are_refused(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poisoned(model: Any, documents: Any, totals: Any, *rest: Any) -> None:
        totals["lm_head.weight"][0, 0] = torch.nan

    monkeypatch.setattr(sampled_moments, "add_squared_gradients", poisoned)
    with pytest.raises(CheckpointError, match=r"expert1: its statistics at 'lm_head.weight' are not finite"):
        merge(recipe_file(world, "fisher"), tmp_path / "out", Silent())
    assert not list((tmp_path / "cache" / "statistics").glob("*"))


def test_the_recipe_id_covers_the_texts_not_their_place(world: World, tmp_path: Path) -> None:
    path = recipe_file(world, "regmean")
    first = open_models(load(path), str(path), Silent()).identify(load(path))
    (path.parent / "copy.txt").write_text((path.parent / "texts.txt").read_text())
    recipe_file(world, "regmean", sample={"text": "copy.txt", "documents": 64})
    assert open_models(load(path), str(path), Silent()).identify(load(path)) == first
    recipe_file(world, "regmean", sample={"text": "copy.txt", "documents": 3})
    assert open_models(load(path), str(path), Silent()).identify(load(path)) != first


@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_mergekit_cannot_express_it(method: str, world: World) -> None:
    from evosearch.merging.registry import specs
    from evosearch.recipe.mergekit import to_mergekit

    path = recipe_file(world, method)
    models = open_models(load(path), str(path), Silent())
    with pytest.raises(RecipeError, match=f"no equivalent of the method '{method}'.*Export the merged checkpoint"):
        to_mergekit(load(path), models.shape, specs())


def test_a_nested_recipe_has_statistics_of_its_own(world: World, tmp_path: Path) -> None:
    inner = recipe_file(world, "regmean", "inner.yaml")
    outer = recipe_file(
        world, "linear", "outer.yaml", sample=None, models=[{"model": "./inner.yaml", "parameters": {"weight": 1.0}}]
    )
    merge(inner, tmp_path / "inner", Silent())
    merge(outer, tmp_path / "outer", Silent())
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("inner", "outer"))
    assert all(torch.equal(one[name], two[name]) for name in one)
