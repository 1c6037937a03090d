"""Converting checkpoints from a checkout: `python -m convert SOURCE OUT` is `minibert convert`."""
