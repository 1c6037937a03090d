"""Models and batches on many devices."""
