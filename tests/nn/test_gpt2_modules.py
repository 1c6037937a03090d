"""GPT-2's tree as a user meets it: printing, opening, first weights, dropout, training."""

import jax
import numpy as np
import pytest
from flax import nnx

import minibert
from minibert.errors import InputError
from slowly import slow_but

IDS = np.random.default_rng(0).integers(0, 97, (2, 9))


def fresh(name="GPT2LMHeadModel", seed=0, **changes):
    config = minibert.GPT2Config.tiny(**changes)
    return getattr(minibert, name)(config, rngs=nnx.Rngs(seed))


def test_prints_as_a_compact_tree():
    text = str(fresh("GPT2DoubleHeadsModel", add_cross_attention=True))
    assert text.splitlines()[:12] == [
        "GPT2DoubleHeadsModel(",
        "  (transformer): GPT2Model(",
        "    (wte): Embed(97, 24)",
        "    (wpe): Embed(40, 24)",
        "    (drop): Dropout(0.1)",
        "    (h): List(",
        "      (0-1): 2 x GPT2Block(",
        "        (ln_1): LayerNorm(24, epsilon=1e-05)",
        "        (attn): GPT2Attention(",
        "          (c_attn): Conv1D(24, 72)",
        "          (c_proj): Conv1D(24, 24)",
        "          (attn_dropout): Dropout(0.1)",
    ]
    assert "(crossattention): GPT2CrossAttention(" in text
    assert "(act): Activation(gelu_new)" in text
    assert "(lm_head): TiedLinear(24, 97)" in text
    assert "(multiple_choice_head): GPT2SequenceSummary(" in text


def test_any_submodule_can_be_called():
    model = fresh().eval()
    words = model.transformer.wte(IDS)
    np.testing.assert_array_equal(words, model.transformer.wte.embedding[...][IDS])
    block = model.transformer.h[1]
    assert block.mlp(block.ln_2(words)).shape == (2, 9, 24)
    assert block.attn.c_attn.kernel.shape == (24, 72)


def test_initialisation_is_hugging_faces():
    """Projections into the residual are narrower, by how many are summed."""
    model = fresh("GPT2Model", n_embd=240, n_inner=None, n_layer=8, add_cross_attention=True)
    block, narrow = model.h[0], 0.02 / 4

    def spread(module):
        return np.asarray(module.kernel[...]).std()

    assert abs(np.asarray(model.wte.embedding[...]).std() - 0.02) < 0.001
    for wide in (block.attn.c_attn, block.mlp.c_fc, block.crossattention.q_attn):
        assert abs(spread(wide) - 0.02) < 0.001
    for projection in (block.attn.c_proj, block.mlp.c_proj, block.crossattention.c_proj):
        assert abs(spread(projection) - narrow) < 0.0003
        assert not np.asarray(projection.bias[...]).any()
    assert (np.asarray(block.ln_cross_attn.scale[...]) == 1).all()


@pytest.mark.parametrize(
    "rate", slow_but(["resid_pdrop", "embd_pdrop", "attn_pdrop"], "embd_pdrop")
)
def test_every_rate_acts(rate):
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    still = fresh(**off)(IDS).logits
    dropped = fresh(**off | {rate: 0.5})(IDS, rngs=nnx.Rngs(dropout=0)).logits
    assert np.abs(still - dropped).max() > 1e-3
    with pytest.raises(InputError, match="rngs"):
        fresh(**off | {rate: 0.5})(IDS)


@pytest.mark.slow
def test_the_tied_head_is_one_parameter():
    """Its gradient is the sum of both uses; mapping over the tree keeps one embedding matrix."""
    model = fresh().eval()
    names = [path for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))]
    assert ("lm_head", "kernel") not in names
    untied = fresh(tie_word_embeddings=False).eval()
    table = model.transformer.wte.embedding[...]
    untied.transformer.wte.embedding[...] = table
    untied.lm_head.kernel[...] = table.T
    nnx.update(untied.transformer, nnx.state(model.transformer))

    def loss(m):
        return (m(IDS).logits ** 2).sum()

    one, both = jax.grad(loss)(model), jax.grad(loss)(untied)
    summed = both.transformer.wte.embedding[...] + both.lm_head.kernel[...].T
    np.testing.assert_allclose(one.transformer.wte.embedding[...], summed, rtol=1e-4, atol=1e-4)
