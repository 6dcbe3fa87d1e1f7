"""timm backbones: built, cut down to what makes the features, and probed for the shape of these."""

import copy
import difflib
from collections.abc import Sequence
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import safe_open
from timm.layers import LayerNorm
from torch import Tensor, nn

from mmgpt.errors import ConfigError

Level = tuple[Tensor, Tensor]
"""Single tokens, as class and registers (batch, prefix, width), and the feature map (batch, width, rows, columns)."""


class Backbone(nn.Module):
    """A timm model without its classifier, ending at block (ViTs) or stage `layer`.

    `size`, `mean`, `std` and `resizing` are what it is built for; `prefix`, `rows`, `columns` and `width` the shape of
    its features at that size; `levels` the number of its blocks or stages.

    Args:
        name: As in timm.list_models().
        channels: Of the input; pretrained weights are converted.
        size: Input height and width; None means the model's own.
        pretrained: Fetch the pretrained weights.
        weights: A .safetensors file in timm's format, read instead.
        layer: Which block or stage is the last; those after it are dropped.
        args: More arguments of timm.create_model; norm_layer may be {"eps": ...}.
        state: All its tensors, in timm's names and shapes, taken instead.

    Raises:
        ConfigError: unknown name; arguments, size or weights that do not fit.
    """

    def __init__(
        self,
        name: str,
        channels: int = 3,
        size: tuple[int, int] | None = None,
        pretrained: bool = False,
        weights: str | None = None,
        layer: int = -1,
        args: dict[str, Any] | None = None,
        state: dict[str, Tensor] | None = None,
    ):
        super().__init__()
        self.name, self.channels = name, channels
        arguments: dict[str, Any] = {"in_chans": channels, "num_classes": 0, "pretrained": pretrained, **(args or {})}
        if weights is not None:
            _check_file(name, weights)
            arguments |= {"pretrained": True, "pretrained_cfg_overlay": {"file": weights, "custom_load": False}}
        self.model: Any = create(name, arguments, size) if state is None else _create_of(state, name, arguments, size)
        if not hasattr(self.model, "forward_intermediates"):
            raise ConfigError(f"{name}: timm gives no access to the feature maps of this model; choose another")
        own = self.model.pretrained_cfg
        height, width = size or own["input_size"][1:]
        self.size, self.mean, self.std = (height, width), tuple(own["mean"]), tuple(own["std"])
        self.resizing: dict[str, Any] = {key: own[key] for key in ("crop_mode", "crop_pct", "interpolation")}
        shadow, features, maps = self._shadow(self.size)
        self.levels = len(maps)
        if (index := self._index(layer)) < self.levels - 1:
            self.model.prune_intermediate_layers([index])
            shadow, features, maps = self._shadow(self.size)
            self.levels = index + 1
        self.rows, self.columns = maps[-1].shape[2:]
        self.prefix, self.width = self._measure(features)
        _cut_out(self.model, _unused(shadow, features))
        if weights is not None:
            self._check_loaded(weights)

    def forward(self, inputs: Tensor) -> Level:
        """The features of inputs (batch, channels, height, width)."""
        return self._split(self.model.forward_features(inputs))

    def forward_features(self, inputs: Tensor, layers: Sequence[int]) -> list[Level]:
        """Features after each of the layers; the last is what forward returns.

        Where all layers have one width (ViTs), the final norm is applied to each.
        """
        wanted = [self._index(layer) for layer in layers]
        indices = sorted({*wanted})
        arguments: dict[str, Any] = {"indices": indices, "norm": True}
        if "return_prefix_tokens" in signature(self.model.forward_intermediates).parameters:
            arguments["return_prefix_tokens"] = True
        last, maps = self.model.forward_intermediates(inputs, **arguments)
        found = {index: _level(one) for index, one in zip(indices, maps, strict=True)}
        found[self.levels - 1] = self._split(last)
        return [found[index] for index in wanted]

    def shape_at(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the feature map of an input of another size. Raises ConfigError."""
        _, _, maps = self._shadow(size)
        rows, columns = maps[-1].shape[2:]
        return rows, columns

    def _index(self, layer: int) -> int:
        if not -self.levels <= layer < self.levels:
            raise ConfigError(f"{self.name} has layers 0..{self.levels - 1}, or -1 for the last; there is no {layer}")
        return layer % self.levels

    @property
    def _channels_last(self) -> bool:
        return getattr(self.model, "output_fmt", "NCHW") == "NHWC"

    def _split(self, features: Tensor) -> Level:
        """What the model's forward_features returns, in any of timm's formats."""
        if features.ndim == 3:
            single, spatial = features[:, : self.prefix], features[:, self.prefix :]
            return single, spatial.mT.unflatten(2, (self.rows, -1))
        if self._channels_last:
            features = features.permute(0, 3, 1, 2)
        return features.new_empty(len(features), 0, features.shape[1]), features

    @torch.enable_grad()
    def _shadow(self, size: tuple[int, int]) -> tuple[nn.Module, Tensor, list[Tensor]]:
        """A copy on the meta device, which has shapes but no numbers; its last features and all feature maps."""
        shadow = copy.deepcopy(self.model).to("meta")
        try:
            return shadow, *shadow.forward_intermediates(torch.empty(1, self.channels, *size, device="meta"))
        except Exception as error:  # asserted or run into, differently in each model
            raise ConfigError(f"{self.name} takes no input of {size[0]} x {size[1]}: {error}") from error

    def _measure(self, features: Any) -> tuple[int, int]:
        """The number of prefix tokens, and the width, of what forward_features returns."""
        if isinstance(features, Tensor) and features.ndim == 4:
            return 0, features.shape[3 if self._channels_last else 1]
        if isinstance(features, Tensor) and features.shape[1] >= self.rows * self.columns:
            return features.shape[1] - self.rows * self.columns, features.shape[2]
        raise ConfigError(f"{self.name}: does not end in a grid of tokens; choose another model")

    def _check_loaded(self, weights: str) -> None:
        """timm passes over tensors that a file lacks; we do not."""
        with safe_open(weights, "pt") as file:
            missing = sorted(self.model.state_dict().keys() - set(file.keys()))
        if missing:
            raise ConfigError(f"{weights}: not weights of {self.name}: lacks {missing[0]} and {len(missing) - 1} more")


def _level(found: Tensor | tuple[Tensor, Tensor]) -> Level:
    """One of the feature maps that forward_intermediates returns, with its prefix tokens where it has them."""
    if isinstance(found, tuple):
        return found[1], found[0]
    return found.new_empty(len(found), 0, found.shape[1]), found


def create(name: str, arguments: dict[str, Any], size: tuple[int, int] | None) -> nn.Module:
    """A timm model for inputs of this height and width; None means its own. Raises ConfigError."""
    if isinstance(norm := arguments.get("norm_layer"), dict):  # timm wants a partial, which no file could hold
        arguments = {**arguments, "norm_layer": partial(LayerNorm, **norm)}
    if not timm.is_model(name):
        nearest = difflib.get_close_matches(name.split(".")[0], timm.list_models(), 3, cutoff=0)
        raise ConfigError(f"{name}: timm has no model of this name; the nearest are {', '.join(nearest)}")
    try:
        if size is None:
            return timm.create_model(name, **arguments)
        try:
            return timm.create_model(name, img_size=tuple(size), **arguments)
        except TypeError as error:  # convolutional models take pictures of any size, and no such argument
            if "img_size" not in str(error):
                raise
            return timm.create_model(name, **arguments)
    except Exception as error:  # of the arguments, of the file, of the hub, of the network: all the user's to mend
        raise ConfigError(f"{name}: {error}") from error


def _create_of(
    state: dict[str, Tensor], name: str, arguments: dict[str, Any], size: tuple[int, int] | None
) -> nn.Module:
    with torch.device("meta"):  # no time and memory for numbers that are replaced
        model = create(name, arguments, size)
    model.load_state_dict(state, assign=True)
    return model


def _check_file(name: str, weights: str) -> None:
    if not weights.endswith(".safetensors"):
        raise ConfigError(f"{weights}: weights of {name} are read from .safetensors files alone")
    if not Path(weights).is_file():
        raise ConfigError(f"{weights}: no such file (weights of {name})")


@torch.enable_grad()  # even where the user wants none
def _unused(model: nn.Module, features: Tensor) -> set[str]:
    """Names of the parameters that took no part in features: the classifier's norm, pool, ..."""
    named = dict(model.named_parameters())
    gradients = torch.autograd.grad(features.sum(), list(named.values()), allow_unused=True)
    return {key for key, gradient in zip(named, gradients, strict=True) if gradient is None}


def _cut_out(module: nn.Module, unused: set[str], path: str = "") -> None:
    """Replace modules of which every parameter is unused, the largest first."""
    for name, _ in list(module.named_parameters(recurse=False)):
        if path + name in unused:
            module.register_parameter(name, None)
    for name, child in list(module.named_children()):
        inside = f"{path}{name}."
        parameters = {inside + key for key, _ in child.named_parameters()}
        if parameters and parameters <= unused:
            setattr(module, name, nn.Identity())
        elif parameters & unused:
            _cut_out(child, unused, inside)


def hub_id(name: str) -> str:
    """The Hub id of timm's pretrained weights by this name, or the name where there is none."""
    known = timm.models.get_pretrained_cfg(name)
    return (known and known.hf_hub_id) or name
