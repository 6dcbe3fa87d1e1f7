"""The state of a run, from which it goes on as if it had never stopped: weights, optimizer, place in the data.

    OUT/state/<step>/model.0.safetensors       all parameters and buffers
                     optimizer.0.safetensors   the optimizer's tensors, by the name of their parameter
                     averages.0.safetensors    moving averages of the weights, of a run that has them
                     state.json                steps, place in the data of each process, what callbacks remember
                     metrics.csv               the log so far
    OUT/state/finished.json                    in their stead, of a run that came to its end

Where processes divide a model, each writes its part of every tensor, model.1.safetensors and so on. There is no random
state: what is drawn in a step, or for a sample, is drawn from the seed and its number. A state is written under another
name and renamed, so one that is there is whole.
"""

import csv
import json
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import CSVLogger
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmgpt.distributed import meet, rank
from mmgpt.errors import TrainingError, WriteError, shown
from mmgpt.files import atomic_write, sync
from mmgpt.training.parallel import is_sharded, own_part, part_of, reshard

FINISHED = "finished.json"


def states(out: Path) -> list[Path]:
    """The states of a run, the latest last."""
    folder = out / "state"
    return sorted(path for path in folder.iterdir() if path.name.isdigit()) if folder.is_dir() else []


def save_state(
    out: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    values: dict[str, Any],
    keep: int,
    averages: dict[str, Tensor] | None = None,
) -> None:
    """Write the state after a step and drop all but the last `keep`; all processes call it together.

    Raises WriteError when it cannot be written.
    """
    folder = out / "state"
    draft, old, target = folder / ".draft", folder / ".old", folder / f"{step:09d}"
    if target.is_dir():  # the run went on from before it, to the very same
        return
    reshard(model)
    try:
        if rank() == 0:
            for left_over in (draft, old):  # by a process that was killed
                shutil.rmtree(left_over, ignore_errors=True)
            draft.mkdir(parents=True)
        meet()
        if rank() == 0 or is_sharded(model):
            kinds = {"model": _weights(model), "optimizer": _flat(model, optimizer), "averages": averages}
            for kind, tensors in kinds.items():
                if tensors is not None:
                    save_file({n: own_part(t) for n, t in tensors.items()}, draft / f"{kind}.{rank()}.safetensors")
        for path in draft.glob(f"*.{rank()}.safetensors"):
            sync(path)
        meet()
        if rank() == 0:  # when no process has a temporary file there any more
            (draft / "state.json").write_text(json.dumps(values))
            if (out / "metrics.csv").is_file():
                shutil.copy(out / "metrics.csv", draft)
            for path in draft.iterdir():
                sync(path)
            draft.rename(target)
    except Exception as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise WriteError(f"{folder}: the state of step {step} is not saved: {error}") from error
    if rank() == 0:
        for state in states(out)[:-keep]:
            state.rename(old)  # first: half removed it would look like a whole one
            shutil.rmtree(old, ignore_errors=True)


def read_values(state: Path) -> dict[str, Any]:
    """What state.json holds."""
    try:
        return json.loads((state / "state.json").read_text())
    except (OSError, ValueError) as error:
        raise TrainingError(f"{state}: cannot be read: {error}; remove it to resume from the one before") from None


def check_config(place: Path, started: dict[str, Any], config: dict[str, Any]) -> None:
    """Raises TrainingError where a run, of which `place` tells, was started with another configuration."""
    if changed := next((name for name, value in config.items() if started.get(name) != value), None):
        raise TrainingError(
            f"{place}: is of a run with another {changed}: {shown(started.get(changed))}, not "
            f"{shown(config[changed])}; resume with the same, or begin anew in another directory"
        )


def save_finished(out: Path, values: dict[str, Any]) -> None:
    """Keep what is told of a run that came to its end, in the place of its states."""
    with atomic_write(out / "state" / FINISHED) as path:
        path.write_text(json.dumps(values))
    for state in states(out):
        shutil.rmtree(state, ignore_errors=True)


def read_finished(out: Path) -> dict[str, Any] | None:
    """What `save_finished` kept; None of a run that did not come to its end."""
    path = out / "state" / FINISHED
    return json.loads(path.read_text()) if path.is_file() else None


def forget_finished(out: Path) -> None:
    """A run begins anew where one came to its end."""
    if (out / "state" / FINISHED).is_file():
        shutil.rmtree(out / "state", ignore_errors=True)


def load_weights(state: Path, model: nn.Module) -> None:
    """Put the weights of a state into the model."""
    saved, own = _saved(state, "model", model), _weights(model)
    if saved.keys() != own.keys():
        raise TrainingError(f"{state}: holds another model ({sorted(saved.keys() ^ own.keys())[0]})")
    for name, tensor in own.items():
        own_part(tensor).copy_(saved[name])


def load_optimizer(state: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put the optimizer's tensors of a state into a new optimizer of the same parameters."""
    saved: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in _saved(state, "optimizer", model).items():
        parameter, _, key = name.rpartition("/")
        saved[parameter][key] = tensor
    stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        if id(parameter) in stepped and name in saved:
            optimizer.state[parameter] = {key: part_of(parameter, tensor) for key, tensor in saved[name].items()}


def load_averages(state: Path, model: nn.Module, averages: dict[str, Tensor]) -> None:
    """Make averages of the model's weights what they are in a state."""
    saved = _saved(state, "averages", model)
    for name, average in averages.items():
        average.copy_(saved[name])


def restore_log(state: Path, logger: CSVLogger) -> None:
    """Make the log what it was: steps that are made again would stand in it twice."""
    if (state / "metrics.csv").is_file():
        with (state / "metrics.csv").open(newline="") as file:
            rows: list[Any] = [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]
        logger.experiment.metrics = rows
        logger.save()


def _saved(state: Path, kind: str, model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a kind that this process has saved, or the first one of all that have the same."""
    return load_file(state / f"{kind}.{rank() if is_sharded(model) else 0}.safetensors")


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Each once, though modules may share them; buffers too that a checkpoint leaves out."""
    return {name: tensor.detach() for name, tensor in (*model.named_parameters(), *model.named_buffers())}


def _flat(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{names[id(parameter)]}/{key}": value
        for parameter, values in optimizer.state.items()
        for key, value in values.items()
        if isinstance(value, Tensor)
    }
