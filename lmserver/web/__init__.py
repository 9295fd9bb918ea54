"""HTTP in, without any Matrix in it: declared endpoints, bounded bodies, errors as JSON."""
