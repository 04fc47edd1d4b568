"""Models of `zoo:tiny/…`: a base and four experts with a million parameters each, trained on first use.

They are stored in `<cache>/zoo/tiny-<fingerprint>/<name>`, as standard checkpoint folders that transformers and
`lm_eval --model hf` can load. The fingerprint covers the hyperparameters, the code of documents and training, and the
version of torch, so models that were trained by other code are never reused.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

import torch

from evosearch.checkpoints.cache.drafts import draft
from evosearch.checkpoints.cache.layout import ZOO
from evosearch.checkpoints.cache.locks import locked
from evosearch.checkpoints.cache.uses import hold
from evosearch.errors import CheckpointError, did_you_mean
from evosearch.zoo.tiny_data import TASKS, VOCABULARY
from evosearch.zoo.tiny_training import Setting
from evosearch.zoo.training_process import train

TINY = ("base", *TASKS)
SETTING = Setting()
Progress = Callable[[str, float], None]  # (current step, fraction done in [0, 1])


def resolve(rest: str, cache: Path, progress: Progress | None = None) -> Path:
    """Return the folder of `zoo:<rest>`, trained first if needed.

    Raises:
        CheckpointError: There is no such model, or its training failed.
    """
    family, _, name = rest.partition("/")
    if family != "tiny" or name not in TINY:
        known = [f"zoo:tiny/{known}" for known in TINY]
        suggestion = did_you_mean(f"zoo:{rest}", known)
        raise CheckpointError(f"zoo:{rest}", "unknown built-in model", f"Known: {', '.join(known)}", suggestion)
    return ensure(name, cache, progress)


def ensure(name: str, cache: Path, progress: Progress | None = None, setting: Setting = SETTING) -> Path:
    """Return the folder of a tiny model. If it is missing, it is trained, and so is the base that it starts from.

    Safe for concurrent processes: one trains, the others wait for the lock.

    Args:
        name: One of TINY.
        cache: Folder that contains `zoo/`.
        progress: Called with the model being trained and the fraction done.
        setting: Hyperparameters.

    Raises:
        CheckpointError: Training failed.
    """
    assert name in TINY, name
    home = cache / ZOO / f"tiny-{fingerprint(setting)}"
    folder = home / name
    hold(cache, ZOO, home.name, "zoo:tiny")
    if folder.is_dir():  # created by rename, so it is complete
        return folder
    if name != "base":
        ensure("base", cache, progress, setting)
    with locked(home / ".lock"):
        if not folder.is_dir():
            _train(name, home, progress, setting)
    return folder


def fingerprint(setting: Setting = SETTING) -> str:
    """Return twelve hex digits that identify everything the models depend on."""
    code = [Path(__file__).with_name(name).read_text("utf-8") for name in ("tiny_data.py", "tiny_training.py")]
    hashed = json.dumps([asdict(setting), TINY, VOCABULARY, torch.__version__, *code], sort_keys=True)
    return sha256(hashed.encode()).hexdigest()[:12]


def _train(name: str, home: Path, progress: Progress | None, setting: Setting) -> None:
    def report(fraction: float) -> None:
        if progress:
            progress(f"training zoo:tiny/{name}", fraction)

    report(0.0)
    with draft(home, name) as made:
        train(name, home, made, setting, report)
        made.rename(home / name)
    report(1.0)
