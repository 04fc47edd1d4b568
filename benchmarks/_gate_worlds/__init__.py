"""Simulated searches, whose truth is known, through the gate: for `scripts/bench/gate` and its short form in tests."""
