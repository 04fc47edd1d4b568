"""Each row of the attacks' list names tests that exist, or says why there are none."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
README = Path(__file__).with_name("README.md").read_text(encoding="utf-8")


def test_every_named_test_exists() -> None:
    rows = [line for line in README.splitlines() if line.startswith("|") and not set(line) <= set("|- ")]
    assert len(rows) > 60
    named = 0
    for row in rows:
        file = None
        for path, test in re.findall(r"`([\w/]*\.py)?(?:::)?(test_\w+)?`", row):
            file = TESTS / path if path and not path.startswith("benchmarks/") else file
            if path.startswith("benchmarks/"):
                assert (TESTS.parent / path).is_file(), row
            elif path or test:
                assert file is not None, row
                assert file.is_file(), row
                assert not test or f"def {test}(" in file.read_text(encoding="utf-8"), (file, test)
                named += bool(test)
    assert named > 100
