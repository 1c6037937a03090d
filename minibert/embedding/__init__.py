"""Sentence encoders, similarity functions, semantic search, and embedding of files."""
