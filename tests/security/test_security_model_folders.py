"""Attacks by model folders: links, special files, counts, patterns and values that end in one error, quickly."""

import json
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from evosearch.errors import CheckpointError

SECRET = "TOPSECRET-4711"
SLOW_S = 60.0  # of processor time; each attack here once took forever, or all memory
Evosearch = Callable[..., tuple[int, str, str]]
Refused = Callable[..., str]


@pytest.fixture(scope="session")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from benchmarks._mutations import model_seeds

    folder = tmp_path_factory.mktemp("seeds")
    model_seeds.write(folder)
    return folder


@pytest.fixture
def models(seeds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `base`, `expert` and `lora` that a test may damage, next to a secret."""
    from benchmarks._mutations import model_seeds

    monkeypatch.setenv("EVOSEARCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "secret").write_text(SECRET)
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "deep.jinja").write_text(SECRET)
    model_seeds.copy(seeds, tmp_path / "models")
    return tmp_path / "models"


@pytest.fixture
def merge(models: Path, tmp_path: Path, evosearch: Evosearch) -> Callable[..., tuple[int, str]]:
    """`merge(adapter=True, **recipe)` runs `evosearch merge`; returns exit code and standard error."""

    def run(adapter: bool = False, **changes: Any) -> tuple[int, str]:
        parameters = {"parameters": {"weight": 0.5}}
        parents = (
            [f"{models / 'base'}+{models / 'lora'}"] if adapter else [str(models / "base"), str(models / "expert")]
        )
        listed = [{"model": parent, **parameters} for parent in parents]
        recipe: dict[str, Any] = {"merge_method": "linear", "models": listed}
        if adapter:
            recipe |= {"merge_method": "task_arithmetic", "base_model": str(models / "base")}
        (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe | changes))
        began = time.process_time()
        code, _, said = evosearch("merge", tmp_path / "r.yaml", tmp_path / "out")
        assert time.process_time() - began < SLOW_S
        return code, said.replace("\n", "")

    return run


@pytest.fixture
def refused(merge: Callable[..., tuple[int, str]], tmp_path: Path) -> Refused:
    """Like `merge`, which must end in one error of the input, with nothing written; returns the error."""

    def run(adapter: bool = False, **changes: Any) -> str:
        code, said = merge(adapter, **changes)
        assert code == 2, said
        assert "Traceback" not in said
        assert not (tmp_path / "out").exists()
        return said

    return run


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes).replace('"1e309"', "1e309"))


def test_the_models_are_merged_as_they_are(merge: Callable[..., tuple[int, str]], models: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert merge()[0] == 0
    written = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*")}
    assert {"vocab.json", "added_tokens.json", "chat_template.jinja", "additional_chat_templates/tool.jinja"} <= written
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").model_max_length == int(1e30)


# --- files that lead out of the folder, or are not files (rows 10 and 11) ---------------------------------------------

ALL = ("config.json", "generation_config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors")
ALL += ("tokenizer.json", "tokenizer_config.json", "vocab.json", "chat_template.jinja", "tokenizer.model")
ALL += ("additional_chat_templates/tool.jinja",)


@pytest.mark.parametrize("name", ALL)
def test_a_link_to_a_secret_is_refused(name: str, models: Path, tmp_path: Path, refused: Refused) -> None:
    path = models / "base" / name
    path.unlink(missing_ok=True)
    path.symlink_to(tmp_path / "secret")
    said = refused()
    assert f"{path}: leads to {tmp_path / 'secret'}, outside of" in said
    assert SECRET not in said


def test_a_link_to_a_secret_folder_is_refused(models: Path, tmp_path: Path, refused: Refused) -> None:
    path = models / "base" / "additional_chat_templates"
    for file in path.iterdir():
        file.unlink()
    path.rmdir()
    path.symlink_to(tmp_path / "secrets")
    assert "outside of" in refused()


def test_a_link_within_the_folder_is_copied(
    models: Path, tmp_path: Path, merge: Callable[..., tuple[int, str]]
) -> None:
    path = models / "base" / "chat_template.jinja"
    content = path.read_text()
    path.rename(models / "base" / "template")
    path.symlink_to("template")
    assert merge()[0] == 0
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == content
    assert not (tmp_path / "out" / "chat_template.jinja").is_symlink()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("kind", ["device", "pipe"])
def test_a_special_file_is_refused(kind: str, name: str, models: Path, refused: Refused) -> None:
    path = models / "base" / name
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said = refused()
    assert f"{path}: " in said
    assert "not a regular file" in said or "leads to /dev/zero, outside of" in said
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB


def test_an_adapter_and_a_card_are_read_in_the_same_way(models: Path, tmp_path: Path, refused: Refused) -> None:
    from evosearch.checkpoints.model_card import card_of

    card = models / "base" / "README.md"
    card.unlink()
    os.mkfifo(card)
    assert "not a regular file" in card_of(models / "base").note
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        path = models / "lora" / name
        path.rename(tmp_path / name)
        path.symlink_to(tmp_path / name)
        assert f"{path}: leads to {tmp_path / name}, outside of" in refused(adapter=True)


def test_a_node_copies_no_file_from_outside(models: Path, tmp_path: Path) -> None:
    from evosearch.checkpoints.cache import copies
    from evosearch.checkpoints.reader import Checkpoint

    model = Checkpoint.open(models / "base")
    (models / "base" / "vocab.json").unlink()
    (models / "base" / "vocab.json").symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match=r"vocab\.json: leads to"):
        copies.copy(model, tmp_path / "copies" / "x")


def test_a_tokenizer_is_loaded_only_if_its_files_are_inside(models: Path, tmp_path: Path) -> None:
    from evosearch.checkpoints.tokenizers.loading import load_tokenizer

    assert load_tokenizer(models / "base")("ab").input_ids
    path = models / "base" / "tokenizer.json"
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: leads to /dev/zero"):
        load_tokenizer(models / "base")


# --- counts and values of a config (row 12) ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: got 1000000000. A positive whole number up to 1024"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers: got 1000000. A positive whole number up to 1024"),
        ({"num_hidden_layers": 1000}, "tensor 'model.layers.2.input_layernorm.weight' is missing"),
        ({"num_labels": 10**9}, "num_labels: got 1000000000. A whole number up to 10000. Remove the key"),
        ({"num_labels": "x"}, "num_labels: got 'x'"),
        ({"vocab_size": 10**12}, "vocab_size: got 1000000000000, but 'model.embed_tokens.weight' is 64 × 32. 64."),
        ({"hidden_size": 10**9}, "hidden_size: got 1000000000, but 'model.embed_tokens.weight' is 64 × 32. 32."),
        ({"hidden_size": -32}, "hidden_size: got -32"),
        ({"intermediate_size": 10**400}, "is too large. Whole numbers below 2^63, and finite ones"),
        ({"rms_norm_eps": "1e309"}, "the number 1e309 is too large"),
        ({"rms_norm_eps": float("nan")}, "got NaN, which is not JSON"),
        ({"num_attention_heads": 0}, "transformers cannot build this model"),
        ({"rope_parameters": "evil"}, "transformers cannot build this model"),
        ({"architectures": ["MixtralForCausalLM"], "num_local_experts": 10**9}, "num_local_experts: got 1000000000"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_values_of_a_config(changes: dict[str, Any], message: str, models: Path, refused: Refused) -> None:
    edit(models / "base" / "config.json", **changes)
    said = refused()
    assert message in said
    assert "config.json" in said or "model.safetensors.index.json" in said


def test_counts_are_bounded_where_there_are_no_weights_yet(models: Path) -> None:
    from evosearch.preflight.model_size import size_of

    edit(models / "base" / "config.json", num_hidden_layers=10**9)
    with pytest.raises(CheckpointError, match="num_hidden_layers"):
        size_of(models / "base")
    edit(models / "expert" / "config.json", num_attention_heads=0)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        size_of(models / "expert")


def test_experts_of_all_layers_are_bounded(models: Path) -> None:
    from evosearch.checkpoints.families.registry import family_of

    config = {"architectures": ["MixtralForCausalLM"], "num_hidden_layers": 1024, "num_local_experts": 4096}
    with pytest.raises(CheckpointError, match="more than 300000 tensors"):
        family_of(config, "x").shape(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_beams": "1e309"}, "the number 1e309 is too large"),
        ({"num_beams": "x"}, "num_beams: got 'x'. A whole number, not negative"),
        ({"num_beams": 10**12}, "num_beams: got 1000000000000"),
        ({"temperature": [1]}, "temperature: got [1]. A number"),
        ({"do_sample": "yes"}, "do_sample: got 'yes'. true or false"),
        ({"eos_token_id": {"a": 1}}, "eos_token_id: got {'a': 1}. A token id, or a list of them"),
        ({"eos_token_id": [[1]]}, "eos_token_id: got [[1]]"),
        ({"suppress_tokens": 7}, "suppress_tokens: got 7. A list of token ids"),
        ({"max_new_tokens": -5}, "max_new_tokens: got -5"),
        ({"cache_implementation": "evil"}, "transformers rejects it"),
        ({"watermarking_config": 7}, "transformers rejects it"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_values_of_a_generation_config(changes: dict[str, Any], message: str, models: Path, refused: Refused) -> None:
    edit(models / "base" / "generation_config.json", **changes)
    said = refused()
    assert message in said
    assert "base/generation_config.json" in said


@pytest.mark.parametrize("text", ["[]", "{", "null", "\ufeff{}", "[" * 100_000])
def test_a_damaged_generation_config(text: str, models: Path, refused: Refused) -> None:
    (models / "base" / "generation_config.json").write_text(text)
    assert "base/generation_config.json: " in refused()


# --- tokenizers and indexes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("id", "message"),
    [
        ("x", "has the id 'x'. Ids from 0 to 4194303"),
        (-1, "has the id -1"),
        (True, "has the id True"),
        (10**9, "has the id 1000000000"),
        (10**18, "has the id 1000000000000000000"),
        (10**30, "is too large"),
    ],
)
@pytest.mark.parametrize("place", ["vocabulary", "added"])
def test_token_ids(place: str, id: Any, message: str, models: Path, refused: Refused) -> None:
    path = models / "base" / "tokenizer.json"
    data = json.loads(path.read_text())
    if place == "added":
        data["added_tokens"][0]["id"] = id
    else:
        data["model"]["vocab"]["a"] = id
    path.write_text(json.dumps(data))
    said = refused(tokenizer_source="union")
    assert message in said
    assert "base/tokenizer.json" in said


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("tokenizer_config.json", {"added_tokens_decoder": {str(10**9): {"content": "x"}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"9" * 5000: {"content": "x"}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}),
        ("tokenizer_config.json", {"extra_special_tokens": 5}),
        ("tokenizer_config.json", {"extra_special_tokens": [{"content": 5}]}),
        ("added_tokens.json", {"<x>": 10**12}),
        ("tokenizer.json", {"model": {"vocab": "x"}}),
        ("tokenizer.json", {"added_tokens": 5}),
    ],
)
def test_other_values_of_a_tokenizer(name: str, changes: dict[str, Any], models: Path, refused: Refused) -> None:
    edit(models / "base" / name, **changes)
    assert f"{models / 'base'}/tokenizer" in refused(tokenizer_source="union")


@pytest.mark.parametrize("file", ["x" * 5000 + ".safetensors", "a\0.safetensors", "../expert/model.safetensors", 5])
def test_names_in_an_index(file: Any, models: Path, refused: Refused) -> None:
    path = models / "base" / "model.safetensors.index.json"
    data = json.loads(path.read_text())
    data["weight_map"]["model.norm.weight"] = file
    path.write_text(json.dumps(data))
    assert str(models / "base") in refused()


# --- adapters (row 13) ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank_pattern": {"([a-z_.0-9]+)+!": 4}}, None),  # matches nothing, and at once
        ({"rank_pattern": {"(((a+)+)+)+$": 4}}, "rank_pattern: '(((a+)+)+)+$' nests repetitions more than 2 deep"),
        ({"rank_pattern": {"(?i)Q_PROJ": 4}}, "rank_pattern: '(?i)Q_PROJ' has flags"),
        ({"rank_pattern": {"(" * 3000: 4}}, "is longer than 500 characters"),
        ({"rank_pattern": {"(" * 400: 4}}, "is not a valid regular expression"),
        ({"rank_pattern": {"(?=a)b": 4}}, "has lookaround, backreferences or conditions"),
        ({"alpha_pattern": {r"(a)\1": 4}}, "has lookaround, backreferences or conditions"),
        ({"alpha_pattern": {"q_proj": 10**400}}, "is too large"),
        ({"alpha_pattern": {"q_proj": 1e308}}, "alpha_pattern.q_proj: got 1e+308. A number up to 1048576"),
        ({"alpha_pattern": {f"a*{index}": 1 for index in range(101)}}, "alpha_pattern: 101 expressions. At most 100"),
        ({"r": 10**400}, "is too large"),
        ({"lora_alpha": 10**400}, "is too large"),
        ({"target_modules": ["nope"]}, "target_modules: names no module that the adapter has"),
        ({"target_modules": "nope"}, "target_modules: names no module that the adapter has"),
        ({"target_modules": "([a-z_.0-9]+)+!"}, "target_modules: names no module that the adapter has"),
        ({"target_modules": r".*\.(q_proj|up_proj)"}, None),
        ({"fan_in_fan_out": "x"}, "fan_in_fan_out: got 'x'. true or false"),
        ({"use_rslora": "x"}, "use_rslora: got 'x'. true or false"),
        ({"use_dora": [1]}, "use_dora: got [1]. true or false"),
        ({"bias": []}, "bias: got []. none, all or lora_only"),
    ],
)
def test_values_of_an_adapter(
    changes: dict[str, Any], message: str | None, models: Path, merge: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    edit(models / "lora" / "adapter_config.json", **changes)
    code, said = merge(adapter=True)
    assert code == (0 if message is None else 2), said
    assert "Traceback" not in said
    if message is not None:
        assert message in said
        assert "lora/adapter_config.json" in said
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_with_weights_that_are_not_finite(value: float, models: Path, refused: Refused) -> None:
    from safetensors.torch import load_file, save_file

    path = models / "lora" / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "layers.1.mlp.up_proj.lora_B" in name)
    tensors[name][3, 1] = value
    save_file(tensors, path)
    said = refused(adapter=True)
    assert f"{path}: '{name}' is damaged: 1 of its 96 values are NaN or infinite" in said
