"""Which candidate is promoted, and what is exported."""
