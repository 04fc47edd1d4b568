"""One vocabulary for models that have several: rows of embeddings and heads permuted before any method runs."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken

from evosearch.checkpoints.digest import DTYPE_NAMES, DTYPES
from evosearch.checkpoints.overlay import Made, Overlay
from evosearch.checkpoints.reader import CONFIG, Checkpoint, TensorInfo, read_json
from evosearch.checkpoints.tokenizers import chat_template, tokenizer_files
from evosearch.checkpoints.tokenizers.tokenizer import Vocabulary
from evosearch.errors import CheckpointError, RecipeError
from evosearch.materialize.compatibility import check_compatible
from evosearch.materialize.special_ids import in_vocabulary
from evosearch.materialize.token_rows import WHERE, Holding, Layout, lay_out
from evosearch.recipe.schema import Recipe
from evosearch.recipe.shapes import Place
from evosearch.recipe.tokens import BASE, UNION, Tokenizer

GENERATION = "generation_config.json"
FOLDER = "tokenizers"  # in the cache
SHOWN = 5  # tokens that a note names


def in_one_vocabulary(
    recipe: Recipe, checkpoints: Mapping[str, Checkpoint], cache: Path, folder_of: Callable[[str], Path]
) -> dict[str, Checkpoint]:
    """The checkpoints in the output's vocabulary, as overlays; those of a recipe that asks for none as they are.

    Args:
        checkpoints: reference → checkpoint, the donor first.
        cache: where built tokenizers are kept.
        folder_of: reference → folder, for a model that is named for its tokenizer alone.

    Raises:
        CheckpointError: a model has no tokenizer.json where one is needed, or its embeddings are laid out otherwise.
        RecipeError: a token is to be taken from where it is not, or the chat template is none.
    """
    asked = recipe.vocabulary
    if asked is None and recipe.chat_template is None:
        return dict(checkpoints)
    merged = _merged(recipe, checkpoints)
    template, (donor, under) = _template(recipe, merged), next(iter(merged.items()))
    if asked is None:
        files = tokenizer_files.read(under.tokenizer_folder)
        folder = _keep(files, template, {CONFIG: under.config}, cache)
        return dict(checkpoints) | {donor: Overlay(under, donor, under.content_sha256, {}, tokenizer=folder)}
    vocabularies = {name: Vocabulary.read(model.tokenizer_folder, name) for name, model in merged.items()}
    held = {name: Holding(vocabularies[name].ids, rows) for name, rows in _row_counts(merged).items()}
    output, files = _output(asked, merged, vocabularies, folder_of)
    layout = lay_out(output.tokens, held, recipe.base_model, asked.tokens, asked.pad_to_multiple_of)
    changed = partial(in_vocabulary, old=vocabularies[donor], new=output, size=layout.size)
    configs = {CONFIG: changed(under.config) | {"vocab_size": layout.size}}
    if (under.folder / GENERATION).is_file():
        configs[GENERATION] = changed(read_json(under.folder / GENERATION))
    folder = _keep(files, template, configs, cache)
    found = dict(checkpoints)
    for name, model in merged.items():
        config = configs[CONFIG] if name == donor else {**model.config, "vocab_size": layout.size}
        found[name] = Overlay(model, name, model.content_sha256, _rows(name, merged, layout), config, folder)
    found[donor].notes += _notes(layout)
    return found


def token_tensors(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The tensors with a row a token: the token embeddings, and the head's where it has its own.

    Every family lists its token embeddings first; what it has beside them is by position.
    """
    shape = checkpoint.shape
    return (shape.names(Place.EMBEDDINGS)[0], *shape.names(Place.HEAD))


def _merged(recipe: Recipe, checkpoints: Mapping[str, Checkpoint]) -> dict[str, Checkpoint]:
    """The models that are merged, the donor first: not those that tokens alone are taken from."""
    plain = recipe.model_copy(update={"tokenizer": None, "tokenizer_source": None})
    return {name: checkpoints[name] for name in plain.references()}


def _row_counts(merged: Mapping[str, Checkpoint]) -> dict[str, int]:
    """Model → how many rows its embeddings have.

    Raises:
        CheckpointError: the token tensors of one model, or of two, differ in more than the number of rows.
    """
    first, *others = merged.values()
    for other in others:
        if (first.shape.architecture, first.shape.tied_embeddings) != (
            other.shape.architecture,
            other.shape.tied_embeddings,
        ):
            check_compatible([first, other], same_depth=False)
        for name in token_tensors(first):
            widths = [model.tensors[name].shape[1:] for model in (first, other)]
            if widths[0] != widths[1]:
                pair = f"'{first.reference}' and '{other.reference}' cannot be merged"
                what = f"{pair}: a row of '{name}' has {widths[0][0]} numbers in one and {widths[1][0]} in the other"
                raise CheckpointError("recipe", what, "Models of one width")
    rows = {}
    for name, model in merged.items():
        counts = {tensor: model.tensors[tensor].shape[0] for tensor in token_tensors(model)}
        rows[name] = next(iter(counts.values()))
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"'{tensor}' {count}" for tensor, count in counts.items())
            raise CheckpointError(str(model.folder), f"embeddings and head differ in rows: {listed}")
    return rows


def _output(
    asked: Tokenizer,
    merged: Mapping[str, Checkpoint],
    vocabularies: Mapping[str, Vocabulary],
    folder_of: Callable[[str], Path],
) -> tuple[Vocabulary, tokenizer_files.Files]:
    """The output's tokenizer, and its files: one model's, with the tokens that the others have and the recipe names."""
    source = next(iter(merged)) if asked.source in (UNION, BASE) else asked.source
    folder = merged[source].tokenizer_folder if source in merged else folder_of(source)
    start = vocabularies[source] if source in merged else Vocabulary.read(folder, source)
    more = _others(start, vocabularies) if asked.source == UNION else {}
    for token in sorted(asked.tokens):  # a mapping has no order: the same ids whatever order it is written in
        if not token:
            raise RecipeError(f"{WHERE}['']", "an empty token", "The text of a token")
        if token not in start.ids and token not in more:
            more[token] = _flagged(token, vocabularies)
    files = tokenizer_files.with_tokens(tokenizer_files.read(folder), start, list(more.values()), source)
    last, new = max(start.ids.values(), default=-1), [token for token in more if token not in start.ids]
    ids = {**start.ids, **{token: last + 1 + index for index, token in enumerate(new)}}
    return Vocabulary(ids, {**start.added, **more}, start.roles), files


def _others(start: Vocabulary, vocabularies: Mapping[str, Vocabulary]) -> dict[str, AddedToken]:
    """What a union adds: every further token, in order of models and of their ids.

    A token that is whole in one model and made of pieces in `start` is whole in the output: it was trained so.
    """
    more: dict[str, AddedToken] = {}
    for vocabulary in vocabularies.values():
        for token in vocabulary.tokens.values():
            if token in start.added or token in more:
                continue
            if token not in start.ids or token in vocabulary.added:
                more[token] = _flagged(token, vocabularies)
    return more


def _flagged(token: str, vocabularies: Mapping[str, Vocabulary]) -> AddedToken:
    """A token as the first model has it that adds it to its own; matched as it is written where none does."""
    return next(
        (vocabulary.added[token] for vocabulary in vocabularies.values() if token in vocabulary.added),
        AddedToken(token, normalized=False),
    )


def _template(recipe: Recipe, merged: Mapping[str, Checkpoint]) -> str | None:
    """The chat template that the recipe asks for; None: the tokenizer's own is kept."""
    if recipe.chat_template is None:
        return None
    return chat_template.chosen(recipe.chat_template, {name: model.tokenizer_folder for name, model in merged.items()})


def _keep(
    files: tokenizer_files.Files, template: str | None, configs: Mapping[str, Mapping[str, Any]], cache: Path
) -> Path:
    """The folder of the output's tokenizer, with configs beside it: transformers reads config.json to load one."""
    found = dict(files if template is None else tokenizer_files.with_template(files, template))
    found |= {name: json.dumps(config, indent=2).encode() for name, config in configs.items()}
    return tokenizer_files.keep(found, cache / FOLDER)


def _rows(name: str, merged: Mapping[str, Checkpoint], layout: Layout) -> dict[str, Made]:
    """Tensor → what it is in the output's vocabulary, for one model; none where its rows stay as they are."""
    model = merged[name]
    made: dict[str, Made] = {}
    for tensor in token_tensors(model):
        info = model.tensors[tensor]
        if layout.unchanged(name, info.shape[0]):
            continue
        dtype = DTYPES[info.dtype]
        for other in merged.values():  # rows of others must lose nothing
            dtype = torch.promote_types(dtype, DTYPES[other.tensors[tensor].dtype])
        loads = {other: partial(under.load, tensor) for other, under in merged.items()}
        found = TensorInfo(DTYPE_NAMES[dtype], (layout.size, *info.shape[1:]))
        made[tensor] = (found, partial(layout.make, name, loads, dtype))
    return made


def _notes(layout: Layout) -> tuple[str, ...]:
    if not layout.unknown:
        return ()
    named = ", ".join(repr(token) for token in layout.unknown[:SHOWN])
    more = f" and {len(layout.unknown) - SHOWN} more" if layout.unknown[SHOWN:] else ""
    return (f"no model has an embedding of the tokens {named}{more}: theirs are zeros",)
