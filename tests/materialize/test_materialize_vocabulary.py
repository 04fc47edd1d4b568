"""Conversion to one vocabulary: tokens keep their rows, in memory, on disk and in chats."""

import json
import multiprocessing
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from evosearch.checkpoints.reader import Checkpoint
from evosearch.checkpoints.tokenizers.chat_template import CHATML
from evosearch.checkpoints.tokenizers.tokenizer import Vocabulary
from evosearch.errors import CheckpointError, RecipeError
from evosearch.materialize.compatibility import check_compatible
from evosearch.materialize.in_memory import ResidentModel
from evosearch.materialize.inputs import Opener
from evosearch.materialize.on_disk import write_checkpoint
from evosearch.materialize.vocabulary import in_one_vocabulary, token_tensors
from evosearch.recipe.schema import Recipe

torch.set_num_threads(1)
SPECIAL = ("<unk>", "<s>", "</s>")
BASE_TOKENS, OTHER_TOKENS = (*SPECIAL, *"abcdef"), (*SPECIAL, *"fxyab")  # other ids for a, b and f; x and y are new
CHAT = AddedToken("<|im_end|>", special=True, normalized=False)
Make = Callable[..., str]


def write_tokenizer(folder: Path, tokens: Sequence[str], added: Sequence[AddedToken] = (), **settings: Any) -> None:
    """Save a tokenizer of single characters."""
    inner = Tokenizer(models.WordLevel({token: id for id, token in enumerate(tokens)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    inner.add_special_tokens(list(SPECIAL))
    inner.add_tokens(list(added))
    roles = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"} | settings
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **roles).save_pretrained(folder)


@pytest.fixture
def make(random_model: Callable[..., Path]) -> Make:
    """`make(tokens, added=, rows=, kind=, settings={}, seed=0, **config)`: a model with a tokenizer; its folder."""

    def made(
        tokens: Sequence[str] = BASE_TOKENS,
        added: Sequence[AddedToken] = (),
        rows: int | None = None,
        kind: str = "LlamaForCausalLM",
        settings: Mapping[str, Any] | None = None,
        **config: Any,
    ) -> str:
        size = rows or len(tokens) + len(added)
        config = {"bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False} | config
        folder = random_model(kind, vocab_size=size, **config)
        write_tokenizer(folder, tokens, added, **(settings or {}))
        return str(folder)

    return made


@pytest.fixture
def pair(make: Make) -> tuple[str, str]:
    return make(seed=1), make(OTHER_TOKENS, [CHAT], seed=2)


def recipe(
    names: Sequence[str], weights: Sequence[float] | None = None, base: str | None = None, **keys: Any
) -> Recipe:
    given = weights or [1.0] * len(names)
    listed = [{"model": n, "parameters": {"weight": w}} for n, w in zip(names, given, strict=True)]
    return Recipe.model_validate({"merge_method": "linear", "base_model": base, "models": listed} | keys)


def opened(wanted: Recipe, cache: Path) -> dict[str, Checkpoint]:
    return Opener(cache).inputs(wanted)


def ids_of(checkpoint: Checkpoint) -> Mapping[str, int]:
    return Vocabulary.read(checkpoint.tokenizer_folder, checkpoint.reference).ids


def row(checkpoint: Checkpoint, token: str, kind: int = 0) -> torch.Tensor:
    """Return the row of a token in the embeddings (0) or the head (1)."""
    return checkpoint.load(token_tensors(checkpoint)[kind])[ids_of(checkpoint)[token]]


def logits(model: Any, ids: Sequence[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([list(ids)])).logits[0]


def test_without_a_vocabulary_checkpoints_are_unchanged(pair, tmp_path):
    given = {name: Checkpoint.open(Path(name)) for name in pair}
    found = in_one_vocabulary(recipe(pair), given, tmp_path / "cache", Path)
    assert found == given
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("tied", [False, True])
def test_a_union_preserves_what_each_model_makes_of_its_own_tokens(tied, make, tmp_path):
    pair = make(seed=1, tie_word_embeddings=tied), make(OTHER_TOKENS, [CHAT], seed=2, tie_word_embeddings=tied)
    wanted = recipe(pair, tokenizer_source="union")
    inputs = opened(wanted, tmp_path)
    check_compatible(list(inputs.values()))
    assert {checkpoint.tokenizer_folder for checkpoint in inputs.values()} == {inputs[pair[0]].tokenizer_folder}
    output = ids_of(inputs[pair[0]])
    assert sorted(output, key=output.__getitem__) == [*BASE_TOKENS, "x", "y", "<|im_end|>"]
    for index, name in enumerate(pair):
        weights = [0.0, 0.0]
        weights[index] = 1.0
        resident = ResidentModel(inputs, pair[0])
        resident.materialize(recipe(pair, weights, tokenizer_source="union"))
        alone = transformers.AutoModelForCausalLM.from_pretrained(name)
        before = ids_of(Checkpoint.open(Path(name)))
        own = sorted(before, key=before.__getitem__)
        there = [output[token] for token in own]
        expected = logits(alone, range(len(own)))
        torch.testing.assert_close(logits(resident.model, there)[:, there], expected, rtol=0, atol=1e-5)


def test_the_written_model_answers_as_the_resident_one_and_reads_with_its_tokenizer(pair, tmp_path):
    wanted = recipe(pair, [0.6, 0.4], tokenizer={"source": "union", "pad_to_multiple_of": 8}, chat_template="chatml")
    inputs = opened(wanted, tmp_path / "cache")
    resident = ResidentModel(inputs, pair[0])
    resident.materialize(wanted)
    report = write_checkpoint(wanted, inputs, tmp_path / "out", pair[0])
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (model.config.vocab_size, len(tokenizer)) == (16, 12)
    ids = tokenizer("<s>xaby<|im_end|>").input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == ["<s>", "x", "a", "b", "y", "<|im_end|>"]
    assert torch.equal(logits(model, ids), logits(resident.model, ids))
    assert tokenizer.decode(ids, skip_special_tokens=True) == "xaby"
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "ab"}], tokenize=False, add_generation_prompt=True
    )
    assert chat == "<|im_start|>user\nab<|im_end|>\n<|im_start|>assistant\n"
    assert report.weights_sha256 == Checkpoint.open(tmp_path / "out").content_sha256()


def test_missing_rows_come_from_the_base_the_only_model_or_the_mean(make, tmp_path):
    base, one, two = make((*SPECIAL, *"ab"), seed=1), make((*SPECIAL, *"ac"), seed=2), make((*SPECIAL, *"cd"), seed=3)
    wanted = recipe([base, one, two], base=base, tokenizer_source="union")
    found, before = opened(wanted, tmp_path), {name: Checkpoint.open(Path(name)) for name in (base, one, two)}
    for kind in (0, 1):
        old = {(name, token): row(before[name], token, kind) for name in before for token in ids_of(before[name])}
        new = {(name, token): row(found[name], token, kind) for name in found for token in "abcd"}
        assert all(torch.equal(new[key], old[key]) for key in new if key in old)
        assert torch.equal(new[two, "a"], old[base, "a"])  # the base's, though another model has it, too
        assert torch.equal(new[one, "b"], old[base, "b"])
        torch.testing.assert_close(new[base, "c"], (old[one, "c"] + old[two, "c"]) / 2)
        assert torch.equal(new[base, "d"], old[two, "d"])
        assert torch.equal(new[one, "d"], old[two, "d"])


def test_single_tokens_are_taken_from_the_recipes_sources(pair, tmp_path):
    base, other = pair
    tokens = {
        "x": {"source": {"kind": "zero"}},
        "y": {"source": {"kind": "model_token", "model": base, "token": "c"}},
        "a": {"source": other, "force": True},
        "b": {"force": True},
        "new": {"source": {"kind": "model_token", "model": other, "token_id": 3}},
    }
    wanted = recipe(pair, base=base, tokenizer={"source": "union", "tokens": tokens})
    found, before = opened(wanted, tmp_path), {name: Checkpoint.open(Path(name)) for name in pair}
    assert torch.equal(row(found[base], "x"), torch.zeros(32))
    assert torch.equal(row(found[other], "x"), row(before[other], "x"))  # its own row, which is not forced away
    assert torch.equal(row(found[base], "y"), row(before[base], "c"))
    for name in pair:
        assert torch.equal(row(found[name], "a"), row(before[other], "a"))
        assert torch.equal(row(found[name], "b"), row(before[base], "b"))
        assert torch.equal(row(found[name], "new"), row(before[other], "f"))
    assert ids_of(found[base])["new"] == max(ids_of(found[base]).values())


def test_the_base_and_a_model_give_their_vocabulary(pair, make, tmp_path):
    apart = make((*SPECIAL, *"yxz"), seed=5)  # not merged, only source of the tokenizer
    before = {name: Checkpoint.open(Path(name)) for name in pair}
    for source, tokens in (
        ("base", BASE_TOKENS),
        (pair[1], (*OTHER_TOKENS, CHAT.content)),
        (apart, (*SPECIAL, *"yxz")),
    ):
        found = opened(recipe(pair, base=pair[0], tokenizer_source=source), tmp_path)
        assert list(found)[:2] == list(pair)
        for name in pair:
            checkpoint = found[name]
            assert sorted(ids_of(checkpoint), key=ids_of(checkpoint).__getitem__) == list(tokens)
            assert checkpoint.config["vocab_size"] == len(tokens) == checkpoint.tensors["lm_head.weight"].shape[0]
            for token in set(tokens) & set(ids_of(before[name])):
                assert torch.equal(row(checkpoint, token), row(before[name], token))
    assert torch.equal(row(found[pair[0]], "z"), torch.zeros(32))
    assert found[pair[0]].notes == ("no model has an embedding of the tokens 'z': they get zeros",)


def test_rows_without_a_token_are_cut_and_tokens_without_a_row_count_as_lacking(make, tmp_path):
    """A padded model, and one whose tokenizer has more tokens than its embeddings have rows."""
    padded, short = make(rows=20, seed=1), make((*SPECIAL, *"abcdef"), rows=7, seed=2)
    found = opened(recipe([padded, short], tokenizer_source="union"), tmp_path)
    before = Checkpoint.open(Path(padded))
    assert found[padded].tensors["lm_head.weight"].shape == found[short].tensors["lm_head.weight"].shape == (9, 32)
    assert torch.equal(row(found[short], "f"), row(before, "f"))
    assert torch.equal(row(found[short], "d"), Checkpoint.open(Path(short)).load("model.embed_tokens.weight")[6])


def test_a_model_that_changes_nothing_is_mapped_as_before(pair, make, tmp_path):
    base, other = pair
    found = opened(recipe(pair, base=base, tokenizer_source="base"), tmp_path)
    assert found[base].shares("model.embed_tokens.weight") is not None
    assert found[other].shares("model.embed_tokens.weight") is None
    assert found[other].shares("model.norm.weight") is not None
    assert {name: c.content_sha256() for name, c in found.items()} == {
        name: Checkpoint.open(Path(name)).content_sha256() for name in pair
    }


def test_padding_is_the_mean_of_the_tokens(pair, tmp_path):
    found = opened(recipe(pair, tokenizer={"source": "union", "pad_to_multiple_of": 10}), tmp_path)
    for checkpoint in found.values():
        rows = checkpoint.load("lm_head.weight")
        assert rows.shape == (20, 32)
        torch.testing.assert_close(rows[12:], rows[:12].mean(0).expand(8, -1))


def test_position_embeddings_are_not_token_rows(make, tmp_path):
    config = {"kind": "GPT2LMHeadModel", "tie_word_embeddings": True, "n_positions": 9, "num_key_value_heads": None}
    pair = make(seed=1, **config), make((*SPECIAL, *"fedcba"), seed=2, **config)
    wanted = recipe(pair, base=pair[0], tokenizer_source="base")
    found, other = opened(wanted, tmp_path / "cache"), Checkpoint.open(Path(pair[1]))
    assert torch.equal(found[pair[1]].load("transformer.wpe.weight"), other.load("transformer.wpe.weight"))
    expected = other.load("transformer.wte.weight")[[0, 1, 2, 8, 7, 6, 5, 4, 3]]
    assert torch.equal(found[pair[1]].load("transformer.wte.weight"), expected)
    write_checkpoint(wanted, found, tmp_path / "out", pair[0])
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").lm_head.weight.shape == (9, 32)


def test_a_heads_bias_goes_with_its_rows(make, tmp_path):
    config = {"kind": "PhiForCausalLM", "num_key_value_heads": 4, "partial_rotary_factor": 0.5}
    pair = make(seed=1, **config), make(OTHER_TOKENS, seed=2, **config)
    found = opened(recipe(pair, tokenizer={"source": "union", "pad_to_multiple_of": 12}), tmp_path)
    other = Checkpoint.open(Path(pair[1]))
    assert token_tensors(other) == ("model.embed_tokens.weight", "lm_head.weight", "lm_head.bias")
    bias = found[pair[0]].load("lm_head.bias")
    assert bias.shape == (12,)
    assert bias[9] == other.load("lm_head.bias")[OTHER_TOKENS.index("x")]
    torch.testing.assert_close(bias[11], bias[:11].mean())


def test_types_are_widened_only_where_rows_are_borrowed(make, tmp_path):
    pair = make(seed=1), make(OTHER_TOKENS, seed=2)
    for name, dtype in zip(pair, (torch.bfloat16, torch.float16), strict=True):
        model = transformers.AutoModelForCausalLM.from_pretrained(name).to(dtype)
        model.save_pretrained(name)
    found, before = opened(recipe(pair, tokenizer_source="union"), tmp_path), Checkpoint.open(Path(pair[1]))
    assert [c.tensors["lm_head.weight"].dtype for c in found.values()] == ["F32", "F32"]
    assert [c.tensors["model.norm.weight"].dtype for c in found.values()] == ["BF16", "F16"]
    assert torch.equal(row(found[pair[0]], "x"), row(before, "x").float())


def test_ids_in_the_configs_follow_their_tokens(make, tmp_path):
    """The output has another model's tokenizer, which ends a turn with another token."""
    base = make(seed=1, pad_token_id=3, eos_token_id=[2, 4])
    other = make(("a", *SPECIAL, *"bc"), [CHAT], seed=2, settings={"eos_token": CHAT.content})
    transformers.GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=8).save_pretrained(base)
    wanted = recipe([base, other], base=base, tokenizer_source=other)
    found = opened(wanted, tmp_path / "cache")
    config = found[base].config
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (2, [6, 3, 4], 0)
    resident = ResidentModel(found, base)
    write_checkpoint(wanted, found, tmp_path / "out", base)
    generation = transformers.GenerationConfig.from_pretrained(tmp_path / "out")
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (2, 6, None)
    assert resident.model.generation_config.eos_token_id == 6


def test_a_union_keeps_the_ids_of_the_configs(pair, tmp_path):
    found = opened(recipe(pair, tokenizer_source="union"), tmp_path)
    before = json.loads((Path(pair[0]) / "config.json").read_text())
    assert found[pair[0]].config == before | {"vocab_size": 12}


def test_chat_templates_are_chosen_by_number_or_named_or_written_out(make, tmp_path):
    one, two, three, four = (make(seed=seed) for seed in range(4))
    for name, text in ((two, "two{{ messages }}"), (three, "three{{ messages }}"), (four, "three{{ messages }}\n")):
        (Path(name) / "chat_template.jinja").write_text(text)
    settings = json.loads((Path(one) / "tokenizer_config.json").read_text())
    (Path(one) / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": "one{{ messages }}"}))
    for asked, expected in (
        ("auto", "three{{ messages }}"),
        ("chatml", CHATML),
        ("{% if messages %}{{ messages[0] }}{% endif %}", "{% if messages %}{{ messages[0] }}{% endif %}"),
    ):
        found = opened(recipe([one, two, three, four], chat_template=asked), tmp_path)
        check_compatible(list(found.values()))
        tokenizer = transformers.AutoTokenizer.from_pretrained(found[one].tokenizer_folder)
        assert tokenizer.chat_template.strip() == expected.strip()
        assert "chat_template" not in json.loads((found[one].tokenizer_folder / "tokenizer_config.json").read_text())
        assert found[one].shares("lm_head.weight") is not None
    found = opened(recipe([one, two], chat_template="auto"), tmp_path)
    assert (found[one].tokenizer_folder / "chat_template.jinja").read_text() == "one{{ messages }}"  # the donor's


def test_a_chat_template_alone_hides_no_difference_of_vocabularies(make, tmp_path):
    found = opened(recipe([make(seed=1), make((*SPECIAL, *"fbcdea"), seed=2)], chat_template="chatml"), tmp_path)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: token 3 is 'a' in one and 'f' in the other"):
        check_compatible(list(found.values()))


def _open(wanted: Recipe, cache: Path, results: Any) -> None:
    results.put([str(checkpoint.tokenizer_folder) for checkpoint in opened(wanted, cache).values()])


def test_equal_tokenizers_have_the_same_folder(pair, tmp_path):
    wanted = recipe(pair, tokenizer_source="union", chat_template="chatml")
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    racers = [context.Process(target=_open, args=(wanted, tmp_path, results)) for _ in range(3)]
    for racer in racers:
        racer.start()
    found = [results.get(timeout=60) for _ in racers]
    for racer in racers:
        racer.join()
        assert racer.exitcode == 0
    assert found[0] == found[1] == found[2]
    again = opened(wanted, tmp_path)
    assert [str(checkpoint.tokenizer_folder) for checkpoint in again.values()] == found[0]
    assert [path.name for path in (tmp_path / "tokenizers").iterdir()] == [Path(found[0][0]).name]  # nothing left over
    other = opened(recipe(pair, tokenizer_source="union"), tmp_path)
    assert {checkpoint.tokenizer_folder for checkpoint in other.values()}.isdisjoint(map(Path, found[0]))


WRONG = [
    (
        {"tokenizer": {"tokens": {"a": {"source": "else/where"}}}},
        r"recipe\.tokenizer\.tokens\['a'\]\.source: 'else/where' is not merged\. Merged models: .*",
    ),
    (
        {"tokenizer": {"tokens": {"c": {"source": "OTHER"}}}},
        r"tokens\['c'\]\.source: 'OTHER' has no token 'c'\. The model must have an embedding of the token\. "
        r"Name another token: \{kind: model_token, model: OTHER, token: \.\.\.\}",
    ),
    (
        {"tokenizer": {"tokens": {"c": {"source": {"kind": "model_token", "model": "OTHER", "token": "q"}}}}},
        r"tokens\['c'\]\.source\.token: 'OTHER' has no token 'q'",
    ),
    (
        {"tokenizer": {"tokens": {"c": {"source": {"kind": "model_token", "model": "OTHER", "token_id": 9}}}}},
        r"tokens\['c'\]\.source\.token_id: got 9\. 'OTHER' has embeddings 0 to 8",
    ),
    (
        {"tokenizer": {"tokens": {"c": {"source": {"kind": "model_token", "model": "MERGE", "token": "q"}}}}},
        r"tokens\['c'\]\.source\.model: 'MERGE' is not merged",
    ),
    ({"tokenizer": {"tokens": {"": {}}}}, r"recipe\.tokenizer\.tokens\[''\]: an empty token"),
    (
        {"chat_template": "chatlm"},
        r"recipe\.chat_template: got 'chatlm'\. A Jinja template \(it has a '\{'\), or one of: auto, chatml\. "
        r"Did you mean 'chatml'\?",
    ),
    (
        {"chat_template": "{% for x in messages %}"},
        r"recipe\.chat_template: invalid Jinja template: line 1: Unexpected end of template",
    ),
    ({"chat_template": "{{ messages | nosuch }}"}, r"line 1: No filter named 'nosuch'"),
    (
        {"chat_template": "auto"},
        r"recipe\.chat_template: got auto, but none of the recipe's models has a chat template\. "
        r"A Jinja template, or one of: chatml",
    ),
]


@pytest.mark.parametrize(("keys", "message"), WRONG, ids=[message[-30:] for _, message in WRONG])
def test_invalid_vocabularies_are_refused(keys, message, pair, tmp_path):
    other = pair[1]
    wanted = recipe(pair, **json.loads(json.dumps(keys).replace("OTHER", other)))
    given = {name: Checkpoint.open(Path(name)) for name in pair}
    with pytest.raises(RecipeError) as caught:
        in_one_vocabulary(wanted, given, tmp_path, Path)
    assert re.search(message, str(caught.value).replace(other, "OTHER")), str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_token_without_a_row_cannot_be_a_source(make, tmp_path):
    base, short = make(seed=1), make(rows=7, seed=2)
    wanted = recipe([base, short], tokenizer={"tokens": {"f": {"source": short}}})
    with pytest.raises(RecipeError, match=r"token 'f' of .* has id 8, but the model has 7 embeddings"):
        opened(wanted, tmp_path)


def test_invalid_model_references(make, random_model, tmp_path):
    base, bare = make(seed=1), str(random_model("LlamaForCausalLM"))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: no such file, .* AutoTokenizer and save it"):
        opened(recipe([base, bare], tokenizer_source="union"), tmp_path)
    with pytest.raises(CheckpointError, match=r"no tokenizer files\. One of tokenizer\.json"):
        opened(recipe([bare, base], chat_template="chatml"), tmp_path)
    with pytest.raises(CheckpointError, match="one ties its output head to its embeddings, the other does not"):
        opened(recipe([base, make(seed=2, tie_word_embeddings=True)], tokenizer_source="union"), tmp_path)
    narrow = make(seed=2, hidden_size=16, head_dim=4)
    with pytest.raises(CheckpointError, match=r"a row of 'model\.embed_tokens\.weight' has 32 numbers in one and 16"):
        opened(recipe([base, narrow], tokenizer_source="union"), tmp_path)
    assert not (tmp_path / "tokenizers").exists()


def test_stacked_layers_of_models_with_different_vocabularies(make, tmp_path):
    """Embeddings come from the first slice's model, the head from the last one's; each lacks tokens of the other."""
    base, other = make(seed=1), make(OTHER_TOKENS, [CHAT], seed=2, num_hidden_layers=4)
    slices = [
        {"sources": [{"model": base, "layer_range": [0, 2]}]},
        {"sources": [{"model": other, "layer_range": [1, 4]}]},
    ]
    wanted = Recipe.model_validate({"merge_method": "passthrough", "slices": slices, "tokenizer_source": "union"})
    found = opened(wanted, tmp_path / "cache")
    write_checkpoint(wanted, found, tmp_path / "out", base)
    written, tokenizer = Checkpoint.open(tmp_path / "out"), transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    before = {name: Checkpoint.open(Path(name)) for name in (base, other)}
    assert (written.config["num_hidden_layers"], written.config["vocab_size"], len(tokenizer)) == (5, 12, 12)
    assert torch.equal(row(written, "c"), row(before[base], "c"))
    assert torch.equal(row(written, "x"), row(before[other], "x"))
    assert torch.equal(row(written, "a", 1), row(before[other], "a", 1))
    assert torch.equal(row(written, "c", 1), row(before[base], "c", 1))


def test_transformers_loads_the_built_tokenizer_as_it_does_the_models(make, tmp_path):
    """For some architectures the class comes from config.json, not from tokenizer_config.json."""
    pair = make(seed=1, kind="Qwen2ForCausalLM"), make(OTHER_TOKENS, seed=2, kind="Qwen2ForCausalLM")
    found = opened(recipe(pair, tokenizer_source="union"), tmp_path)
    one, other = (
        transformers.AutoTokenizer.from_pretrained(path) for path in (pair[0], found[pair[0]].tokenizer_folder)
    )
    assert type(one) is type(other) is transformers.Qwen2Tokenizer
