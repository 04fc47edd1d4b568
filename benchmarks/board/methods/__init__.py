"""Methods: each file has `METHOD`."""
