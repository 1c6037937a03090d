"""Layers, activations, attention, caches and poolings: arithmetic and parameters, no files."""
