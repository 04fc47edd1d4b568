"""Searches are found by name wherever their ledger is; a folder that cannot be used is an input error."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from evosearch.errors import LedgerError, SpecError, TrackingError
from evosearch.evaluation.suites.suite import Suite
from evosearch.reporting.status import statuses
from evosearch.search.ledger.database_errors import NoLedgerError
from evosearch.search.ledger.ledger import Ledger
from evosearch.spec.config import SpecFile, TrackingConfig
from evosearch.spec.lookup import find, recorded_names
from evosearch.spec.own_names import LEDGER_URL_FILE
from evosearch.spec.run_dir import record_ledger
from evosearch.spec.spec import SearchSpec, Stage
from evosearch.tracking.access import check_file

World = Callable[..., Path]
Evosearch = Callable[..., tuple[int, str, str]]
LONG = "x" * 5000


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVOSEARCH_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def spec_of(name: str, ledger: str | None, stage: str | None = None) -> SearchSpec:
    """The fields of a spec that its run directory needs."""
    whole = f"{name}.{stage}" if stage else name
    config = SpecFile.model_construct(name=whole, ledger=ledger, tracking=TrackingConfig())
    return SearchSpec(Path(f"{name}.yaml"), config, {}, cast(Suite, None), Stage(name, stage, 0) if stage else None)


def begin(name: str, ledger: str | None, stage: str | None = None) -> SearchSpec:
    """A search that has started: it is in its ledger, whose URL is in the run directory."""
    spec = spec_of(name, ledger, stage)
    with Ledger.open(spec.run_dir.ledger) as opened, opened.acquire(spec.name):
        record_ledger(spec.run_dir)
        opened.append(spec.name, [("started", {"name": spec.name, "spec": {}, "budget": {}, "resumed": False})])
    return spec


def names() -> list[tuple[str, str]]:
    return [(row.name, row.state) for row in statuses()]


def check_by_name(ledger: str) -> None:
    """A ledger that several searches share: each is found by its name, stages by the name of their spec."""
    begin("night", ledger)
    begin("hybrid", ledger, "one")
    begin("night.v2", ledger)  # no stage of `night`
    begin("hybrid", ledger, "two")
    with Ledger.open(ledger) as opened:  # of another user, whose run directories are elsewhere
        opened.append("theirs", [("started", {"name": "hybrid.v2", "spec": {}, "budget": {}, "resumed": False})])
    for name, found, stage in (
        ("night", "night", ""),
        ("night.v2", "night.v2", ""),
        ("hybrid", "hybrid.two", "two"),
        ("hybrid.one", "hybrid.one", "one"),
    ):
        run_dir = find(name)
        assert (run_dir.name, run_dir.ledger) == (found, ledger)
        assert (
            run_dir.folder == Path(os.environ["EVOSEARCH_RUNS"]) / (name.partition(".")[0] if stage else name) / stage
        )
        assert recorded_names(run_dir.ledger)[0] == "hybrid.v2"
    with pytest.raises(LedgerError, match=r"hybrid\.v2: no such search\. Searches in .*: hybrid, night, night\.v2\."):
        find("hybrid.v2")
    listed = {name for name, _ in names()}
    assert listed == {"night", "night.v2", "hybrid.one", "hybrid.two"}
    assert len(names()) == len(listed)


def test_searches_on_a_server_are_found_by_name(runs: Path, postgres_url: str) -> None:
    check_by_name(postgres_url)
    assert (runs / "night" / LEDGER_URL_FILE).read_text() == f"{postgres_url}\n"


def test_a_ledger_file_elsewhere_is_found_by_name(runs: Path, tmp_path: Path) -> None:
    check_by_name(f"sqlite:///{tmp_path}/ours/ledger.db")


def test_a_relative_ledger_is_found_from_other_folders(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    begin("night", "sqlite:///ours.db")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert find("night").ledger == f"sqlite:///{tmp_path}/ours.db"
    assert names() == [("night", "interrupted")]


def test_a_ledger_in_the_run_directory_is_not_recorded(runs: Path, tmp_path: Path) -> None:
    begin("night", f"sqlite:///{tmp_path}/ours.db")
    assert (runs / "night" / LEDGER_URL_FILE).is_file()
    begin("night", None)  # its spec names no ledger any more
    assert sorted(entry.name for entry in (runs / "night").iterdir()) == ["ledger.db"]
    (runs / "night").rename(tmp_path / "moved")
    with Ledger.open(f"sqlite:///{tmp_path}/moved/ledger.db") as opened:
        opened.append("moved", [("started", {"name": "moved", "spec": {}, "budget": {}, "resumed": False})])
    assert find(str(tmp_path / "moved")).ledger == f"sqlite:///{tmp_path}/moved/ledger.db"


@pytest.mark.parametrize("account", ["me:open-sesame@", "me@", ""])
def test_no_password_is_written(runs: Path, account: str) -> None:
    url = f"postgresql://{account}host/db" + ("" if account else "?password=open-sesame")
    spec = spec_of("night", url)
    if account == "me@":
        record_ledger(spec.run_dir)
        assert (runs / "night" / LEDGER_URL_FILE).read_text() == "postgresql://me@host/db\n"
        return
    with pytest.raises(SpecError) as caught:
        record_ledger(spec.run_dir)
    assert "open-sesame" not in str(caught.value)
    assert not (runs / "night" / LEDGER_URL_FILE).exists()


def test_an_unreadable_ledger_url_names_its_file(runs: Path, tmp_path: Path) -> None:
    begin("night", f"sqlite:///{tmp_path}/ours.db")
    begin("day", None)
    named = runs / "night" / LEDGER_URL_FILE
    named.write_bytes(b"\xffnothing\n")
    with pytest.raises(LedgerError, match=rf"{named}: got .*postgresql://HOST/DATABASE"):
        find("night")
    assert names() == [("day", "interrupted"), ("night", "unreadable")], "one that cannot be read hides no other"


def test_commands_take_the_name(world: World, evosearch: Evosearch, tmp_path: Path) -> None:
    ledger = f"sqlite:///{tmp_path}/ours/ledger.db"
    hole = {"low": 0.0, "high": 1.0}
    listed = [{"model": name, "parameters": {"weight": hole}} for name in ("./base", "./expert1")]
    stage = {
        "recipe": {"merge_method": "linear", "models": listed},
        "optimizer": {"name": "random", "population": 2, "seed": 1, "start": "init"},
        "budget": {"candidates": 2},
    }
    spec = world("hybrid", ledger=ledger, baselines={"scales": [0.5]}, promotion={"finalists": 1})
    data = yaml.safe_load(spec.read_text())
    later = [{"model": "stage:one", "parameters": {"weight": hole}}, listed[1]]
    stages = [{"name": "one"} | stage, {"name": "two"} | stage | {"recipe": stage["recipe"] | {"models": later}}]
    kept = {key: value for key, value in data.items() if key not in stage}
    spec.write_text(yaml.safe_dump(kept | {"stages": stages}, sort_keys=False))
    code, _, err = evosearch("run", spec, "--json")
    assert code in (0, 3), err
    for name in ("hybrid", "hybrid.one"):
        code, out, err = evosearch("leaderboard", name, "--json")
        assert (code, len(json.loads(out)["rows"]) >= 2) == (0, True), err
        code, _, err = evosearch("export", name, "--candidate", "0", "--output", tmp_path / f"{name}.yaml")
        assert code == 0, err
        code, out, err = evosearch("stop", name, "--json")
        assert (code, json.loads(out)["ledger"]) == (0, ledger), err
    rows = json.loads(evosearch("status", "--json")[1])
    assert [row["name"] for row in rows] == ["hybrid.two", "hybrid.one"]


# --- places that cannot be used ---


@pytest.fixture
def closed() -> Iterator[Path]:
    """A folder that only its owner may enter, within a public one."""
    with tempfile.TemporaryDirectory(prefix="evosearch-closed-") as folder:
        Path(folder).chmod(0o755)
        inner = Path(folder) / "closed"
        inner.mkdir(mode=0o700)
        yield inner


def as_another(code: str, *arguments: object) -> str:
    """Output of a program, run as another user if this one may enter every folder."""
    drop = "import os\nif os.getuid() == 0:\n    os.setgid(65534)\n    os.setuid(65534)\n"
    command = [sys.executable, "-c", IMPORTS + drop + code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


IMPORTS = """
import os, sys
from pathlib import Path
import sqlalchemy.dialects.sqlite
from evosearch.errors import InputError, LedgerError
from evosearch.search.ledger.ledger import Ledger
from evosearch.spec.lookup import find, recorded_names, recorded_run_dirs
from evosearch.tracking.access import check_file, check_read_access

def said(what, *arguments):
    try:
        print(what.__name__, what(*arguments))
    except InputError as error:
        print(what.__name__, type(error).__name__, error)
"""


def test_a_folder_without_permission_is_an_input_error(closed: Path) -> None:
    if os.getuid() != 0:
        closed.chmod(0o000)
    code = """
closed = Path(sys.argv[1])
os.environ["EVOSEARCH_RUNS"] = str(closed.parent / "runs")
file = closed / "x" / "l.db"
said(check_file, file, "night.yaml: ledger", LedgerError)
said(check_read_access, f"sqlite:///{file}", "night", None)
said(recorded_names, f"sqlite:///{file}")
said(lambda: Ledger.open(f"sqlite:///{file}", read_only=True))
said(find, str(closed / "night"))
os.environ["EVOSEARCH_RUNS"] = str(closed / "runs")
said(find, "night")
said(recorded_run_dirs)
"""
    file = closed / "x" / "l.db"
    denied = "Permission denied. Change the permissions of its folder, or choose another path."
    lines = as_another(code, closed).splitlines()
    assert lines[:4] == [
        f"check_file LedgerError night.yaml: ledger: {file} cannot be used: {denied}",
        f"check_read_access TrackingError tracking.uri: {file} cannot be used: {denied}",
        "recorded_names []",
        f"<lambda> NoLedgerError ledger: no ledger at {file}. Run a search first, or check the path.",
    ]
    assert lines[4].startswith(f"find LedgerError {closed / 'night'}: no such search. Searches in {closed.parent}")
    cannot = f"LedgerError EVOSEARCH_RUNS: cannot read the folder {closed / 'runs'}: Permission denied."
    for line, what in zip(lines[5:], ("find", "recorded_run_dirs"), strict=True):
        assert line.startswith(f"{what} {cannot}")


def test_a_name_that_is_too_long_is_an_input_error(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / LONG / "l.db"
    with pytest.raises(TrackingError, match="File name too long"):
        check_file(file, "tracking.uri")
    assert recorded_names(f"sqlite:///{file}") == []
    with pytest.raises(NoLedgerError):
        Ledger.open(f"sqlite:///{file}", read_only=True)
    for name in (LONG, f"./{LONG}", str(tmp_path / LONG)):
        with pytest.raises(LedgerError, match="no such search"):
            find(name)
    monkeypatch.setenv("EVOSEARCH_RUNS", str(tmp_path / LONG))
    with pytest.raises(LedgerError, match=r"EVOSEARCH_RUNS: .* File name too long"):
        find("night")


@pytest.mark.parametrize("command", ["leaderboard", "stop", "export", "ui"])
def test_commands_report_it_and_exit_with_2(runs: Path, evosearch: Evosearch, command: str) -> None:
    more = ("-o", "out.yaml") if command == "export" else ()
    for name in (LONG, f"{LONG}.yaml"):
        code, _, err = evosearch(command, name, *more)
        assert (code, "Traceback" in err) == (2, False), err


def test_a_run_reports_it_and_exits_with_2(
    world: World, evosearch: Evosearch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for changes in ({"ledger": f"sqlite:///{tmp_path}/{LONG}/l.db"}, {"tracking": {"uri": f"sqlite:///{LONG}.db"}}):
        code, _, err = evosearch("run", world(**cast(dict[str, Any], changes)))
        assert (code, "Traceback" in err, "File name too long" in err) == (2, False, True), err
    monkeypatch.setenv("EVOSEARCH_RUNS", str(tmp_path / LONG))
    for changes in ({}, {"ledger": f"sqlite:///{tmp_path}/l.db"}):
        code, _, err = evosearch("run", world(**cast(dict[str, Any], changes)))
        assert (code, "Traceback" in err, "File name too long" in err) == (2, False, True), err
    assert evosearch("status")[0] == 2
