"""Model families, one file each with a `FAMILY`; `parts` and `moe` are shared building blocks."""
