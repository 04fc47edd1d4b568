"""The report of a search as one HTML page without external parts: one file a section, in the order of `sections.py`.

Everything is read from the ledger. A section gives blocks of plain text and data (`contents.py`); only `render.py`
writes HTML, through one template that escapes all text.
"""
