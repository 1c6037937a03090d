"""Texts and records out of files."""
