"""Preparation of a search from its spec: models, search space, executor, tracker."""
