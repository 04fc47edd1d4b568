"""Routes in every family: the export loads in transformers, computes h ← h + F_k(h) / C_k, and equals the live model.

The reference uses forward hooks: it runs the layers of the original models in the route's order, and divides what each
of them adds to the residual stream by C_k.
"""

import copy
import json
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from evosearch.checkpoints.families.registry import all_families
from evosearch.checkpoints.reader import Checkpoint
from evosearch.evaluation.engine.loglikelihood import LoglikelihoodRequest, lay_out, score_loglikelihoods
from evosearch.evaluation.engine.score_options import ScoreOptions
from evosearch.materialize.on_disk import write_checkpoint
from evosearch.materialize.routed import ResidentRoute
from evosearch.recipe.schema import Recipe

torch.set_num_threads(1)
ARCHITECTURES = sorted(all_families())
TOKENS = torch.tensor([[5, 11, 2, 17, 39, 8, 30, 4, 22, 13], [7, 7, 1, 0, 33, 12, 28, 19, 3, 36]])
FULL, SLIDING = "full_attention", "sliding_attention"
# In families with kinds of layers, the two models have different kinds at the same position.
KINDS: tuple[dict[str, Any], ...] = (
    {"layer_types": [SLIDING, FULL, SLIDING], "mlp_only_layers": [1]},
    {"layer_types": [FULL, SLIDING, SLIDING, FULL], "mlp_only_layers": [0, 2], "num_hidden_layers": 4},
)
# Modules that add to the residual stream, if they are not `self_attn.o_proj` and `mlp`.
NORMED_AFTER = ("post_attention_layernorm", "post_feedforward_layernorm")
WRITERS = {
    "GPT2LMHeadModel": ("attn", "mlp"),
    "GPTNeoXForCausalLM": ("attention.dense", "mlp"),
    "PhiForCausalLM": ("self_attn.dense", "mlp"),
    "Gemma2ForCausalLM": NORMED_AFTER,
    "Gemma3ForCausalLM": NORMED_AFTER,
    "Olmo2ForCausalLM": NORMED_AFTER,
}
Two = dict[str, Checkpoint]
Hops = list[tuple[str, int, float]]  # model, layer, scale


@pytest.fixture(scope="session")
def two(random_model: Callable[..., Path]) -> Callable[..., Two]:
    """Make two models of a family, with three and four layers, by the paths of their folders."""

    @cache
    def make(architecture: str, **changes: Any) -> Two:
        known = getattr(transformers, architecture).config_class()
        folders = []
        for seed, kinds in enumerate(KINDS):
            wanted = kinds | {"sliding_window": 4, "use_sliding_window": True}
            own = {key: value for key, value in wanted.items() if hasattr(known, key)}  # caches read unknown keys
            folders.append(random_model(architecture, seed=seed, **own | changes))
        return {str(folder): Checkpoint.open(folder, str(folder)) for folder in folders}

    return make


def route(hops: Hops, max_gain: float = 64.0, **extra: object) -> Recipe:
    written = [{"model": model, "layer": layer, "scale": scale} for model, layer, scale in hops]
    return Recipe.model_validate({"routing": {"hops": written, "max_gain": max_gain}} | extra)


def random_hops(models: Two, seed: int, count: int = 7) -> Hops:
    """Start in the first model; run a layer of the second twice, skip a layer, then random layers of both."""
    draw, depths = random.Random(seed), {name: checkpoint.shape.num_layers for name, checkpoint in models.items()}
    first, second = models
    picked = [(first, 0), (second, 1), (second, 1), (first, 2)]
    picked += [(name, draw.randrange(depths[name])) for name in draw.choices([first, second], k=count - len(picked))]
    return [(name, layer, draw.uniform(0.5, 2.0)) for name, layer in picked]


def load(folder: Path | str) -> Any:
    model, found = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(found.values()), found  # no missing, unexpected or mismatched tensors, no errors
    return model.eval()


def layers_of(model: Any) -> tuple[nn.Module, str, nn.ModuleList]:
    """Return the parent of a model's layers, their name in it, and the layers."""
    depth = model.config.num_hidden_layers
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            parent, _, name = path.rpartition(".")
            return model.get_submodule(parent), name, module
    raise AssertionError("a model without layers")


def by_hooks(sources: dict[str, Any], hops: Hops) -> Any:
    """Run the route over a plain model's layers, by its definition."""
    model = copy.deepcopy(sources[hops[0][0]])
    parent, name, _ = layers_of(model)
    stacked, gain = nn.ModuleList(), 1.0
    for k, (source, index, scale) in enumerate(hops):
        layer = copy.deepcopy(layers_of(sources[source])[2][index])
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = k
        gain *= scale
        for writer in WRITERS.get(type(model).__name__, ("self_attn.o_proj", "mlp")):
            layer.get_submodule(writer).register_forward_hook(divided_by(gain))
        stacked.append(layer)
    setattr(parent, name, stacked)
    model.config.num_hidden_layers = len(hops)
    kinds = {source: getattr(found.config, "layer_types", None) for source, found in sources.items()}
    if kinds[hops[0][0]]:
        model.config.layer_types = [kinds[source][index] for source, index, _ in hops]
    return model


def divided_by(gain: float) -> Callable[..., Any]:
    """Hook that computes h ← h + F_k(h) / C_k."""

    def hook(module: nn.Module, inputs: Any, out: Any) -> Any:
        return (out[0] / gain, *out[1:]) if isinstance(out, tuple) else out / gain

    return hook


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(TOKENS).logits  # (2, 10, vocabulary)
    return out


def continued(model: Any, cached: bool = True) -> list[list[int]]:
    """Generate six greedy tokens for each of two prompts, so that windows slide past the first tokens."""
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "use_cache": cached}
    found: list[list[int]] = model.generate(TOKENS, attention_mask=torch.ones_like(TOKENS), **settings).tolist()
    return found


def loglikelihoods(model: Any) -> np.ndarray:
    draw, requests = np.random.default_rng(3), []
    stem = draw.integers(0, 40, 6).tolist()
    for context, continuation in ((0, 3), (12, 1), (1, 4), (9, 2), (5, 2), (16, 3)):
        tokens = [*stem, *draw.integers(0, 40, context + continuation).tolist()]
        requests.append(LoglikelihoodRequest(tuple(tokens[:-1]), tuple(tokens[-continuation:])))
    return score_loglikelihoods(model, lay_out(requests, ScoreOptions()))[0]


def check_live_is_exported(live: Any, exported: Any) -> None:
    """Equal weights (bit for bit), logits, log-likelihoods with shared prefixes, and cached generation."""
    weights = dict(live.named_parameters(remove_duplicate=False))
    for name, parameter in exported.named_parameters(remove_duplicate=False):
        assert torch.equal(weights.pop(name), parameter), name
    assert not weights
    torch.testing.assert_close(logits(live), logits(exported), rtol=1e-6, atol=1e-6)
    ours, theirs = loglikelihoods(live), loglikelihoods(exported)
    assert (np.abs(ours - theirs) <= 1e-3 + 1e-6 * np.abs(theirs)).all()
    assert continued(live) == continued(exported)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_routes_by_their_definition_on_disk_and_live(architecture, two, tmp_path):
    models = two(architecture)
    sources = {name: load(name) for name in models}
    resident = ResidentRoute(models, route([(name, 0, 1.0) for name in models]))
    for seed, dtype in enumerate(("float32", "bfloat16")):
        hops = random_hops(models, seed)
        wanted = route(hops, out_dtype=dtype)
        resident.materialize(wanted)
        write_checkpoint(wanted, models, tmp_path / dtype, next(iter(models)))
        exported = load(tmp_path / dtype)
        check_live_is_exported(resident.model, exported)
        if dtype == "float32":
            manual = by_hooks(sources, hops)
            expected, unscaled = logits(manual), logits(by_hooks(sources, [(*hop[:2], 1.0) for hop in hops]))
            assert (expected - unscaled).abs().max() > 1e-2
            torch.testing.assert_close(logits(exported), expected, rtol=1e-4, atol=2e-5)
            assert continued(exported) == continued(manual, cached=False)


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Qwen2ForCausalLM", "MistralForCausalLM"])
def test_the_definition_written_out(architecture, two, tmp_path):
    """Attention and MLP applied one by one to the residual stream, for families like Llama."""
    models = two(architecture)
    sources, hops = {name: load(name) for name in models}, random_hops(models, seed=5, count=9)
    first, length = sources[hops[0][0]], TOKENS.shape[1]
    order = torch.arange(length)
    distance = order[:, None] - order[None, :]
    least = torch.finfo(torch.float32).min
    masks = {  # (1, 1, T, T)
        kind: torch.full((length, length), least).masked_fill((distance >= 0) & (distance < window), 0.0)[None, None]
        for kind, window in ((FULL, length), (SLIDING, 4))
    }
    usual = SLIDING if architecture == "MistralForCausalLM" else FULL
    with torch.no_grad():
        h, gain = first.model.embed_tokens(TOKENS), 1.0  # (2, T, hidden)
        rotary = first.model.rotary_emb(h, order[None])
        for name, index, scale in hops:
            gain *= scale  # C_k
            layer = sources[name].model.layers[index]
            kinds = getattr(sources[name].config, "layer_types", None)
            mask = masks[kinds[index] if kinds else usual]
            attended = layer.self_attn(layer.input_layernorm(h), position_embeddings=rotary, attention_mask=mask)[0]
            h = h + attended / gain
            h = h + layer.mlp(layer.post_attention_layernorm(h)) / gain
        expected = first.lm_head(first.model.norm(h))
    write_checkpoint(route(hops), models, tmp_path / "out", hops[0][0])
    torch.testing.assert_close(logits(load(tmp_path / "out")), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "GemmaForCausalLM", "GPT2LMHeadModel"])
@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_and_head_are_the_first_hops_models(architecture, tied, two, tmp_path):
    models = two(architecture, tie_word_embeddings=tied)
    for first, second in (tuple(models), tuple(reversed(models))):
        hops = [(first, 0, 1.0), (second, 1, 0.8), (second, 0, 1.25), (first, 1, 0.9)]
        resident = ResidentRoute(models, route([(first, 0, 1.0), (second, 0, 1.0)]))
        resident.materialize(route(hops))
        out = tmp_path / Path(first).name
        write_checkpoint(route(hops), models, out, first)
        exported, own = load(out), load(first)
        check_live_is_exported(resident.model, exported)
        head, embeddings = exported.get_output_embeddings().weight, exported.get_input_embeddings().weight
        assert (head is embeddings) == tied
        assert torch.equal(embeddings, own.get_input_embeddings().weight)
        assert torch.equal(head, own.get_output_embeddings().weight)


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Gemma2ForCausalLM"])
@pytest.mark.parametrize("end", [8.0, 1 / 8])
def test_the_largest_gain(architecture, end, two, tmp_path):
    """|log C_k| at its bound, log 8, from the first scaled hop on; hops before it are not divided."""
    models = two(architecture)
    first, second = models
    hops = [(first, 0, 1.0), (second, 1, end), (first, 1, 1.0), (second, 2, 1.0)]
    write_checkpoint(route(hops, max_gain=8.0), models, tmp_path / "out", first)
    sources = {name: load(name) for name in models}
    torch.testing.assert_close(logits(load(tmp_path / "out")), logits(by_hooks(sources, hops)), rtol=1e-4, atol=2e-5)
    exported, own = Checkpoint.open(tmp_path / "out"), models[first]
    for name in (tensor.name for tensor in own.shape.tensors if tensor.layer == 0):
        assert torch.equal(exported.load(name), own.load(name))


def test_the_models_own_pass_is_the_model(two, tmp_path):
    models = two("Qwen2MoeForCausalLM")
    first = next(iter(models))
    write_checkpoint(route([(first, layer, 1.0) for layer in range(3)]), models, tmp_path / "out", first)
    assert Checkpoint.open(tmp_path / "out").content_sha256() == models[first].content_sha256()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["layer_types"] == models[first].config["layer_types"]
