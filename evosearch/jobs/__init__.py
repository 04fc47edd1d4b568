"""Searches as jobs: submit them to a cluster, list them, follow their logs and stop them; stop local searches."""
