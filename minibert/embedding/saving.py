"""Writing of sentence-transformers folders."""

import os
from typing import TYPE_CHECKING, Any

from minibert.checkpoint.agreement import tree_faults
from minibert.checkpoint.files import (
    BODY_CONFIGS,
    MODEL_CARD,
    MODULES,
    TOP_CONFIG,
    encoder_paths,
)
from minibert.checkpoint.saving import (
    check_saved,
    file_leaves,
    write_model,
    write_tensors,
    write_tokenizer,
)
from minibert.checkpoint.sources import SAFETENSORS
from minibert.core.atomic import atomic_folder
from minibert.core.strict_json import write_json
from minibert.core.types import Path
from minibert.embedding.card import model_card
from minibert.embedding.folder import NAMES, SWITCHES, TORCH_ACTIVATIONS
from minibert.embedding.modules import (
    Dense,
    LayerNorm,
    Normalize,
    Pooling,
    SentenceModel,
    WeightedLayerPooling,
)
from minibert.embedding.settings import SentenceSettings
from minibert.errors import CheckpointMismatchError, InputError, writing
from minibert.nn.activations import PReLU, function_of
from minibert.nn.layers import Dropout, Module
from minibert.nn.tree import parameters

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHARD = 5 * 10**9  # maximum bytes of a file, as in `PretrainedModel.save_pretrained`
TYPES = "sentence_transformers.models."


def save_encoder(
    model: SentenceModel,
    tokenizer: "PreTrainedTokenizerBase",
    settings: SentenceSettings,
    folder: Path,
    *,
    overwrite: bool = False,
    card: str | None = None,
) -> None:
    """Writes a sentence-transformers folder; see `SentenceEncoder.save_pretrained`.

    Args:
        model, tokenizer, settings: the encoder.
        folder: where to.
        overwrite: whether to replace an encoder that is there.
        card: the encoder's name in the README.md; None to write none.
    """
    if model.layers != "last":
        raise InputError(
            f"layers: {model.layers!r} cannot be saved: sentence-transformers supports only the "
            "last hidden state"
        )
    kinds = [type(module).__name__ for module in model.chain]
    names = [f"{place}_{kind}" for place, kind in enumerate(kinds, start=1)]
    modules = dict(zip(names, model.chain, strict=True))

    def check(written: str) -> None:
        check_saved(model.transformer, written)
        for name, module in modules.items():
            if parameters(module):
                check_saved(module, os.path.join(written, name))

    with (
        atomic_folder(folder, owned=encoder_paths, overwrite=overwrite, check=check) as new,
        writing(folder),
    ):
        config = model.config
        if "WeightedLayerPooling" in kinds:  # without it, sentence-transformers ignores the module
            config = config.replace(output_hidden_states=True)
        write_model(model.transformer, new, SHARD, config)
        write_tokenizer(tokenizer, new)
        write_json(settings.body_config(), os.path.join(new, BODY_CONFIGS[0]))
        write_json(settings.top_config(), os.path.join(new, TOP_CONFIG))
        for place, (name, module) in enumerate(modules.items()):
            _write_module(module, os.path.join(new, name), place < model.pooling_place)
        entries = zip(["Transformer", *kinds], ["", *names], strict=True)
        lines = [
            {"idx": place, "name": str(place), "path": path, "type": f"{TYPES}{kind}"}
            for place, (kind, path) in enumerate(entries)
        ]
        write_json(lines, os.path.join(new, MODULES))
        if card is not None and not os.path.lexists(os.path.join(folder, MODEL_CARD)):
            with open(os.path.join(new, MODEL_CARD), "w", encoding="utf-8") as file:
                file.write(model_card(model, settings, card))


def _write_module(module: Any, home: str, before: bool) -> None:
    os.mkdir(home)
    config: dict[str, Any] = {}
    match module:
        case Pooling():
            config = {"include_prompt": module.include_prompt}
            if list(module.modes) == [mode for mode in SWITCHES.values() if mode in module.modes]:
                config |= {name: mode in module.modes for name, mode in SWITCHES.items()}
                config["word_embedding_dimension"] = module.in_features
            else:
                config["pooling_mode"] = list(module.modes)
                config["embedding_dimension"] = module.in_features
        case Dense():
            config = {
                "in_features": module.in_features,
                "out_features": module.out_features,
                "bias": module.use_bias,
                "activation_function": _torch_name(module.activation_function),
            }
            if module.use_residual:  # a field that older versions do not know
                config["use_residual"] = True
        case LayerNorm():
            config = {"dimension": module.in_features}
        case Dropout():
            config = {"dropout": module.rate}
        case WeightedLayerPooling():
            config = {
                "word_embedding_dimension": module.in_features,
                "layer_start": module.layer_start,
                "num_hidden_layers": module.num_hidden_layers,
            }
    if before and isinstance(module, Dense | Normalize):
        config |= dict.fromkeys(NAMES, "token_embeddings")
    if parameters(module):
        if faults := tree_faults(module, _shapes(module)):
            raise CheckpointMismatchError(f"{home}: differs from its settings", faults)
        write_tensors(file_leaves(module), os.path.join(home, SAFETENSORS))
    write_json(config, os.path.join(home, "config.json"))


def _shapes(module: Any) -> Module:
    """Returns the tree of shapes that a module's settings describe."""
    match module:
        case Dense():
            expected = Dense(
                module.in_features,
                module.out_features,
                bias=module.use_bias,
                activation="linear",
                use_residual=module.use_residual,
                rngs=None,
            )
            expected.activation_function = module.activation_function
            return expected
        case WeightedLayerPooling():
            sizes = (module.in_features, module.num_hidden_layers, module.layer_start)
            return WeightedLayerPooling(*sizes, rngs=None)
        case _:
            return LayerNorm(module.in_features, rngs=None)


def _torch_name(activation: Any) -> str:
    """Returns the full name of torch.nn's class for an activation."""
    name = "prelu" if isinstance(activation, PReLU) else activation.name
    known = [
        cls
        for cls, ours in TORCH_ACTIVATIONS.items()
        if ours == name or ("prelu" not in (ours, name) and function_of(ours) is function_of(name))
    ]
    if not known:
        raise InputError(
            f"activation: {name!r} cannot be saved: torch.nn has no class for it without arguments"
        )
    home = "linear" if known[0] == "Identity" else "activation"
    return f"torch.nn.modules.{home}.{known[0]}"
