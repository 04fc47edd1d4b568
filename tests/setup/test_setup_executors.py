"""Executors and worker configs, built from a spec's `workers`."""

import subprocess
import sys


def test_importing_the_module_of_executors_loads_neither_torch_nor_ray() -> None:
    code = "import sys, evosearch.setup.executors; print(sorted({'ray', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.strip() == "[]"
