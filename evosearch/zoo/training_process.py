"""Training of one tiny model in a child process with OpenMP's passive wait policy.

By default OpenMP threads spin while they wait for each other, which makes training several times slower when other
processes share the cores. The policy is read when torch is loaded, so it can only be set for a new process.
"""

import json
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from subprocess import PIPE, Popen
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from evosearch.environment import telemetry_off
from evosearch.errors import CheckpointError

if TYPE_CHECKING:
    from evosearch.zoo.tiny_training import Setting

PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}  # GNU's and LLVM's OpenMP
PACKAGES = str(Path(__file__).resolve().parents[2])  # the folder from which this process imports evosearch


def train(name: str, home: Path, out: Path, setting: "Setting", report: Callable[[float], None]) -> None:
    """Train one model in a child process.

    Args:
        name: `base` or a task.
        home: Folder of the zoo; an expert starts from `home/base`.
        out: Existing empty folder to save the checkpoint in.
        setting: Hyperparameters.
        report: Called with the fraction done, in [0, 1].

    Raises:
        CheckpointError: The child process failed.
    """
    command = [sys.executable, "-P", "-m", __name__, name, str(home), str(out), json.dumps(asdict(setting))]
    paths = os.pathsep.join(filter(None, (PACKAGES, os.environ.get("PYTHONPATH"))))
    environment = PASSIVE | os.environ | {"PYTHONPATH": paths}
    # In its own session, so that Ctrl-C reaches only this process
    with (
        TemporaryFile("w+", encoding="utf-8") as log,
        Popen(command, stdout=PIPE, stderr=log, text=True, env=environment, start_new_session=True) as child,  # noqa: S603
    ):
        assert child.stdout is not None
        try:
            for line in child.stdout:
                report(float(line))
        except BaseException:
            child.kill()
            raise
        if child.wait() != 0:
            log.seek(0)
            reason = (log.read().strip().splitlines() or [f"exit code {child.returncode}"])[-1]
            next = f"Check memory, and disk space in {home}"
            raise CheckpointError(f"zoo:tiny/{name}", f"training failed: {reason}", next=next)


def main(name: str, home: str, out: str, setting: str) -> None:
    """Run the child process: train, save, and print the fraction done, one number per line."""
    telemetry_off()
    fractions = sys.stdout

    def report(fraction: float) -> None:
        print(fraction, file=fractions, flush=True)  # fails once the parent is gone, which ends this process

    with redirect_stdout(sys.stderr):
        _train(name, Path(home), Path(out), json.loads(setting), report)


def _train(name: str, home: Path, out: Path, data: dict[str, Any], report: Callable[[float], None]) -> None:
    import torch
    from transformers import LlamaForCausalLM

    from evosearch.zoo.tiny_tokenizer import tokenizer
    from evosearch.zoo.tiny_training import Schedule, Setting, train_base, train_expert

    experts = {task: Schedule(**schedule) for task, schedule in data.pop("experts").items()}
    setting = Setting(**data, experts=experts)
    torch.set_num_threads(setting.threads)  # sums are split by thread, so weights depend on the number of threads
    if name == "base":
        model = train_base(setting, report)
    else:
        base = LlamaForCausalLM.from_pretrained(home / "base", local_files_only=True, dtype=torch.float32)
        model = train_expert(setting, base, name, report)
    model.eval().save_pretrained(out)
    tokenizer().save_pretrained(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
