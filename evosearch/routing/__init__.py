"""Routes: models that run the layers of other models in any order and number."""
