"""MLflow's pages in headless Chromium: screenshots for the docs, and the time that a large leaderboard takes to open.

    .venv/bin/python -m benchmarks.pages --screenshots docs/images
    .venv/bin/python -m benchmarks.pages [--candidates 5000] [--opens 5]

`--screenshots` runs `recipes/groups.yaml` in a folder of its own, and writes the leaderboard, the charts of the search
and a part of its report as PNG files. Otherwise light workers fill a store with candidates through the real mirror, and
the address of the leaderboard is opened several times. Prints one JSON document and a table. Exit code 1 if the median
of the times is 3 s or more. Needs Debian's packages chromium and chromium-driver.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks._browser import Browser, browser, missing
from benchmarks._light_workers.driver import SEARCH, say
from benchmarks._light_workers.night import Night, serving
from benchmarks._paths import ROOT
from benchmarks._report import publish
from evosearch.errors import SearchError
from evosearch.tracking.client import connect, default_uri, find_runs, mirrored_in
from evosearch.tracking.view import CHARTS, leaderboard_path, run_path

SPEC = ROOT / "recipes" / "groups.yaml"
OPENS_S = 3.0  # most seconds until the table shows its first rows
WIDTH, HEIGHT = 1500, 780  # of a screenshot
PLOTS = ".js-plotly-plot .main-svg"
LINES = ".js-plotly-plot .scatterlayer path.js-line"


def main() -> int:
    """Write screenshots, or measure; return 1 if a page took too long."""
    parser = argparse.ArgumentParser("python -m benchmarks.pages", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--screenshots", type=Path, metavar="FOLDER", help="write three PNG files")
    parser.add_argument("--candidates", type=int, default=5000, help="default %(default)s")
    parser.add_argument("--opens", type=int, default=5, help="openings of the page, default %(default)s")
    options = parser.parse_args()
    if reason := missing():
        parser.error(reason)
    with tempfile.TemporaryDirectory(prefix="evosearch-pages-") as folder:
        if options.screenshots:
            options.screenshots.mkdir(parents=True, exist_ok=True)
            _screenshots(Path(folder), options.screenshots)
            return 0
        found = _measured(Path(folder), options.candidates, options.opens)
    publish(found, _table(found))
    return int(found["median_s"] >= OPENS_S)


def shows_charts(page: Browser, count: int) -> bool:
    """Return whether the page shows at least some charts with their lines."""
    return page.count(LINES) >= count


def shows_rows(page: Browser, count: int = 1) -> bool:
    """Return whether the table of runs shows at least some rows with a name."""
    return sum(bool(row.get("Run Name")) for row in page.rows()) >= count


def _measured(folder: Path, candidates: int, opens: int) -> dict[str, Any]:
    Night(candidates, 0.0, "sqlite", folder).run()
    store = default_uri(folder)
    found = mirrored_in(store, SEARCH, SEARCH)
    assert found is not None, "the search is mirrored"
    seconds = []
    with serving(store, folder / "server.log") as server, browser() as page:
        for _ in range(opens):
            seconds.append(page.open(f"{server.uri}/{leaderboard_path(*found)}", partial(shows_rows, page, 10)))
            say(f"{seconds[-1]:.2f} s")
    return {"candidates": candidates, "seconds": seconds, "median_s": statistics.median(seconds)}


def _table(found: dict[str, Any]) -> str:
    times = ", ".join(f"{seconds:.2f}" for seconds in found["seconds"])
    return (
        f"| candidates | median, s | each time, s |\n|---|---|---|\n"
        f"| {found['candidates']} | {found['median_s']:.2f} | {times} |"
    )


def _screenshots(folder: Path, target: Path) -> None:
    """Run the search, and write its pages as files."""
    name = _command(folder, "run", str(SPEC))["name"]
    report = _command(folder, "report", name)["out"]
    store = default_uri(folder)
    found = mirrored_in(store, name, name)
    assert found is not None, "the search is mirrored"
    with serving(store, folder / "server.log") as server, browser(WIDTH, HEIGHT) as page:
        page.open(f"{server.uri}/{leaderboard_path(*found)}", partial(shows_rows, page, 10))
        page.click("Close")  # MLflow's assistant, which opens by itself in a new browser
        page.click("Hide banner")
        page.wait(lambda: "role" in page.headings(), "all columns")
        page.screenshot(target / "leaderboard.png")
        (own,) = find_runs(connect(store), [found[0]], f"tags.`evosearch.search_id` = '{found[1]}'")
        page.open(f"{server.uri}/{run_path(found[0], own.info.run_id, CHARTS)}", partial(shows_charts, page, 5))
        page.screenshot(target / "charts.png")
        page.open(Path(report).as_uri(), lambda: page.count(PLOTS) >= 5)
        page.driver.execute_script("document.getElementById('lead').scrollIntoView({behavior: 'instant'})")
        page.screenshot(target / "report.png")


def _command(folder: Path, *arguments: str) -> dict[str, Any]:
    """Run a command of evosearch in a folder for runs; return its JSON document."""
    command = [sys.executable, "-m", "evosearch.cli.main", *arguments, "--json"]
    environment = os.environ | {"EVOSEARCH_RUNS": str(folder), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise SearchError(f"evosearch {arguments[0]} ended with exit code {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    sys.exit(main())
