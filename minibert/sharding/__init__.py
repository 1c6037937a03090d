"""Sharding of models and batches over devices."""
