"""Sizes of a task's data that no file on the disk tells: rows of Parquet and Arrow, downloads, sets of the hub."""

import contextlib
import gc
import gzip
import hashlib
import io
import json
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from pyarrow import parquet

from evosearch.errors import SuiteError
from evosearch.evaluation.harness.harness import Harness
from evosearch.evaluation.suites import data_sizes
from evosearch.evaluation.suites.row_sizes import row_bytes
from evosearch.evaluation.suites.suite import load_suite

from .conftest import ELSEWHERE, write_suite

LARGE = 2**20
LIMIT = 2**19
COMMIT = "1" * 40
Served = dict[str, tuple[dict[str, str], bytes]]  # path → headers and body


def rows(count: int = 6, text: str = "q") -> pa.Table:
    questions = [f"{text} {index}" if len(text) < 100 else text for index in range(count)]
    return pa.table({"question": questions, "options": [["a", "b"]] * count, "gold": [1] * count})


def as_parquet(table: pa.Table, **options: Any) -> bytes:
    buffer = io.BytesIO()
    parquet.write_table(table, buffer, compression="zstd", **options)
    return buffer.getvalue()


def as_arrow(table: pa.Table, new: Any = pa.ipc.new_stream, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with new(buffer, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd", **options)) as writer:
        writer.write_table(table)
    return buffer.getvalue()


def repeated(texts: int) -> pa.Table:
    """Rows of one text of 1,000 characters."""
    return rows(texts, "x" * 1000)


def packed(texts: int) -> pa.Table:
    """The same with a dictionary."""
    table = repeated(texts)
    return table.set_column(0, "question", table["question"].dictionary_encode())


# A million bytes of rows in some thousand bytes
BOMBS: dict[str, tuple[str, bytes]] = {
    "parquet": ("parquet", as_parquet(repeated(1100))),
    "parquet with another mark": ("parquet", b"xxxx" + as_parquet(repeated(1100))[4:]),  # of which nothing is read
    "parquet with dictionary": ("parquet", as_parquet(packed(1100))),
    "parquet of one list": ("parquet", as_parquet(pa.table({"question": [[7] * 140_000]}))),
    "arrow stream": ("arrow", as_arrow(repeated(1100))),
    "arrow file": ("arrow", as_arrow(repeated(1100), pa.ipc.new_file)),
    "arrow stream of old": ("arrow", as_arrow(repeated(1100), use_legacy_format=True)),
    "arrow with dictionary": ("arrow", as_arrow(packed(1100))),
    "arrow views": ("arrow", as_arrow(pa.table({"question": pa.array(["x" * 1000] * 1100, pa.string_view())}))),
    "arrow runs": (
        "arrow",
        as_arrow(pa.table({"question": pa.RunEndEncodedArray.from_arrays([1100], pa.array(["x" * 1000]))})),
    ),
}


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write a suite with one task of its own: `suite(dataset_path, file or files or none, **dataset_kwargs)`."""
    import datasets

    monkeypatch.setenv("EVOSEARCH_TASKS", "")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", tmp_path / "cache" / "downloads")

    def write(path: str, file: str | list[str] | None = None, **options: Any) -> Path:
        data = {"data_files": {"test": file}} if file else {}
        return write_suite(tmp_path, path, options | data, acknowledge_contamination=True)

    return write


def load(suite: Path) -> None:
    assert len(Harness(load_suite(suite)).batch("search")) == 2


def refused(suite: Path, said: str = r"are larger than 0 GiB") -> None:
    with pytest.raises(SuiteError, match=rf"s\.yaml: tasks\[0\]\.task: the data of 't_own' {said}"):
        Harness(load_suite(suite))


@pytest.mark.parametrize("kind", BOMBS)
@pytest.mark.parametrize("name", ["own", "other"])
def test_rows_are_counted_decoded(
    suite: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, kind: str, name: str
) -> None:
    monkeypatch.setattr(data_sizes, "MAX_BYTES", LIMIT)
    reader, bomb = BOMBS[kind]
    assert len(bomb) < 16_000
    path = suite(reader, f"t.{reader}" if name == "own" else "t.txt")
    file = path.parent / "tasks" / (f"t.{reader}" if name == "own" else "t.txt")
    file.write_bytes(bomb)
    refused(path, rf"are larger than 0 GiB \(rows\), with {file}")
    assert not list((path.parent / "cache").rglob("*.arrow"))


@pytest.mark.parametrize("kind", ["parquet", "arrow stream", "arrow file"])
def test_rows_within_the_limit_are_read(suite: Callable[..., Path], kind: str) -> None:
    reader = kind.split(" ", maxsplit=1)[0]
    path = suite(reader, "t.bin")
    new = pa.ipc.new_file if kind == "arrow file" else pa.ipc.new_stream
    (path.parent / "tasks" / "t.bin").write_bytes(as_parquet(rows()) if reader == "parquet" else as_arrow(rows(), new))
    load(path)


def test_a_footer_that_states_less_changes_nothing(tmp_path: Path) -> None:
    """A kilobyte in the file, less than 1 MB by its footer, 1 GB of rows; counting ends early."""
    (tmp_path / "a").write_bytes(as_parquet(pa.table({"question": ["x" * 5000] * 200_000})))
    footer = parquet.read_metadata(tmp_path / "a")
    assert footer.row_group(0).total_byte_size < 2**20
    (size,) = row_bytes([tmp_path / "a"], LARGE, "parquet")
    assert LARGE < size < 16 * LARGE


def test_rows_that_need_too_much_memory_are_too_large(tmp_path: Path) -> None:
    """One value of 4 GB in a file of some KB: decoding it ends at the limit of the child process."""
    value = pa.RunEndEncodedArray.from_arrays(pa.array([2**29], pa.int32()), pa.array([1]))
    (tmp_path / "a").write_bytes(as_arrow(pa.table({"question": [1]})))
    (tmp_path / "damaged").write_bytes(b"PAR1" + bytes(100))
    (tmp_path / "b").write_bytes(as_arrow(pa.table({"question": value})))
    assert row_bytes([tmp_path / name for name in ("a", "damaged", "b")], LARGE, "arrow") == [8, 0, LARGE + 1]


def test_rows_before_the_damage_are_counted(tmp_path: Path) -> None:
    whole = as_arrow(pa.concat_tables([repeated(1100), rows()]))
    (tmp_path / "a").write_bytes(whole[: whole.index(b"\xff\xff\xff\xff", len(whole) // 2)])
    (size,) = row_bytes([tmp_path / "a"], 8 * LARGE, "arrow")
    assert LARGE < size < 2 * LARGE


# The readers of datasets leave their file to the garbage collector when the writer refuses a row
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("reader", ["json", "csv"])
def test_rows_are_counted_while_they_are_written(
    suite: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, reader: str
) -> None:
    """Rows may take more bytes than their text."""
    monkeypatch.setattr(data_sizes, "MAX_BYTES", LIMIT)
    path = suite(reader, "t.txt")
    ones = [1] * 80_000  # 8 bytes each
    text = json.dumps({"question": ones}) if reader == "json" else "question\n" + "1\n" * 80_000
    (path.parent / "tasks" / "t.txt").write_text(text + "\n")
    assert len(text) < LIMIT
    refused(path, r"are larger than 0 GiB \(rows\)")
    gc.collect()  # here, and not in a later test


class Server:
    """An HTTP server for files, which may state sizes that are not theirs."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.files: Served = {}
        self.asked: list[str] = []
        self.headers = ""
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self._answer(body=False)

            def do_GET(self) -> None:
                self._answer(body=True)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self._answer(body=True)

            def log_message(self, *args: Any) -> None: ...

            def _answer(self, body: bool) -> None:
                path = self.path.partition("?")[0]
                server.headers += str(self.headers)
                server.asked.append(f"{self.command} {path}")
                headers, data = server.files.get(path, ({"X-Error-Code": "EntryNotFound"}, b""))
                self.send_response(200 if path in server.files else 404)
                stated = headers if not body else {k: v for k, v in headers.items() if k != "Content-Length"}
                for name, value in ({"Content-Length": str(len(data))} | stated).items():
                    self.send_header(name, value)
                self.end_headers()
                if body:
                    with contextlib.suppress(OSError):
                        self.wfile.write(data)

        class Web(ThreadingHTTPServer):
            def handle_error(self, *args: Any) -> None:
                """Say nothing: the client has read enough."""

        self._server = Web((host, 0), Handler)
        self.url = f"http://{host}:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server, and libraries that are not offline."""
    import datasets
    import huggingface_hub

    made = Server()
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    huggingface_hub.close_session()
    yield made
    huggingface_hub.close_session()
    made.close()


def lines(count: int, text: str = "q") -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows(count, text).to_pylist()).encode()


def test_remote_files_within_the_limit_are_read(suite: Callable[..., Path], server: Server) -> None:
    server.files["/t.jsonl"] = ({}, lines(6))
    load(suite("json", f"{server.url}/t.jsonl"))


def test_a_remote_file_is_refused_by_its_size_before_it_is_downloaded(
    suite: Callable[..., Path], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_sizes, "MAX_BYTES", LIMIT)
    server.files["/t.jsonl"] = ({}, lines(1100, "x" * 1000))
    path = suite("json", f"{server.url}/t.jsonl")
    refused(path, r"are larger than 0 GiB \(files\)")
    assert not [file for file in (path.parent / "cache").rglob("*") if file.is_file() and file.stat().st_size > 1000]


def test_a_download_ends_if_the_server_sends_more_than_it_stated(
    suite: Callable[..., Path], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_sizes, "MAX_BYTES", LIMIT)
    server.files["/t.jsonl"] = ({"Content-Length": "10"}, lines(60_000, "x" * 1000))
    path = suite("json", f"{server.url}/t.jsonl")
    refused(path, r"are larger than 0 GiB \(files\)")
    largest = max(file.stat().st_size for file in (path.parent / "cache").rglob("*") if file.is_file())
    assert largest < 8 * LARGE < len(server.files["/t.jsonl"][1])  # some chunks


def test_what_was_downloaded_is_counted_unpacked(
    suite: Callable[..., Path], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_sizes, "MAX_BYTES", LIMIT)
    server.files["/t.parquet"] = ({}, BOMBS["parquet"][1])
    refused(suite("parquet", f"{server.url}/t.parquet"), r"are larger than 0 GiB \(rows\), with ")


def test_files_that_a_card_or_a_url_names_are_counted(
    suite: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A dataset card may name files outside of its folder."""
    monkeypatch.setattr(data_sizes, "MAX_BYTES", LIMIT)
    (tmp_path / "t.parquet").write_bytes(BOMBS["parquet"][1])
    (tmp_path / "set").mkdir()
    configs = [{"config_name": "default", "data_files": [{"split": "test", "path": "../t.parquet"}]}]
    (tmp_path / "set" / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n")
    refused(suite(str(tmp_path / "set")), r"are larger than 0 GiB \(rows\), with ")
    refused(suite("parquet", f"file://{tmp_path}/t.parquet"), r"are larger than 0 GiB \(rows\), with ")


@pytest.mark.parametrize("name", ["t.jsonl", "t.tar", "t.tar.gz"])
def test_tar_archives_are_refused(suite: Callable[..., Path], name: str) -> None:
    """A sparse file in them has any size, and takes no room."""
    header = tarfile.TarInfo("t.jsonl")
    header.type, header.size = tarfile.GNUTYPE_SPARSE, 0
    block = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    block[483:495] = b"%011o\0" % 2**32  # the size after unpacking
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    data = bytes(block) + bytes(1024)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert archive.getmembers()[0].size == 2**32
    path = suite("json", name)
    (path.parent / "tasks" / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    with pytest.raises(SuiteError, match=rf"s\.yaml: .*{name} of 't_own' is packed in a format"):
        Harness(load_suite(path))
    assert not (path.parent / "cache").exists()


@pytest.fixture
def hub(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """A hub with one dataset: `hub({file: content})`."""
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.url)

    def serve(files: dict[str, bytes]) -> None:
        json_type = {"Content-Type": "application/json"}
        tree = [
            {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for name, data in files.items()
        ]
        info = {"id": "org/set", "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
        for revision in ("main", COMMIT):
            for place in ("", "/"):
                server.files[f"/api/datasets/org/set/tree/{revision}{place}"] = (json_type, json.dumps(tree).encode())
            server.files[f"/api/datasets/org/set/revision/{revision}"] = (json_type, json.dumps(info).encode())
            server.files[f"/api/datasets/org/set/paths-info/{revision}"] = (json_type, json.dumps(tree).encode())
            for name, data in files.items():
                headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
                server.files[f"/datasets/org/set/resolve/{revision}/{name}"] = (headers, data)
        server.files["/api/datasets/org/set"] = (json_type, json.dumps(info).encode())

    return serve


@pytest.mark.parametrize("options", [{}, {"num_proc": 2}])
def test_a_dataset_of_the_hub_is_read(
    suite: Callable[..., Path], hub: Callable[..., None], options: dict[str, int]
) -> None:
    hub({f"test-{number}.parquet": as_parquet(rows()) for number in range(2)})
    load(suite("org/set", **options))


def test_rows_are_counted_together_also_for_several_processes(
    suite: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_sizes, "MAX_BYTES", 2 * LIMIT)
    path = suite("json", ["t.txt", "u.txt"], num_proc=2)
    for name in ("t.txt", "u.txt"):
        (path.parent / "tasks" / name).write_text(json.dumps({"question": [1] * 80_000}) + "\n")
    refused(path, r"are larger than 0 GiB \(rows\)")


def test_data_are_not_streamed(suite: Callable[..., Path], hub: Callable[..., None]) -> None:
    """A stream has no number of documents."""
    hub({"test.parquet": as_parquet(rows())})
    with pytest.raises(SuiteError, match=r"s\.yaml: tasks\[0\]\.task: 't_own' streams its data .* Remove the key"):
        load(suite("org/set", streaming=True))


def test_a_dataset_of_the_hub_is_refused_before_it_is_downloaded(
    suite: Callable[..., Path], hub: Callable[..., None], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_sizes, "MAX_BYTES", LIMIT)
    hub({"test-0.jsonl": lines(300, "x" * 1000), "test-1.jsonl": lines(300, "y" * 1000)})
    refused(suite("org/set"), r"are larger than 0 GiB \(files\)")
    assert not [line for line in server.asked if line.startswith("GET /datasets/") and line.endswith(".jsonl")]


@pytest.mark.parametrize("kind", ["parquet", "parquet with dictionary"])
def test_rows_of_a_dataset_of_the_hub_are_counted(
    suite: Callable[..., Path], hub: Callable[..., None], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(data_sizes, "MAX_BYTES", LIMIT)
    hub({"test.parquet": BOMBS[kind][1]})
    refused(suite("org/set"), r"are larger than 0 GiB \(rows\), with ")


# Addresses of another server, which begin or continue like the hub's
@pytest.mark.parametrize(
    "address",
    [
        "http://{elsewhere}/t.jsonl",
        "HTTP://{elsewhere}/t.jsonl",
        "http://{hub}@{elsewhere}/t.jsonl",
        "http://{hub}%2f@{elsewhere}/t.jsonl",
        "http://{hub}:x@{elsewhere}/datasets/org/set/resolve/main/t.jsonl",
        "http://{elsewhere}/datasets/org/set/resolve/main/t.jsonl",
        "http://{elsewhere}/t.jsonl#http://{hub}/datasets/org/set",
        "http://{elsewhere}/t.jsonl?http://{hub}/datasets/org/set",
        "http://{elsewhere}/http://{hub}/t.jsonl",
        "http:\\\\{elsewhere}/t.jsonl",
    ],
)
def test_a_file_of_another_server_gets_no_token_of_the_hub(
    suite: Callable[..., Path],
    hub: Callable[..., None],
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    address: str,
) -> None:
    elsewhere = Server(ELSEWHERE)
    try:
        paths = ("/t.jsonl", "/datasets/org/set/resolve/main/t.jsonl", f"/{server.url}/t.jsonl")
        elsewhere.files = {path: ({}, lines(6)) for path in paths}
        monkeypatch.setenv("HF_TOKEN", "hf_hunter2")
        names = {"elsewhere": elsewhere.url.removeprefix("http://"), "hub": server.url.removeprefix("http://")}
        with contextlib.suppress(SuiteError):
            load(suite("json", address.format(**names)))
        assert "hf_hunter2" not in elsewhere.headers
        assert "bearer" not in elsewhere.headers.lower()  # Basic is the user information of the address itself
        if address == "http://{elsewhere}/t.jsonl":
            assert elsewhere.asked
    finally:
        elsewhere.close()


def test_the_hub_itself_gets_the_token(
    suite: Callable[..., Path], hub: Callable[..., None], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The servers would see it."""
    monkeypatch.setenv("HF_TOKEN", "hf_hunter2")
    hub({"test.parquet": as_parquet(rows())})
    load(suite("org/set"))
    assert "Bearer hf_hunter2" in server.headers
