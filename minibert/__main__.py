"""The entry point of the `minibert` command: from its first moment an interrupt is status 130."""

import sys


def main() -> None:
    """Runs the command."""
    try:
        from minibert.cli import main as run  # JAX comes with it, which takes seconds

        run()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
