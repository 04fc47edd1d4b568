"""Tokenizer of the tiny models."""

from typing import Any

from evosearch.zoo.tiny_data import SPECIALS, VOCABULARY


def tokenizer() -> Any:
    """Return a tokenizer with one token per character, `<bos>` in front and `<unk>` for unknown characters."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pad, bos, eos, unk = SPECIALS
    inner = Tokenizer(models.WordLevel({token: i for i, token in enumerate(VOCABULARY)}, unk_token=unk))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    inner.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, VOCABULARY.index(bos))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        unk_token=unk,
        model_max_length=64,
        clean_up_tokenization_spaces=False,
    )
