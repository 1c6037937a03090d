"""The entry point of the `minibert` command: from its first moment an interrupt is status 130."""

import os
import sys


def main() -> None:
    """Runs the command."""
    # without PyTorch transformers advises that models won't be available, of which we need none
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    try:
        from minibert.cli.app import main as run  # JAX comes with it, which takes seconds

        run()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
