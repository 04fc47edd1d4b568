"""The cache of a node: what it contains, which entries are in use, and what is removed."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from evosearch.checkpoints.cache import drafts, uses
from evosearch.checkpoints.cache.inventory import cache_ceiling, inventory, prune
from evosearch.checkpoints.cache.layout import (
    COPIES,
    HASHES,
    KINDS,
    MERGED,
    PREPARED,
    STATISTICS,
    TEACHERS,
    TOKENIZERS,
    ZOO,
)
from evosearch.checkpoints.disk_space import parse_size
from evosearch.errors import CheckpointError

MIB = 2**20
LONG_S = 300.0


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def entry(cache: Path, kind: str, name: str, mib: int = 1, age_s: float = 0.0, what: str = "") -> Path:
    """Write an entry that was used some time ago, by a process that has ended."""
    folder = cache / kind / name
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(os.urandom(MIB * mib))
    if what:
        mark = cache / uses.FOLDER / f"{kind}-{name}.json"
        mark.parent.mkdir(exist_ok=True)
        mark.write_text(f'{{"what": "{what}", "source": "/nfs/{name}"}}')
        os.utime(mark, (time.time() - age_s, time.time() - age_s))
    else:
        os.utime(folder, (time.time() - age_s, time.time() - age_s))
    return folder


@contextmanager
def process(code: str, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """A process that prints a line once it is ready, and waits to be killed."""
    text = textwrap.dedent(code) + "\nprint('ready', flush=True)\nimport time\ntime.sleep(1000)\n"
    with subprocess.Popen([sys.executable, "-c", text, *arguments], stdout=subprocess.PIPE, text=True) as made:
        try:
            assert made.stdout is not None
            assert made.stdout.readline() == "ready\n"
            yield made
        finally:
            made.kill()


USES = """
    import sys
    from pathlib import Path
    from evosearch.checkpoints.cache.uses import hold
    hold(Path(sys.argv[1]), "prepared", "b", "org/base+lora")
"""


def test_a_missing_cache_is_empty(cache: Path) -> None:
    found = inventory(cache)
    assert (found.entries, found.bytes, found.drafts) == ((), 0, 0)
    assert prune(cache, 0).removed == ()
    assert not cache.exists()


def test_entries_are_listed_by_last_use(cache: Path) -> None:
    entry(cache, COPIES, "a", 2, age_s=100, what="org/a")
    entry(cache, MERGED, "b", age_s=300)  # of an earlier version, without a mark
    entry(cache, ZOO, "tiny-1", age_s=200, what="zoo:tiny")
    (cache / TEACHERS).mkdir()
    (cache / TEACHERS / "c.safetensors").write_bytes(bytes(10))
    (cache / HASHES).mkdir()
    (cache / HASHES / "d.json").write_text("{}")
    os.utime(cache / HASHES / "d.json", (1.0, 1.0))
    os.utime(cache / HASHES, (2.0, 2.0))
    found = inventory(cache)
    assert [one.kind for one in found.entries] == [TEACHERS, COPIES, ZOO, MERGED, HASHES]
    _, copied, _, merged, hashes = found.entries
    assert (copied.what, copied.source, copied.files, copied.in_use) == ("org/a", "/nfs/a", 2, False)
    assert 2 * MIB <= copied.bytes <= 2 * MIB + 16384
    assert (merged.what, merged.name) == ("", "b")
    assert (hashes.name, hashes.files, hashes.last_used_s) == ("", 2, 2.0)
    assert found.bytes == sum(one.bytes for one in found.entries)
    assert {path.name for path in (cache / uses.FOLDER).iterdir()} == {"copies-a.json", "zoo-tiny-1.json"}


def test_what_a_process_uses_stays_until_it_ends_however_it_ends(cache: Path) -> None:
    entry(cache, COPIES, "a", age_s=100, what="org/a")
    used = entry(cache, PREPARED, "b", age_s=500, what="old name")
    with process(USES, str(cache)) as user:
        found = {one.name: one for one in inventory(cache).entries}
        assert found["b"].in_use
        assert found["b"].what == "org/base+lora"
        assert time.time() - found["b"].last_used_s < LONG_S
        pruned = prune(cache, 0)
        assert [one.name for one in pruned.removed] == ["a"]
        assert used.is_dir()
        assert pruned.bytes >= MIB
        user.send_signal(signal.SIGKILL)
        user.wait(LONG_S)
    pruned = prune(cache, 0)
    assert [one.name for one in pruned.removed] == ["b"]
    assert pruned.left.entries == ()
    assert list((cache / uses.FOLDER).iterdir()) == []
    assert list((cache / PREPARED).iterdir()) == []


def test_those_used_first_are_removed_until_the_rest_fits(cache: Path) -> None:
    for age_s, (kind, name) in enumerate([(COPIES, "a"), (MERGED, "b"), (PREPARED, "c"), (ZOO, "d")]):
        entry(cache, kind, name, 1, age_s=1000 * (age_s + 1), what=name)
    assert prune(cache).removed == ()
    assert prune(cache, 10 * MIB).removed == ()
    pruned = prune(cache, 5 * MIB // 2)
    assert [one.name for one in pruned.removed] == ["d", "c"]
    assert [one.name for one in pruned.left.entries] == ["a", "b"]


def test_marks_are_renewed_and_follow_the_entry(cache: Path) -> None:
    folder = entry(cache, COPIES, "a", age_s=1000, what="org/a")
    uses.hold(cache, COPIES, "a", "org/longer-name", "/nfs/a")
    uses.hold(cache, COPIES, "a", "org/b")
    found = uses.read(cache, COPIES, "a")
    assert found is not None
    assert (found.what, found.source) == ("org/b", "")
    assert time.time() - found.last_s < LONG_S
    assert uses.in_use(cache, COPIES, "a")
    with uses.removing(cache, COPIES, "a", forget=True) as free:
        assert not free
    assert folder.is_dir()
    assert uses.read(cache, COPIES, "a") is not None


def test_a_cache_that_can_only_be_read_is_used_without_marks(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    uses.hold(file / "cache", COPIES, "a", "org/a")
    assert uses.read(file / "cache", COPIES, "a") is None


WRITERS = """
    import os, sys
    from pathlib import Path
    from types import SimpleNamespace
    import torch
    from evosearch.checkpoints.cache import copies, drafts
    from evosearch.checkpoints.cache.hashes import Hashes
    from evosearch.checkpoints.tokenizers import tokenizer_files
    from evosearch.checkpoints.writer import CheckpointWriter
    from evosearch.evaluation.harness import lessons
    from evosearch.moments.files import sums
    from evosearch.preflight.placeholders import temporary_folder
    from evosearch.zoo import tiny_models
    import evosearch.checkpoints.cache.hashes as hashing

    cache, model = Path(sys.argv[1]), Path(sys.argv[2])
    os.environ["EVOSEARCH_CACHE"] = str(cache)

    def wait(*_, **__):
        print("ready", flush=True)
        import time
        time.sleep(1000)

    def hashed(*_, **__):
        hashing.json.dump = wait
        Hashes(cache).of([model / "model.safetensors"], lambda: "0" * 64)

    def taught(*_, **__):
        lessons.save_file = hashed
        class Empty(lessons.Lesson):
            def __init__(self): pass
        lessons.fields = lambda one: ()
        Empty().save(cache / "teachers" / "c.safetensors")

    def trained(*_, **__):
        tiny_models.train = taught
        (cache / "zoo" / "tiny-0").mkdir(parents=True)
        tiny_models._train("base", cache / "zoo" / "tiny-0", None, tiny_models.SETTING)

    def tokens(*_, **__):
        tokenizer_files._rename = trained
        tokenizer_files.store({"tokenizer.json": b"{}"}, cache / "tokenizers")

    checkpoint = SimpleNamespace(folder=model, files=(model / "model.safetensors",), reference="m")
    layout = [("a", (2,)), ("b", (2,))]
    (cache / "statistics").mkdir(parents=True)
    with temporary_folder(), sums(cache / "statistics" / "s.safetensors", {"a": (2,)}, {}):
        with CheckpointWriter(cache / "prepared" / "000" / "F32", layout, torch.float32) as one:
            one.add("a", torch.zeros(2))
            with CheckpointWriter(cache / "merged" / "m", layout, torch.float32) as two:
                two.add("a", torch.zeros(2))
                copies.copy(checkpoint, cache / "copies" / "k", tokens)
"""


def test_drafts_of_a_killed_process_are_removed_whatever_it_was_writing(cache: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"weights")
    old = time.time() - 1000
    os.utime(model / "model.safetensors", (old, old))
    with process(WRITERS, str(cache), str(model)) as writer:
        begun = {path.relative_to(cache).parts[0].split(".")[:2][-1] for path in cache.rglob("*.partial")}
        assert begun == {*KINDS, "check"}, "a draft of every kind"
        assert drafts.abandoned(cache) == [], "it is still writing"
        assert inventory(cache).drafts == 0
        writer.send_signal(signal.SIGKILL)
        writer.wait(LONG_S)
    found = inventory(cache)
    assert found.drafts == len(KINDS) + 1
    assert prune(cache).drafts == found.drafts
    assert list(cache.rglob("*.partial")) == []
    assert drafts.sweep(cache) == 0


def test_drafts_end_as_entries_or_not_at_all(cache: Path) -> None:
    cache.mkdir()
    with drafts.draft(cache, "a") as made:
        (made / "file").write_text("1")
        made.rename(cache / "a")
    assert [path.name for path in cache.iterdir()] == ["a"]
    with pytest.raises(ZeroDivisionError), drafts.draft(cache, "b"):
        _ = 1 / 0
    assert [path.name for path in cache.iterdir()] == ["a"]
    (cache / ".b.partial").symlink_to(cache / "a")
    assert drafts.sweep(cache) == 0, "a link is not a draft"


@pytest.mark.parametrize(
    ("text", "count"),
    [("0", 0), ("200GB", 200 * 10**9), ("1.5 TB", 15 * 10**11), ("800GiB", 800 * 2**30), ("7k", 7000), ("12b", 12)],
)
def test_sizes_are_read(text: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_size(text, "--max-size") == count
    monkeypatch.setenv("EVOSEARCH_CACHE_MAX", text)
    assert cache_ceiling() == count


@pytest.mark.parametrize("text", ["-1", "GB", "1e3", "1 2", "nan", "200 apples", "²GB", "9" * 400])
def test_other_sizes_are_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match=r"--max-size: got .*A size: 200GB"):
        parse_size(text, "--max-size")
    monkeypatch.setenv("EVOSEARCH_CACHE_MAX", text)
    with pytest.raises(CheckpointError, match="EVOSEARCH_CACHE_MAX"):
        cache_ceiling()


def test_every_kind_is_described() -> None:
    assert set(KINDS) == {COPIES, PREPARED, MERGED, TOKENIZERS, TEACHERS, STATISTICS, ZOO, HASHES}
