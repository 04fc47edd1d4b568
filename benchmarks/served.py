"""Exported checkpoints and adapters in vLLM, compared with transformers: they load unchanged, and say the same.

    .venv/bin/python -m benchmarks.served CHECKPOINT --python PYTHON [--base MODEL --adapter FOLDER] [--tokens 16]

CHECKPOINT is what `evosearch export --format checkpoint` wrote, or any model folder; ADAPTER what `--format adapter`
wrote for the same candidate, with the model that it belongs to as BASE. PYTHON is the interpreter of an environment
with vLLM, which has another version of transformers. Both programs continue some prompts greedily, in float32. Prints
one JSON document and a table. Exit code 1 if a continuation differs, or the log-likelihood of one of its tokens by more
than 0.001.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks._report import publish

TOLERANCE = 1e-3  # nats, of a token
PROMPTS = (
    "The capital of France is",
    "Review: a film of great charm. Sentiment:",
    "Question: Who wrote the first dictionary of English?\nAnswer:",
    "def add(a, b):\n    return",
    "7 3 9 1",
)
SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
}
# Runs in the environment with vLLM; its engine starts processes, which read this file again
PROGRAM = """
import json, sys

def main():
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest
    given = json.load(open(sys.argv[1]))
    adapter = given["adapter"] and LoRARequest("adapter", 1, given["adapter"])
    more = {"enable_lora": True, "max_lora_rank": given["rank"]} if adapter else {}
    llm = LLM(model=given["model"], dtype="float32", enforce_eager=True, max_model_len=256, **more)
    wanted = SamplingParams(temperature=0, max_tokens=given["tokens"], ignore_eos=True, logprobs=0)
    found = []
    for one in llm.generate(given["prompts"], wanted, lora_request=adapter):
        ids, said = list(one.outputs[0].token_ids), one.outputs[0].logprobs
        told = [position[token].logprob for token, position in zip(ids, said)]
        found.append({"ids": list(one.prompt_token_ids), "logprobs": told, "continued": ids})
    json.dump(found, open(sys.argv[2], "w"))

if __name__ == "__main__":
    main()
"""
Told = list[dict[str, Any]]


def by_transformers(checkpoint: Path, tokens: int) -> Told:
    """Continuations of the prompts, with their log-likelihoods, by transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    found = []
    with torch.no_grad():
        for prompt in PROMPTS:
            ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
            whole, start = ids, ids.shape[1]
            for _ in range(tokens):  # greedily; `generate` follows the settings of the model's folder
                whole = torch.cat([whole, model(whole).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
            told = model(whole).logits[0, start - 1 : -1].log_softmax(-1).gather(1, whole[0, start:, None])[:, 0]
            found.append({"ids": ids[0].tolist(), "logprobs": told.tolist(), "continued": whole[0, start:].tolist()})
    return found


def by_vllm(python: Path, folder: Path, model: Path, adapter: Path | None, tokens: int) -> Told:
    """The same by vLLM.

    Raises:
        CalledProcessError: vLLM failed; the end of its log is printed.
    """
    rank = json.loads((adapter / "adapter_config.json").read_text())["r"] if adapter else None
    allowed = next(most for most in (8, 16, 32, 64, 128, 256, 320, 512) if rank is None or rank <= most)
    given = {"model": str(model), "adapter": adapter and str(adapter), "rank": allowed}
    program, question, answer = folder / "program.py", folder / "question.json", folder / "answer.json"
    program.write_text(PROGRAM)
    question.write_text(json.dumps(given | {"tokens": tokens, "prompts": PROMPTS}))
    command = [str(python), str(program), str(question), str(answer)]
    done = subprocess.run(command, env=os.environ | SETTINGS, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.stderr.write(done.stdout[-4000:] + done.stderr[-4000:])
        done.check_returncode()
    found: Told = json.loads(answer.read_text())
    return found


def difference(ours: Told, theirs: Told) -> dict[str, Any]:
    """How many prompts are continued by the same tokens, and the largest difference of a log-likelihood of these."""
    assert [one["ids"] for one in ours] == [one["ids"] for one in theirs], "the tokenizers differ"
    pairs = list(zip(ours, theirs, strict=True))
    same = [(one, other) for one, other in pairs if one["continued"] == other["continued"]]
    apart = [abs(a - b) for one, other in same for a, b in zip(one["logprobs"], other["logprobs"], strict=True)]
    return {"tokens": len(apart), "largest": max(apart, default=0.0), "same": len(same), "of": len(pairs)}


def main() -> int:
    """Compare; return 1 if the programs differ."""
    import tempfile

    parser = argparse.ArgumentParser("python -m benchmarks.served", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--python", type=Path, required=True, help="interpreter of an environment with vLLM")
    parser.add_argument("--base", type=Path, help="model of the adapter")
    parser.add_argument("--adapter", type=Path, help="adapter of the same candidate")
    parser.add_argument("--tokens", type=int, default=16, help="of a continuation, default %(default)s")
    options = parser.parse_args()
    if (options.base is None) != (options.adapter is None):
        parser.error("--base and --adapter need each other")
    ours = by_transformers(options.checkpoint, options.tokens)
    forms: dict[str, tuple[Path, Path | None]] = {"checkpoint": (options.checkpoint, None)}
    if options.adapter is not None:
        forms["adapter"] = (options.base, options.adapter)
    found = {}
    for name, (model, adapter) in forms.items():
        with tempfile.TemporaryDirectory(prefix="evosearch-served-", ignore_cleanup_errors=True) as folder:
            told = by_vllm(options.python, Path(folder), model.resolve(), adapter and adapter.resolve(), options.tokens)
        found[name] = difference(ours, told)
    publish(found, _table(found))
    return int(any(row["largest"] > TOLERANCE or row["same"] < row["of"] for row in found.values()))


def _table(found: dict[str, dict[str, Any]]) -> str:
    lines = ["| in vLLM | tokens | largest difference, nats | same continuation |", "|---|---:|---:|---:|"]
    lines += [
        f"| {name} | {row['tokens']} | {row['largest']:.1e} | {row['same']} of {row['of']} |"
        for name, row in found.items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
