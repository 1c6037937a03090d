"""Folders with random models that both libraries load, created without a device."""

from typing import Any

import numpy as np

from benchmarks.gpu.job import Job, cached_folder

TINY_BERT = {
    "vocab_size": 256,
    "hidden_size": 24,
    "num_attention_heads": 3,
    "num_hidden_layers": 1,
    "intermediate_size": 80,
}
MINILM = {
    "hidden_size": 384,
    "num_attention_heads": 12,
    "num_hidden_layers": 6,
    "intermediate_size": 1536,
}
TINY_GPT2 = {"vocab_size": 97, "n_embd": 24, "n_layer": 1, "n_head": 3, "n_positions": 128}
POOL = 1 << 20  # random numbers from which all weights are taken


def bert_config(job: Job, size: str, **others: Any) -> Any:
    """Returns the config of a BERT shaped as BERT-base (`base`) or MiniLM (`minilm`)."""
    import minibert

    sizes = TINY_BERT if job.dry_run else {"base": {}, "minilm": MINILM}[size]
    return minibert.BertConfig(**{**sizes, **others})


def bert_folder(job: Job, size: str) -> str:
    """Returns the folder of such a BERT."""
    import minibert

    model = lambda: random_model(minibert.BertModel, bert_config(job, size))  # noqa: E731
    return cached_folder(job, size, lambda path: model().save_pretrained(path))


def gpt2_folder(job: Job) -> str:
    """Returns the folder of a GPT-2 124M without dropout."""
    import minibert

    sizes: dict[str, Any] = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)
    sizes |= TINY_GPT2 if job.dry_run else {}
    model = lambda: random_model(minibert.GPT2LMHeadModel, minibert.GPT2Config(**sizes))  # noqa: E731
    return cached_folder(job, "gpt2", lambda path: model().save_pretrained(path))


def random_model(cls: Any, config: Any) -> Any:
    """Returns a model with weights drawn on the host, which is fast and compiles nothing."""
    import jax
    from flax import nnx

    from minibert.nn.tree import Structure, parameters

    shapes = jax.eval_shape(lambda: cls(config, rngs=nnx.Rngs(0)))  # with the config's tied weights
    draw = np.random.default_rng(0)
    pool = 0.02 * draw.standard_normal(POOL + 1, np.float32)

    def weights(path: str, shape: tuple[int, ...]) -> np.ndarray:
        start = int(draw.integers(POOL // 2))
        taken = np.resize(pool[start:], shape)
        return taken + np.float32(1) if path.endswith("scale") else taken

    arrays = {path: weights(path, leaf.shape) for path, leaf in parameters(shapes).items()}
    return Structure(shapes).build(arrays).eval()
