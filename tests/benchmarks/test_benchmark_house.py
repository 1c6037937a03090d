"""The measure of the code: which tokens count, and through how many files calls go."""

import json
import os
import subprocess
import sys

import pytest

from benchmarks import house

CODE = '''"""A module's docstring."""

# a comment
def f(x):
    """A function's,

    of several lines.
    """
    return "a text", x  # this counts: return "a text" , x
'''


def test_tokens(tmp_path):
    (tmp_path / "code_of.py").write_text(CODE)
    assert house.tokens(tmp_path / "code_of.py") == len("def f ( x ) : return 't' , x".split())


@pytest.mark.slow
def test_a_call_goes_through_few_files():
    """Few more than when the folders were made (7, 6, 19 and 43), and no more than before that."""
    command = [sys.executable, house.__file__, "--here"]  # without the checks of tests
    env = os.environ | {"PYTHONPATH": str(house.ROOT)}
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    found = {name: len(files) for name, files in json.loads(done.stdout.split("\n")[-2]).items()}
    most = {"SentenceEncoder.encode": 7, "generate": 6, "BertModel.from_pretrained": 20}
    for name, limit in most.items():
        assert found[name] <= limit, name
    assert found["minibert embed"] <= 46
