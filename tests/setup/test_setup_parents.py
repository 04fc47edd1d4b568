"""Models whose configs differ: each baseline is scored as the model that its export would be."""

import gc
import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from evosearch.checkpoints.reader import Checkpoint
from evosearch.errors import CheckpointError, SuiteError
from evosearch.evaluation.types import ScoreCard
from evosearch.execution.worker import Worker
from evosearch.materialize import layout
from evosearch.materialize.forward import differences, end_tokens
from evosearch.materialize.on_disk import write_checkpoint
from evosearch.materialize.plan import donor_of
from evosearch.preflight.check import check
from evosearch.recipe.schema import Recipe
from evosearch.search.progress import Silent
from evosearch.search.protocols import Job
from evosearch.service.run import run
from evosearch.service.score import score
from evosearch.setup.executors import worker_config
from evosearch.setup.prepare import Prepared, prepare
from evosearch.spec.spec import load_spec

World = Callable[..., Path]
ROPE = {"rope_parameters": {"rope_theta": 50.0, "rope_type": "default"}}
IDS = torch.arange(4, 16)[None]  # (1, L)


class Told(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def change(spec: Path, model: str, file: str = "config.json", **changes: Any) -> None:
    """Give one model of the world a folder of its own, with another config."""
    link = spec.parent / model
    if link.is_symlink():
        source = link.resolve()
        link.unlink()
        shutil.copytree(source, link)
    data = json.loads((link / file).read_text()) if (link / file).exists() else {}
    (link / file).write_text(json.dumps(data | changes))


def make_worker(prepared: Prepared) -> Worker:
    return Worker(worker_config(prepared.spec.config.workers, prepared.models, prepared.suite, "float32"))


def card_of(worker: Worker, recipe: Recipe, prepared: Prepared, split: str = "search") -> ScoreCard:
    outcome = worker.run(Job(f"x@{split}", recipe, prepared.batches[split]))
    assert outcome.failure is None, outcome.failure
    assert outcome.card is not None
    return outcome.card


def written(recipe: Recipe, prepared: Prepared, out: Path) -> Path:
    used = {name: prepared.models.checkpoints[name] for name in recipe.references()}
    write_checkpoint(recipe, used, out, donor_of(recipe))
    return out


@pytest.mark.parametrize(
    "changes", [ROPE, {"rms_norm_eps": 0.3}, {"hidden_act": "relu"}], ids=["rope", "eps", "activation"]
)
def test_every_baseline_answers_as_its_export(changes: dict[str, Any], world: World, tmp_path: Path) -> None:
    spec = world("config")
    change(spec, "expert1", **changes)
    prepared = prepare(load_spec(spec), Silent())
    worker = make_worker(prepared)
    recipes = {baseline.name: baseline.recipe for baseline in prepared.baselines if baseline.recipe is not None}
    recipes["candidate"] = prepared.example
    found = {}
    for name, recipe in recipes.items():
        card_of(worker, recipe, prepared)
        resident = worker._other or worker.resident
        exported = AutoModelForCausalLM.from_pretrained(written(recipe, prepared, tmp_path / name)).eval()
        with torch.no_grad():
            here, there = resident.model(IDS).logits, exported(IDS).logits
        torch.testing.assert_close(here, there, rtol=1e-5, atol=1e-5)
        found[name] = resident is worker.resident
    own = {"parent:0", "uniform"}  # the only ones whose config is the first parent's
    assert {name for name, shared in found.items() if not shared} == own


def test_a_run_scores_a_parent_as_the_score_command_does(world: World) -> None:
    spec = world("scored", budget={"candidates": 6})
    change(spec, "expert2", **ROPE)
    report = run(spec, Silent())
    rows = {row.candidate: row.score for row in report.leaderboard}
    for baseline, model in {"base": "base", "parent:0": "expert1", "parent:1": "expert2"}.items():
        alone = score(str(spec.parent / model), spec.parent / "suite.yaml", "search", None, Silent())
        assert rows[baseline] == pytest.approx(alone.score), baseline


def test_at_most_one_other_resident_model_and_none_for_candidates(world: World) -> None:
    spec = world("others")
    change(spec, "expert1", **ROPE)
    change(spec, "expert2", rms_norm_eps=0.3)
    prepared = prepare(load_spec(spec), Silent())
    recipes = {baseline.name: baseline.recipe for baseline in prepared.baselines if baseline.recipe is not None}
    worker, models = make_worker(prepared), list[weakref.ref[Any]]()
    for name in ("parent:0", "parent:1", "uniform"):
        card_of(worker, recipes[name], prepared)
        assert worker._other is not None
        models.append(weakref.ref(worker._other.model))
        gc.collect()
        assert [model() is not None for model in models] == [*[False] * (len(models) - 1), True]
    card_of(worker, prepared.example, prepared)
    gc.collect()
    assert worker._other is None
    assert models[-1]() is None


def test_recipes_of_one_structure_are_laid_out_once_a_worker(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def source(model: str, first: int, end: int, weight: Any) -> dict[str, Any]:
        return {"model": model, "layer_range": [first, end], "parameters": {"weight": weight}}

    hole = {"low": 0.0, "high": 1.5}
    stack = [{"sources": [source("./expert1", 0, 2, hole)]}, {"sources": [source("./expert2", 1, 3, 1.0)]}]
    spec = world("stack", recipe={"merge_method": "linear", "slices": stack})
    prepared = prepare(load_spec(spec), Silent())
    laid_out: list[Recipe] = []
    original = layout.output

    def counting(recipe: Recipe, checkpoints: Any) -> Any:
        laid_out.append(recipe)
        return original(recipe, checkpoints)

    monkeypatch.setattr(layout, "output", counting)
    worker = make_worker(prepared)
    other = prepared.example.model_copy(update={"parameters": {"normalize": False}})
    for recipe in (prepared.example, other, prepared.example):
        card_of(worker, recipe, prepared)
    assert len(laid_out) == 1


def test_prompts_are_cut_to_the_context_of_the_model_that_is_scored(world: World) -> None:
    spec = world("short")
    change(spec, "expert1", max_position_embeddings=2)
    with pytest.raises(SuiteError, match=r"expert1, 2 tokens\)"):  # `abcd=` and 3 more
        prepare(load_spec(spec), Silent())
    change(spec, "expert1", max_position_embeddings=4)
    prepared = prepare(load_spec(spec), Silent())
    recipes = {baseline.name: baseline.recipe for baseline in prepared.baselines if baseline.recipe is not None}
    worker = make_worker(prepared)
    base, card = (card_of(worker, recipes[name], prepared) for name in ("base", "parent:0"))
    alone = score(str(spec.parent / "expert1"), spec.parent / "suite.yaml", "search", None, Silent())
    assert card.fitness.value == pytest.approx(alone.fitness.value)
    assert card.tokens.forwarded < base.tokens.forwarded


def test_texts_end_where_the_export_of_a_parent_ends_them(world: World, tmp_path: Path) -> None:
    spec = world("ends")
    change(spec, "expert1", "generation_config.json", eos_token_id=[2, 7])
    prepared = prepare(load_spec(spec), Silent())
    recipes = {baseline.name: baseline.recipe for baseline in prepared.baselines if baseline.recipe is not None}
    worker = make_worker(prepared)
    for name, ends in {"parent:0": [2, 7], "base": 2, "uniform": [2, 7], "scale:0.30": 2}.items():
        card_of(worker, recipes[name], prepared)
        assert worker._other is None, "ids decide no forward: the candidates' own model is used"
        assert worker.resident.model.generation_config.eos_token_id == ends
    exported = Checkpoint.open(written(recipes["uniform"], prepared, tmp_path / "uniform"))
    assert end_tokens(exported) == [2, 7]


def test_a_different_config_is_noted_and_its_memory_counted(world: World) -> None:
    spec, told = world("told"), Told()
    plain = check(spec, False, Silent())
    change(
        spec, "expert2", rope_parameters={"rope_theta": 50.0, "rope_type": "default"}, use_cache=False, dtype="bfloat16"
    )
    found = check(spec, False, told)
    assert (found.ok, found.problems) == (True, ())
    (note,) = told.notes
    assert note.startswith(
        f"{spec.parent}/expert2: its config has rope_parameters.rope_theta 50.0 instead of 10000.0 as"
    )
    assert note.endswith("a merge is scored and written with the config of its base_model, or else of its first model")
    assert found.memory["resident_gib"] == 2 * plain.memory["resident_gib"]


def test_keys_that_affect_no_answer_are_ignored(world: World) -> None:
    base = json.loads((world("same").parent / "base" / "config.json").read_text())
    older = {key: value for key, value in base.items() if key != "rope_parameters"} | {"rope_theta": 10000.0}
    assert differences(base, older | {"torch_dtype": "float16", "attention_dropout": 0.1, "eos_token_id": 7}) == {}
    without = {key: value for key, value in base.items() if key != "rms_norm_eps"}
    assert differences(base, without) == {}, "a key that is left out has its default"
    scaled = differences(base, base | {"rope_scaling": {"rope_type": "linear", "factor": 2.0}})
    assert scaled["rope_parameters.rope_type"] == ("default", "linear")
    assert scaled["rope_parameters.factor"] == (None, 2.0)


def test_a_config_that_transformers_rejects_is_named(world: World) -> None:
    spec = world("broken")
    change(spec, "expert2", rms_norm_eps="small")
    with pytest.raises(CheckpointError, match=r"expert2/config\.json: rms_norm_eps: got 'small'; transformers cannot"):
        prepare(load_spec(spec), Silent())
