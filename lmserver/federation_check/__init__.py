"""`lmserver federation-check SERVER`: why a server can or cannot be reached, step by step, for a human."""
