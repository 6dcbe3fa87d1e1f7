"""A run to the end, shared by the tests of training."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from walls import wall_config, write_walls

from mmgpt.run_config import TrainConfig
from mmgpt.training.run import Run, train


@dataclass(frozen=True)
class Learned:
    """A run to the end on walls, two of whose pictures are broken."""

    config: TrainConfig
    folder: Path
    run: Run


@pytest.fixture(scope="session")
def learned(tmp_path_factory) -> Learned:
    place = tmp_path_factory.mktemp("walls")
    folder = write_walls(place / "data", broken=("train", "dev"))
    config = wall_config(folder, place / "run", epochs=100, val_every=100)  # 2 batches an epoch
    return Learned(config, folder, train(config))
