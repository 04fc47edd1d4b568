"""Model families, one file each; a new file with a FAMILY is a new family. They share `parts` and `moe`."""
