"""mmgpt inspect on files."""

import pytest
from walls import wall_config, write_walls

from mmgpt.cli.train import save_config


@pytest.fixture
def walls(tmp_path):
    save_config(wall_config(write_walls(tmp_path / "data", broken=("train",)), tmp_path / "run"))
    return tmp_path / "run" / "config.yaml"


def test_samples_are_told_and_shown_on_a_page(mmgpt_command, walls, tmp_path):
    told = mmgpt_command("inspect", walls, "-n", 10, "--page", tmp_path / "page.html")
    assert told.code == 0, told.err
    assert told.out.count("<|user|>[image: 1 slots]") == 9
    assert told.out.count(" wall<|end|>") == 9
    assert "not learned from: " in told.out
    assert (tmp_path / "page.html").read_text().count("<article") == 10
    assert [path.name for path in walls.parent.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(["-n", "0"], "-n: must be a whole number from 1 on, not 0"), (["--epocs", "3"], "did you mean --epochs?")],
)
def test_bad_usage_is_one_line_and_2(mmgpt_command, arguments, told):
    assert told in mmgpt_command("inspect", *arguments).error(2)
