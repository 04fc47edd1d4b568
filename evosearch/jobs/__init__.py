"""Searches as jobs: submit to a cluster, list, follow and stop, also on this machine."""
