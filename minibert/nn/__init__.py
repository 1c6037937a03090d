"""Layers, activations, attention, caches and pooling; independent of configs and files."""
