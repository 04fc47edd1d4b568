"""Coverage-guided fuzz test of the readers of untrusted files, by atheris (libFuzzer).

    python -m benchmarks.coverage_fuzz [--seconds N] [--readers NAME ...] [--corpus FOLDER]

Needs atheris, which is not among the project's packages; an environment of its own that sees those:

    python -m venv /tmp/fuzz && /tmp/fuzz/bin/pip install atheris
    echo "$PWD/.venv/lib/python3.11/site-packages" > /tmp/fuzz/lib/python3.11/site-packages/project.pth

Mutates valid documents, settings of model folders, templates and patterns, and keeps the inputs that reach new code of
evosearch, PyYAML and Jinja. A finding is any exception but an input error, an input that takes more than
10 s, memory above 4 GiB, or a crash. The seconds are divided among the readers, each in a process of its own.
Prints one JSON document and a table, and before them each reader's figures on standard error; exit code 1 if there are
findings, of which the JSON document has one input each.
"""

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks._paths import ROOT
from benchmarks._report import publish

MAX_S, MAX_MIB = 10, 4096
LENGTH = 20_000  # bytes of an input; the longest seeds are shorter
SHOWN = 2000  # characters of an input in the report
INSTRUMENTED = ("evosearch", "yaml", "jinja2")
FOUND = "findings.jsonl"


def fuzz(name: str, seconds: float, corpus: Path) -> dict[str, Any]:
    """Fuzz one reader in child processes, which end at a crash, and are started again for the rest of the time.

    Args:
        name: One of `NAMES`.
        seconds: Wall time, with the start of the processes.
        corpus: Folder for the inputs that reached new code; those in it are the first ones.

    Returns:
        Executions, the inputs kept, the code edges reached, and the findings.
    """
    corpus.mkdir(parents=True, exist_ok=True)
    end, executions, edges, findings = time.monotonic() + seconds, 0, 0, dict[str, str]()
    with tempfile.TemporaryDirectory() as folder:
        while (left := end - time.monotonic()) > 0:
            command = [sys.executable, "-m", "benchmarks.coverage_fuzz", "--child", name, folder, str(corpus)]
            made = subprocess.run(
                [*command, str(int(left) + 1)], cwd=ROOT, capture_output=True, text=True, errors="replace", check=False
            )
            said = made.stderr
            executions += sum(map(int, re.findall(r"stat::number_of_executed_units:\s*(\d+)", said)))
            edges = max([edges, *map(int, re.findall(r" cov: (\d+)", said))])
            findings |= dict(_crashes(name, Path(folder), made.returncode, said))
            if "INITED" not in said:
                findings["did not start"] = said[-SHOWN:]
                break
        findings |= dict(_raised(Path(folder)))
    kept = sum(1 for _ in corpus.iterdir())
    return {"executions": executions, "corpus": kept, "edges": edges, "findings": findings}


def _crashes(name: str, folder: Path, code: int, said: str) -> Iterator[tuple[str, str]]:
    """Yield what ended a child, and its input; libFuzzer writes the input to a file.

    It measures wall time, so a process that was suspended is slow: a slow input is read again, by processor time.
    """
    for file in sorted(folder.glob("artifact-*")):
        what = re.search(r"(ALARM: .*|ERROR: libFuzzer: .*|SUMMARY: .*)", said)
        kind = file.name.split("-")[1]
        if kind in ("timeout", "slow"):
            with tempfile.TemporaryDirectory() as again:
                command = [sys.executable, "-m", "benchmarks.coverage_fuzz", "--once", name, again, str(file)]
                made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            if made.returncode == 0 and float(made.stdout.split()[-1]) < MAX_S:
                file.unlink()
                continue
        yield f"{kind}: {what.group(1) if what else f'exit code {code}'}", _shown(file.read_bytes())
        file.unlink()


def _raised(folder: Path) -> Iterator[tuple[str, str]]:
    if (folder / FOUND).exists():
        for line in (folder / FOUND).read_text().splitlines():
            found = json.loads(line)
            yield found["said"], found["input"]


def _shown(data: bytes) -> str:
    text = data.decode("utf-8", errors="backslashreplace")
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}… ({len(data)} bytes)"


def once(name: str, folder: Path, file: Path) -> None:
    """Read one input, and print the processor time in seconds; the process ends after some times `MAX_S`."""
    import resource

    os.environ |= {"EVOSEARCH_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    from benchmarks._mutations.readers import reader
    from evosearch.errors import InputError

    (folder / "work").mkdir()
    under_test = reader(name, folder / "work")
    resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + 4 * MAX_S,) * 2)
    with contextlib.suppress(InputError):
        under_test.read(under_test.seeds[0])  # imports what a reader imports lazily
    began = time.process_time()
    with contextlib.suppress(InputError):
        under_test.read(file.read_bytes())
    print(time.process_time() - began)


def child(name: str, folder: Path, corpus: Path, seconds: int) -> None:
    """Fuzz one reader in this process until the time has passed; libFuzzer then ends the process."""
    import atheris

    os.environ["EVOSEARCH_CACHE"] = str(folder / "cache")
    os.environ["HF_HUB_OFFLINE"] = "1"
    work = Path(tempfile.mkdtemp(dir=folder))
    with atheris.instrument_imports(include=[*INSTRUMENTED], enable_loader_override=False):
        from benchmarks._mutations.mutate import KEYS, TEXTS
        from benchmarks._mutations.readers import reader
        from evosearch.errors import InputError

        under_test = reader(name, work)
        with contextlib.suppress(InputError):
            under_test.read(under_test.seeds[0])  # imports what a reader imports lazily
    seeds = work / "first"
    seeds.mkdir()
    for index, seed in enumerate(under_test.seeds):
        (seeds / str(index)).write_bytes(seed)
    known: set[str] = set()

    def one(data: bytes) -> None:
        try:
            under_test.read(data)
        except InputError:
            return
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # also panics of native code
            said = f"{type(error).__name__} in {_place(error)}: {str(error)[:200]}"
            if (key := said.partition(":")[0]) not in known:
                known.add(key)
                with (folder / FOUND).open("a") as file:
                    file.write(json.dumps({"said": said, "input": _shown(data)}) + "\n")

    words = work / "words"
    words.write_text("".join(f"{_word(text)}\n" for text in {*KEYS, *TEXTS, *_keys(under_test.seeds)} if text))
    options = [f"-max_total_time={seconds}", f"-timeout={MAX_S}", f"-rss_limit_mb={MAX_MIB}", f"-max_len={LENGTH}"]
    options += [f"-dict={words}", f"-artifact_prefix={folder}/artifact-", "-print_final_stats=1", "-len_control=0"]
    atheris.Setup([sys.argv[0], *options, str(corpus), str(seeds)], one)
    atheris.Fuzz()


def _place(error: BaseException) -> str:
    """Return the innermost place in evosearch."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if f"{os.sep}evosearch{os.sep}" in frame.filename] or list(frames)
    return f"{Path(own[-1].filename).name} {own[-1].name}"


def _word(text: str) -> str:
    """Return a text as a line of a libFuzzer dictionary."""
    return '"' + "".join(f"\\x{byte:02X}" for byte in text.encode("utf-8", errors="surrogatepass")[:64]) + '"'


def _keys(seeds: tuple[bytes, ...]) -> set[str]:
    """Return the words of the seeds."""
    return {word for seed in seeds for word in re.findall(r"[A-Za-z_]{3,40}", seed.decode(errors="ignore"))}


def table(found: dict[str, dict[str, Any]]) -> str:
    """Markdown table with one row per reader."""
    lines = ["| reader | executions | corpus | edges | findings |", "|---|---:|---:|---:|---:|"]
    for name, row in found.items():
        figures = (row["executions"], row["corpus"], row["edges"], len(row["findings"]))
        lines.append(f"| {name} | {' | '.join(f'{figure:,}' for figure in figures)} |")
    return "\n".join(lines)


def main() -> int:
    """Fuzz the readers; return 1 if there are findings."""
    if sys.argv[1:2] == ["--child"]:
        name, folder, corpus, seconds = sys.argv[2:]
        child(name, Path(folder), Path(corpus), int(seconds))
        return 0  # not reached
    if sys.argv[1:2] == ["--once"]:
        name, folder, file = sys.argv[2:]
        once(name, Path(folder), Path(file))
        return 0
    from benchmarks._mutations.readers import NAMES

    parser = argparse.ArgumentParser("python -m benchmarks.coverage_fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3600.0, help="for all readers together, default %(default)s")
    parser.add_argument("--readers", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument(
        "--corpus", type=Path, help="folder to keep the inputs that reached new code, and to go on from"
    )
    options = parser.parse_args()
    try:
        import atheris  # noqa: F401
    except ImportError:
        parser.error("atheris is not installed. See the top of benchmarks/coverage_fuzz.py")
    with tempfile.TemporaryDirectory() as folder:
        corpora, share = options.corpus or Path(folder), options.seconds / len(options.readers)
        found = {}
        for name in options.readers:
            found[name] = fuzz(name, share, corpora / name.replace(" ", "_"))
            print(json.dumps({name: found[name]}), file=sys.stderr, flush=True)
    publish({"seconds": options.seconds, "readers": found}, table(found))
    return int(any(row["findings"] for row in found.values()))


if __name__ == "__main__":
    sys.exit(main())
