"""Conversion of checkpoints from and to Hugging Face's format, verified against PyTorch."""
