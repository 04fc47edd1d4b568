"""LoRA adapters, applied to their base model."""
