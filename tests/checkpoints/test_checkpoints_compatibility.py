"""Incompatible models give one error that names both models and the difference."""

import json
from pathlib import Path

import pytest

from evosearch.checkpoints.reader import Checkpoint
from evosearch.errors import CheckpointError
from evosearch.materialize.compatibility import check_compatible


def check(*folders: Path) -> None:
    check_compatible([Checkpoint.open(folder, folder.name) for folder in folders], "night.yaml: recipe")


def tokenizer(folder: Path, vocab: object, added: tuple[tuple[int, str], ...] = ()) -> None:
    entries = [{"id": id, "content": content} for id, content in added]
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}, "added_tokens": entries}))


def test_fine_tunes_of_one_base_are_compatible(tiny):
    check(tiny("a", seed=1), tiny("b", seed=2), tiny("c", seed=3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 3}, "2 and 3 layers"),
        ({"num_hidden_layers": 3, "vocab_size": 120}, "2 and 3 layers"),
        ({"vocab_size": 120}, "vocabularies of 100 and 120 tokens"),
        ({"tie_word_embeddings": True}, "one ties its output head"),
        (
            {"intermediate_size": 64},
            r"'model\.layers\.0\.mlp\.gate_proj\.weight' is 48×32 in one and 64×32 in the other",
        ),
        ({"attention_bias": True}, r"only one of them has the tensor 'model\.layers\.0\.self_attn\.k_proj\.bias'"),
    ],
)
def test_the_incompatible_property_is_named(tiny, change, message):
    with pytest.raises(CheckpointError, match=rf"night\.yaml: recipe: 'a' and 'c' cannot be merged: {message}"):
        check(tiny("a"), tiny("b", seed=1), tiny("c", **change))


def test_tokenizers_are_compared_by_id(tiny):
    a, b = tiny("a"), tiny("b")
    tokenizer(a, {"x": 0, "y": 1}, ((2, "<s>"),))
    check(a, b)  # one has no tokenizer
    tokenizer(b, {"y": 1, "x": 0}, ((2, "<s>"),))
    check(a, b)
    tokenizer(b, [["x", -1.0], ["y", -2.0]], ((2, "<s>"),))  # a Unigram model has a list of tokens
    check(a, b)
    tokenizer(b, {"x": 1, "y": 0}, ((2, "<s>"),))
    with pytest.raises(
        CheckpointError, match=r"tokenizer\.json: token 0 is 'x' in one and 'y' in the other \(and 1 more\)"
    ):
        check(a, b)
    tokenizer(b, {"x": 0, "y": 1}, ((2, "<eos>"),))
    with pytest.raises(CheckpointError, match="token 2 is '<s>' in one and '<eos>' in the other"):
        check(a, b)


def test_without_tokenizer_json_added_tokens_and_sentencepiece_models_are_compared(tiny):
    a, b = tiny("a"), tiny("b")
    for folder, token in ((a, "<s>"), (b, "<t>")):
        decoder = {"added_tokens_decoder": {"0": {"content": token}}}
        (folder / "tokenizer_config.json").write_text(json.dumps(decoder))
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: token 0 is '<s>'"):
        check(a, b)
    for folder in (a, b):
        (folder / "tokenizer_config.json").unlink()
        (folder / "tokenizer.model").write_bytes(folder.name.encode())
    with pytest.raises(CheckpointError, match=r"tokenizer\.model: the files differ"):
        check(a, b)


def test_a_damaged_tokenizer_is_named(tiny):
    a, b = tiny("a"), tiny("b")
    tokenizer(a, {"x": 0})
    (b / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"b/tokenizer\.json: not a tokenizer"):
        check(a, b)
