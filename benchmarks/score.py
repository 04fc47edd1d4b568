"""Speed of scoring compared with lm-eval, on the same frozen requests and the same model.

    .venv/bin/python -m benchmarks.score [MODEL] [--threads N] [--only WORD] [--items N]

MODEL is a folder (default models/smollm2/base, which `python -m examples.smollm2.prepare` writes). For each setting,
lm-eval's `evaluate` with its Hugging Face model runs between two runs of our scorer in one process, on requests that
are built and tokenized before any clock starts. lm-eval uses the faster of two batch sizes (for generation, the same
one as ours). Then the scorer alone runs `--items` zero-shot questions (default 1000) to measure the share of its time
spent outside the model. Only the ratios are comparable between machines, not the seconds. Prints one JSON document and
a table. Exit code 1 if a claim is not met or the two programs disagree, 2 without a model.
"""

import argparse
import io
import os
import sys
import tempfile
import time
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks._made_up_suites.settings import SETTINGS, Setting, write_suite
from benchmarks._paths import ROOT
from benchmarks._report import publish

MODEL = ROOT / "models" / "smollm2" / "base"
NO_MODEL = """{}: no model in this folder. Give the folder of a Hugging Face model, or create the default one:
    ./scripts/setup gguf
    .venv/bin/python -m examples.smollm2.train_experts
    .venv/bin/python -m examples.smollm2.prepare"""
BATCH_SIZES = (1, 8)
GENERATION_ROWS = 8
PILOT = 3  # documents used to choose the faster batch size
OUTSIDE = 0.10  # maximum share of the time outside the model
OVERHEAD = 1.05  # maximum ratio of tokens run to distinct tokens


@dataclass(frozen=True)
class Row:
    """Figures of one setting."""

    setting: str
    documents: int
    requests: int
    batch_size: int  # lm-eval's
    lm_eval_seconds: float
    seconds: float
    times: float  # ratio of lm-eval's time to ours
    claim: float
    requested: int
    run: int  # tokens forwarded, padding included
    distinct: int
    largest_difference: float  # between log-likelihoods, nats
    differ: int  # requests whose answers differ: log-likelihoods by more than 1e-3 + 1e-6·|ll|, texts in any character
    mode: str


class Bench:
    """One model, scored by lm-eval and by our scorer."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        from evosearch.checkpoints.tokenizers.loading import load_tokenizer

        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
        self.tokenizer = load_tokenizer(folder)

    def scorer(self, setting: Setting, documents: int, folder: Path) -> Any:
        """Our scorer on a suite that is written into `folder`."""
        from evosearch.evaluation.engine.score_options import ScoreOptions
        from evosearch.evaluation.harness.harness import max_length_of
        from evosearch.evaluation.harness.scorer import Scorer
        from evosearch.evaluation.suites.suite import load_suite

        suite = load_suite(write_suite(folder, setting, documents))
        length = max_length_of(self.model.config, self.tokenizer)
        return Scorer(suite, self.tokenizer, length, ScoreOptions(generation_rows=GENERATION_ROWS))

    def lm_eval(self, frozen: Any, batch_size: int, documents: int) -> tuple[float, list[Any]]:
        """Run `evaluate` on the frozen requests of the first documents; return its seconds and the model's answers."""
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM

        from evosearch.evaluation.suites.lm_eval_logs import quiet

        own = frozen.tasks[0]
        chosen = list(zip(frozen.batch.sets[0].doc_ids, own.documents, strict=True))[:documents]
        instances = [instance for _, document in chosen for instance in document.instances]
        for number, (_, document) in enumerate(chosen):  # with `samples`, lm-eval numbers documents by position
            for instance in document.instances:
                instance.metadata = (instance.metadata[0], number, *instance.metadata[2:])
                instance.doc_id = number
        task = own.task
        task._instances = instances
        task.build_all_requests = lambda **_: None  # already built
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
        """Run our scorer; return its seconds and its score card."""
        started = time.perf_counter()
        card = scorer.score(self.model, batch)
        return time.perf_counter() - started, card

    def compare(self, setting: Setting) -> Row:
        """Measure one setting: our scorer, lm-eval, our scorer."""
        import numpy as np

        from evosearch.evaluation.engine.generation import generate
        from evosearch.evaluation.types import LOGLIKELIHOODS

        with tempfile.TemporaryDirectory() as folder:
            scorer = self.scorer(setting, setting.documents, Path(folder))
            batch = scorer.batch("test")
            frozen = scorer.plans(batch)[0]
            generates = setting.config["output_type"] == "generate_until"
            pilots = {size: self.lm_eval(frozen, size, PILOT)[0] for size in BATCH_SIZES if not generates}
            size = GENERATION_ROWS if generates else min(pilots, key=lambda size: pilots[size])
            scorer.score(self.model, scorer.batch("search"))  # warm-up: one-time work per model
            before, card = self.ours(scorer, batch)
            theirs, answers = self.lm_eval(frozen, size, setting.documents)
            ours = (before + self.ours(scorer, batch)[0]) / 2  # runs before and after lm-eval's average out other load
        if generates:
            texts = generate(self.model, scorer.plans(batch)[2])[0]
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
        """Measure the share of the scoring time that is spent outside of the model's modules."""
        spent = [0.0, 0.0]  # start of the running module, total seconds in modules

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
    """Markdown table with one row per setting."""
    lines = [
        "| requests | documents | lm-eval's batch | its seconds / ours | claimed | tokens requested "
        "| run | run / distinct | largest difference | differ | mode |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        cells: list[Any] = [row.setting, row.documents, row.batch_size, f"{row.times:.1f}", f"{row.claim:g}"]
        cells += [row.requested, row.run, f"{row.run / row.distinct:.3f}", f"{row.largest_difference:.1e}", row.differ]
        cells += [row.mode]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    if outside:
        share = f"{100 * outside['share']:.1f}% of the time"
        lines += ["", f"Outside of the model's modules: {share}, on {outside['items']:.0f} zero-shot items."]
    return "\n".join(lines)


def main() -> int:
    """Run the settings; return the exit code."""
    parser = argparse.ArgumentParser("python -m benchmarks.score", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path, default=MODEL, help="model folder, default %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="default %(default)s")
    parser.add_argument(
        "--only",
        default="",
        help="run settings whose name contains this word; 'outside' for the share outside the model",
    )
    parser.add_argument(
        "--items", type=int, default=1000, help="questions to measure the share outside the model, default %(default)s"
    )
    options = parser.parse_args()
    if not (options.model / "config.json").is_file():
        print(NO_MODEL.format(options.model), file=sys.stderr)
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
    found = {"threads": options.threads, "settings": [asdict(row) for row in rows], "outside": outside}
    publish(found, table(rows, outside))
    confirmed = all(row.times >= row.claim and row.differ == 0 for row in rows)
    confirmed = confirmed and all(row.run <= OVERHEAD * row.distinct for row in rows)
    return int(not confirmed or bool(outside and outside["share"] > OUTSIDE))


if __name__ == "__main__":
    sys.exit(main())
