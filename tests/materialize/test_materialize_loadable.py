"""An export exists only if transformers loads it: every wrong setting of a parent is refused, by file and key."""

import json
import math
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file

from evosearch.checkpoints.families.registry import all_families
from evosearch.checkpoints.reader import Checkpoint
from evosearch.errors import CheckpointError, InputError
from evosearch.materialize.as_adapter import write_adapter
from evosearch.materialize.loadable import check_adapter, check_files
from evosearch.materialize.meta_model import check_weights, meta_model
from evosearch.materialize.on_disk import write_checkpoint
from evosearch.promotion.export_files import Format, Origin, export
from evosearch.recipe.schema import Recipe

torch.set_num_threads(1)
Program = Callable[..., tuple[int, str, str]]

# Key of config.json → values with which transformers cannot load the model
CONFIG: dict[str, list[Any]] = {
    "hidden_size": [10**9, 10**12, -32, 0],
    "vocab_size": [10**12, 0, -1],
    "intermediate_size": [10**12, 49, "48"],
    "head_dim": [0, -8, 16],
    "num_attention_heads": [0, 2, -4],
    "num_key_value_heads": [0, 1],
    "hidden_act": ["os.system", None, 7],
    "rope_parameters": ["evil", [1], {"rope_type": "evil"}],
    "rms_norm_eps": [math.nan, math.inf, "1e-5"],
    "model_type": ["gpt2", "evil", None],
}
# Content of generation_config.json → what the error says
GENERATION = {
    "[1]": "got a list",
    "{": "invalid JSON",
    "\\xff": "invalid JSON",
    '{"temperature": NaN}': "(temperature: got nan|got NaN, which is not JSON)",
    '{"num_beams": 1e309}': "(num_beams: got inf|the number 1e309 is too large)",
    '{"max_new_tokens": -3}': "max_new_tokens: got -3",
    '{"stop_strings": {"a": [1, Infinity]}}': r"(stop_strings\.a\[1\]: got inf|got Infinity, which is not JSON)",
}
CASES = [(key, value) for key, values in CONFIG.items() for value in values]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, _models: Path) -> Path:
    """Two models and a recipe of them."""
    folder = tmp_path_factory.mktemp("sound")
    for name in ("base", "expert1"):
        shutil.copytree(_models / name, folder / name)
        config = json.loads((folder / name / "config.json").read_text())
        (folder / name / "config.json").write_text(json.dumps(config | {"head_dim": 8}))
    return folder


@pytest.fixture
def models(sound: Path, tmp_path: Path) -> Path:
    """A copy of them, to be damaged."""
    shutil.copytree(sound, tmp_path / "models")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe(tmp_path / "models")))
    return tmp_path / "models"


def recipe(models: Path) -> dict[str, Any]:
    """A merge whose donor is the base."""
    entries = [{"model": str(models / "expert1"), "parameters": {"weight": 0.5}}]
    return {"merge_method": "task_arithmetic", "base_model": str(models / "base"), "models": entries}


def set_key(models: Path, key: str, value: object) -> Path:
    """Set a key of both models' configs; return the base's."""
    for name in ("base", "expert1"):
        path = models / name / "config.json"
        config = json.loads(path.read_text()) | {key: value}
        path.write_text(json.dumps(config))
    return models / "base" / "config.json"


def said(config: Path, key: str, value: object) -> str:
    """Return the start of an error, as a pattern. A number that is not JSON may be refused when the file is read."""
    finite = not isinstance(value, float) or math.isfinite(value)
    return rf"{config}: {key}: " if finite else rf"{config}: ({key}: |got (NaN|Infinity), which is not JSON)"


def opened(models: Path) -> dict[str, Checkpoint]:
    return {str(models / name): Checkpoint.open(models / name, str(models / name)) for name in ("base", "expert1")}


def write(models: Path, fmt: Format, out: Path) -> None:
    """Export the merge in a format, as `evosearch export` does."""
    wanted, found = Recipe.model_validate(recipe(models)), opened(models)
    export(
        *(wanted, fmt, out, Origin("s", "id", "c", "r", {})),
        write_checkpoint=lambda merged, path: write_checkpoint(merged, found, path, str(models / "base")),
        write_adapter=lambda merged, path: write_adapter(merged, found, path, 4, save_modules=True),
    )


@pytest.mark.parametrize(("key", "value"), CASES, ids=[f"{key}={value}" for key, value in CASES])
def test_a_wrong_config_is_refused_by_file_and_key(
    models: Path, evosearch: Program, tmp_path: Path, key: str, value: object
) -> None:
    config = set_key(models, key, value)
    before = sorted(path.name for path in tmp_path.iterdir())
    code, _, err = evosearch("merge", tmp_path / "recipe.yaml", tmp_path / "out")
    assert code == 2, err
    assert "Traceback" not in err
    assert re.search(said(config, key, value), err)
    assert sorted(path.name for path in tmp_path.iterdir()) == before, "nothing is left behind"
    for fmt in ("checkpoint", "adapter"):
        if fmt == "adapter" and key == "model_type":
            continue  # an adapter has no config.json
        with pytest.raises(InputError) as caught:
            write(models, fmt, tmp_path / fmt)
        assert re.match(said(config, key, value), str(caught.value))
        assert sorted(path.name for path in tmp_path.iterdir()) == before, "nothing is left behind"


@pytest.mark.parametrize("text", GENERATION)
def test_a_wrong_generation_config_is_refused_by_file_and_key(
    models: Path, evosearch: Program, tmp_path: Path, text: str
) -> None:
    path = models / "base" / "generation_config.json"
    path.write_bytes(text.encode("latin-1").decode("unicode_escape").encode("latin-1"))
    code, _, err = evosearch("merge", tmp_path / "recipe.yaml", tmp_path / "out")
    assert code == 2, err
    with pytest.raises(CheckpointError, match=f"^{path}: {GENERATION[text]}"):
        write(models, "checkpoint", tmp_path / "export")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models", "recipe.yaml"]


@pytest.mark.parametrize("change", [{"model": {"type": "evil"}}, {"added_tokens": [{"id": "x"}]}, {"model": None}])
def test_a_tokenizer_that_transformers_cannot_load_is_refused(
    models: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    path = models / "base" / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    shutil.copy(path, models / "expert1" / "tokenizer.json")
    with pytest.raises(CheckpointError, match=str(models / "base")):
        write(models, "checkpoint", tmp_path / "export")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models", "recipe.yaml"]


def test_a_wrong_config_is_found_before_weights_are_merged(models: Path, tmp_path: Path, monkeypatch: Any) -> None:
    set_key(models, "hidden_act", "evil")
    found = opened(models)
    monkeypatch.setattr(Checkpoint, "load", lambda *arguments: pytest.fail("a weight was read"))
    with pytest.raises(CheckpointError, match="hidden_act"):
        write_checkpoint(Recipe.model_validate(recipe(models)), found, tmp_path / "out", str(models / "base"))


def test_sound_models_are_exported_and_load(models: Path, evosearch: Program, tmp_path: Path) -> None:
    assert evosearch("merge", tmp_path / "recipe.yaml", tmp_path / "out")[0] == 0
    write(models, "checkpoint", tmp_path / "checkpoint")
    write(models, "adapter", tmp_path / "adapter")
    for name in ("out", "checkpoint"):
        _, found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name, output_loading_info=True)
        assert not any(found.values())
        assert transformers.AutoTokenizer.from_pretrained(tmp_path / name)("abc").input_ids


def test_weights_that_changed_after_they_were_written_are_noticed(models: Path, tmp_path: Path) -> None:
    write(models, "checkpoint", tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    layout = [(name, tuple(tensor.shape)) for name, tensor in tensors.items()]
    check_files(tmp_path / "out", layout, torch.float32)
    with pytest.raises(AssertionError, match="other tensors were written"):
        check_files(tmp_path / "out", layout, torch.bfloat16)
    with pytest.raises(AssertionError, match="other tensors were written"):
        check_files(tmp_path / "out", layout[1:], torch.float32)


def test_an_adapter_that_does_not_fit_its_base_is_noticed(models: Path, tmp_path: Path) -> None:
    write(models, "adapter", tmp_path / "out")
    base, path = opened(models)[str(models / "base")], tmp_path / "out" / "adapter_model.safetensors"
    check_adapter(tmp_path / "out", base)
    tensors = load_file(path)
    name = next(name for name in tensors if "lora_B" in name)
    save_file(tensors | {name: tensors[name][1:].contiguous()}, path)
    with pytest.raises(AssertionError, match="does not fit its base"):
        check_adapter(tmp_path / "out", base)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", sorted(all_families()))
def test_the_model_of_every_family_has_the_sizes_of_its_weights(
    architecture: str, tied: bool, random_model: Callable[..., Path]
) -> None:
    """And with one number of the config changed, the error names a key that decides the size."""
    found = Checkpoint.open(random_model(architecture, tie_word_embeddings=tied))
    check_weights(meta_model(found.config, "c"), found.config, found.family, found.tensors, "c")
    width = "n_embd" if "n_embd" in found.config else "hidden_size"
    other = dict(found.config) | {width: 2 * found.config[width]}
    with pytest.raises(CheckpointError, match=f"^c: {width}: '.*embed|wte.*' is .*, but .* by {width} {other[width]}"):
        check_weights(meta_model(other, "c"), other, found.family, found.tensors, "c")


def test_a_missing_key_is_blamed_by_its_default(random_model: Callable[..., Path]) -> None:
    found = Checkpoint.open(random_model("LlamaForCausalLM"))
    other = {key: value for key, value in found.config.items() if key != "intermediate_size"}
    with pytest.raises(CheckpointError, match=r"^c: intermediate_size: .* by the default of intermediate_size"):
        check_weights(meta_model(other, "c"), other, found.family, found.tensors, "c")


def test_a_model_of_70b_takes_seconds() -> None:
    """Without weights, its size costs nothing."""
    config = transformers.LlamaConfig(
        hidden_size=8192,
        num_hidden_layers=80,
        intermediate_size=28672,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=128256,
        architectures=["LlamaForCausalLM"],
    ).to_dict()
    started = time.process_time()
    model = meta_model(config, "c")
    assert sum(tensor.numel() for tensor in model.parameters()) > 70e9
    assert time.process_time() - started < 10
