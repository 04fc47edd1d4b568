"""Optimizers, one file each; `optimizer_config.create` builds one by name."""
