"""What `minibert train` does: a training run from files."""
