"""A look inside: captured activations, analyses and plots."""
