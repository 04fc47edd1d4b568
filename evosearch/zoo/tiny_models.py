"""`zoo:tiny/…`: a base and four experts of a million parameters, trained where they are first asked for.

A zoo lies in `<cache>/zoo/tiny-<fingerprint>/<name>`, each model a stock checkpoint folder that plain transformers and
`lm_eval --model hf` load. The fingerprint covers the setting, the code of documents and training, and torch's version,
so a zoo made by other code is never taken for this one.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch

from evosearch.checkpoints.cache.locks import locked
from evosearch.checkpoints.quiet import no_bars
from evosearch.errors import CheckpointError, did_you_mean
from evosearch.zoo.tiny_data import SPECIALS, TASKS, VOCABULARY
from evosearch.zoo.tiny_training import Setting, train_base, train_expert

TINY = ("base", *TASKS)
SETTING = Setting()
Progress = Callable[[str, float], None]  # what is being done, and the part that is done, in [0, 1]


def resolve(rest: str, cache: Path, progress: Progress | None = None) -> Path:
    """The folder of `zoo:<rest>`, trained if need be.

    Raises:
        CheckpointError: there is no such model.
    """
    family, _, name = rest.partition("/")
    if family != "tiny" or name not in TINY:
        known = [f"zoo:tiny/{known}" for known in TINY]
        raise CheckpointError(
            f"zoo:{rest}", "no such embedded model", "There are " + ", ".join(known), did_you_mean(f"zoo:{rest}", known)
        )
    return ensure(name, cache, progress)


def ensure(name: str, cache: Path, progress: Progress | None = None, setting: Setting = SETTING) -> Path:
    """The folder of one tiny model; trained first, as is the base it starts from, where it is missing.

    Safe where processes race: one trains, the others wait for its lock and find the folder.

    Args:
        name: one of TINY.
        cache: the folder that holds `zoo/`.
        progress: told what is being trained, and how far it is.
    """
    assert name in TINY, name
    home = cache / "zoo" / f"tiny-{fingerprint(setting)}"
    folder = home / name
    if folder.is_dir():  # folders appear by rename, so one that exists is whole
        return folder
    if name != "base":
        ensure("base", cache, progress, setting)
    with locked(home / ".lock"):
        if not folder.is_dir():
            _train(name, home, progress, setting)
    return folder


def fingerprint(setting: Setting = SETTING) -> str:
    """Twelve hex digits over everything that determines the models."""
    code = [Path(__file__).with_name(name).read_text("utf-8") for name in ("tiny_data.py", "tiny_training.py")]
    stated = json.dumps([asdict(setting), TINY, VOCABULARY, torch.__version__, *code], sort_keys=True)
    return sha256(stated.encode()).hexdigest()[:12]


def _train(name: str, home: Path, progress: Progress | None, setting: Setting) -> None:
    def tell(part: float) -> None:
        if progress:
            progress(f"training zoo:tiny/{name}", part)

    tell(0.0)
    with _threads(setting.threads), no_bars():
        base = None if name == "base" else _load(home / "base")
        model = train_base(setting, tell) if base is None else train_expert(setting, base, name, tell)
        _save(model, home / name)
    tell(1.0)


def _load(folder: Path) -> Any:
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32)


def _save(model: Any, folder: Path) -> None:
    """Write a checkpoint folder under another name, then rename it."""
    draft = Path(mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        draft.chmod(0o755)
        model.eval().save_pretrained(draft)
        tokenizer().save_pretrained(draft)
        draft.rename(folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def tokenizer() -> Any:
    """One token a character, `<bos>` in front; what is outside the vocabulary is `<unk>`."""
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


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Sums are split by thread, so their number is part of the setting; it is put back afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
