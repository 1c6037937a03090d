"""A sentence encoder as a folder that sentence-transformers reads, whole or not at all.

What all its versions and other readers understand is written: the older schema of a Pooling, and
the older names of the modules. Poolings in another order than that schema's take the newer one.
"""

import os
from typing import Any

from minibert.checkpoint.agreement import tree_faults
from minibert.checkpoint.files import BODY_CONFIGS, MODULES, TOP_CONFIG, encoder_paths
from minibert.checkpoint.saving import (
    check_saved,
    file_leaves,
    write_json,
    write_model,
    write_tensors,
)
from minibert.checkpoint.sources import SAFETENSORS
from minibert.core.atomic import atomic_folder
from minibert.core.atomic_file import reported
from minibert.embedding.folder import SWITCHES, TORCH_ACTIVATIONS
from minibert.embedding.modules import Dense, Pooling, SentenceModel
from minibert.embedding.settings import SentenceSettings
from minibert.errors import CheckpointMismatchError, InputError, TargetError
from minibert.nn.activations import ACTIVATIONS

SHARD = 5 * 10**9  # the bytes of a file, as in `PretrainedModel.save_pretrained`
TYPES = "sentence_transformers.models."


def save_encoder(
    model: SentenceModel,
    tokenizer: Any,
    settings: SentenceSettings,
    folder: str,
    *,
    overwrite: bool = False,
) -> None:
    """Writes a sentence-transformers folder; see `SentenceEncoder.save_pretrained`."""
    if model.layers != "last":
        raise InputError(
            f"layers: {model.layers!r} cannot be saved: a sentence-transformers folder has the "
            "last hidden state only"
        )

    def check(written: str) -> None:
        check_saved(model.transformer, written)
        for place, module in enumerate(model.chain, start=1):
            if isinstance(module, Dense):
                check_saved(module, os.path.join(written, _name(place, module)))

    with (
        atomic_folder(folder, owned=encoder_paths, overwrite=overwrite, check=check) as new,
        reported(folder),
    ):
        write_model(model.transformer, new, SHARD)
        _write_tokenizer(tokenizer, new)
        write_json(settings.body_config(), os.path.join(new, BODY_CONFIGS[0]))
        write_json(settings.top_config(), os.path.join(new, TOP_CONFIG))
        lines = [{"idx": 0, "name": "0", "path": "", "type": f"{TYPES}Transformer"}]
        for place, module in enumerate(model.chain, start=1):
            kind, path = type(module).__name__, _name(place, module)
            _write_module(module, os.path.join(new, path))
            lines.append({"idx": place, "name": str(place), "path": path, "type": f"{TYPES}{kind}"})
        write_json(lines, os.path.join(new, MODULES))


def _name(place: int, module: Any) -> str:
    return f"{place}_{type(module).__name__}"


def _write_tokenizer(tokenizer: Any, folder: str) -> None:
    try:
        tokenizer.save_pretrained(folder)
    except OSError:
        raise
    except Exception as reason:
        raise TargetError(f"{folder}: the tokenizer cannot be written ({reason})") from None


def _write_module(module: Any, home: str) -> None:
    os.mkdir(home)
    match module:
        case Pooling():
            config = _pooling(module)
        case Dense():
            config = _dense(module)
            widths = (module.in_features, module.out_features)
            expected = Dense(*widths, bias=module.use_bias, activation="linear", rngs=None)
            expected.activation_function = module.activation_function
            if faults := tree_faults(module, expected):
                raise CheckpointMismatchError(f"{home}: differs from its settings", faults)
            write_tensors(file_leaves(module), os.path.join(home, SAFETENSORS))
        case _:
            config = {}
    write_json(config, os.path.join(home, "config.json"))


def _pooling(module: Pooling) -> dict[str, Any]:
    shared = {"include_prompt": module.include_prompt}
    modes = list(SWITCHES.values())
    if list(module.modes) == [mode for mode in modes if mode in module.modes]:
        on = {name: mode in module.modes for name, mode in SWITCHES.items()}
        return {"word_embedding_dimension": module.in_features, **on, **shared}
    return {"embedding_dimension": module.in_features, "pooling_mode": list(module.modes), **shared}


def _dense(module: Dense) -> dict[str, Any]:
    name = module.activation_function.name
    function = ACTIVATIONS[name]
    known = [cls for cls, ours in TORCH_ACTIVATIONS.items() if ACTIVATIONS[ours] is function]
    if not known:
        raise InputError(
            f"activation: {name!r} cannot be saved: torch.nn has no class for it without a setting"
        )
    home = "linear" if known[0] == "Identity" else "activation"
    return {
        "in_features": module.in_features,
        "out_features": module.out_features,
        "bias": module.use_bias,
        "activation_function": f"torch.nn.modules.{home}.{known[0]}",
    }
