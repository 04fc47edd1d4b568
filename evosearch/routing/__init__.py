"""Routes: models that run the layers of others in another order, each any number of times."""
