"""Training objectives and the validation of their labels."""
