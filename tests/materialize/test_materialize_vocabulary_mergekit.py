"""Vocabularies compared with mergekit: equal tensors, with rows compared by token."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

from evosearch.checkpoints.reader import Checkpoint
from evosearch.checkpoints.tokenizers.tokenizer import Vocabulary
from evosearch.materialize.inputs import Opener
from evosearch.materialize.on_disk import write_checkpoint
from evosearch.materialize.vocabulary import token_tensors
from evosearch.recipe.schema import Recipe

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "numpy.core is deprecated", DeprecationWarning)  # mergekit.io.lazy_unpickle
    import yaml
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge

torch.set_num_threads(1)
TOLERANCE = 2e-6
SPECIAL = ("<unk>", "<s>", "</s>")
CHAT = AddedToken("<|im_end|>", special=True, normalized=False)
OLD_END = AddedToken("<end>", special=False, normalized=False, lstrip=True)
GPT2 = {"kind": "GPT2LMHeadModel", "tie_word_embeddings": True, "num_key_value_heads": None}
KINDS = {
    "llama": {"tie_word_embeddings": False},
    "tied": {"tie_word_embeddings": True},
    "gpt2": GPT2,
    "phi": {"kind": "PhiForCausalLM", "num_key_value_heads": 4, "tie_word_embeddings": False},
}


@pytest.fixture(params=KINDS)
def three(request: pytest.FixtureRequest, random_model: Callable[..., Path]) -> tuple[str, str, str]:
    """A base and two models; each has tokens that the others lack, and shared tokens under other ids."""
    config = dict(KINDS[request.param])
    kind = config.pop("kind", "LlamaForCausalLM")
    made = []
    for seed, (letters, added) in enumerate((("abcdef", [OLD_END]), ("fxyab", [CHAT]), ("yczf", [CHAT]))):
        tokens = (*SPECIAL, *letters)
        folder = random_model(kind, seed=seed, vocab_size=len(tokens) + len(added), **config)
        inner = Tokenizer(models.WordLevel({token: id for id, token in enumerate(tokens)}, unk_token="<unk>"))
        inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        inner.add_special_tokens(list(SPECIAL))
        inner.add_tokens(added)
        roles = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **roles)
        tokenizer.chat_template = "base{{ messages }}" if seed == 0 else "other{{ messages }}"
        tokenizer.save_pretrained(folder)
        made.append(str(folder))
    return made[0], made[1], made[2]


def recipe(three: Sequence[str], method: str, **keys: Any) -> Recipe:
    base, a, b = three
    models = [{"model": a, "parameters": {"weight": 0.7}}, {"model": b, "parameters": {"weight": 0.4}}]
    if method == "linear":
        models = [{"model": base, "parameters": {"weight": 0.2}}, *models]
    data = {"merge_method": method, "base_model": base, "models": models, "dtype": "float32"}
    return Recipe.model_validate(data | keys)


def assert_same(wanted: Recipe, folder: Path) -> tuple[Path, Path]:
    """Merge with both, compare all tensors (rows by token), and return the two folders, ours first."""
    inputs = Opener(folder / "cache").inputs(wanted)
    ours, theirs = folder / "ours", folder / "theirs"
    write_checkpoint(wanted, inputs, ours, next(iter(inputs)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = MergeConfiguration.model_validate(yaml.safe_load(wanted.to_yaml()))
        run_merge(config, str(theirs), MergeOptions(device="cpu", quiet=True, write_model_card=False))
    checkpoint = Checkpoint.open(ours)
    expected = {name: tensor for file in theirs.glob("*.safetensors") for name, tensor in load_file(file).items()}
    ids, other = (Vocabulary.read(path, path.name).ids for path in (ours, theirs))
    assert ids.keys() == other.keys()
    count = len(ids)
    assert sorted(ids.values()) == sorted(other.values()) == list(range(count))
    order = torch.tensor([other[token] for token in sorted(ids, key=ids.__getitem__)])
    for name in checkpoint.tensors:
        tensor, theirs_now = checkpoint.load(name), expected[name]
        assert tensor.shape == theirs_now.shape, name
        if name in token_tensors(checkpoint):
            theirs_now = torch.cat((theirs_now[order], theirs_now[count:]))
        torch.testing.assert_close(
            tensor, theirs_now, rtol=0, atol=TOLERANCE, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert checkpoint.config["vocab_size"] == transformers.AutoConfig.from_pretrained(theirs).vocab_size
    return ours, theirs


@pytest.mark.parametrize("source", ["union", "base", "model"])
@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_every_source_of_a_vocabulary(method, source, three, tmp_path):
    named = three[1] if source == "model" else source
    ours, theirs = assert_same(recipe(three, method, tokenizer_source=named), tmp_path)
    mine, other = (transformers.AutoTokenizer.from_pretrained(path) for path in (ours, theirs))
    for text in ("abf<|im_end|>xy", "c <end>z"):
        assert mine.tokenize(text) == other.tokenize(text)
    assert mine.chat_template == other.chat_template


def test_single_tokens_and_padding(three, tmp_path):
    base, a, b = three
    tokens = {
        "a": {"source": a, "force": True},
        "x": {"source": {"kind": "zero"}},
        "z": {"source": {"kind": "model_token", "model": b, "token": "c"}, "force": True},
        "c": {"source": {"kind": "model_token", "model": a, "token_id": 4}},
        "<new>": {"source": {"kind": "model_token", "model": base, "token": "d"}},
    }
    tokenizer = {"source": "union", "tokens": tokens, "pad_to_multiple_of": 16}
    assert_same(recipe(three, "task_arithmetic", tokenizer=tokenizer), tmp_path)


@pytest.mark.parametrize("three", ["llama"], indirect=True)
def test_the_commonest_chat_template(three, tmp_path):
    ours, theirs = assert_same(recipe(three, "linear", tokenizer_source="base", chat_template="auto"), tmp_path)
    mine, other = (transformers.AutoTokenizer.from_pretrained(path) for path in (ours, theirs))
    assert mine.chat_template == other.chat_template == "other{{ messages }}"


@pytest.mark.parametrize("three", ["llama"], indirect=True)
def test_a_token_without_a_source_has_the_default_rows(three, tmp_path):
    """`tokens: {x: {}}` gives no source: an error in mergekit, the default for any token here."""
    wanted = recipe(three, "linear", tokenizer={"source": "union", "tokens": {"x": {}}})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = MergeConfiguration.model_validate(
            yaml.safe_load(wanted.to_yaml()) | {"tokenizer": {"source": "union", "tokens": {"x": {}}}}
        )
        with pytest.raises(NotImplementedError):
            run_merge(config, str(tmp_path / "theirs"), MergeOptions(device="cpu", quiet=True, write_model_card=False))
    inputs = Opener(tmp_path).inputs(wanted)
    id = Vocabulary.read(inputs[three[0]].tokenizer_folder, "").ids["x"]
    own = Checkpoint.open(Path(three[1])).load("lm_head.weight")[4]
    assert all(torch.equal(checkpoint.load("lm_head.weight")[id], own) for checkpoint in inputs.values())
