"""The Dockerfile, as far as it can be checked without an engine: what it copies is there, and it runs unprivileged."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
LINES = (ROOT / "docker" / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
STEPS = [line.split(maxsplit=1) for line in LINES if line.strip() and not line.startswith("#")]


def test_only_known_instructions_and_one_stage() -> None:
    known = {"FROM", "ENV", "WORKDIR", "COPY", "RUN", "USER", "VOLUME", "ENTRYPOINT", "CMD"}
    assert {step[0] for step in STEPS} <= known
    assert [step[0] for step in STEPS].count("FROM") == 1
    assert STEPS[0][0] == "FROM"


def test_what_is_copied_exists() -> None:
    sources = [name for step, rest in STEPS if step == "COPY" for name in rest.split()[:-1]]
    assert sources
    assert all((ROOT / name).exists() for name in sources)


def test_torch_is_installed_first_with_the_pinned_version() -> None:
    (install,) = [rest for step, rest in STEPS if step == "RUN" and "pip install" in rest]
    pinned = re.search(r"^torch==(\S+)$", (ROOT / "scripts" / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned
    assert install.index(f"torch=={pinned[1]}") < install.index("&&")


def test_it_runs_as_an_unprivileged_user() -> None:
    users = [rest for step, rest in STEPS if step == "USER"]
    assert users == ["evosearch"]
    order = [step[0] for step in STEPS]
    assert order.index("USER") < order.index("ENTRYPOINT")
