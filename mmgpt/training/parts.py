"""Parts of a model, by patterns of names: which are trained, how fast and by which optimizer; a table tells it."""

import difflib
from collections import Counter, defaultdict
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_only
from rich.console import Console
from rich.table import Table
from torch import nn

from mmgpt.errors import ConfigError
from mmgpt.run_config import OptimizerConfig

CROSS = {"cross", "cross_norm", "gated"}  # modules of a block that look at media


def named(model: nn.Module, pattern: str, field: str) -> set[str]:
    """The parameters that a pattern names, or that are in a module it names; `*` stands for anything, dots too.

    Raises ConfigError where there are none, with the nearest names; `field` is where the pattern stands.
    """
    names = (name for name, _ in model.named_parameters())
    found = {name for name in names if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")}
    if not found:
        modules = [name for name, module in model.named_modules() if name and any(True for _ in module.parameters())]
        lasts = dict.fromkeys(f"*.{name.rpartition('.')[2]}" for name in modules if "." in name)
        near = difflib.get_close_matches(pattern.removesuffix(".*"), [*modules, *lasts], n=3)
        heads = sorted({".".join(name.split(".")[:2]) for name in modules if "." in name})
        hint = f"did you mean {' or '.join(near)}?" if near else f"the model has {', '.join(heads)}"
        raise ConfigError(f"{field}: nothing is named {pattern!r}; {hint}")
    return found


def train_only(model: nn.Module, patterns: Sequence[str]) -> None:
    """Train what the patterns name and nothing else; what was frozen before stays so."""
    wanted = set[str]().union(*(named(model, pattern, "train") for pattern in patterns))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name in wanted)


def parameter_groups(model: nn.Module, settings: OptimizerConfig) -> list[dict[str, Any]]:
    """Trainable parameters by how they are stepped: which optimizer, which learning rate, weight decay or not.

    Matrices (and kernels of convolutions that mix channels) are decayed, and are Muon's where it is chosen; norms,
    biases, embeddings, output heads, learned queries and depthwise kernels are AdamW's and are not decayed.

    Raises ConfigError where nothing is trained, and for factors that are not above 0 or name nothing.
    """
    factors: dict[str, float] = {}
    for pattern, factor in settings.scales.items():
        if not factor > 0:
            raise ConfigError(f"optimizer.scales: {pattern}: must be above 0, not {factor}; freeze by `train`")
        factors.update(dict.fromkeys(named(model, pattern, "optimizer.scales"), factor))
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    groups: dict[tuple[bool, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            single = parameter.ndim < 2 or parameter.shape[1] == 1 or id(parameter) in embeddings
            matrix = not single and not name.endswith(("queries", "lm_head.weight"))
            groups[matrix, factors.get(name, 1.0)].append(parameter)
    if not groups:
        raise ConfigError("train: nothing is left to train")
    muon = settings.muon is not None
    return [
        {
            "params": parameters,
            "lr": scale * (settings.muon if settings.muon is not None and matrix else settings.learning_rate),
            "weight_decay": settings.weight_decay if matrix else 0.0,
            **({"matrices": matrix} if muon else {}),
        }
        for (matrix, scale), parameters in groups.items()
    ]


@rank_zero_only
def print_parts(model: nn.Module, settings: OptimizerConfig) -> None:
    """A table of the model's parts: parameters, and how they are stepped, or that they are frozen."""
    steps = {
        id(parameter): (
            f"{group['lr']:.3g}", f"{group['weight_decay']:g}", "Muon" if group.get("matrices") else "AdamW"
        )
        for group in parameter_groups(model, settings)
        for parameter in group["params"]
    }  # fmt: skip
    counts: Counter[tuple[str, ...]] = Counter()
    for name, parameter in model.named_parameters():
        counts[part_of(name), *steps.get(id(parameter), ("frozen", "", ""))] += parameter.numel()
    table = Table("part", box=None, pad_edge=False)
    for column in ("parameters", "learning rate", "weight decay"):
        table.add_column(column, justify="right")
    table.add_column("optimizer")
    before = ""
    for (part, *how), count in sorted(counts.items(), key=lambda row: row[0][0]):
        table.add_row("" if part == before else part, f"{count:,}", *how)
        before = part
    Console().print(table)


def part_of(name: str) -> str:
    """The part that a parameter belongs to: encoders.image, gpt.blocks, "gpt.blocks, cross", "gpt.blocks, LoRA", ..."""
    path = name.replace("gpt.transformer.", "gpt.").split(".")
    part = ".".join(path[:2]) + (", cross" if path[1:2] == ["blocks"] and CROSS & set(path) else "")
    return f"{part}, LoRA" if {"lora_A", "lora_B"} & set(path) else part
