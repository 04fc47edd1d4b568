"""Promotion: finalists, the gate on the test split, and exported files."""
