"""Scores of a live model whose layers change between candidates equal those of exports; probes run once per kind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from evosearch.checkpoints.reader import Checkpoint
from evosearch.evaluation.engine import modes
from evosearch.evaluation.engine.loglikelihood import LoglikelihoodRequest, lay_out, score_loglikelihoods
from evosearch.evaluation.engine.score_options import ScoreOptions
from evosearch.materialize.on_disk import write_checkpoint
from evosearch.materialize.routed import ResidentRoute
from evosearch.recipe.schema import Recipe

torch.set_num_threads(1)
FULL, SLIDING, WINDOW = "full_attention", "sliding_attention", 4
KINDS = [SLIDING, FULL, SLIDING, FULL]
ROUTES = {  # layers of the two models, alternating
    "both": (0, 1, 2, 3, 1),
    "sliding": (0, 2, 0, 2),
    "full": (1, 3, 3),
    "both again": (3, 2, 1, 0, 0, 1),
    "sliding again": (2, 0),
}


def requests() -> list[LoglikelihoodRequest]:
    """Continuations of prompts with a shared prefix, which is longer than the window."""
    draw = np.random.default_rng(7)
    stem, found = draw.integers(0, 40, 3 * WINDOW).tolist(), []
    for shared, own in ((0, 3), (5, 2), (12, 4), (12, 9), (8, 6), (12, 1)):
        tokens = [*stem[:shared], *draw.integers(0, 40, own + 2).tolist()]
        found.append(LoglikelihoodRequest(tuple(tokens[:-1]), tuple(tokens[-2:])))
    return found


def by_forward(model: Any, request: LoglikelihoodRequest) -> float:
    """Σ log p of a continuation, from the model's logits of the single sequence."""
    continuation = list(request.targets)
    with torch.no_grad():
        logits = model(torch.tensor([request.inputs]), use_cache=False).logits[0, -len(continuation) :]
    return float(logits.double().log_softmax(-1).gather(1, torch.tensor(continuation)[:, None]).sum())


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The models that execution modes were probed on."""
    found: list[Any] = []
    first_correct = modes._first_correct

    def counted(model: Any, probes: Any) -> Any:
        found.append(model)
        return first_correct(model, probes)

    monkeypatch.setattr(modes, "_first_correct", counted)
    return found


@pytest.mark.parametrize(
    "architecture",
    ["Gemma2ForCausalLM", "Gemma3ForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "Qwen2MoeForCausalLM"],
)
def test_windows_follow_the_layers_of_each_route(
    architecture: str, random_model: Callable[..., Path], tmp_path: Path, tried: list[Any]
) -> None:
    settings = {"layer_types": KINDS, "num_hidden_layers": 4, "sliding_window": WINDOW, "use_sliding_window": True}
    folders = [str(random_model(architecture, seed=seed, **settings)) for seed in (0, 1)]
    models = {folder: Checkpoint.open(Path(folder), folder) for folder in folders}

    def route(*layers: int) -> Recipe:
        hops = [{"model": folders[k % 2], "layer": layer, "scale": 0.9} for k, layer in enumerate(layers)]
        return Recipe.model_validate({"routing": {"hops": hops}})

    resident, laid = ResidentRoute(models, route(0, 0)), lay_out(requests(), ScoreOptions())
    for name, layers in ROUTES.items():
        wanted = route(*layers)
        resident.materialize(wanted)
        assert resident.model.config.layer_types == [KINDS[layer] for layer in layers]
        ours, *_ = score_loglikelihoods(resident.model, laid)
        write_checkpoint(wanted, models, tmp_path / name, folders[0])
        exported = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32).eval()
        expected = [by_forward(exported, request) for request in requests()]
        np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-3)
        assert modes.mode_of(resident.model, (1, 2, 3), 3 * WINDOW) == "tree"
    assert tried == [resident.model] * 3  # once per set of kinds, not per route
