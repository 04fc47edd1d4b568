"""Eight LoRA experts of SmolLM2-135M-Instruct that disturb each other when merged, for `recipes/eight_experts.yaml`."""
