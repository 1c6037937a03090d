"""Strict reading and writing of Hugging Face folders: configs, tensors and weights."""
