"""Rules for the repository's files: no symbolic links, valid relative links, schema comments."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LINK = "120000"  # git's mode of a symbolic link
ROOMS = ("evosearch", "benchmarks", "examples", "docs", "evals", "scripts", "tests")
ROOM_PAGES = [page for room in ROOMS for page in (ROOT / room).rglob("README.md")]
PAGES = sorted([*ROOT.glob("*.md"), ROOT / "docker" / "README.md", ROOT / "recipes" / "README.md", *ROOM_PAGES])


def python_files() -> list[Path]:
    """Python files of this repository."""
    return [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]


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


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 8192


def test_no_module_changes_the_import_path() -> None:
    found = [path for path in python_files() if f"sys.path.{'insert'}" in path.read_text("utf-8")]
    assert found == []


def test_no_temporary_folder_can_fail_when_it_is_removed() -> None:
    """A program that ends, or fails, while another thread or process still writes there has nothing to report."""
    calls = [
        (path.relative_to(ROOT), call)
        for path in (ROOT / "evosearch").rglob("*.py")
        for call in re.findall(r"TemporaryDirectory\(.*", path.read_text("utf-8"))
    ]
    assert calls
    assert [(path, call) for path, call in calls if "ignore_cleanup_errors=True" not in call] == []


def test_every_example_names_its_schema() -> None:
    for folder, kind in (("recipes", "spec"), ("evals", "suite")):
        for path in sorted((ROOT / folder).glob("*.yaml")):
            first = path.read_text("utf-8").splitlines()[0]
            assert first == f"# yaml-language-server: $schema=../evosearch/schemas/{kind}.schema.json", path
    assert all((ROOT / "evosearch" / "schemas" / f"{kind}.schema.json").is_file() for kind in ("spec", "suite"))


@pytest.mark.parametrize("page", [path.relative_to(ROOT).as_posix() for path in PAGES])
def test_relative_links_have_existing_targets(page: str) -> None:
    """Checks pages outside of docs/; mkdocs checks those in docs/."""
    path = ROOT / page
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text("utf-8"))
    missing = [one for one in targets if "://" not in one and not (path.parent / one).exists()]
    assert missing == []
