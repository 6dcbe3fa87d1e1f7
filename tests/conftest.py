"""A tiny model with eyes and ears, and a tokenizer, shared by the tests."""

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # tests run on all cores as it is
if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
    # As images of containers have it: each of the many processes that tests start would compile all of torch for
    # itself, which takes longer than most tests. So it is kept, but not beside the sources.
    sys.dont_write_bytecode = False
    sys.pycache_prefix = str(Path(__file__).parents[1] / ".pytest_cache" / "bytecode")
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix

import importlib
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import torch
from local_hub import TOKEN, LocalHub, running_hub
from tiny import tiny_config

from mmgpt.assistant import Assistant
from mmgpt.model import MultimodalGPT
from mmgpt.processor import Processor
from mmgpt.tokenizer import Tokenizer

if TYPE_CHECKING:
    from playwright.sync_api import Browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
LONGEST = ("test_state.py", "test_parallel.py", "test_plan_command.py", "test_run.py", "test_exam.py", "test_bulk.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first, so that no core waits for another one at the end."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session", autouse=True)
def no_java() -> Iterator[None]:
    """METEOR's program takes ten seconds to begin; the test of METEOR alone runs it, where there is Java."""
    with pytest.MonkeyPatch.context() as patch:
        which = shutil.which
        patch.setattr(shutil, "which", lambda name, *rest: None if name == "java" else which(name, *rest))
        yield


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["A red circle left of a blue square.", "What do you see and hear?"] * 4, 300)


@pytest.fixture(scope="session")
def model(tokenizer: Tokenizer) -> MultimodalGPT:
    """Untrained, but with weights that make its answers depend on everything; else it says its last token for ever."""
    torch.manual_seed(0)
    model = MultimodalGPT(tiny_config(len(tokenizer))).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.mul_(0.5 if name == "gpt.embedding.weight" else 4.0)
    return model


@pytest.fixture(scope="session")
def processor(model: MultimodalGPT, tokenizer: Tokenizer) -> Processor:
    return Processor(model.config, tokenizer)


@pytest.fixture(scope="session")
def assistant(model: MultimodalGPT, tokenizer: Tokenizer) -> Assistant:
    return Assistant(model, tokenizer)


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """A real one, whose microphone hears beeps and may be used unasked."""
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"there is none of {', '.join(BROWSERS)} on this machine")
    with sync_playwright() as playwright:
        microphone = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        yield playwright.chromium.launch(executable_path=path, args=["--no-sandbox", *microphone])


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path) -> Iterator[LocalHub]:
    """A Hub on this machine in the place of the real one, for this process and those it starts."""
    from huggingface_hub import constants

    with running_hub() as server, monkeypatch.context() as patch:
        patch.setenv("HF_ENDPOINT", server.url)
        patch.setenv("HF_HUB_OFFLINE", "0")
        patch.setenv("HF_HOME", str(tmp_path / "hub"))
        patch.setenv("HF_TOKEN", TOKEN)
        patch.setenv("HF_HUB_DISABLE_XET", "1")  # else large files go to another service, which is not here
        patch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        importlib.reload(constants)  # which reads them when it is imported
        yield server
    importlib.reload(constants)
