"""Merges in every family: transformers loads the export, which equals a merge by hand."""

import json
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from evosearch.checkpoints.families.registry import all_families
from evosearch.checkpoints.reader import Checkpoint
from evosearch.evaluation.engine.loglikelihood import LoglikelihoodRequest, lay_out, score_loglikelihoods
from evosearch.evaluation.engine.score_options import ScoreOptions
from evosearch.materialize.in_memory import ResidentModel
from evosearch.materialize.on_disk import write_checkpoint
from evosearch.recipe.schema import Recipe

torch.set_num_threads(1)
ARCHITECTURES = sorted(all_families())
TOKENS = torch.tensor([[5, 11, 2, 17, 39, 8, 30, 4, 22, 13], [7, 7, 1, 0, 33, 12, 28, 19, 3, 36]])
VARIED = {"mlp_only_layers": [1], "sliding_window": 4}
CAPS = {"final_logit_softcapping": 2.0, "attn_logit_softcapping": 5.0}
WEIGHTS = (0.7, 0.4)
Three = dict[str, Checkpoint]


@pytest.fixture(scope="session")
def three(random_model: Callable[..., Path]) -> Callable[..., Three]:
    """Make base, a and b of a family, by the paths of their folders; cached by the arguments."""

    @cache
    def make(architecture: str, **changes: Any) -> Three:
        known = getattr(transformers, architecture).config_class()
        caps = {key: cap for key, cap in CAPS.items() if hasattr(known, key)}
        base = random_model(architecture, **VARIED | caps | changes)
        folders = [base, *(random_model(architecture, seed=seed, near=base, spread=0.05) for seed in (1, 2))]
        return {str(folder): Checkpoint.open(folder, str(folder)) for folder in folders}

    return make


def recipe(models: Three, method: str, **extra: object) -> Recipe:
    base, *parents = models
    entries = [{"model": name, "parameters": {"weight": weight}} for name, weight in zip(parents, WEIGHTS, strict=True)]
    found: dict[str, object] = {"merge_method": method, "models": entries}
    return Recipe.model_validate(found | ({"base_model": base} if method == "task_arithmetic" else {}) | extra)


def by_hand(method: str, base: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    if method == "linear":
        return (WEIGHTS[0] * a + WEIGHTS[1] * b) / sum(WEIGHTS)  # Σ wᵢ θᵢ / Σ wᵢ
    return base + WEIGHTS[0] * (a - base) + WEIGHTS[1] * (b - base)  # θ₀ + Σ wᵢ (θᵢ − θ₀)


def load(folder: Path | str) -> Any:
    model, found = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(found.values()), found  # no missing, unexpected or mismatched tensors, no errors
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(TOKENS).logits  # (2, 10, vocabulary)
    return out


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_merge_is_the_same_by_hand_on_disk_and_live(architecture, tied, three, tmp_path):
    models = three(architecture, tie_word_embeddings=tied)
    base, resident = next(iter(models)), ResidentModel(models, next(iter(models)))
    sources = [load(folder) for folder in models]
    for method in ("task_arithmetic", "linear"):
        wanted = recipe(models, method)
        resident.materialize(wanted)
        write_checkpoint(wanted, models, tmp_path / method, base)
        exported, manual = load(tmp_path / method), deepcopy(sources[0])
        with torch.no_grad():
            for name, parameter in manual.named_parameters():
                parameter.copy_(by_hand(method, *(source.get_parameter(name) for source in sources)))
        expected = logits(manual)
        assert (expected - logits(sources[0])).abs().max() > 1e-2  # the merge differs from the base
        torch.testing.assert_close(logits(exported), expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(logits(resident.model), logits(exported))
        assert Checkpoint.open(tmp_path / method).tensors.keys() == models[base].tensors.keys()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_are_those_of_transformers_own_logits(architecture, three, tmp_path):
    """Including what families do differently: softcapped logits, biased heads, stacked experts."""
    models = three(architecture, tie_word_embeddings=False)
    resident, wanted = ResidentModel(models, next(iter(models))), recipe(models, "task_arithmetic")
    resident.materialize(wanted)
    write_checkpoint(wanted, models, tmp_path / "out", next(iter(models)))
    model = load(tmp_path / "out")
    draw, requests, expected = np.random.default_rng(3), [], []
    for context, continuation in ((5, 3), (12, 1), (1, 4), (9, 2), (5, 2), (16, 3)):
        tokens = draw.integers(0, 40, context + continuation).tolist()
        requests.append(LoglikelihoodRequest(tuple(tokens[:-1]), tuple(tokens[context:])))
        with torch.no_grad():
            logprobs = model(torch.tensor([tokens])).logits[0, context - 1 : -1].double().log_softmax(-1)
        picked = logprobs.gather(1, torch.tensor(tokens[context:])[:, None])  # (continuation, 1)
        expected.append((float(picked.sum()), bool((picked[:, 0] == logprobs.amax(-1)).all())))
    lls, greedy, *_ = score_loglikelihoods(resident.model, lay_out(requests, ScoreOptions()))
    np.testing.assert_allclose(lls, [ll for ll, _ in expected], rtol=0, atol=2e-5)
    assert greedy.tolist() == [hit for _, hit in expected]


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Gemma2ForCausalLM", "MixtralForCausalLM"])
def test_a_sharded_checkpoint_of_mixed_types_merges_as_its_float32_values(architecture, three, random_model, tmp_path):
    models = dict(three(architecture, vocab_size=41))  # own folders, which are overwritten
    base, a, b = models
    types = (torch.bfloat16, torch.float16, torch.float32)
    for reference in models:
        folder = Path(reference)
        whole = load_file(folder / "model.safetensors")
        names, places = sorted(whole), {}
        (folder / "model.safetensors").unlink()
        for shard in range(3):
            file = f"model-0000{shard + 1}-of-00003.safetensors"
            part = {name: whole[name].to(types[(i // 3 + len(reference)) % 3]) for i, name in enumerate(names)}
            part = {name: part[name] for name in names[shard::3]}
            save_file(part, folder / file, {"format": "pt"})
            places |= dict.fromkeys(part, file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
        models[reference] = Checkpoint.open(folder, reference)
        assert {info.dtype for info in models[reference].tensors.values()} == {"BF16", "F16", "F32"}
    resident, wanted = ResidentModel(models, base), recipe(models, "task_arithmetic", out_dtype="float32")
    write_checkpoint(wanted, models, tmp_path / "out", base, max_shard_bytes=20_000)
    exported = Checkpoint.open(tmp_path / "out")
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
    for name in exported.tensors:
        parts = (models[reference].load(name).float() for reference in (base, a, b))
        torch.testing.assert_close(exported.load(name), by_hand("task_arithmetic", *parts), rtol=1e-6, atol=1e-7)
    resident.materialize(wanted)
    assert torch.equal(logits(resident.model), logits(load(tmp_path / "out")))


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Qwen2ForCausalLM", "GPTNeoXForCausalLM"])
@pytest.mark.parametrize("tied", [True, False])
def test_padded_vocabularies_stay_as_they_are(architecture, tied, three, tmp_path):
    """Embeddings with more rows than tokens: these families pad them to round numbers."""
    from tokenizers import Tokenizer
    from tokenizers import models as tokenizer_models

    models = three(architecture, vocab_size=48, tie_word_embeddings=tied)
    base = next(iter(models))
    tokenizer = Tokenizer(tokenizer_models.WordLevel({f"t{index}": index for index in range(40)}, unk_token="t0"))
    for reference in models:
        tokenizer.save(str(Path(reference) / "tokenizer.json"))
    write_checkpoint(recipe(models, "linear"), models, tmp_path / "out", base)
    exported, model = Checkpoint.open(tmp_path / "out"), load(tmp_path / "out")
    assert exported.config["vocab_size"] == 48
    assert model.get_input_embeddings().weight.shape[0] == model.get_output_embeddings().weight.shape[0] == 48
    assert Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json")).get_vocab_size() == 40
    for name, info in models[base].tensors.items():
        assert exported.tensors[name].shape == info.shape
    name = exported.shape.tensors[0].name
    parts = [models[reference].load(name) for reference in models]
    torch.testing.assert_close(exported.load(name)[40:], by_hand("linear", *parts)[40:])


@pytest.mark.parametrize("architecture", ["MixtralForCausalLM", "GPTNeoXForCausalLM", "GPT2LMHeadModel"])
def test_exported_names_are_those_of_the_hub(architecture, three, tmp_path):
    models = three(architecture, tie_word_embeddings=False)
    write_checkpoint(recipe(models, "linear"), models, tmp_path / "out", next(iter(models)))
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert {
        "MixtralForCausalLM": "model.layers.2.block_sparse_moe.experts.2.w3.weight",
        "GPTNeoXForCausalLM": "embed_out.weight",
        "GPT2LMHeadModel": "transformer.h.2.attn.c_attn.weight",
    }[architecture] in names


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_slices_put_every_layer_where_they_say(architecture, three, tmp_path):
    """Layers 2 | 0 1 | 1 2 of a and b, merged; each keeps its kind (dense or sparse, sliding or full)."""
    models, picked = three(architecture, tie_word_embeddings=True), [2, 0, 1, 1, 2]
    base, *parents = models
    slices = [
        {
            "sources": [
                {"model": name, "layer_range": part, "parameters": {"weight": weight}}
                for name, weight in zip(parents, WEIGHTS, strict=True)
            ]
        }
        for part in ([2, 3], [0, 2], [1, 3])
    ]
    wanted = Recipe.model_validate({"merge_method": "linear", "slices": slices})
    resident = ResidentModel(models, parents[0], example=wanted)
    resident.materialize(wanted)
    write_checkpoint(wanted, models, tmp_path / "out", parents[0])
    exported, sources = load(tmp_path / "out"), [load(folder) for folder in models]
    assert exported.config.num_hidden_layers == len(picked)
    assert torch.equal(logits(resident.model), logits(exported))
    known = models[base].shape.tensors
    stem = next(tensor.name for tensor in known if tensor.layer == 0).split(".0.")[0]  # as model.layers
    for name, parameter in exported.named_parameters():
        if name.startswith(f"{stem}."):
            layer, rest = name.removeprefix(f"{stem}.").split(".", 1)
            name = f"{stem}.{picked[int(layer)]}.{rest}"
        parts = (source.get_parameter(name) for source in sources)
        torch.testing.assert_close(parameter, by_hand("linear", *parts), rtol=1e-6, atol=1e-6)


LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONG = {"type": "longrope", "short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [2.0, 3.0, 4.0, 5.0]}
HUB = {  # keys of config.json files on the hub, from before transformers 5 renamed them
    "LlamaForCausalLM": {"rope_theta": 500.0, "rope_scaling": LLAMA3 | {"original_max_position_embeddings": 8}},
    "MistralForCausalLM": {"rope_theta": 100.0, "sliding_window": 3},
    "Qwen2ForCausalLM": {"rope_theta": 100.0, "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
    "Qwen3ForCausalLM": {"rope_theta": 100.0, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
    "GemmaForCausalLM": {"rope_theta": 100.0, "hidden_act": "gelu"},
    "Gemma2ForCausalLM": {"rope_theta": 100.0, "sliding_window": 3, "query_pre_attn_scalar": 4},
    "Gemma3ForCausalLM": {"rope_theta": 900.0, "rope_local_base_freq": 50.0, "sliding_window_pattern": 2},
    "Olmo2ForCausalLM": {"rope_theta": 100.0},
    "PhiForCausalLM": {"rope_theta": 100.0, "partial_rotary_factor": 1.0},
    "Phi3ForCausalLM": {"rope_theta": 100.0, "rope_scaling": LONG, "original_max_position_embeddings": 8},
    "GPT2LMHeadModel": {"scale_attn_by_inverse_layer_idx": True},
    "GPTNeoXForCausalLM": {"rotary_emb_base": 100, "rotary_pct": 1.0, "use_parallel_residual": False},
    "MixtralForCausalLM": {"rope_theta": 100.0, "num_experts_per_tok": 1},
    "Qwen2MoeForCausalLM": {"rope_theta": 100.0, "norm_topk_prob": True},
    "Qwen3MoeForCausalLM": {"rope_theta": 100.0, "norm_topk_prob": True, "num_experts": 3},
}
RENAMED = ("rope_parameters", "layer_types", "_sliding_window_pattern", "num_local_experts", "dtype")


@pytest.mark.parametrize("architecture", sorted(HUB))
def test_the_live_model_reads_a_config_of_the_hub_as_transformers_does(architecture, random_model):
    folder = random_model(architecture)
    before = logits(load(folder))
    config = json.loads((folder / "config.json").read_text())
    kept = RENAMED[:3] if architecture == "MixtralForCausalLM" else RENAMED
    config = {key: value for key, value in config.items() if key not in kept} | {"torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config | HUB[architecture]))
    checkpoint = Checkpoint.open(folder, "model")
    resident = ResidentModel({"model": checkpoint}, "model")
    assert checkpoint.config == json.loads((folder / "config.json").read_text())  # not modified
    model = load(folder)
    expected = logits(model)
    assert (expected - before).abs().max() > 1e-3  # the keys are read
    assert torch.equal(logits(resident.model), expected)
    buffers = dict(model.named_buffers())
    for name, buffer in resident.model.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
