"""Inspection of models: captured activations, analyses and plots."""
