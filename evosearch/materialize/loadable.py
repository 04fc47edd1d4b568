"""Checks of an export before it is published: transformers loads its settings, and its weights are those of the model.

Settings are read from the written folder, and the model is built without weights. Weights are not read again, only the
headers of their files. Errors name the parent's file, because a wrong setting was copied from there.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from evosearch.checkpoints.adapters.adapted_model import apply_adapter
from evosearch.checkpoints.cache.layout import TOKENIZERS
from evosearch.checkpoints.digest import DTYPE_NAMES
from evosearch.checkpoints.model_files import GENERATION, read_json
from evosearch.checkpoints.quiet import no_warnings
from evosearch.checkpoints.reader import CONFIG, Checkpoint
from evosearch.checkpoints.tensor_files import ModelFiles, TensorInfo
from evosearch.checkpoints.tokenizers.loading import load_tokenizer
from evosearch.checkpoints.writer import Layout
from evosearch.errors import CheckpointError
from evosearch.materialize.config_keys import blamed
from evosearch.materialize.meta_model import check_weights, meta_model
from evosearch.materialize.skeleton import generation_folder
from evosearch.untrusted import not_finite, reason

VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")  # one of them makes a tokenizer


@dataclass(frozen=True)
class Sources:
    """Places that the settings of an export were copied from, for errors."""

    config: str
    generation: str
    tokenizer: str

    @classmethod
    def of(cls, donor: Checkpoint) -> "Sources":
        """Return the places of an export whose donor is a checkpoint."""
        generation, tokenizer = generation_folder(donor) / GENERATION, donor.tokenizer_folder
        if tokenizer.parent.name == TOKENIZERS:  # in the cache: the donor's, with further tokens or another template
            tokenizer = donor.folder
        return cls(str(donor.folder / CONFIG), str(generation), str(tokenizer))


def check_settings(folder: Path, donor: Checkpoint, layout: Layout, dtype: torch.dtype) -> None:
    """Check that transformers loads the settings of an export, and that its tensors are those of the model.

    Args:
        folder: A folder with config.json, and generation config and tokenizer if there are any.
        donor: The model that they were copied from.
        layout: Tensors that belong to them.
        dtype: Type of all tensors.

    Raises:
        CheckpointError: transformers cannot load a file, or cannot build the model, or it has other tensors. The error
            names the donor's file, and the key where it is known.
    """
    sources, config = Sources.of(donor), read_json(folder / CONFIG)
    _check_finite(config, sources.config)
    with no_warnings():
        model = meta_model(config, sources.config)
        _check_class(folder, config, sources.config)
        check_weights(model, config, donor.family, _headers(layout, dtype), sources.config)
        _check_generation(folder, sources.generation)
        if any((folder / name).is_file() for name in VOCABULARIES):
            load_tokenizer(folder, sources.tokenizer)


def check_base(base: Checkpoint) -> None:
    """Check that transformers can build the model that an adapter is for, in the sizes of its weights.

    Raises:
        CheckpointError: It cannot. The error names the base's config, and the key where it is known.
    """
    where = str(base.folder / CONFIG)
    _check_finite(base.config, where)
    with no_warnings():
        check_weights(meta_model(base.config, where), base.config, base.family, base.tensors, where)


def check_files(folder: Path, layout: Layout, dtype: torch.dtype) -> None:
    """Check the headers of written weights; a difference is a bug."""
    files = ModelFiles(folder).where
    found = {name: file.info(name) for name, file in files.items()}
    assert found == _headers(layout, dtype), f"other tensors were written to {folder} than planned"


def check_adapter(folder: Path, base: Checkpoint) -> None:
    """Check that a written adapter fits its base, by name and size; a difference is a bug."""
    try:
        apply_adapter(base, folder, str(folder))
    except CheckpointError as error:
        raise AssertionError(f"an adapter was written that does not fit its base: {error}") from error


def _headers(layout: Layout, dtype: torch.dtype) -> dict[str, TensorInfo]:
    return {name: TensorInfo(DTYPE_NAMES[dtype], tuple(shape)) for name, shape in layout}


def _check_finite(document: Mapping[str, object], where: str) -> None:
    for key, value in not_finite(document):
        raise CheckpointError(f"{where}: {key}", f"got {value}", "A finite number")


def _check_class(folder: Path, config: Mapping[str, object], where: str) -> None:
    """Check that transformers recognizes the architecture when it loads the folder."""
    wanted = getattr(transformers, config["architectures"][0]).config_class  # type: ignore[index]
    try:
        found = type(transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False))
        what = f"got {config.get('model_type')!r}"
    except Exception as error:  # an unknown or missing type
        found, what = None, f"got {config.get('model_type')!r}; transformers cannot load it: {reason(error)}"
    if found is not wanted:
        raise CheckpointError(f"{where}: model_type", what, f"'{wanted.model_type}' for {wanted.__name__}")


def _check_generation(folder: Path, where: str) -> None:
    if not (folder / GENERATION).is_file():
        return
    try:
        data = json.loads((folder / GENERATION).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(where, f"invalid JSON: {error}") from None
    if not isinstance(data, dict):
        raise CheckpointError(where, f"got a {type(data).__name__}", "A JSON object")
    _check_finite(data, where)
    try:
        transformers.GenerationConfig.from_pretrained(folder)
    except Exception as error:  # whatever its checks stumble over
        key = blamed(data, transformers.GenerationConfig.from_dict)
        what = f"transformers cannot load it: {reason(error)}"
        at, what = (where, what) if key is None else (f"{where}: {key}", f"got {data[key]!r}; {what}")
        raise CheckpointError(at, what, next="Fix or remove the file") from error
