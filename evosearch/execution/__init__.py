"""Where candidates are scored: workers, in process or on Ray."""
