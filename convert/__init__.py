"""Converting checkpoints: `python -m convert SOURCE OUT`. Run from a checkout; not in the wheel."""
