"""Contents of the repository according to git."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LINK = "120000"  # git's mode of a symbolic link


def links_in(repository: Path) -> list[str]:
    """Tracked files that are symbolic links."""
    command = ["git", "-c", "safe.directory=*", "-C", str(repository), "ls-files", "--stage", "-z"]
    listed = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    entries = [entry.partition("\t") for entry in listed.split("\0") if entry]  # MODE HASH STAGE, path
    assert entries, "git lists nothing"
    return [path for about, _, path in entries if about.split()[0] == LINK]


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout")
def test_no_tracked_file_is_a_symbolic_link() -> None:
    """A link to a local folder is broken in every other checkout."""
    assert links_in(ROOT) == []


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_a_tracked_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "models").symlink_to("/nowhere")
    (tmp_path / "file").touch()
    for arguments in (["init", "--quiet"], ["add", "models", "file"]):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], timeout=120, check=True)
    assert links_in(tmp_path) == ["models"]
