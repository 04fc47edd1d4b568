"""Files that only their owner can read, and random secrets in such files."""

import os
import secrets
from pathlib import Path


def write_private(path: Path, text: str) -> None:
    """Write a file of mode 0600 atomically."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    temporary.replace(path)


def secret(path: Path) -> str:
    """Return the secret in a file; on first use write 256 random bits there."""
    if not path.is_file():
        write_private(path, secrets.token_hex(32))
    return path.read_text()
