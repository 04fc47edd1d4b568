"""Disk space, host and GPU memory that a search needs; its duration, end and price."""

import json
import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import yaml

from evosearch.checkpoints.disk_space import check_disk_space
from evosearch.errors import CheckpointError, InputError
from evosearch.preflight import disk_needs, memory_needs
from evosearch.preflight.check import check
from evosearch.preflight.counts import Counts
from evosearch.preflight.forecast import Pace, end_of, hours_of
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.progress import Silent
from evosearch.service.run import run
from evosearch.spec.config import WorkersConfig
from evosearch.spec.spec import load_spec

World = Callable[..., Path]
WITHOUT_END = {"candidates": 10**9}


def problems(spec: Path) -> tuple[InputError, ...]:
    return check(spec, dry_run=False, watcher=Silent()).problems


# --- disks --------------------------------------------------------------------------------------------------------


def test_a_ledger_larger_than_the_disk_is_a_problem(world: World, tmp_path: Path) -> None:
    (problem,) = problems(world(budget=WITHOUT_END))
    assert problem.where == str(tmp_path / "runs" / "world")
    assert "will be written to this disk (the ledger " in problem.what
    assert "events.jsonl " in problem.what
    assert problem.what.endswith("are free")
    assert problem.next.startswith("Free some space, or choose another place")
    assert not (tmp_path / "runs").exists()


def test_small_sizes_are_not_shown_as_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once: 'about 0.0 GiB will be written to this disk, and 0.0 are free'."""
    usage = shutil.disk_usage(tmp_path)._replace(free=40 * 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    (problem,) = disk_needs.lacking([disk_needs.Need("the ledger", tmp_path / "runs", 3 * 2**19, "ledger")])
    assert problem.what == (
        "about 1.5 MiB will be written to this disk (the ledger 1.5 MiB), which must keep 256.0 MiB free,"
        " and 40.0 MiB are free"
    )
    assert disk_needs.lacking([disk_needs.Need("the ledger", tmp_path, 3 * 2**19, "ledger")])
    usage = usage._replace(free=300 * 2**20)
    assert disk_needs.lacking([disk_needs.Need("the ledger", tmp_path, 3 * 2**19, "ledger")]) == []


def test_a_read_only_disk_is_named_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once: 'about 0.0 GiB will be written to this disk, and 0.0 are free'."""
    state = SimpleNamespace(f_flag=os.statvfs(tmp_path).f_flag | os.ST_RDONLY)
    monkeypatch.setattr(os, "statvfs", lambda place: state)
    needs = [disk_needs.Need(what, tmp_path / what, 1.0, what) for what in ("ledger", "export")]
    first, second = disk_needs.lacking(needs)
    expected = "on a read-only file system, and ledger will be written there. Choose another place (ledger)."
    assert str(first) == f"{tmp_path}/ledger: {expected}"
    assert second.where == str(tmp_path / "export")
    with pytest.raises(CheckpointError, match="on a read-only file system, and a model will be written there"):
        check_disk_space(tmp_path / "new", 1, "a model")


def test_a_search_that_has_started_is_warned_and_continues(world: World) -> None:
    run(world(budget={"candidates": 2}, optimizer={"name": "random"}, baselines={"scales": []}), Silent())
    result = check(world(budget=WITHOUT_END, optimizer={"name": "random"}, baselines={"scales": []}), False, Silent())
    assert result.problems == ()
    assert any("will be written to this disk (the ledger " in note for note in result.notes)


def test_the_estimated_disk_space_is_about_right(world: World) -> None:
    spec = load_spec(world(budget={"candidates": 60}, optimizer={"name": "random"}, baselines={"scales": []}))
    run(spec.file, Silent())
    from evosearch.preflight.sizes import sizes_of
    from evosearch.setup.prepare import prepare

    prepared = prepare(spec, Silent())
    items = (60 + 4) * len(prepared.batches["search"])
    needs = disk_needs.to_write(spec, 64, items, sizes_of(spec, Silent()), prepared.example)
    said = {need.what: need.size for need in needs}
    run_dir = spec.run_dir
    with Ledger.open(run_dir.ledger) as ledger:  # which folds its journal into the file
        assert ledger.searches()
    size = sum(path.stat().st_size for path in run_dir.folder.glob("ledger.db*"))
    assert 0.5 < size / said["the ledger"] < 2


def test_needs_of_one_disk_are_added_up(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    parts = [
        disk_needs.Need(name, tmp_path / name / "deep", 0.45 * free, name.upper()) for name in ("one", "two", "three")
    ]
    assert disk_needs.lacking(parts[:1]) == []
    (problem,) = disk_needs.lacking(parts)
    assert "(one " in problem.what
    assert ", two " in problem.what
    assert ", three " in problem.what
    assert not (tmp_path / "one").exists()


GIANT = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 65536,
    "intermediate_size": 262144,
    "num_hidden_layers": 3,
    "num_attention_heads": 512,
    "num_key_value_heads": 512,
    "vocab_size": 200_000_000,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}


def test_weights_that_do_not_fit_into_the_hub_cache_are_not_fetched(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Terabytes according to their config: no weights are requested from the hub."""
    hub = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(huggingface_hub._snapshot_download.constants, "HF_HUB_CACHE", str(hub))
    commit = "0123456789abcdef0123456789abcdef01234567"
    spec = world()
    source = (spec.parent / "base").resolve()
    home = hub / "models--org--giant"
    shutil.copytree(source, home / "snapshots" / commit, ignore=shutil.ignore_patterns("*.safetensors"))
    (home / "snapshots" / commit / "config.json").write_text(json.dumps(GIANT))
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    data = yaml.safe_load(spec.read_text())
    data["recipe"]["base_model"] = "org/giant"
    data["ledger"] = f"sqlite:///{source / 'config.json'}/ledger.db"
    spec.write_text(yaml.safe_dump(data))
    ledger, disk = problems(spec)
    assert ledger.where == f"{spec}: ledger"
    assert disk.where == str(hub)
    assert "('org/giant' " in disk.what
    assert "HF_HUB_CACHE" in disk.next


# --- memory -------------------------------------------------------------------------------------------------------


def test_workers_that_do_not_fit_in_memory(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    workers = {"count": 10_000, "threads": 1, "device": "cpu"}
    with monkeypatch.context() as small:
        small.setattr(memory_needs, "host_memory", lambda: 2.0**26)
        (problem,) = problems(world(workers=workers))
    assert problem.where.endswith("world.yaml: workers.count")
    assert "10000 workers need " in problem.what
    assert "and this machine has " in problem.what
    memory = check(world(), dry_run=False, watcher=Silent()).memory
    assert memory["workers"] == 1
    assert 0 < memory["available_gib"] <= memory["total_gib"] * 1.01


def test_memory_of_this_machine_is_ignored_on_a_cluster(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_needs, "host_memory", lambda: 2.0**26)
    workers = {"count": 10_000, "threads": 1, "device": "cpu", "address": "127.0.0.1:1"}
    assert problems(world(workers=workers)) == ()


@pytest.mark.parametrize(
    ("resident", "needed", "parents", "problem", "warning"),
    [
        (30.0, 35.0, 100.0, None, None),
        (30.0, 45.0, 100.0, None, "a worker could use 45.0 GiB of GPU memory, and has 39.5"),
        (41.0, 45.0, 0.0, "a candidate needs 41.0 GiB, and a worker has 39.5: 0.5 of a card", None),
    ],
)
def test_gpu_memory_compared_with_a_workers_need(
    world: World, resident: float, needed: float, parents: float, problem: str | None, warning: str | None
) -> None:
    """The host's memory then only has the mapped parents."""
    device = {"name": "card", "gpus_per_worker": 0.5, "total_gib": 80.0, "share_gib": 39.5}
    device |= {"resident_gib": resident, "needed_gib": needed, "largest": {"name": "card", "share_gib": 39.5}}
    host = {"resident_gib": 1e9, "parents_gib": parents, "total_gib": 8.0, "available_gib": 4.0}
    found, warnings = memory_needs.judge_memory(load_spec(world()), host | {"device": device}, 2)
    assert [one.what for one in found] == ([problem] if problem else [])
    assert [text.startswith(warning or "-") for text in warnings] == ([True] if warning else [])


@pytest.mark.parametrize(
    ("gpus", "resident", "problem", "warning"),
    [
        (
            1.0,
            30.0,
            None,
            "a candidate needs 30.0 GiB, and a worker with 1 of a display has 8.0: it could not score any",
        ),
        (1.0, 81.0, "a candidate needs 81.0 GiB, and a worker has 80.0: 1 of a card", None),
        (0.5, 30.0, None, "a candidate needs 30.0 GiB, and a worker with 0.5 of a display has 4.0"),
        (2.0, 80.0, None, None),
        (2.0, 170.0, "a candidate needs 170.0 GiB, and a worker has 160.0: 2 of a card", None),
        (1.0, 6.0, None, "a worker could use 9.0 GiB of GPU memory, and has 8.0 (1 of a display)"),
    ],
)
def test_a_small_gpu_among_large_ones_stops_no_search(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    gpus: float,
    resident: float,
    problem: str | None,
    warning: str | None,
) -> None:
    sizes = {"card": 80.0, "display": 8.0, "another card": 80.0}
    found = [{"name": name, "total_gib": size, "free_gib": size} for name, size in sizes.items()]
    monkeypatch.setattr(memory_needs, "cards", lambda: found)
    monkeypatch.setattr(memory_needs, "allowed", lambda total, share: share * total)
    spec = load_spec(world(workers={"device": "auto"}))
    device = memory_needs.device_of(spec, gpus, {"resident": resident, "needed": resident + 3})
    assert device is not None
    problems, warnings = memory_needs.judge_memory(spec, {"device": device}, 1)
    assert [one.what.replace("another ", "") for one in problems] == ([problem] if problem else [])
    assert [text[: len(warning or "")] for text in warnings] == ([warning] if warning else [])


COMMIT, EARLIER = "0123456789abcdef" * 2 + "01234567", "f" * 40


@pytest.mark.parametrize(
    ("reference", "files", "here"),
    [
        ("org/m", {f"{COMMIT}/model.safetensors": ""}, True),
        ("org/m@main", {f"{COMMIT}/model.safetensors": ""}, True),
        (f"org/m@{COMMIT}", {f"{COMMIT}/model.safetensors": ""}, True),
        ("org/m", {f"{EARLIER}/model.safetensors": ""}, False),  # of another revision
        ("org/m@v2", {f"{COMMIT}/model.safetensors": ""}, False),
        (f"org/m@{EARLIER}", {f"{EARLIER}/adapter_model.bin": ""}, True),
        ("org/m", {f"{COMMIT}/model.safetensors.index.json": "one two", f"{COMMIT}/one": ""}, False),  # half of it
        ("org/m", {f"{COMMIT}/pytorch_model.bin.index.json": "one two", f"{COMMIT}/one": ""}, False),
        (
            "org/m",
            {f"{COMMIT}/model.safetensors.index.json": "one two", f"{COMMIT}/one": "", f"{COMMIT}/two": ""},
            True,
        ),
    ],
)
def test_weights_are_cached_if_all_files_of_the_revision_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str, files: dict[str, str], here: bool
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    home = tmp_path / "models--org--m"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(COMMIT)
    for name, shards in files.items():
        path = home / "snapshots" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"weight_map": {f"w{i}": shard for i, shard in enumerate(shards.split())}}))
    assert disk_needs._is_here(reference) is here


def test_parents_are_mapped_so_that_too_little_memory_for_them_is_a_warning(world: World) -> None:
    host = {"resident_gib": 1.0, "parents_gib": 30.0, "total_gib": 8.0, "available_gib": 4.0}
    found, (text,) = memory_needs.judge_memory(load_spec(world()), host, 3)
    assert found == []
    assert text == "3 workers need about 33.0 GiB of memory, and 4.0 GiB are available here"
    assert memory_needs.judge_memory(load_spec(world()), host | {"parents_gib": 0.5}, 3) == ([], [])


# --- time and price -----------------------------------------------------------------------------------------------


def test_the_forecast_includes_waiting_for_the_end_of_a_generation() -> None:
    pace = Pace(start=60.0, candidate=10.0, full={"search": 10.0, "validation": 20.0, "test": 40.0}, workers=4)
    assert pace.candidates(100) == 250.0
    assert pace.per_hour == 4 * 360
    together = Pace(60.0, 10.0, pace.full, 4, population=6)  # two rounds; in the second, two workers wait
    assert together.candidates(6) == together.candidates(7) - 10.0 == 20.0
    assert together.per_hour == 6 * 3600 / 20
    assert together.on_full("validation", 5) == 40.0


def test_the_forecast_includes_baselines_finalists_and_the_test() -> None:
    pace = Pace(60.0, 10.0, {"search": 10.0, "validation": 20.0, "test": 40.0}, workers=4, population=8)
    counts = Counts(candidates=80, search=12 + 4, validation=9, test=5)
    search = 60 + 3 * 10 + 200
    rest = 1 * 10 + 3 * 20 + 2 * 40
    assert hours_of(pace, counts, 12) == pytest.approx((search / 3600, (search + rest) / 3600))
    # An hour ends candidates and baselines, and not what follows
    long = Counts(candidates=80_000, search=16, validation=9, test=5)
    assert hours_of(pace, long, 12, limit=1.0) == pytest.approx((1.0, 1.0 + rest / 3600))
    assert hours_of(pace, counts, 12, limit=1.0) == hours_of(pace, counts, 12)


def test_the_end_has_a_time_zone_and_a_price() -> None:
    now = datetime(2026, 3, 1, 22, 0, tzinfo=UTC)
    assert end_of(9.5, 4, WorkersConfig(), now) == {"ends": "2026-03-02T07:30:00+00:00"}
    assert end_of(9.5, 4, WorkersConfig(price_per_hour=2.5), now)["price"] == 95.0


def test_a_forecast_follows_the_spec(world: World) -> None:
    """If only hours limit the search, it has as many candidates as fit; the price includes all workers."""
    workers = {"executor": "local", "threads": 1, "price_per_hour": 3.0}
    forecast = check(world(budget={"hours": 2.0}, workers=workers), dry_run=True, watcher=Silent()).forecast
    assert forecast["search_hours"] == pytest.approx(2.0, rel=0.001)
    assert 2.0 < forecast["total_hours"] < 2.1
    assert forecast["price"] == pytest.approx(3.0 * forecast["total_hours"])
    ends = datetime.fromisoformat(forecast["ends"]) - datetime.now().astimezone()
    assert ends.total_seconds() / 3600 == pytest.approx(forecast["total_hours"], abs=0.05)


def test_a_price_is_not_part_of_the_identity(world: World) -> None:
    plain = load_spec(world())
    priced = load_spec(world(workers={"executor": "local", "threads": 1, "price_per_hour": 3.0}))
    assert priced.search_id() == plain.search_id()


def test_the_containers_memory_limit_counts_if_it_is_lower() -> None:
    assert memory_needs.host_memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 1.01
