"""Headless Chromium on MLflow's pages, driven by Selenium; both programs from Debian's packages."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromedriver")  # Debian's packages chromium and chromium-driver
LONG_S = 120.0  # longest wait for a page on a busy machine

# Headings of MLflow's table of runs, by their index from the left
FIND_HEADINGS = """
const heads = {};
document.querySelectorAll('[role=columnheader][aria-colindex]').forEach(
  one => { heads[one.getAttribute('aria-colindex')] = one.innerText.trim().split('\\n')[0]; });
"""
HEADINGS = f"{FIND_HEADINGS} return heads;"
# Rows of MLflow's table of runs, as header → text. Pinned columns are rows of their own in the page.
ROWS = f"""{FIND_HEADINGS}
const rows = {{}};
document.querySelectorAll('[role=row][row-index]').forEach(row => {{
  const own = rows[row.getAttribute('row-index')] ||= {{}};
  row.querySelectorAll('[role=gridcell][aria-colindex]').forEach(
    cell => {{
      // A run's name follows its colour in the charts, which is in the page as text
      const shown = cell.innerText.trim().replace(/^#[0-9a-f]{{6}}\\s+/, '');
      own[heads[cell.getAttribute('aria-colindex')] || ''] = shown;
    }});
}});
return Object.keys(rows).map(Number).sort((a, b) => a - b).map(index => rows[index]);
"""


def missing() -> str | None:
    """Return what is not installed here, with the way to get it; None if browsers can be driven."""
    programs = [name for name in PROGRAMS if shutil.which(name) is None]
    if programs:
        return f"{' and '.join(programs)} not found (apt-get install chromium chromium-driver)"
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "selenium is not installed (./scripts/setup test)"
    return None


class Browser:
    """One window of Chromium.

    Args:
        driver: Selenium's driver.
    """

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, address: str, ready: Callable[[], bool]) -> float:
        """Open an address in a new state of the browser; return the seconds until the page is ready.

        Args:
            address: The address.
            ready: Whether the page shows what it should.
        """
        self.driver.get("about:blank")  # an address that differs only behind # would not be loaded
        began = time.monotonic()
        self.driver.get(address)
        self.wait(ready, address)
        return time.monotonic() - began

    def wait(self, ready: Callable[[], bool], what: str) -> None:
        """Wait until something is true of the page.

        Raises:
            TimeoutError: It was not, for a long time; the message has the text of the page.
        """
        deadline = time.monotonic() + LONG_S
        while not ready():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what} did not show in {LONG_S:.0f} s. The page says:\n{self.text()[:2000]}")
            time.sleep(0.05)

    def text(self) -> str:
        """Return the text that the page shows."""
        return str(self.driver.execute_script("return document.body ? document.body.innerText : ''"))

    def rows(self) -> list[dict[str, str]]:
        """Return the rows that MLflow's table of runs shows, from the top, as header → text."""
        found: list[dict[str, str]] = self.driver.execute_script(ROWS)
        return found

    def headings(self) -> list[str]:
        """Return the headings of MLflow's table of runs, from the left."""
        found: dict[str, str] = self.driver.execute_script(HEADINGS)
        return [found[index] for index in sorted(found, key=int)]

    def count(self, selector: str) -> int:
        """Return how many elements of the page a CSS selector has."""
        return int(self.driver.execute_script("return document.querySelectorAll(arguments[0]).length", selector))

    def frames(self) -> list[Any]:
        """Return the documents inside the page."""
        return list(self.driver.find_elements("css selector", "iframe"))

    @contextmanager
    def frame(self, index: int) -> Iterator[None]:
        """Read a document inside the page within the block."""
        self.driver.switch_to.frame(self.frames()[index])
        try:
            yield
        finally:
            self.driver.switch_to.default_content()

    def click(self, label: str) -> None:
        """Click what has an accessible name."""
        self.driver.find_element("css selector", f"[aria-label='{label}']").click()

    def screenshot(self, file: Path) -> None:
        """Write a PNG of the window."""
        self.driver.save_screenshot(str(file))


@contextmanager
def browser(width: int = 1600, height: int = 1000) -> Iterator[Browser]:
    """A window of Chromium without a screen, with a profile of its own, which ends with the block.

    Args:
        width: Of the page, in pixels.
        height: Of the page, in pixels.
    """
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    quiet = ("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync")
    # Without a sandbox, which needs user namespaces: the pages are those of our own server on this machine
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars", *quiet):
        options.add_argument(argument)
    options.add_argument(f"--window-size={width},{height}")
    driver = Chrome(options, Service(str(shutil.which("chromedriver"))))
    try:
        driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
        )
        yield Browser(driver)
    finally:
        driver.quit()
