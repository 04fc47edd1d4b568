"""Mutations of model folders, and their merge: each ends in one of the package's errors, or in a model that loads."""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from benchmarks._mutations import model_seeds
from benchmarks._mutations.mutate import ODD, TO_DATA, change_character, truncate
from benchmarks._mutations.outcome import Outcome
from evosearch.errors import InputError

SECRET = "TOPSECRET-4711"  # content of files outside of the folders, which no output may contain
MAX_CPU_S = 60.0  # of one merge; a small model takes a tenth of a second

NUMBERS: tuple[Any, ...] = (
    *(0, -1, -32, 1, 2, 3, 1000, 10**6, 10**9, 10**12, 2**63 - 1, 2**63, 10**30, 10**400),
    *(0.5, -1.5, 1e308, -1e308, 5e-324, float("nan"), float("inf"), "1e309", True),
)
WORDS: tuple[Any, ...] = (
    *("os.system", "../../../etc/passwd", "evil", "<s>", "x" * 5000, "\x00", "\u202e", "LABEL_0", "float16", "llama"),
    *("{{ 'x' * 10**9 }}", "{% for", "(a+)+$", "([a-z_.0-9]+)+!", "(?i)Q_PROJ", "(" * 3000, r"(a|a)*\1", "kernels/x"),
)
LISTS: tuple[Any, ...] = (
    [],
    {},
    [[]],
    [None],
    [1, "a"],
    {"": None},
    {"1": {"content": 5}},
    ["full_attention"],
    [[1]] * 9,
)
ODD_TEXTS = (b"", b"null", b"[]", b"7", b"\xff\xfe", b"\x00" * 100, b"[" * 100_000, b'{"a":' * 100_000)
# Keys that a config or tokenizer may have, and libraries act on
KEYS = (
    *("num_labels", "id2label", "label2id", "problem_type", "layer_types", "rope_scaling", "rope_theta", "auto_map"),
    *("quantization_config", "torch_dtype", "sliding_window", "pretraining_tp", "attn_implementation", "sub_configs"),
    *("per_layer_config", "is_encoder_decoder", "tokenizer_class", "text_config", "vision_config", "output_attentions"),
    *("num_beam_groups", "max_new_tokens", "suppress_tokens", "bad_words_ids", "stop_strings", "cache_implementation"),
    *("watermarking_config", "forced_eos_token_id", "num_return_sequences", "compile_config", "early_stopping"),
    *("added_tokens_decoder", "extra_special_tokens", "additional_special_tokens", "vocab_file", "chat_template"),
    *("layers_to_transform", "exclude_modules", "layer_replication", "lora_bias", "eva_config", "zzz"),
)

Change = Callable[[Path, random.Random], None]


class TooSlowError(BaseException):
    """A merge took too much processor time; no Exception, so that the package does not handle it."""


class ModelFolders:
    """Fuzzer of model folders: mutates files of a small model and merges it.

    Args:
        folder: Empty folder to work in.

    Attributes:
        models: Folder of the mutated models.
    """

    name = "model folder"

    def __init__(self, folder: Path) -> None:
        self._seeds, self.models, self._out = folder / "seeds", folder / "models", folder / "out"
        self._cache = folder / "cache"
        self._seeds.mkdir()
        model_seeds.write(self._seeds)
        (folder / "secret").write_text(SECRET)
        (folder / "secrets").mkdir()
        (folder / "secrets" / "deep.jinja").write_text(SECRET)
        self._recipes = {name: folder / f"{name}.yaml" for name in recipes(self.models)}
        for name, data in recipes(self.models).items():
            self._recipes[name].write_text(yaml.safe_dump(data))

    def try_unchanged(self, recipe: str) -> Outcome:
        """Merge the models as they are."""
        model_seeds.copy(self._seeds, self.models)
        return self._merge(recipe)

    def try_one(self, draw: random.Random) -> tuple[str, Outcome]:
        """Mutate one to three files, merge, and classify the outcome; return what was changed and the outcome."""
        model_seeds.copy(self._seeds, self.models)
        done = []
        for _ in range(draw.choice((1, 1, 1, 2, 3))):
            model, name = draw.choice(FILES)
            path = self.models / model / name
            if not path.is_file() or path.is_symlink():
                continue  # an earlier mutation replaced it
            change = draw.choice(TO_JSON if name.endswith(".json") else TO_OTHER)
            if draw.random() < 0.15:
                change = draw.choice(TO_FILE)
            before = path.read_bytes()
            try:
                change(path, draw)
            except (ValueError, TypeError, RecursionError):  # an earlier mutation left no JSON object
                continue
            after = path.read_bytes() if path.is_file() and not path.is_symlink() else None
            done.append(f"{model}/{name}: {change.__name__.lstrip('_')}{_difference(before, after)}")
        recipe = draw.choice([*self._recipes])
        return f"{recipe}: {'; '.join(done)}", self._merge(recipe)

    def _merge(self, recipe: str) -> Outcome:
        from evosearch.search.progress import Silent
        from evosearch.service.merge import merge

        shutil.rmtree(self._out, ignore_errors=True)
        shutil.rmtree(self._cache, ignore_errors=True)
        started = time.process_time()
        try:
            with _cache_in(self._cache), _limited(MAX_CPU_S):
                merge(self._recipes[recipe], self._out, Silent())
        except InputError as error:
            kind, said = (
                ("refused", str(error)) if not self._out.exists() else ("foreign", "a refused merge left files")
            )
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # also panics of native code
            kind, said = "foreign", f"{type(error).__name__}: {error}"
        else:
            kind, said = self._loaded()
        return Outcome(kind, said, time.process_time() - started)

    def _loaded(self) -> tuple[str, str]:
        """Load the merged model and its tokenizer with transformers."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        for path in (path for path in self._out.rglob("*") if path.is_file()):
            if SECRET.encode() in path.read_bytes():
                return "foreign", f"{path.name} has the content of a file outside of the model folders"
        try:
            with _limited(MAX_CPU_S):
                AutoModelForCausalLM.from_pretrained(self._out, local_files_only=True)
                AutoTokenizer.from_pretrained(self._out, local_files_only=True)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            return "unloadable", f"{type(error).__name__}: {error}"
        return "accepted", ""


def recipes(models: Path) -> dict[str, dict[str, Any]]:
    """Return name → recipe over mutated models, each of which uses other files."""
    base, expert = str(models / "base"), str(models / "expert")
    merged = [{"model": base, "parameters": {"weight": 0.5}}, {"model": expert, "parameters": {"weight": 0.5}}]
    adapted = [{"model": f"{base}+{models / 'lora'}", "parameters": {"weight": 0.5}}]
    plain = {"merge_method": "linear", "models": merged}
    return {
        "linear": plain,
        "union": plain | {"tokenizer_source": "union"},
        "template": plain | {"chat_template": "auto"},
        "adapter": {"merge_method": "task_arithmetic", "base_model": base, "models": adapted},
    }


# (model, file), the files that decide most several times
FILES: tuple[tuple[str, str], ...] = (
    *[("base", "config.json")] * 5,
    *[("base", "generation_config.json")] * 3,
    *[("base", "tokenizer.json")] * 3,
    *[("base", "tokenizer_config.json")] * 3,
    *[("base", model_seeds.INDEX)] * 2,
    *[("lora", "adapter_config.json")] * 3,
    *(("base", name) for name in ("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt")),
    *(("base", name) for name in ("chat_template.jinja", "additional_chat_templates/tool.jinja", "README.md")),
    *(("base", f"model-{shard:05d}-of-00002.safetensors") for shard in (1, 2)),
    *(("expert", name) for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")),
    ("lora", "adapter_model.safetensors"),
)


def _value(path: Path, draw: random.Random) -> None:
    """Replace a value, most often by a number."""
    data = json.loads(path.read_bytes())
    keys = list(data) if isinstance(data, dict) else []
    if not keys:
        return
    data[draw.choice(keys)] = deepcopy(draw.choice(draw.choice((NUMBERS, NUMBERS, WORDS, LISTS))))
    _write(path, data)


def _key(path: Path, draw: random.Random) -> None:
    """Add a key."""
    data = json.loads(path.read_bytes())
    if isinstance(data, dict):
        data[draw.choice(KEYS)] = deepcopy(draw.choice(draw.choice((NUMBERS, WORDS, LISTS, ODD))))
        _write(path, data)


def _inner(path: Path, draw: random.Random) -> None:
    """Change a value or a key at any depth."""
    data = json.loads(path.read_bytes())
    draw.choice(TO_DATA)(data, draw)
    _write(path, data)


def _pattern(path: Path, draw: random.Random) -> None:
    """Set a pattern of an adapter; of other files, a mapping of words to numbers."""
    data = json.loads(path.read_bytes())
    key = draw.choice(("rank_pattern", "alpha_pattern", "target_modules", "modules_to_save"))
    word = str(draw.choice(WORDS))
    data[key] = {word: draw.choice((2, *NUMBERS))} if key.endswith("pattern") else draw.choice((word, [word]))
    _write(path, data)


def _text(path: Path, draw: random.Random) -> None:
    """Change characters, or cut the end."""
    text = path.read_bytes().decode("latin-1")
    for _ in range(draw.choice((1, 1, 5))):
        text = draw.choice((truncate, change_character, change_character))(text, draw)
    path.write_bytes(text.encode("latin-1", errors="replace"))


def _bytes(path: Path, draw: random.Random) -> None:
    """Overwrite some bytes; most often near the start, where a file of tensors has its header."""
    data = bytearray(path.read_bytes())
    for _ in range(draw.choice((1, 4, 64))):
        if data:
            data[draw.randrange(min(len(data), draw.choice((16, 2000, len(data)))))] = draw.choice((0, 32, 57, 255))
    path.write_bytes(data)


def _cut(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size + 1)])


def _odd_text(path: Path, draw: random.Random) -> None:
    path.write_bytes(draw.choice(ODD_TEXTS))


def _link(path: Path, draw: random.Random) -> None:
    """Put a link in the place of a file."""
    path.unlink()
    targets: tuple[str | Path, ...]
    targets = ("/dev/zero", "/dev/stdin", "/proc/self/environ", "nowhere", path.name, *[_above(path, "secret")] * 2)
    path.symlink_to(draw.choice(targets))


def _pipe(path: Path, draw: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def _folder(path: Path, draw: random.Random) -> None:
    """Put a folder, or a link to one outside, in the place of a file."""
    path.unlink()
    if draw.random() < 0.5:
        path.mkdir()
    else:
        path.symlink_to(_above(path, "secrets"))


def _gone(path: Path, draw: random.Random) -> None:
    path.unlink()


TO_JSON: tuple[Change, ...] = (_value, _value, _value, _key, _key, _inner, _inner, _pattern, _text, _odd_text)
TO_OTHER: tuple[Change, ...] = (_text, _bytes, _bytes, _cut, _odd_text)
TO_FILE: tuple[Change, ...] = (_link, _link, _pipe, _folder, _gone)


def _above(path: Path, name: str) -> Path:
    """Return the nearest entry of this name in the folders above."""
    return next(folder / name for folder in path.parents if (folder / name).exists())


def _write(path: Path, data: Any) -> None:
    text = json.dumps(data, default=str, ensure_ascii=False).replace('"1e309"', "1e309")
    path.write_bytes(text.encode("utf-8", errors="surrogatepass"))


def _difference(before: bytes, after: bytes | None) -> str:
    """Describe the first changed place of a file in one line."""
    if after is None or before == after:
        return "" if after is None else " (unchanged)"
    for form in (json.loads, None):
        try:
            one, other = (form(data) if form else None for data in (before, after))
        except (ValueError, RecursionError):
            continue
        if isinstance(one, dict) and isinstance(other, dict):
            changed = {key: value for key, value in other.items() if key not in one or repr(one[key]) != repr(value)}
            return f" {repr(changed)[:200]} without {[key for key in one if key not in other]}"
    return f" {after[:80]!r}, {len(after)} bytes"


@contextmanager
def _cache_in(folder: Path) -> Iterator[None]:
    before = os.environ.get("EVOSEARCH_CACHE")
    os.environ["EVOSEARCH_CACHE"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["EVOSEARCH_CACHE"]
        else:
            os.environ["EVOSEARCH_CACHE"] = before


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raise `TooSlowError` after this much processor time."""

    def stop(signum: int, frame: Any) -> None:
        raise TooSlowError(f"more than {seconds:.0f} s of processor time")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
