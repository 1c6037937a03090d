"""Uses the installed wheel from outside the repository: load, forward, save, load again.

Run as `python outside.py FOLDER`, where torch is not installed.
"""

import importlib.util
import pathlib
import sys
import tempfile

import numpy as np

import minibert

assert importlib.util.find_spec("torch") is None
assert "site-packages" in minibert.__file__, minibert.__file__
assert importlib.util.find_spec("convert") is None

bert, info = minibert.BertModel.from_pretrained(sys.argv[1], output_loading_info=True)
print(info)
out = bert(np.array([[101, 7592, 2088, 102]]), output_hidden_states=True)
assert np.isfinite(out.pooler_output).all()
with tempfile.TemporaryDirectory() as folder:
    bert.save_pretrained(pathlib.Path(folder, "copy"))
    again = minibert.load(pathlib.Path(folder, "copy"))
np.testing.assert_array_equal(again(np.array([[101, 7592, 2088, 102]])).pooler_output, out[1])
for embedded in (minibert.assets.BERT, minibert.assets.GPT2):
    assert pathlib.Path(embedded, "README.md").exists()
    minibert.load(embedded)
print("loaded, ran and saved from outside the repository")
