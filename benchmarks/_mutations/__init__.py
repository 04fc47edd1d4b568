"""Documents with accidents in them, and the loaders that have to stand them."""
