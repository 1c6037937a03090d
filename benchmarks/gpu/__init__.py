"""The four-minute GPU benchmark: `python -m benchmarks.gpu`; each step is a module here."""
