"""The search itself: space, optimizers, ledger, controller. No torch."""
