"""What only its owner may read: random secrets, each made once and kept, and files that hold them."""

import os
import secrets
from pathlib import Path


def write_private(path: Path, text: str) -> None:
    """Write a file of mode 0600, and never half of it."""
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    beside.replace(path)


def secret(path: Path) -> str:
    """The secret in a file: 256 random bits, written there the first time it is asked for."""
    if not path.is_file():
        write_private(path, secrets.token_hex(32))
    return path.read_text()
