"""scripts/lock.txt: complete for pyproject.toml and its extras; pip installs nothing that it does not name by hash."""

import hashlib
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "scripts"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = tuple(PROJECT["optional-dependencies"])
SETS = {"torch", "torch-cpu", "base", "cuda", "build", *EXTRAS}


@pytest.fixture(scope="module")
def lock() -> ModuleType:
    """scripts/lock as a module."""
    loader = importlib.machinery.SourceFileLoader("lock_script", str(SCRIPTS / "lock"))
    spec = importlib.util.spec_from_loader("lock_script", loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    sys.modules["lock_script"] = module  # dataclasses look their module up
    loader.exec_module(module)
    return module


def locked(*sets: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPTS / "locked", *sets], capture_output=True, text=True, timeout=60)


def pins(*sets: str) -> dict[str, str]:
    """Return name → version of the requirements of some sets."""
    found = re.findall(r"^(\S+)==(\S+) ", locked(*sets).stdout, re.MULTILINE)
    return dict(found)


def required(needs: list[str]) -> Iterator[tuple[str, str]]:
    """Yield (name, installed version) of everything that requirements need in this environment."""
    todo, seen = [(Requirement(need), "") for need in needs], set()
    while todo:
        need, extra = todo.pop()
        if need.marker and not need.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(need.name)
        for wanted in ("", *need.extras):
            if (name, wanted) in seen:
                continue
            seen.add((name, wanted))
            found = importlib.metadata.distribution(name)
            yield name, found.version.split("+")[0]
            todo += [(Requirement(line), wanted) for line in found.requires or ()]


# --- the lock ---


def test_every_package_has_a_version_hashes_and_known_sets() -> None:
    text = (SCRIPTS / "lock.txt").read_text()
    blocks = re.findall(r"^# for (.+)\n((?:(?!#).+\n)+)", text, re.MULTILINE)
    assert len(blocks) > 200
    for sets, requirement in blocks:
        assert set(sets.split()) <= SETS
        first, *hashes = requirement.splitlines()
        assert re.fullmatch(r"[a-z0-9-]+==[\w.!+]+( ; .+)? \\", first)
        assert hashes
        assert all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line) for line in hashes), first
    rest = re.sub(r"^# for (.+)\n((?:(?!#).+\n)+)", "", text, flags=re.MULTILINE)
    assert all(line.startswith("#") or not line for line in rest.splitlines()), "nothing else is in the file"
    assert {name for sets, _ in blocks for name in sets.split()} == SETS


def test_neither_the_lock_nor_the_scripts_name_a_registry() -> None:
    for path in SCRIPTS.iterdir():
        if path.is_file():
            assert not re.search(r"://|index-url|--find-links", path.read_text()), path.name


@pytest.mark.parametrize("extra", [None, *EXTRAS])
def test_the_lock_has_everything_that_is_required_at_the_tested_versions(extra: str | None) -> None:
    given = pins("torch", "base", *([extra] if extra else []))
    needs = [*PROJECT["dependencies"], *(PROJECT["optional-dependencies"][extra] if extra else ())]
    cuda = pins("cuda")
    found = {name: version for name, version in required(needs) if name not in cuda}
    assert len(found) > 100
    assert {name: given.get(name) for name in found} == found


def test_no_extra_repeats_the_base_and_only_torchs_cuda_build_needs_cuda() -> None:
    base = pins("torch", "base")
    for extra in EXTRAS:
        assert pins(extra).keys() & base.keys() == set()
    assert all(name.startswith(("nvidia-", "cuda-", "triton")) for name in pins("cuda"))
    version = str(Requirement(PROJECT["dependencies"][0]).specifier).removeprefix("==")
    assert (pins("torch"), pins("torch-cpu")) == ({"torch": version}, {"torch": f"{version}+cpu"})


def test_the_build_backend_is_locked() -> None:
    backend = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert {Requirement(need).name for need in backend} | {"editables", "setuptools"} <= pins("build").keys()


def test_an_unknown_set_is_an_error() -> None:
    for sets in ((), ("base", "tests")):
        done = locked(*sets)
        assert (done.returncode, done.stdout) == (2, "")
        assert "Allowed: base build cuda" in done.stderr


# --- the scripts that install ---


def test_setup_and_image_install_only_by_hash() -> None:
    text = (SCRIPTS / "setup").read_text()
    assert re.findall(r"^ *install (.+)$", text, re.MULTILINE) == ["--require-hashes -r .venv/requirements.txt", "-e ."]
    assert "install() { pip install --progress-bar off --no-deps --no-build-isolation" in text
    image = (ROOT / "docker" / "Dockerfile").read_text().replace("\\\n", " ")
    commands = re.findall(r"pip install ([^&\n]+)", image)
    assert len(commands) == 8
    for command in commands:
        assert "--no-deps" in command
        own = command.split()[-1] == "."
        assert ("--no-build-isolation" if own else "--require-hashes") in command


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A wheel with the name and version of a locked package."""
    name, version = "editables", pins("build")["editables"]
    folder = tmp_path / "registry"
    folder.mkdir()
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", "raise SystemExit('someone else made this')")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def install(requirements: Path, wheel: Path, target: Path) -> subprocess.CompletedProcess[str]:
    """Run pip with setup's options on a registry that serves one wheel."""
    options = ["--no-deps", "--no-build-isolation", "--require-hashes", "--no-index", "--find-links", str(wheel.parent)]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(target), "-r", str(requirements)]
    environ = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300)


def test_pip_refuses_a_file_that_is_not_in_the_lock(wheel: Path, tmp_path: Path) -> None:
    requirement = re.search(r"^editables==(?:.+\\\n)+.+\n", locked("build").stdout, re.MULTILINE)
    assert requirement
    (tmp_path / "requirements.txt").write_text(requirement[0])
    refused = install(tmp_path / "requirements.txt", wheel, tmp_path / "target")
    assert refused.returncode == 1
    assert "DO NOT MATCH THE HASHES" in refused.stderr
    assert not (tmp_path / "target").exists()


def test_pip_accepts_a_further_build_whose_hash_is_added(wheel: Path, tmp_path: Path) -> None:
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    requirement = re.search(r"^editables==.+\n", locked("build").stdout, re.MULTILINE)
    assert requirement
    (tmp_path / "requirements.txt").write_text(
        f"{requirement[0]}    --hash=sha256:{'0' * 64} \\\n    --hash=sha256:{digest}\n"
    )
    accepted = install(tmp_path / "requirements.txt", wheel, tmp_path / "target")
    assert accepted.returncode == 0, accepted.stderr
    assert (tmp_path / "target" / "editables.py").exists()


# --- the script that writes the lock ---


def test_reading_and_writing_the_lock_changes_nothing(lock: ModuleType) -> None:
    text = (SCRIPTS / "lock.txt").read_text()
    packages = lock.parse(text)
    sets = dict(
        zip(packages, (found.split() for found in re.findall(r"^# for (.+)$", text, re.MULTILINE)), strict=True)
    )
    assert lock.render(packages, sets) == text


RESOLVED = """\
numpy==2.4.6 \\
    --hash=sha256:{a}
    # via
    #   evosearch (pyproject.toml)
    #   triton
nvidia-cublas==13.1 ; sys_platform == 'linux' \\
    --hash=sha256:{a} \\
    --hash=sha256:{b}
    # via torch
nvidia-nvjitlink==13.5 ; sys_platform == 'linux' \\
    --hash=sha256:{b}
    # via nvidia-cublas
sympy==1.14 \\
    --hash=sha256:{a}
    # via torch
torch==2.13.0 \\
    --hash=sha256:{a}
    # via evosearch (pyproject.toml)
triton==3.7 ; sys_platform == 'linux' \\
    --hash=sha256:{a}
    # via torch
""".format(a="a" * 64, b="b" * 64)


def test_cuda_libraries_are_what_only_they_need(lock: ModuleType) -> None:
    packages = lock.parse(RESOLVED)
    assert packages["nvidia-cublas"].line == "nvidia-cublas==13.1 ; sys_platform == 'linux'"
    assert packages["nvidia-cublas"].pin == "nvidia-cublas==13.1"
    assert lock._reachable(packages) == {"numpy", "sympy", "torch"}


def test_builds_from_elsewhere_are_kept_while_the_version_is(lock: ModuleType, tmp_path: Path) -> None:
    wheel = tmp_path / "torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl"
    wheel.write_bytes(b"a build")
    digest = f"sha256:{hashlib.sha256(b'a build').hexdigest()}"
    packages = lock.parse(RESOLVED)
    builds = lock._builds(packages, {}, [wheel])
    assert builds == {"torch+cpu": lock.Package("torch==2.13.0+cpu", frozenset({digest}))}
    text = lock.render(packages | builds, {key: ["base"] for key in packages} | {"torch+cpu": ["torch-cpu"]})
    old = lock.parse(text)
    assert old["torch"].pin == "torch==2.13.0"
    assert lock._builds(packages, old, []) == builds
    wheel.write_bytes(b"for another platform")
    assert len(lock._builds(packages, old, [wheel])["torch+cpu"].hashes) == 2
    newer = lock.parse(RESOLVED.replace("torch==2.13.0", "torch==2.14.0"))
    assert lock._builds(newer, old, []) == {}
    with pytest.raises(SystemExit, match=r"torch 2\.13\.0\+cpu is not a build"):
        lock._builds(newer, old, [wheel])


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("numpy==2.4.6", "numpy==2.4.7", "numpy==2.4.6: the registry gives numpy==2.4.7"),
        ("sympy==1.14", "sympy2==1.14", "sympy: no longer needed"),
        (f"{'b' * 64}\n    # via torch", f"{'c' * 64}\n    # via torch", "the registry no longer serves sha256:bbb"),
        ("nothing", "nothing", None),
    ],
)
def test_check_names_differences(
    lock: ModuleType,
    old: str,
    new: str,
    problem: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before, after = lock.parse(RESOLVED), lock.parse(RESOLVED.replace(old, new))
    sets = {name: ["base"] for name in before | after}
    (tmp_path / "lock.txt").write_text(lock.render(before, sets))
    monkeypatch.setattr(lock, "LOCK", tmp_path / "lock.txt")
    assert lock._check(before, after, sets) == (1 if problem else 0)
    assert (problem or "up to date") in capsys.readouterr().err
