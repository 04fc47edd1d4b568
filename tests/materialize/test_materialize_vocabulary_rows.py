"""Sources of token rows, compared with a plain implementation of the rules."""

from collections.abc import Mapping

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from evosearch.checkpoints.families.registry import all_families
from evosearch.checkpoints.reader import Checkpoint
from evosearch.materialize.token_rows import ModelRows, lay_out
from evosearch.materialize.vocabulary import token_tensors
from evosearch.recipe.tokens import FromModel, Token, Zero

torch.set_num_threads(1)
LETTERS = "abcdefg"
WIDTH = 3


@st.composite
def cases(
    draw: st.DrawFn,
) -> tuple[Mapping[int, str], Mapping[str, ModelRows], str | None, Mapping[str, Token], int | None]:
    """An output vocabulary with possible gaps, up to three models, and the sources of some tokens."""
    ids = draw(st.lists(st.integers(0, 9), unique=True, min_size=1, max_size=7))
    vocabulary = dict(zip(sorted(ids), draw(st.permutations(LETTERS)), strict=False))
    models = {}
    for name in "ABC"[: draw(st.integers(1, 3))]:
        known = draw(st.lists(st.sampled_from(LETTERS), unique=True, min_size=1))
        models[name] = ModelRows({token: id for id, token in enumerate(known)}, draw(st.integers(1, len(known) + 2)))
    tokens = {}
    for token in draw(st.lists(st.sampled_from(LETTERS), unique=True, max_size=3)):
        model = draw(st.sampled_from(sorted(models)))
        kinds = [None, Zero(kind="zero"), FromModel(kind="model_token", model=model, token_id=models[model].rows - 1)]
        if models[model].row(token) is not None:
            kinds.append(model)
        tokens[token] = Token(source=draw(st.sampled_from(kinds)), force=draw(st.booleans()))
    base = draw(st.sampled_from([None, *models]))
    return vocabulary, models, base, tokens, draw(st.sampled_from([None, 1, 4]))


def expected_row(token, model, models, tensors, base, tokens):
    entry = tokens.get(token, Token())
    own = models[model].row(token)
    if own is not None and not entry.force:
        return tensors[model][own]
    if isinstance(entry.source, Zero):
        return torch.zeros(WIDTH)
    if isinstance(entry.source, FromModel):
        return tensors[entry.source.model][entry.source.token_id]
    if entry.source is not None:
        return tensors[entry.source][models[entry.source].ids[token]]
    having = {name: holding.row(token) for name, holding in models.items() if holding.row(token) is not None}
    if base in having:
        return tensors[base][having[base]]
    return torch.stack([tensors[name][row] for name, row in having.items()]).mean(0) if having else torch.zeros(WIDTH)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(cases())
def test_rows_are_those_of_a_plain_reading(case):
    vocabulary, models, base, tokens, multiple = case
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(holding.rows, WIDTH, generator=generator) for name, holding in models.items()}
    layout = lay_out(vocabulary, models, base, tokens, multiple)
    least = max(vocabulary) + 1
    assert least <= layout.size < least + (multiple or 1)
    assert layout.size % (multiple or 1) == 0
    for name in models:
        made = layout.make(name, {model: lambda model=model: tensors[model] for model in models}, torch.float32)
        assert made.shape == (layout.size, WIDTH)
        rows = {id: expected_row(token, name, models, tensors, base, tokens) for id, token in vocabulary.items()}
        filler = torch.stack(list(rows.values())).mean(0)
        for id in range(layout.size):
            torch.testing.assert_close(made[id], rows.get(id, filler))
        if layout.unchanged(name, models[name].rows):
            assert torch.equal(made, tensors[name])
    nowhere = {token for token in vocabulary.values() if all(holding.row(token) is None for holding in models.values())}
    assert set(layout.unknown) == {token for token in nowhere if tokens.get(token, Token()).source is None}


def test_means_are_taken_in_float32():
    models = {name: ModelRows({"a": 0}, 1) for name in "AB"} | {"C": ModelRows({"b": 0}, 1)}
    tensors = {"A": torch.tensor([[1.0]]), "B": torch.tensor([[1.0 + 2**-7]]), "C": torch.tensor([[0.0]])}
    half = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    layout = lay_out({0: "a", 1: "b"}, models, None, {})
    made = layout.make("C", {name: lambda name=name: half[name] for name in half}, torch.float32)
    assert made[0].item() == 1.0 + 2**-8  # not representable in bfloat16


@pytest.mark.parametrize("architecture", sorted(all_families()))
def test_every_family_names_its_token_embeddings_first_and_rows_of_tokens_alone_in_its_head(architecture, random_model):
    checkpoint = Checkpoint.open(random_model(architecture, vocab_size=37, tie_word_embeddings=False))
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint.folder)
    embeddings, *head = map(checkpoint.load, token_tensors(checkpoint))
    assert torch.equal(embeddings, model.get_input_embeddings().weight)
    assert torch.equal(head[0], model.get_output_embeddings().weight)
    assert {tensor.shape[0] for tensor in (embeddings, *head)} == {37}
