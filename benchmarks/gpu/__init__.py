"""What a GPU answers in four minutes: `python -m benchmarks.gpu`; each step is a module here."""
