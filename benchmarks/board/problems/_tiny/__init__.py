"""Task code that the zoo's problems copy next to the YAML files of `evals/tiny`."""
