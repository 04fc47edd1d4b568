"""Random models and adapters of real shapes on disk, for measurements that do not depend on what a model knows."""
