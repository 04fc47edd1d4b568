"""Command line interface: one file per command, with heavy imports inside the command."""
