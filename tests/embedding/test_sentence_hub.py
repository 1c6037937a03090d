"""The model card of a saved encoder, and uploading, to a local server that acts as the Hub."""

import re

import numpy as np
import pytest
from hub_server import hub_server

import sentences
from conftest import EMBEDDING
from minibert.embedding.encoder import SentenceEncoder
from minibert.embedding.modules import Normalize, Pooling
from minibert.errors import InputError, TargetError

pytestmark = pytest.mark.unoptimised


def test_the_card_describes_the_encoder(tmp_path):
    ours = sentences.encoder(
        pooling=("cls", "max"),
        dense=sentences.dense(48, 7),
        normalize=True,
        prompts={"query": 'find "``` {x}": '},
        similarity_fn_name="dot",
        truncate_dim=5,
        max_seq_length=31,
    )
    ours.save_pretrained(tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    for line in (
        "| architecture | `BertModel`: 2 layers, hidden size 24 |",
        "| modules | Transformer, Pooling, Dense, Normalize |",
        "| pooling | cls, max |",
        "| dimensions | 5 |",
        "| maximum length | 31 tokens |",
        "| similarity function | dot |",
        r'  "query": "find \"``` {x}\": ",',
    ):
        assert line in card.splitlines(), line
    assert card.startswith("---\nlibrary_name: sentence-transformers\n")
    sentences.encoder().save_pretrained(tmp_path / "plain")
    assert "prompts" not in (tmp_path / "plain" / "README.md").read_text()


@pytest.mark.slow
def test_the_examples_of_the_card_run(tmp_path, capsys):
    pytest.importorskip("sentence_transformers")
    sentences.encoder().save_pretrained(tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    found = []
    for block in blocks:
        names: dict[str, object] = {}
        exec(block.replace("path/of/this/folder", str(tmp_path / "out")), names)
        found.append(names["vectors"])
    np.testing.assert_allclose(*found, rtol=0, atol=EMBEDDING)
    assert capsys.readouterr().out.count("[[") == 2


def test_a_card_of_ones_own_is_kept(tmp_path):
    encoder, readme = sentences.encoder(), tmp_path / "out" / "README.md"
    readme.parent.mkdir()
    readme.write_text("My own words.")
    encoder.save_pretrained(readme.parent)
    encoder.save_pretrained(readme.parent, overwrite=True)
    assert readme.read_text() == "My own words."
    encoder.save_pretrained(tmp_path / "none", create_model_card=False)
    assert not (tmp_path / "none" / "README.md").exists()
    readme.unlink()
    readme.symlink_to("nowhere")
    encoder.save_pretrained(readme.parent, overwrite=True)
    assert readme.is_symlink()
    with pytest.raises(InputError, match="create_model_card: expected True or False, found 'no'"):
        encoder.save_pretrained(tmp_path / "wrong", create_model_card="no")


def test_an_encoder_is_uploaded(tmp_path):
    modules = [Pooling("mean", 24), sentences.dense(24, 3), Normalize()]
    ours = SentenceEncoder(sentences.model(), sentences.tokenizer(), modules=modules)
    with hub_server(tmp_path) as hub:
        url = ours.push_to_hub("acme/tiny", token="hf_secret", private=True)
        assert url.endswith("/acme/tiny/commit/a")
        assert hub.created[0]["name"] == "tiny"
        assert hub.created[0]["visibility"] == "private"
        (first,) = hub.commits
        assert first["summary"] == "Add new SentenceTransformer model"
        assert (first["branch"], first["token"]) == ("main", "Bearer hf_secret")
        with pytest.raises(TargetError, match="'acme/tiny': cannot be uploaded to the Hub"):
            ours.push_to_hub("acme/tiny")
        main = tmp_path / "acme" / "tiny" / "main"
        card = (main / "README.md").read_text()
        assert 'SentenceTransformer("acme/tiny")' in card
        again = SentenceEncoder.from_pretrained(main)
        np.testing.assert_array_equal(again.encode("the"), ours.encode("the"))

        (main / "README.md").write_text("My own words.")
        ours.push_to_hub("acme/tiny", exist_ok=True, commit_message="Again")
        assert (main / "README.md").read_text() == "My own words."
        assert hub.commits[-1]["summary"] == "Again"
        ours.push_to_hub("acme/tiny", exist_ok=True, replace_model_card=True)
        assert (main / "README.md").read_text() == card

        with pytest.raises(TargetError, match="'acme/tiny': cannot be uploaded to the Hub"):
            ours.push_to_hub("acme/tiny", create_pr=True)
        assert (len(hub.commits), hub.pull_requests) == (3, 1)
        ours.push_to_hub("acme/tiny", exist_ok=True, revision="v2")
        assert (main.parent / "v2" / "README.md").read_text() == card
    assert len(hub.created) == 1


def test_an_encoder_that_cannot_be_saved_is_not_uploaded(tmp_path):
    layers = sentences.encoder(layers="sum_of_last_four")
    with (
        hub_server(tmp_path) as hub,
        pytest.raises(InputError, match="layers: 'sum_of_last_four' cannot be saved"),
    ):
        layers.push_to_hub("acme/layers")
    assert not hub.created
