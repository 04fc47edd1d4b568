"""Names in a spec cannot be those of our own files, and no file of another kind is truncated or replaced."""

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest

from evosearch import documents
from evosearch.errors import InputError, LedgerError, SpecError, TrackingError
from evosearch.evaluation.suites.suite import Suite
from evosearch.preflight.stores import check_ledger, check_tracking_store
from evosearch.search.ledger.ledger import Ledger
from evosearch.spec.config import SpecFile
from evosearch.spec.diagnostics import Diagnostics
from evosearch.spec.own_names import OWN_NAMES, use_of
from evosearch.spec.run_dir import RunDir, record_ledger
from evosearch.spec.spec import SearchSpec
from evosearch.spec.stages import StagesFile
from evosearch.tracking.jsonl import JsonLinesTracker, check_lines

World = Callable[..., Path]
Program = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Path]:
    """A ledger in the folder of a search `night`, which is being written: its events are in the write-ahead log."""
    path = tmp_path / "runs" / "night" / "ledger.db"
    with Ledger.open(f"sqlite:///{path}") as opened:
        opened.append("one", [("started", {"name": "day", "spec": {}}), *[("retried", {"n": n}) for n in range(20)]])
        yield path
        with Ledger.open(f"sqlite:///{path}", read_only=True) as reader:
            assert len(reader.events("one")) == 21, "the ledger is intact"


def sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.iterdir()}


OWN = [
    "mlflow.db",
    "MLflow.DB",
    "mlartifacts",
    "Cluster",
    "ledger.db",
    "Ledger.URL",
    "EXPORT",
    "winner.yaml",
    "report.html",
]
SIDE = ["mlflow.db-wal", "other.db-SHM", "x-journal", "night.LOCK"]
SEARCH = {"recipe": {}, "budget": {"candidates": 1}}


def spec_of(**changes: Any) -> SearchSpec:
    """The fields of a spec that its run directory needs."""
    data = {"name": "night", "suite": "suite.yaml"} | SEARCH | changes
    config = documents.validate(SpecFile, data, "night.yaml", SpecError)
    return SearchSpec(Path("night.yaml"), config, {}, cast(Suite, None))


@pytest.mark.parametrize("name", OWN + SIDE)
def test_a_search_cannot_have_a_name_of_ours(name: str) -> None:
    with pytest.raises(SpecError) as caught:
        spec_of(name=name)
    assert str(caught.value).startswith(f"night.yaml: name: got '{name}', and the name '{name}' is taken by ")
    assert caught.value.next == "Choose another name"


@pytest.mark.parametrize("name", ["export", "Export", "mlartifacts", "cluster"])
def test_a_stage_cannot_have_a_name_of_ours(name: str) -> None:
    data = {"name": "night", "suite": "suite.yaml", "stages": [{"name": name} | SEARCH, {"name": "two"} | SEARCH]}
    with pytest.raises(SpecError, match=rf"stages\[0\]\.name: got '{name}', and the name '{name}' is taken by "):
        documents.validate(StagesFile, data, "night.yaml", SpecError)


def test_ordinary_names_are_free() -> None:
    assert [use_of(name) for name in ("night", "exports", "clusters", "ledger", "mlflow", "night.db", "stages")] == [
        None
    ] * 7
    assert all(use_of(name.upper()) for name in OWN_NAMES)


@pytest.mark.parametrize(
    "uri",
    [
        "jsonl:ledger.db",
        "jsonl:LEDGER.DB",
        "jsonl:ledger.db-wal",
        "jsonl:export",
        "jsonl:winner.yaml",
        "jsonl:../night/ledger.db",
        "jsonl:/etc/events.jsonl",
        "jsonl:sub/events.jsonl",
        "jsonl:.hidden.jsonl",
        "jsonl:events.jsonl\n",
        "jsonl:",
    ],
)
def test_json_lines_have_a_file_of_their_own(uri: str) -> None:
    with pytest.raises(SpecError) as caught:
        spec_of(tracking={"uri": uri})
    assert caught.value.where == "night.yaml: tracking.uri"
    assert caught.value.allowed == "jsonl:NAME.jsonl, a file in the run directory"


def test_no_search_mirrors_into_its_own_ledger(world: World, evosearch: Program, ledger: Path) -> None:
    """`jsonl:ledger.db` once truncated the live ledger to nothing."""
    before = sizes(ledger.parent)
    code, _, err = evosearch("run", world("night", tracking={"uri": "jsonl:ledger.db"}))
    assert (code, "night.yaml: tracking.uri: got 'jsonl:ledger.db'" in err) == (2, True), err
    assert sizes(ledger.parent) == before


OTHER_KINDS = ["", "-wal"]


@pytest.mark.parametrize("suffix", OTHER_KINDS)
def test_a_mirror_never_truncates_what_it_did_not_write(ledger: Path, suffix: str) -> None:
    """In isolation: whatever path the mirror is given, a file of another kind stays as it is."""
    victim = ledger.with_name(ledger.name + suffix)
    copy = ledger.parent / "events.jsonl"
    shutil.copyfile(victim, copy)  # to open and close the ledger itself would release this process's locks on it
    before = copy.read_bytes()
    mirror = JsonLinesTracker(copy, lambda: Ledger.open(f"sqlite:///{ledger}", read_only=True), "one")
    mirror.close(5.0, 0.2)
    assert "contains other data, and is left as it is" in mirror.state
    assert copy.read_bytes() == before
    with pytest.raises(TrackingError, match="has other data"):
        check_lines(copy, "tracking.uri")


def test_a_mirror_follows_no_link_and_waits_for_no_pipe(ledger: Path, tmp_path: Path) -> None:
    victim, pipe = tmp_path / "notes", tmp_path / "pipe.jsonl"
    victim.write_text("mine, without an end of line")
    link = tmp_path / "events.jsonl"
    link.symlink_to(victim)
    os.mkfifo(pipe)
    for path in (link, pipe):
        mirror = JsonLinesTracker(path, lambda: Ledger.open(f"sqlite:///{ledger}", read_only=True), "one")
        mirror.close(5.0, 0.2)
        assert mirror.state.startswith("behind: 21 events")
        with pytest.raises(TrackingError):
            check_lines(path, "tracking.uri")
    assert victim.read_text() == "mine, without an end of line"


def test_a_mirror_continues_after_a_torn_line_even_the_first(ledger: Path, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    for torn in (b"", b'{"sear', b'{"search_id": "one", "seq": 1, "ti'):
        path.write_bytes(torn)
        check_lines(path, "tracking.uri")
        mirror = JsonLinesTracker(path, lambda: Ledger.open(f"sqlite:///{ledger}", read_only=True), "one")
        mirror.close(20.0)
        assert mirror.state == "up to date"
        assert path.read_bytes().count(b"\n") == 21


FILES = ["ledger.url", "winner.yaml", "WINNER.YAML", "export/recipe.yaml", "export/checkpoint/x.db", "mlflow.db"]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVOSEARCH_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.mark.parametrize("file", [*FILES, "x.db-wal", "mlartifacts/x.db", "a.lock"])
def test_a_ledger_cannot_be_another_file_of_ours(runs: Path, file: str) -> None:
    """`ledger.url` would replace the live ledger, and the next export its folder."""
    place = runs / "night" / file
    with pytest.raises(SpecError) as caught:
        check_ledger(spec_of(ledger=f"sqlite:///{place}"), Diagnostics())
    assert str(caught.value).startswith(f"night.yaml: ledger: got 'sqlite:///{place}', and the name '")
    assert not runs.exists()


def test_a_ledger_cannot_be_a_link_to_another_file_of_ours(runs: Path, tmp_path: Path) -> None:
    (runs / "other").mkdir(parents=True)
    (tmp_path / "shared.db").symlink_to(runs / "other" / "winner.yaml")
    with pytest.raises(SpecError, match=r"the name 'winner\.yaml' is taken by the recipe of a stage's winner"):
        check_ledger(spec_of(ledger=f"sqlite:///{tmp_path}/shared.db"), Diagnostics())


def test_a_ledger_and_its_mirror_cannot_share_a_file(runs: Path, tmp_path: Path) -> None:
    both = f"sqlite:///{tmp_path}/both.db"
    for tracking, ledger in ((both, both), ("jsonl:e.jsonl", f"sqlite:///{runs}/night/e.jsonl")):
        with pytest.raises(LedgerError, match=r"night\.yaml: ledger: .* is also the file of tracking\.uri"):
            check_ledger(spec_of(ledger=ledger, tracking={"uri": tracking}), Diagnostics())
    check_ledger(spec_of(ledger=f"sqlite:///{tmp_path}/own.db", tracking={"uri": both}), Diagnostics())
    check_ledger(spec_of(), Diagnostics())


def test_mlflow_adds_no_tables_to_another_database(runs: Path, ledger: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "contacts.db"
    with closing(sqlite3.connect(foreign)) as connection:
        connection.execute("CREATE TABLE contacts (id INTEGER)")
    (tmp_path / "link.db").symlink_to(ledger)
    before = sizes(ledger.parent)
    for file, said in (
        (ledger, "the name 'ledger.db' is taken by the ledger of a search"),
        (tmp_path / "link.db", "the name 'ledger.db' is taken by the ledger of a search"),
        (foreign, "is another program's database, with the tables contacts"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            check_tracking_store(spec_of(tracking={"uri": f"sqlite:///{file}"}), Diagnostics())
        assert caught.value.where == "night.yaml: tracking.uri"
    assert sizes(ledger.parent) == before


def test_the_url_of_a_ledger_replaces_no_file_of_another_kind(tmp_path: Path, ledger: Path) -> None:
    folder = tmp_path / "runs" / "day"
    folder.mkdir()
    shutil.copyfile(ledger, folder / "ledger.url")
    before = (folder / "ledger.url").read_bytes()
    for url in (f"sqlite:///{tmp_path}/x.db", f"sqlite:///{folder}/ledger.db"):
        run_dir = RunDir("day", folder, folder, url, "jsonl:events.jsonl", "day")
        with pytest.raises(
            LedgerError, match=r"ledger\.url is not a file with the URL of a ledger, and is not replaced"
        ):
            record_ledger(run_dir)
    assert (folder / "ledger.url").read_bytes() == before
