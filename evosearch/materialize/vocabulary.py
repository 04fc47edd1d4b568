"""Conversion of models to one vocabulary, by rearranging rows of embeddings and heads before the merge."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken

from evosearch.checkpoints.cache.layout import TOKENIZERS
from evosearch.checkpoints.cache.uses import hold
from evosearch.checkpoints.digest import DTYPE_NAMES, DTYPES
from evosearch.checkpoints.model_files import GENERATION, read_json
from evosearch.checkpoints.overlay import Computed, Overlay
from evosearch.checkpoints.reader import CONFIG, Checkpoint, TensorInfo
from evosearch.checkpoints.tokenizers import chat_template, tokenizer_files
from evosearch.checkpoints.tokenizers.tokenizer import Vocabulary
from evosearch.errors import CheckpointError, RecipeError
from evosearch.materialize.compatibility import check_compatible
from evosearch.materialize.special_ids import in_vocabulary
from evosearch.materialize.token_rows import WHERE, Layout, ModelRows, lay_out
from evosearch.recipe.schema import Recipe
from evosearch.recipe.shapes import Place
from evosearch.recipe.tokens import BASE, UNION, Tokenizer
from evosearch.untrusted import boundary, present

SHOWN = 5  # tokens listed in a note


def in_one_vocabulary(
    recipe: Recipe, checkpoints: Mapping[str, Checkpoint], cache: Path, folder_of: Callable[[str], Path]
) -> dict[str, Checkpoint]:
    """Convert checkpoints to the recipe's vocabulary, as overlays. Without a vocabulary they are returned unchanged.

    Args:
        recipe: The recipe.
        checkpoints: Reference → checkpoint, the donor first.
        cache: Folder for new tokenizers.
        folder_of: Reference → folder, for a model that is only used for its tokenizer.

    Raises:
        CheckpointError: A model has no tokenizer.json, or its embeddings have another form than those of the others.
        RecipeError: The source of a token does not have it, or the chat template is unknown.
    """
    wanted = recipe.vocabulary
    if wanted is None and recipe.chat_template is None:
        return dict(checkpoints)
    merged = _merged(recipe, checkpoints)
    template, (donor, under) = _template(recipe, merged), next(iter(merged.items()))
    if wanted is None:
        files = tokenizer_files.read(under.tokenizer_folder)
        folder = _keep(files, template, {CONFIG: under.config}, cache, donor)
        return dict(checkpoints) | {donor: Overlay(under, donor, under.content_sha256, {}, tokenizer=folder)}
    vocabularies = {name: Vocabulary.read(model.tokenizer_folder, name) for name, model in merged.items()}
    held = {name: ModelRows(vocabularies[name].ids, rows) for name, rows in _row_counts(merged).items()}
    output, files = _output(wanted, merged, vocabularies, folder_of)
    layout = lay_out(output.tokens, held, recipe.base_model, wanted.tokens, wanted.pad_to_multiple_of)
    changed = partial(in_vocabulary, old=vocabularies[donor], new=output, size=layout.size)
    with boundary(str(under.folder / CONFIG), CheckpointError, "its token ids cannot be converted"):
        configs = {CONFIG: changed(under.config) | {"vocab_size": layout.size}}
    if present(under.folder / GENERATION):
        with boundary(str(under.folder / GENERATION), CheckpointError, "its token ids cannot be converted"):
            configs[GENERATION] = changed(read_json(under.folder / GENERATION))
    folder = _keep(files, template, configs, cache, donor)
    found = dict(checkpoints)
    for name, model in merged.items():
        config = configs[CONFIG] if name == donor else {**model.config, "vocab_size": layout.size}
        found[name] = Overlay(model, name, model.content_sha256, _rows(name, merged, layout), config, folder)
    found[donor].notes += _notes(layout)
    return found


def token_tensors(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return the tensors with one row per token: the token embeddings, and the head if it is not tied.

    Every family lists its token embeddings first; other embeddings have rows by position.
    """
    shape = checkpoint.shape
    return (shape.names(Place.EMBEDDINGS)[0], *shape.names(Place.HEAD))


def _merged(recipe: Recipe, checkpoints: Mapping[str, Checkpoint]) -> dict[str, Checkpoint]:
    """Return the merged models, the donor first, without models that only provide single tokens."""
    plain = recipe.model_copy(update={"tokenizer": None, "tokenizer_source": None})
    return {name: checkpoints[name] for name in plain.references()}


def _row_counts(merged: Mapping[str, Checkpoint]) -> dict[str, int]:
    """Return model → rows of its embeddings.

    Raises:
        CheckpointError: The token tensors of two models differ in width, or those of one model in rows.
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
                raise CheckpointError("recipe", what, "Use models of one width")
    rows = {}
    for name, model in merged.items():
        counts = {tensor: model.tensors[tensor].shape[0] for tensor in token_tensors(model)}
        rows[name] = next(iter(counts.values()))
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"'{tensor}' {count}" for tensor, count in counts.items())
            raise CheckpointError(str(model.folder), f"embeddings and head differ in rows: {listed}")
    return rows


def _output(
    wanted: Tokenizer,
    merged: Mapping[str, Checkpoint],
    vocabularies: Mapping[str, Vocabulary],
    folder_of: Callable[[str], Path],
) -> tuple[Vocabulary, tokenizer_files.Files]:
    """Return the output's vocabulary and tokenizer files: a model's, extended by tokens of others and of the recipe."""
    source = next(iter(merged)) if wanted.source in (UNION, BASE) else wanted.source
    folder = merged[source].tokenizer_folder if source in merged else folder_of(source)
    start = vocabularies[source] if source in merged else Vocabulary.read(folder, source)
    more = _others(start, vocabularies) if wanted.source == UNION else {}
    for token in sorted(wanted.tokens):  # sorted, so that ids do not depend on the order in the file
        if not token:
            raise RecipeError(f"{WHERE}['']", "an empty token", "Keys are the texts of tokens")
        if token not in start.ids and token not in more:
            more[token] = _flagged(token, vocabularies)
    files = tokenizer_files.with_tokens(tokenizer_files.read(folder), start, list(more.values()), source)
    last, new = max(start.ids.values(), default=-1), [token for token in more if token not in start.ids]
    ids = {**start.ids, **{token: last + 1 + index for index, token in enumerate(new)}}
    return Vocabulary(ids, {**start.added, **more}, start.roles), files


def _others(start: Vocabulary, vocabularies: Mapping[str, Vocabulary]) -> dict[str, AddedToken]:
    """Return the tokens that a union adds, in order of models and of their ids.

    An added token of one model is added to the output even if `start` splits its text: that model was trained with it.
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
    """Return a token with the flags of the first model that added it, or else one that is matched literally."""
    return next(
        (vocabulary.added[token] for vocabulary in vocabularies.values() if token in vocabulary.added),
        AddedToken(token, normalized=False),
    )


def _template(recipe: Recipe, merged: Mapping[str, Checkpoint]) -> str | None:
    """Return the recipe's chat template; None to keep the tokenizer's."""
    if recipe.chat_template is None:
        return None
    return chat_template.chosen(recipe.chat_template, {name: model.tokenizer_folder for name, model in merged.items()})


def _keep(
    files: tokenizer_files.Files,
    template: str | None,
    configs: Mapping[str, Mapping[str, Any]],
    cache: Path,
    donor: str,
) -> Path:
    """Write the output's tokenizer and configs to a folder; transformers needs config.json to load a tokenizer."""
    found = dict(files if template is None else tokenizer_files.with_template(files, template))
    found |= {name: json.dumps(config, indent=2).encode() for name, config in configs.items()}
    hold(cache, TOKENIZERS, tokenizer_files.digest(found), f"output on {donor}")
    return tokenizer_files.store(found, cache / TOKENIZERS)


def _rows(name: str, merged: Mapping[str, Checkpoint], layout: Layout) -> dict[str, Computed]:
    """Return one model's tensors in the output's vocabulary, without those whose rows do not change."""
    model = merged[name]
    made: dict[str, Computed] = {}
    for tensor in token_tensors(model):
        info = model.tensors[tensor]
        if layout.unchanged(name, info.shape[0]):
            continue
        dtype = DTYPES[info.dtype]
        for other in merged.values():  # borrowed rows must not lose precision
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
    return (f"no model has an embedding of the tokens {named}{more}: they get zeros",)
