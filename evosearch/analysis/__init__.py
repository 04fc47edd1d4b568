"""Figures of task vectors: norms, cosines, sign conflicts, subspaces, lineage, calibration. Tensors in, figures out."""
