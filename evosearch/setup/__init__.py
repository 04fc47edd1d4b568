"""From a spec to a search that is ready to run: models, search space, executor, tracker."""
