"""Registration of reference schemes, shared by controller and workers."""

from importlib import import_module


def register_schemes(modules: tuple[str, ...] = ("evosearch.zoo",)) -> None:
    """Register the reference schemes (`zoo:`) of these modules in this process."""
    for module in modules:
        import_module(module).register()
