"""Tokenizer files, compared with transformers before and after tokens and templates are added."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from evosearch.checkpoints.tokenizers import chat_template, tokenizer_files
from evosearch.checkpoints.tokenizers.tokenizer import Vocabulary
from evosearch.errors import CheckpointError, RecipeError

TEXT = ["the quick brown fox jumps over the lazy dog", "a merge of models is a model"] * 4
NEW = [
    AddedToken("<|call|>", special=True, normalized=False),
    AddedToken("qqq", normalized=False),
    AddedToken("<end>", normalized=False, lstrip=True),
]


def byte_level(special: list[str]) -> Tokenizer:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
    )
    return inner


def metaspace(special: list[str]) -> Tokenizer:
    """Return a tokenizer like Llama's: spaces become ▁, which is also prepended to the text."""
    inner = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    marked = [line.replace(" ", "▁") for line in TEXT]
    inner.train_from_iterator(marked, trainers.BpeTrainer(vocab_size=80, special_tokens=special))
    return inner


def unigram(special: list[str]) -> Tokenizer:
    inner = Tokenizer(models.Unigram())
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=special, unk_token="<unk>", show_progress=False)
    inner.train_from_iterator(TEXT, trainer)
    return inner


def word_piece(special: list[str]) -> Tokenizer:
    inner = Tokenizer(models.WordPiece(unk_token="<unk>"))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=80, special_tokens=special, show_progress=False)
    inner.train_from_iterator(TEXT, trainer)
    return inner


KINDS: dict[str, tuple[Callable[[list[str]], Tokenizer], str]] = {
    "byte level": (byte_level, "PreTrainedTokenizerFast"),
    "gpt2": (byte_level, "GPT2Tokenizer"),
    "qwen2": (byte_level, "Qwen2Tokenizer"),
    "llama": (metaspace, "LlamaTokenizer"),
    "unigram": (unigram, "PreTrainedTokenizerFast"),
    "word piece": (word_piece, "PreTrainedTokenizerFast"),
}
SPECIAL = ["<unk>", "<s>", "</s>", "<|endoftext|>"]


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Return `save("gpt2", **changes of tokenizer_config.json)`, to make a tokenizer folder as on the hub."""

    def made(kind: str = "byte level", **changes: Any) -> Path:
        build, name = KINDS[kind]
        folder = tmp_path / kind
        folder.mkdir()
        build(SPECIAL).save(str(folder / "tokenizer.json"))
        settings = {"tokenizer_class": name, "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"} | changes
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        return folder

    return made


def loaded(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


def decoder_of(folder: Path) -> dict[str, Any]:
    """Return the added tokens of tokenizer.json in the form of older versions of tokenizer_config.json."""
    entries = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    return {str(entry.pop("id")): entry for entry in entries}


@pytest.mark.parametrize("listed", [False, True], ids=["tokenizer.json alone", "listed twice"])
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_loads_added_tokens_with_our_ids_and_tokenizes_as_before(kind, listed, save, tmp_path):
    folder = save(kind)
    if listed:
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(
            json.dumps(settings | {"added_tokens_decoder": decoder_of(folder)})
        )
    before, known = loaded(folder), Vocabulary.read(folder, "model")
    assert before.get_vocab() == known.ids
    assert (known.roles, known.beyond) == ({"unk": "<unk>", "bos": "<s>", "eos": "</s>"}, ())
    files = tokenizer_files.with_tokens(tokenizer_files.read(folder), known, NEW, "model")
    after = loaded(tokenizer_files.store(files, tmp_path / "cache"))
    count = len(known.ids)
    expected = {**known.ids, **{token.content: count + index for index, token in enumerate(NEW)}}
    assert after.get_vocab() == expected == Vocabulary.read(tmp_path / "cache" / tokenizer_files.digest(files), "").ids
    for text in (*TEXT[:2], "</s> the fox", "unseen ÄÖ"):
        assert after(text).input_ids == before(text).input_ids
    ids = after("the<|call|>fox qqq <end>").input_ids
    assert {count, count + 1, count + 2} <= set(ids)
    kept = after.added_tokens_decoder
    assert [(kept[count + i].special, kept[count + i].lstrip) for i in range(3)] == [(1, 0), (0, 0), (0, 1)]
    assert after.decode([count, count + 1], skip_special_tokens=True) == "qqq"


def test_tokens_listed_only_in_the_settings_are_counted_and_written(save, tmp_path):
    """Transformers adds these tokens when it loads the tokenizer; tokens that we add follow them."""
    folder = save(pad_token="<pad>", extra_special_tokens=["<tool>"])
    before, known = loaded(folder), Vocabulary.read(folder, "model")
    assert before.get_vocab() == known.ids
    assert (known.roles["pad"], known.beyond) == ("<pad>", ("<pad>", "<tool>"))
    files = tokenizer_files.with_tokens(tokenizer_files.read(folder), known, NEW[:1], "model")
    after = loaded(tokenizer_files.store(files, tmp_path / "cache"))
    assert after.get_vocab() == {**known.ids, "<|call|>": len(known.ids)}
    assert after.pad_token_id == before.pad_token_id


def test_an_ordinary_token_is_matched_as_one_once_it_is_added(save, tmp_path):
    folder = save("word piece")
    known = Vocabulary.read(folder, "model")
    assert "##x" in known.ids
    files = tokenizer_files.with_tokens(tokenizer_files.read(folder), known, [AddedToken("##x", normalized=False)], "m")
    after = loaded(tokenizer_files.store(files, tmp_path / "cache"))
    assert after.get_vocab() == known.ids
    assert known.ids["##x"] in after("a ##x").input_ids
    assert known.ids["##x"] not in loaded(folder)("a ##x").input_ids


def test_adding_no_tokens_changes_no_files(save):
    folder = save()
    files = tokenizer_files.read(folder)
    assert tokenizer_files.with_tokens(files, Vocabulary.read(folder, "model"), [], "model") == files
    assert files.keys() == {"tokenizer.json", "tokenizer_config.json"}


def test_a_stored_folder_is_named_by_content_and_written_once(save, tmp_path):
    files = tokenizer_files.read(save())
    folder = tokenizer_files.store(files, tmp_path / "cache")
    stamp = (folder / "tokenizer.json").stat().st_mtime_ns
    assert tokenizer_files.store(dict(reversed(files.items())), tmp_path / "cache") == folder
    assert (folder / "tokenizer.json").stat().st_mtime_ns == stamp
    assert tokenizer_files.read(folder) == files
    assert tokenizer_files.store(tokenizer_files.with_template(files, "{{ 1 }}"), tmp_path / "cache") != folder
    assert len(list((tmp_path / "cache").iterdir())) == 2
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"file.*: cannot be written: .*Check disk space and permissions"):
        tokenizer_files.store(files, tmp_path / "file")


def test_a_new_template_replaces_all_others(save):
    folder = save(chat_template=[{"name": "default", "template": "old{{ 1 }}"}, {"name": "tool", "template": "t"}])
    assert chat_template.of_folder(folder) == "old{{ 1 }}"
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "older"}))
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("rag")
    files = tokenizer_files.with_template(tokenizer_files.read(folder), "new{{ messages[0].content }}")
    assert files.keys() == {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    kept = loaded(tokenizer_files.store(files, folder.parent / "cache"))
    assert kept.chat_template == "new{{ messages[0].content }}"
    assert kept.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == "newx"


def test_templates_are_read_from_every_location(save):
    folder = save()
    assert chat_template.of_folder(folder) is None
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "of the json"}))
    assert chat_template.of_folder(folder) == "of the json"
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": "of the settings"}))
    assert chat_template.of_folder(folder) == "of the settings" == loaded(folder).chat_template
    (folder / "chat_template.jinja").write_text("of the jinja")
    assert chat_template.of_folder(folder) == "of the jinja" == loaded(folder).chat_template
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja: not UTF-8 text"):
        chat_template.of_folder(folder)


def test_transformers_template_extensions_are_accepted(save):
    """Loop controls and the generation tag are transformers' additions to Jinja."""
    text = (
        "{%- for m in messages %}{%- if m.role == 'system' %}{%- continue %}{%- endif %}"
        "{%- generation %}{{ m.content | tojson }}{%- endgeneration %}{%- endfor %}"
    )
    assert chat_template.chosen(text, {}) == text
    with pytest.raises(RecipeError, match=r"^here: invalid Jinja template: line 1: .*endgeneration"):
        chat_template.chosen("{% generation %}{{ 1 }}", {}, "here")


@pytest.mark.parametrize("files", [{}, {"tokenizer.model": "x"}], ids=["nothing", "a slow one"])
def test_a_model_without_a_fast_tokenizer_is_rejected(files, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError) as caught:
        Vocabulary.read(tmp_path, "org/model")
    assert str(caught.value) == (
        f"{tmp_path / 'tokenizer.json'}: "
        "no such file, so the vocabulary of 'org/model' cannot be read. "
        "A tokenizer.json, as fast tokenizers have. "
        "Load its tokenizer with transformers' AutoTokenizer and save it into the folder."
    )


def test_damaged_files(save):
    folder = save()
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {"x": "<a>"}}))
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: added_tokens_decoder: not a mapping of ids"):
        Vocabulary.read(folder, "model")
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {"1": {"text": "<a>"}}}))
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: not an added token: \{'text': '<a>'\}"):
        Vocabulary.read(folder, "model")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: not a tokenizer: model\.vocab is missing or invalid"):
        Vocabulary.read(folder, "model")
    known = Vocabulary({}, {}, {})
    with pytest.raises(CheckpointError, match=r"recipe\.tokenizer: cannot add tokens to the tokenizer of 'm': "):
        tokenizer_files.with_tokens({"tokenizer.json": b"{}"}, known, NEW, "m")


def test_tokens_cannot_be_added_if_ids_have_gaps(tmp_path):
    inner = Tokenizer(models.WordLevel({"a": 0, "b": 4, "<unk>": 2}, unk_token="<unk>"))
    inner.save(str(tmp_path / "tokenizer.json"))
    known = Vocabulary.read(tmp_path, "org/model")
    with pytest.raises(
        CheckpointError, match=r"token '<\|call\|>' cannot be added to the tokenizer of 'org/model' with id 5"
    ):
        tokenizer_files.with_tokens(tokenizer_files.read(tmp_path), known, NEW, "org/model")
