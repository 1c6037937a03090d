"""What the contract of tests/models asks of a family: its facts, as data.

A family is tested by a file of its facts and a line in `families.py`. What only one family has is
tested in a file of its own.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

Config = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Planting:
    """A class in which mistakes are planted.

    Attributes:
        name: the class.
        mistakes: by name, each with what its config needs besides.
        config: what the config needs for all of them.
        decoder: whether the arguments are a decoder's: padded on the left, positions counted, and
            the states of an encoder to attend to.
    """

    name: str
    mistakes: Mapping[str, tuple[Any, Config]]
    config: Config = dataclasses.field(default_factory=dict)
    decoder: bool = False


@dataclasses.dataclass(frozen=True)
class Tensors:
    """Tensors of a tiny checkpoint, by what they are, to be spoiled.

    Attributes:
        name: the class whose checkpoint it is.
        kernel: of attention in the second layer.
        shape: its shape in the file.
        wide: a kernel of shape (24, 80) in the file.
        bias: a bias of the model, its shape.
        norm: the scale of a LayerNorm, and `words` the embedding matrix of tokens.
        layer: what a layer's tensors begin with, without its number.
        leaf: a tensor of width 24 in any layer.
        layer_faults: how many tensors a layer has.
        unprefixed_faults: how many faults there are if every tensor has an unknown prefix.
        last: the number of the last layer.
        prefix: what the names of missing tensors begin with and those in the file do not.
        more: faults that only this family has, by name: a change and what is said of it.
    """

    name: str
    kernel: str
    shape: tuple[int, int]
    wide: str
    bias: tuple[str, tuple[int]]
    norm: str
    words: str
    layer: str
    leaf: str
    layer_faults: int
    unprefixed_faults: int
    last: int = 1
    prefix: str = ""
    more: Mapping[str, tuple[Any, tuple[str, ...]]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Facts:
    """What the contract needs to know about a family.

    Attributes:
        model_type: as config.json has it.
        tiny: the sizes of a tiny model, all different.
        classes: the family's classes, each with what its config needs.
        words: the class whose activations, masks and embeddings are compared: one that predicts
            tokens.
        switched: the class whose switches are compared.
        switches: settings other than the default ones that change what is computed.
        gradients: settings of `words` whose gradients are compared.
        planted: mistakes that the tests must see.
        tensors: of a checkpoint, to be spoiled.
        heads: faults of heads, by name: a class, a change, the error and what it says.
        sizes: sizes that are not those of `tensors`, and what is then said of which tensor; of
            fields with two names the other one too.
        labelled: the class with a head of labels, and the head's tensors.
        choices: classes that take an axis of choices.
        norms: how the names of LayerNorm scales end.
        types: how many token types there are; 0 if the model takes none.
        activation: the config's field of that name.
        positions: the config's field of the number of positions.
        tokens: how many tokens fit, and where that comes from, as messages say it.
        ignored: fields of a config.json that its class of transformers writes and does not read.
        tree: the family whose module tree it has, so that tensors alone do not tell them apart.
        types_field: the config's field of the number of token types.
        attended: in a block of transformers', the layers whose inputs are the heads' outputs.
        wrapped: classes whose files are tried inside wrappers.
    """

    model_type: str
    tiny: Config
    classes: Mapping[str, Config]
    words: str
    switched: str
    switches: Sequence[Config]
    gradients: Sequence[Config]
    planted: Sequence[Planting]
    tensors: Tensors
    heads: Mapping[str, tuple[Any, ...]]
    sizes: Mapping[str, tuple[Any, str]]
    labelled: tuple[str, tuple[str, ...]]
    wrapped: Sequence[str]
    choices: Sequence[str] = ()
    norms: tuple[str, ...] = ("LayerNorm.weight",)
    types: int = 2
    activation: str = "hidden_act"
    positions: str = "max_position_embeddings"
    tokens: tuple[int, str] = (40, "max_position_embeddings")
    tree: str = ""
    ignored: tuple[str, ...] = ()
    types_field: str = "type_vocab_size"
    attended: tuple[str, ...] = ("attention.output.dense", "crossattention.output.dense")

    @property
    def pad(self) -> int:
        """The id of padding."""
        return self.tiny.get("pad_token_id", 0)

    @property
    def width(self) -> int:
        """The width of token embeddings."""
        return self.tiny.get("embedding_size", 24)

    @property
    def base(self) -> str:
        """The class without a head."""
        return next(iter(self.classes))
