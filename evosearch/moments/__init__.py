"""Second moments over a sample: of gradients (Fisher) and of layer inputs (Gram matrices), kept in the cache."""
