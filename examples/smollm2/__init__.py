"""Base, LoRA experts and documents of the searches in `recipes/smollm2.yaml` and `recipes/smollm2_ties.yaml`."""
