"""The search: optimizers, search space, ledger, and the loop that connects them."""
