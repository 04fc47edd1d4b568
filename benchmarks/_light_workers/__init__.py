"""Ray workers that compute score cards from recipes instead of running models."""
