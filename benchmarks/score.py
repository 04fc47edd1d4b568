#!/usr/bin/env python3
"""Scoring, side by side with lm-eval: the same frozen requests of the same model, as one JSON document and a table.

    scripts/bench/score [MODEL] [--threads N] [--only WORD] [--items N]

MODEL (default models/smollm2/base, see scripts/prepare_smollm2) is a folder. For each setting, in one process:
`evaluate` of lm-eval with its Hugging Face model at the faster of two batch sizes (for generation, both at the same
one), between two runs of our scorer, on requests that were built and tokenized before any clock starts. Then
`--items` zero-shot questions (1000 by default) by the scorer alone: how much of its time is outside the model.
Seconds mean nothing across machines, the ratios do. Exit code 1 where a claim is not met or the two disagree.
"""

import argparse
import io
import json
import os
import sys
import tempfile
import time
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks._made_up_suites.settings import SETTINGS, Setting, write_suite

ROOT = Path(__file__).resolve().parents[2]
BATCH_SIZES = (1, 8)
GENERATION_ROWS = 8
PILOT = 3  # documents, to find the faster batch size
OUTSIDE = 0.10  # of the seconds, at most
OVERHEAD = 1.05  # tokens run over distinct tokens, at most


@dataclass(frozen=True)
class Row:
    """One setting's figures."""

    setting: str
    documents: int
    requests: int
    batch_size: int  # lm-eval's
    lm_eval_seconds: float
    seconds: float
    times: float  # lm-eval's over ours
    claim: float
    requested: int
    run: int  # tokens, padding included
    distinct: int
    largest_difference: float  # of a log-likelihood
    differ: int  # requests whose answers differ: log-likelihoods by more than 1e-3 + 1e-6·|ll|, texts at all
    way: str


class Bench:
    """A model in both programs' hands."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        from evosearch.execution.worker import load_tokenizer

        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
        self.tokenizer = load_tokenizer(folder)

    def scorer(self, setting: Setting, documents: int, folder: Path) -> Any:
        from evosearch.evaluation.engine.loglikelihood import ScoreOptions
        from evosearch.evaluation.harness.harness import max_length_of
        from evosearch.evaluation.harness.scorer import Scorer
        from evosearch.evaluation.suites.suite import load_suite

        suite = load_suite(write_suite(folder, setting, documents))
        length = max_length_of(self.model.config, self.tokenizer)
        return Scorer(suite, self.tokenizer, length, ScoreOptions(generation_rows=GENERATION_ROWS))

    def lm_eval(self, frozen: Any, batch_size: int, documents: int) -> tuple[float, list[Any]]:
        """Seconds of `evaluate` on the first documents' frozen requests, and its model's answers to them."""
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM

        from evosearch.evaluation.harness.quiet import quiet

        own = frozen.tasks[0]
        chosen = list(zip(frozen.batch.sets[0].doc_ids, own.documents, strict=True))[:documents]
        instances = [instance for _, document in chosen for instance in document.instances]
        for number, (_, document) in enumerate(chosen):  # with `samples`, lm-eval counts documents as they come
            for instance in document.instances:
                instance.metadata = (instance.metadata[0], number, *instance.metadata[2:])
                instance.doc_id = number
        task = own.task
        task._instances = instances
        task.build_all_requests = lambda **_: None  # they are built
        with quiet(), redirect_stderr(io.StringIO()):  # progress bars
            lm = HFLM(pretrained=self.model, tokenizer=self.tokenizer, batch_size=batch_size)
            started = time.perf_counter()
            evaluate(
                lm, {"tasks": {"bench": task}}, samples={"bench": [doc_id for doc_id, _ in chosen]}, bootstrap_iters=0
            )
            seconds = time.perf_counter() - started
        answers = [instance.resps[0] for instance in instances]
        for instance in instances:
            instance.resps, instance.filtered_resps = [], {}
        return seconds, answers

    def ours(self, scorer: Any, batch: Any) -> tuple[float, Any]:
        """Seconds of our scorer, and its card."""
        started = time.perf_counter()
        card = scorer.score(self.model, batch)
        return time.perf_counter() - started, card

    def compare(self, setting: Setting) -> Row:
        """One setting: ours, lm-eval, ours."""
        import numpy as np

        from evosearch.evaluation.engine.generation import generate
        from evosearch.evaluation.types import LOGLIKELIHOODS

        with tempfile.TemporaryDirectory() as folder:
            scorer = self.scorer(setting, setting.documents, Path(folder))
            batch = scorer.batch("test")
            frozen = scorer._lay_out(batch)[0]
            generates = setting.config["output_type"] == "generate_until"
            pilots = {size: self.lm_eval(frozen, size, PILOT)[0] for size in BATCH_SIZES if not generates}
            size = GENERATION_ROWS if generates else min(pilots, key=lambda size: pilots[size])
            scorer.score(self.model, scorer.batch("search"))  # what is found out of a model once is not a candidate's
            before, card = self.ours(scorer, batch)
            theirs, answers = self.lm_eval(frozen, size, setting.documents)
            ours = (before + self.ours(scorer, batch)[0]) / 2  # around lm-eval's: other work on the machine hits both
        if generates:
            texts = generate(self.model, scorer._lay_out(batch)[2])[0]
            difference, differ = 0.0, sum(ours != theirs for ours, theirs in zip(texts, answers, strict=True))
        else:
            lls = np.array([answer[0] for answer in answers])
            away = np.abs(card.columns["bench"][LOGLIKELIHOODS] - lls)
            difference, differ = float(away.max()), int((away > 1e-3 + 1e-6 * np.abs(lls)).sum())
        return Row(
            setting.name,
            setting.documents,
            len(answers),
            size,
            theirs,
            ours,
            theirs / ours,
            setting.claim,
            card.tokens.requested,
            card.tokens.forwarded + card.tokens.padded,
            card.tokens.distinct,
            difference,
            differ,
            "/".join(card.modes.values()),
        )

    def outside(self, items: int) -> dict[str, float]:
        """The share of a score's seconds in which no module of the model runs."""
        spent = [0.0, 0.0]  # when the module that runs now began, seconds in modules

        def begin(*_: Any) -> None:
            spent[0] = time.perf_counter()

        def end(*_: Any) -> None:
            spent[1] += time.perf_counter() - spent[0]

        setting = SETTINGS["zero-shot, choices of one token"]
        with tempfile.TemporaryDirectory() as folder:
            scorer = self.scorer(setting, items, Path(folder))
            batch = scorer.batch("test")
            scorer.score(self.model, scorer.batch("search"))
            scorer.prepare(batch)
            modules = (self.model.base_model, self.model.get_output_embeddings())
            hooks = [module.register_forward_pre_hook(begin) for module in modules]
            hooks += [module.register_forward_hook(end) for module in modules]
            started = time.perf_counter()
            scorer.score(self.model, batch)
            seconds = time.perf_counter() - started
            for hook in hooks:
                hook.remove()
        return {"items": items, "seconds": seconds, "share": (seconds - spent[1]) / seconds}


def table(rows: list[Row], outside: dict[str, float] | None) -> str:
    lines = [
        "| requests | documents | lm-eval's batch | its seconds / ours | claimed | tokens asked | run | run / distinct "
        "| largest difference | differ | way |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        cells: list[Any] = [row.setting, row.documents, row.batch_size, f"{row.times:.1f}", f"{row.claim:g}"]
        cells += [row.requested, row.run, f"{row.run / row.distinct:.3f}", f"{row.largest_difference:.1e}", row.differ]
        cells += [row.way]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    if outside:
        share = f"{100 * outside['share']:.1f}% of the seconds of {outside['items']:.0f} zero-shot items"
        lines += ["", f"Outside the model's modules: {share}."]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path, default=ROOT / "models" / "smollm2" / "base")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="settings whose name has this word; 'outside' for the last part")
    parser.add_argument("--items", type=int, default=1000)
    options = parser.parse_args()
    if not (options.model / "config.json").is_file():
        print(f"{options.model}: no model there; scripts/prepare_smollm2 writes one", file=sys.stderr)
        return 2
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch

    torch.set_num_threads(options.threads)
    bench = Bench(options.model)
    rows = []
    for setting in SETTINGS.values():
        if options.only in setting.name:
            rows.append(bench.compare(setting))
            print(f"{setting.name}: {rows[-1].times:.1f} times", file=sys.stderr)
    outside = bench.outside(options.items) if options.only in "outside" else None
    print(json.dumps({"threads": options.threads, "settings": [asdict(row) for row in rows], "outside": outside}))
    print(table(rows, outside), file=sys.stderr)
    met = all(row.times >= row.claim and row.differ == 0 for row in rows)
    met = met and all(row.run <= OVERHEAD * row.distinct for row in rows)
    return int(not met or bool(outside and outside["share"] > OUTSIDE))


if __name__ == "__main__":
    sys.exit(main())
