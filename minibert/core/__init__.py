"""Checks, fields, strict JSON, atomic writes and progress bars: what knows nothing of models."""
