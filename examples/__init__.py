"""Examples; run `python -m examples.NAME.COMMAND` from the root of a checkout."""
