"""Optimizers, one file each. `registry.create` makes one by name; nothing else is needed from outside."""
