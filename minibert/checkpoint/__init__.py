"""Hugging Face folders: configs, tensors and weights, read and written strictly."""
