"""The built-in merge methods, one file each. A new file here registers a new method."""
