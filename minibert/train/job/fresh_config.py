"""The config of a model that is begun afresh: a preset's or a file's, with a tokenizer's ids."""

from typing import Any

from minibert.core.strict_json import read_json
from minibert.errors import ConfigError, shown


def _ends(tokenizer: Any) -> dict[str, int]:
    """What a config says about a tokenizer's special tokens."""
    names = ("pad_token_id", "bos_token_id", "eos_token_id")
    return {key: found for key in names if (found := getattr(tokenizer, key)) is not None}


def _with_ends(ends: dict[str, int], extra: Any = None, generation: Any = None) -> dict[str, Any]:
    """Them as a config's fields: those that only `generate` asks for stand in two files."""
    others = {key: number for key, number in ends.items() if key != "pad_token_id"}
    found: dict[str, Any] = {key: ends[key] for key in ends if key not in others}
    if others:
        found["extra"] = {**(extra or {}), **others}
        found["generation"] = {**(generation or {}), **others}
    return found


def fresh_config(
    name: str, classes: tuple[Any, ...], tokenizer: Any, labels: dict[str, Any]
) -> Any:
    """Of a preset of a class's family, or of a file; with room for the tokenizer's words."""
    words, ends = len(tokenizer), _ends(tokenizer)
    if not name.endswith(".json"):
        preset = getattr(classes[0].config_class, name, None)
        if name not in ("tiny", "small", "base", "medium", "large", "xl") or preset is None:
            raise ConfigError(f"config: expected a config.json or a preset, found {shown(name)}")
        return preset(vocab_size=words, **labels, **_with_ends(ends))
    data = read_json(name)
    for cls in classes:
        if isinstance(data, dict) and data.get("model_type") == cls.config_class.model_type:
            config = cls.config_class.from_dict(data, name)
            if config.vocab_size < words:
                raise ConfigError(f"{name}: vocab_size: the tokenizer has {words} words")
            for key, number in ends.items():
                if data.get(key) not in (None, number):
                    raise ConfigError(f"{name}: {key}: the tokenizer's is {number}")
            return config.replace(**labels, **_with_ends(ends, config.extra, config.generation))
    known = " or ".join(cls.config_class.model_type for cls in classes)
    raise ConfigError(f"{name}: model_type: expected {known}")
