"""What `prepare_smollm2` and `train_experts` share: base, documents, adapters, training, and folders made whole."""
