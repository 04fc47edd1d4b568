"""What `bench/schedule` is made of: a world without models, and workers whose clock is simulated."""
