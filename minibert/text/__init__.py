"""Tokenization and batching of texts."""
