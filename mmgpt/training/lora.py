"""LoRA (Hu et al. 2021): steps of low rank beside frozen linear layers, through peft."""

import copy

from torch import nn

from mmgpt.errors import ConfigError
from mmgpt.model import MultimodalGPT
from mmgpt.run_config import LoraConfig
from mmgpt.training.parts import named


def add_lora(model: nn.Module, config: LoraConfig) -> None:
    """Put adapters, which change nothing as yet, beside linear layers, in place. The layers themselves are frozen.

    What else is trained stays so. Raises ConfigError without peft, and for settings that do not fit the model.
    """
    try:
        import peft
    except ImportError:
        raise ConfigError("lora: needs peft; install it with `uv sync --extra lora`") from None
    if config.rank < 1:
        raise ConfigError(f"lora.rank: must be a whole number from 1 on, not {config.rank}")
    linear = [name for name, module in model.named_modules() if type(module) is nn.Linear]
    targets = set[str]()
    for pattern in config.targets:
        inside = named(model, pattern, "lora.targets")
        found = [name for name in linear if f"{name}.weight" in inside]
        if not found:
            raise ConfigError(f"lora.targets: {pattern!r} names no linear layer, but {sorted(inside)[0]}")
        targets.update(found)
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    settings = peft.LoraConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=sorted(targets)
    )  # type: ignore[arg-type]
    peft.inject_adapter_in_model(settings, model)
    for name, parameter in model.named_parameters():  # peft has frozen all but its own
        if id(parameter) in trained and ".base_layer." not in name:
            parameter.requires_grad_(True)


def merged(model: MultimodalGPT) -> MultimodalGPT:
    """The model without LoRA, whose adapters are part of the weights; a model without LoRA as it is.

    Weights that have no adapter are shared with the model given, which stays as it was.
    """
    if not any(hasattr(module, "lora_A") for module in model.modules()):
        return model
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    plain = copy.deepcopy(model, shared)
    for name, module in list(plain.named_modules()):
        if hasattr(module, "lora_A"):
            layer: nn.Linear = module.base_layer  # type: ignore[assignment]
            step = module.get_delta_weight("default")  # type: ignore[operator]
            layer.weight = nn.Parameter(layer.weight.detach() + step.detach(), requires_grad=False)
            plain.set_submodule(name, layer)
    return plain
