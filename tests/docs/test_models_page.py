"""The page of supported models: each row is a config whose tree has that many parameters."""

import json
import re

import pytest

from checkout import ROOT
from conftest import FIXTURES
from minibert.checkpoint.leaves import leaves
from minibert.models.registry import BY_TYPE, FAMILIES, MODELS

PAGE = (ROOT / "docs" / "guides" / "models.md").read_text("utf-8")
KNOWN = json.loads((FIXTURES / "hub_models.json").read_text("utf-8"))
ROW = re.compile(r"^\| `([^`]+/[^`]+)` \| [^|]+ \| `(\w+)` \| ([\d.]+) M \| (\w+) \|$", re.M)


def test_the_table_is_that_of_the_facts():
    facts = [
        (one["name"], one["class"], f"{one['parameters'] / 1e6:.1f}", one["evidence"])
        for one in KNOWN
    ]
    assert ROW.findall(PAGE) == facts
    assert {one["evidence"] for one in KNOWN} == {"weights", "config", "remembered"}
    compared = [one["name"] for one in KNOWN if one["evidence"] == "weights"]
    assert compared == ["sentence-transformers/all-MiniLM-L6-v2"]  # in test_trained.py


def test_every_family_is_listed():
    for family in FAMILIES:
        assert f"`{family.base.__name__}`" in PAGE


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: known["name"])
def test_the_tree_has_as_many_parameters(known):
    config = known["config"]
    cls = MODELS[known["class"]]
    assert cls in BY_TYPE[config["model_type"]].models
    read = cls.config_class.from_dict(config)
    assert read.to_dict().items() >= config.items()
    model = cls(read, rngs=None)
    sizes = {leaf.name: leaf.variable.size for leaf in leaves(model) if leaf.name not in cls.tied}
    assert sum(sizes.values()) == known["parameters"]
