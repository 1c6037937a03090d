"""Code independent of models: checks, fields, strict JSON, atomic writes and progress bars."""
