"""Sentence encoders, similarities and searches, and the embedding of files."""
