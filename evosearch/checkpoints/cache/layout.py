"""Layout of a node's cache: one folder for each kind of entry.

| folder | an entry |
|---|---|
| `copies/KEY` | model copied from a network file system |
| `prepared/CONTENT` | tensors that an adapter or a placebo changes |
| `merged/KEY` | model of a nested recipe, or of a stage's winner |
| `tokenizers/CONTENT` | tokenizer of an output with its own vocabulary or chat template |
| `teachers/KEY.safetensors` | a teacher's answers and distributions on a task |
| `statistics/KEY.safetensors` | a model's statistics over a sample, for methods that need some |
| `zoo/NAME` | built-in models, trained on this machine |
| `hashes/` | hashes of files, one small marker each; listed as one entry |

An entry appears by rename, so it is complete; a process that uses it holds its mark (`uses.py`). Work in progress is in
hidden files and folders next to the entries (`drafts.py`). The cache also has `locks/`, `uses/`, `compiled/` (kernels
of merges), Ray's token, and temporary folders of `check`, which are drafts.
"""

COPIES, PREPARED, MERGED, TOKENIZERS = "copies", "prepared", "merged", "tokenizers"
TEACHERS, STATISTICS, ZOO, HASHES = "teachers", "statistics", "zoo", "hashes"
COMPILED = "compiled"
KINDS = {
    COPIES: "copy from a network file system",
    PREPARED: "adapter applied",
    MERGED: "nested recipe, merged",
    TOKENIZERS: "tokenizer",
    TEACHERS: "teacher's answers",
    STATISTICS: "statistics over a sample",
    ZOO: "built-in models",
    HASHES: "hashes of files",
}
