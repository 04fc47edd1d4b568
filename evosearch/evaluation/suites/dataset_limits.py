"""Limits on what the datasets library downloads and builds, for data whose size no local file tells beforehand."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from evosearch.errors import SuiteError
from evosearch.evaluation.suites import data_sizes
from evosearch.evaluation.suites.data_sizes import check_sizes, too_large

_LOCK = threading.RLock()  # datasets has one set of classes


@contextmanager
def limited(where: str, name: str) -> Iterator[None]:
    """Bound what datasets downloads and builds within the block, by `data_sizes.MAX_BYTES` for each dataset.

    Sizes of remote files are asked for before they are downloaded, and a download from another server than the hub
    stops above the limit. All files are counted unpacked before they are read, and those of Parquet and Arrow
    decoded; rows are counted as they are written to the cache. datasets has no setting for any of this, so some of its
    names are replaced meanwhile. It works in this process alone (`num_proc` changes nothing), where all is counted.

    Args:
        where: The suite's key, for errors.
        name: Name of the task.

    Raises:
        SuiteError: The data are larger, or streamed.
    """
    from datasets import builder
    from datasets.packaged_modules.arrow.arrow import Arrow
    from datasets.packaged_modules.parquet.parquet import Parquet
    from datasets.utils import file_utils

    limit = _Limit(where, name)
    prepare = builder.DatasetBuilder.download_and_prepare

    def prepare_here(dataset: Any, *args: Any, num_proc: int | None = None, **kwargs: Any) -> None:
        limit.start("parquet" if isinstance(dataset, Parquet) else "arrow" if isinstance(dataset, Arrow) else "")
        prepare(dataset, *args, **kwargs)

    def stream(*_: Any, **__: Any) -> None:
        what = f"'{name}' streams its data (dataset_kwargs.streaming)"
        raise SuiteError(where, what, "Data that are loaded at once", "Remove the key")

    class Manager(builder.DownloadManager):
        def download(self, urls: Any) -> Any:
            remote = [url for url in map(self._absolute, _flat(urls)) if "://" in url]
            limit.announce(sum(_stated_size(url, self.download_config) for url in remote))
            found = super().download(urls)
            with limit.refusing():
                check_sizes(where, name, (Path(str(path)) for path in _flat(found)), limit.rows)
            return found

        def _absolute(self, url: Any) -> str:
            relative = file_utils.is_relative_path(str(url))
            return str(file_utils.url_or_path_join(self._base_path, str(url)) if relative else url)

    class Written(builder.ArrowWriter):
        @property
        def _num_bytes(self) -> int:
            """Bytes that were written; each path of the writer adds to this number, before it writes."""
            return self._bytes if hasattr(self, "_bytes") else 0

        @_num_bytes.setter
        def _num_bytes(self, number: int) -> None:
            limit.write(number - self._num_bytes)
            self._bytes = number

    class Received(file_utils.TqdmCallback):
        def relative_update(self, inc: int = 1) -> None:
            super().relative_update(inc)
            limit.receive(inc)

    with (
        _LOCK,
        _replaced(builder.DatasetBuilder, "download_and_prepare", prepare_here),
        _replaced(builder.DatasetBuilder, "as_streaming_dataset", stream),
        _replaced(builder, "DownloadManager", Manager),
        _replaced(builder, "ArrowWriter", Written),
        _replaced(file_utils, "TqdmCallback", Received),
    ):
        try:
            yield
        except Exception:
            if limit.refusal is not None:  # datasets reports it as an error while it generates the data
                raise limit.refusal from None
            raise


class _Limit:
    """Counts of one dataset of a task.

    Attributes:
        rows: `parquet` or `arrow` if its files are read as such, or nothing.
        refusal: The error once a count has exceeded the limit.
    """

    def __init__(self, where: str, name: str) -> None:
        self._where, self._name = where, name
        self.refusal: SuiteError | None = None
        self.start("")

    def start(self, rows: str) -> None:
        """Start to count a dataset; a group may have several."""
        self._announced = self._received = self._written = 0
        self.rows = rows

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Keep an error of the block, which datasets would report as its own."""
        try:
            yield
        except SuiteError as error:
            self.refusal = error
            raise

    def announce(self, size: int) -> None:
        """Count bytes that are going to be downloaded."""
        self._announced += size
        self._check(self._announced, "files")

    def receive(self, size: int) -> None:
        """Count bytes that were downloaded."""
        self._received += size
        self._check(self._received, "files")

    def write(self, size: int) -> None:
        """Count bytes of rows that were written."""
        self._written += size
        self._check(self._written, "rows")

    def _check(self, size: int, what: str) -> None:
        if size > data_sizes.MAX_BYTES:
            self.refusal = too_large(self._where, self._name, what)
            raise self.refusal


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _stated_size(url: str, config: Any) -> int:
    """Return the size in bytes that a remote file's server states, or 0 if it states none."""
    from datasets.utils.file_utils import _prepare_path_and_storage_options, fsspec_head

    try:
        place, options = _prepare_path_and_storage_options(url, download_config=config)
        return max(0, int(fsspec_head(place, storage_options=options).get("size") or 0))
    except Exception:  # each protocol has its own errors; the download reports them, or finds the file in the cache
        return 0


def _flat(nested: Any) -> list[Any]:
    if isinstance(nested, dict):
        return list(chain.from_iterable(map(_flat, nested.values())))
    return list(chain.from_iterable(map(_flat, nested))) if isinstance(nested, list | tuple) else [nested]
