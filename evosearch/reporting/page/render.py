"""HTML of a page: one file without external parts, which fetches nothing and runs no script but its own two.

The template escapes all text. Charts are JSON, which the page's own script draws with Plotly. A content security
policy names both scripts by their hashes and allows no address at all, so that neither a name that escaped our care
nor a chart can load anything.
"""

import json
from base64 import b64encode
from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from evosearch.reporting.page.contents import Chart, Section
from evosearch.setup.versions import versions
from evosearch.visible import visible

TEMPLATE, STYLE, SCRIPT = "page.html.jinja", "page.css", "page.js"


def render(title: str, sections: Sequence[Section], date: str) -> str:
    """Return the page.

    Args:
        title: Heading.
        sections: Its content.
        date: When it was made.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["plain"] = visible
    plotly, script = _plotly(), _own(SCRIPT)
    return environment.from_string(_own(TEMPLATE)).render(
        title=title,
        sections=sections,
        date=date,
        version=versions()["evosearch"],
        style=Markup(_own(STYLE)),  # noqa: S704 (our own files, without a name of a user in them)
        plotly=Markup(plotly),  # noqa: S704
        script=Markup(script),  # noqa: S704
        hashes=" ".join(f"'sha256-{_digest(text)}'" for text in (plotly, script)),
        figure=_figure,
    )


def _figure(chart: Chart) -> Markup:
    """Return a chart as JSON that is safe inside a script element."""
    text = json.dumps({"data": chart.data, "layout": chart.layout}, allow_nan=False, separators=(",", ":"))
    escaped = text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    return Markup(escaped)  # noqa: S704 (has no <, > or & any more)


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    text: str = get_plotlyjs()
    assert "</script" not in text
    return text.replace("\r\n", "\n")  # as browsers read it, before they compare its hash


def _own(name: str) -> str:
    return files("evosearch.reporting.page").joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return b64encode(sha256(text.encode()).digest()).decode()
