"""Readers of untrusted files under coverage-guided fuzzing, with their first inputs."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

MODULE = "model.layers.0.self_attn.q_proj"
DOCUMENT = {"question": "a b-c", "options": ["x", "y"], "gold": 1, "metadata": {"source": "here"}}
# (target, recipe of `model_folders`, model, file)
MODEL_FILES = (
    ("config", "linear", "base", "config.json"),
    ("generation config", "linear", "base", "generation_config.json"),
    ("tokenizer", "union", "base", "tokenizer.json"),
    ("tokenizer config", "template", "base", "tokenizer_config.json"),
    ("index", "linear", "base", "model.safetensors.index.json"),
    ("weights", "linear", "expert", "model.safetensors"),
    ("adapter", "adapter", "lora", "adapter_config.json"),
)
NAMES = (
    *("recipe", "spec", "suite", *(name for name, *_ in MODEL_FILES)),
    *("chat template", "group_by", "module pattern"),
)
PATTERNS = ("q_proj", r"layers\.\d+\.mlp.*", "(q|v)_proj", r".*\.[0-9]+\.self_attn\.(q|k)_proj$", "[a-c]{2,3}x?")
GROUPS = ("{{ metadata.source }}", "{{ question.split(' ')[0] | lower }}", "{% if gold > 0 %}a{% else %}b{% endif %}")
TEMPLATES = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] }}{% endfor %}",
    "{%- set ns = namespace(x=false) -%}{% if tools is defined %}{{ tools | tojson }}{% endif %}{{ bos_token }}",
    "{% macro one(a, b=2) %}{{ a ~ b }}{% endmacro %}{% generation %}{{ one(messages[0].content) }}{% endgeneration %}",
)


@dataclass(frozen=True)
class Reader:
    """A reader under test.

    Attributes:
        name: One of `NAMES`.
        seeds: Valid inputs.
        read: Reads an input as the commands do; anything else than an `InputError` is a finding.
    """

    name: str
    seeds: tuple[bytes, ...]
    read: Callable[[bytes], None]


def reader(name: str, folder: Path) -> Reader:
    """Return a reader that uses an empty folder.

    Args:
        name: One of `NAMES`.
        folder: The folder; set `EVOSEARCH_CACHE` to one in it first.
    """
    if name in ("recipe", "spec", "suite"):
        return _document(name, folder)
    if name == "chat template":
        return Reader(name, _encoded(TEMPLATES), _chat_template)
    if name == "group_by":
        return Reader(name, _encoded(GROUPS), _group)
    if name == "module pattern":
        return Reader(name, _encoded(PATTERNS), _pattern)
    return _model_file(name, folder)


def _document(name: str, folder: Path) -> Reader:
    from benchmarks._mutations.loaders import loaders

    (loader,) = [one for one in loaders(folder) if one.name == name]

    def read(data: bytes) -> None:
        loader.file.write_bytes(data)
        loader.load(loader.file)

    seeds = [yaml.safe_dump_all(seed, sort_keys=False, allow_unicode=True) for seed in loader.seeds]
    return Reader(name, _encoded(seeds), read)


def _model_file(name: str, folder: Path) -> Reader:
    from benchmarks._mutations import model_seeds
    from benchmarks._mutations.model_folders import recipes
    from evosearch.recipe import files
    from evosearch.search.progress import Silent
    from evosearch.setup.models import open_models

    (which, model, file) = next(entry[1:] for entry in MODEL_FILES if entry[0] == name)
    models = folder / "models"
    models.mkdir()
    model_seeds.write(models)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipes(models)[which]))
    recipe, changed = files.load(path), models / model / file

    def read(data: bytes) -> None:
        shutil.rmtree(os.environ["EVOSEARCH_CACHE"], ignore_errors=True)  # of tokenizers
        changed.write_bytes(data)
        open_models(recipe, str(path), Silent()).plan(recipe, f"{path}: recipe")

    return Reader(name, _seeds_of(changed), read)


def _seeds_of(path: Path) -> tuple[bytes, ...]:
    """Return a file as it is and, if it is JSON, in one line."""
    data = path.read_bytes()
    return (data, json.dumps(json.loads(data)).encode()) if path.suffix == ".json" else (data,)


def _encoded(texts: Any) -> tuple[bytes, ...]:
    return tuple(text.encode() for text in texts)


def _chat_template(data: bytes) -> None:
    from evosearch.checkpoints.tokenizers.chat_template import chosen

    chosen(_text(data), {})


def _group(data: bytes) -> None:
    from evosearch.evaluation.suites.linked_documents import group_names

    (name,) = group_names("suite.yaml: tasks[0]", "task", [DOCUMENT], _text(data))
    assert len(name) <= 1000 * (len(data) + 100), "a group's name grows faster than its template"


def _pattern(data: bytes) -> None:
    from evosearch.checkpoints.adapters.module_pattern import ModulePattern, UnsafePatternError

    try:
        pattern = ModulePattern.of(_text(data))
    except UnsafePatternError:
        return
    pattern.matches(MODULE)
    pattern.matches_all(MODULE * 20)


def _text(data: bytes) -> str:
    return data.decode("utf-8", errors="replace")
