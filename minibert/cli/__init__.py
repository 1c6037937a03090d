"""The `minibert` command: arguments and printing."""
