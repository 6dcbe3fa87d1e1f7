"""The benchmarks, run on models so small that they take seconds: what they measure is the same on both sides."""

import re
import sys
from pathlib import Path

import pytest
import torch
import transformers

from mmgpt.gpt import GPT

SCRIPTS = Path(__file__).parents[2] / "scripts"
VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
PICTURE = {"image_size": 32, "patch_size": 16}


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    """Scripts are found as when they are run by path, and the process is afterwards what it was."""
    monkeypatch.syspath_prepend(SCRIPTS)
    threads, verbosity = torch.get_num_threads(), transformers.logging.get_verbosity()
    yield
    torch.set_num_threads(threads)
    transformers.logging.set_verbosity(verbosity)
    transformers.logging.enable_progress_bar()


@pytest.fixture
def generate(monkeypatch):
    import bench_generate

    monkeypatch.setattr(bench_generate, "GPT2", {**bench_generate.GPT2, "n_embd": 48, "n_layer": 2, "n_head": 4})
    monkeypatch.setattr(bench_generate, "VIT", {**VIT, **PICTURE})
    monkeypatch.setattr(bench_generate, "SIGLIP", {**bench_generate.SIGLIP, **VIT, **PICTURE})
    llama = {**VIT, "hidden_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    monkeypatch.setattr(bench_generate, "SMOLLM2", {**bench_generate.SMOLLM2, **llama})
    monkeypatch.setattr(bench_generate, "bandwidth", lambda: 1e10)
    return bench_generate


@pytest.fixture
def train(monkeypatch):
    import bench_train

    sizes = (VIT, {"n_embd": 48, "n_layer": 2, "n_head": 2, "vocab_size": 500}, 32, 4)
    monkeypatch.setattr(bench_train, "SHAPES", {"ViT-S + GPT-2": sizes, "small": sizes})
    monkeypatch.setattr(bench_train, "gemm_peak", lambda: 1e11)
    return bench_train


@pytest.fixture
def run(monkeypatch, capsys):
    def main(module, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [module.__file__, "--threads", "1", "--rounds", "1", *map(str, arguments)])
        module.main()
        return capsys.readouterr().out

    return main


@pytest.mark.parametrize(
    ("part", "lines"), [("batch", 3), ("beam", 1), ("captions", 2), ("llava", 2), ("ragged", 6), ("lookup", 4)]
)
def test_both_sides_give_the_same_tokens(generate, run, part, lines):
    told = run(generate, "--only", part, "--new-tokens", 5)
    assert len(re.findall(r"\d \[\d+\.\d\d-\d+\.\d\d\] .* ms/token", told)) == lines
    assert "DIFFER" not in told


def test_other_weights_on_one_side_are_told(generate, run, monkeypatch):
    weights = generate.GPT.from_pretrained

    def other(folder: Path) -> GPT:
        gpt = weights(folder)
        torch.nn.init.normal_(gpt.embedding.weight)
        return gpt

    monkeypatch.setattr(generate.GPT, "from_pretrained", other)
    assert "TOKENS DIFFER" in run(generate, "--only", "beam", "--new-tokens", 8)


def test_answers_that_pictures_do_not_change_prove_nothing(generate, run, monkeypatch):
    same = generate.pictures(1, 32)
    monkeypatch.setattr(generate, "pictures", lambda count, side: same.expand(count, -1, -1, -1))
    with pytest.raises(SystemExit, match="the same without the pictures"):
        run(generate, "--only", "llava", "--new-tokens", 4)


@pytest.mark.parametrize(("part", "lines"), [("prefix", 2), ("cross", 2), ("few", 2), ("align", 5)])
def test_steps_of_both_sides_have_the_same_loss(train, run, part, lines):
    assert run(train, "--only", part).count(" ms") - 1 == lines  # the header says it too


def test_another_loss_on_one_side_ends_the_run(train, run, monkeypatch):
    monkeypatch.setattr(train.Both, "their_loss", lambda both: 2 * both.loss())
    with pytest.raises(SystemExit, match="the losses differ"):
        run(train, "--only", "prefix")


@pytest.mark.parametrize("side", ["ours", "theirs"])
@pytest.mark.parametrize("name", ["generate", "train"])
def test_the_memory_of_a_side_is_that_of_a_process_without_the_other(request, run, monkeypatch, tmp_path, name, side):
    module, folder = request.getfixturevalue(name), tmp_path / "weights"
    if name == "generate":
        module.Peer(folder)
    else:
        module.Both("ViT-S + GPT-2", folder)

    def built(*_args, **_kwargs):
        raise AssertionError("the other side was built")

    if side == "theirs":
        monkeypatch.setattr(module.MultimodalGPT, "__init__", built)
        monkeypatch.setattr(module.GPT, "__init__", built)
    else:
        monkeypatch.setattr(module.GPT2LMHeadModel, "__init__", built)
    assert re.fullmatch(r"\d+ MB, \d+ of it beyond the imports\n", run(module, "--child", side, folder))


def test_a_run_is_measured_beside_a_bare_loop(run, monkeypatch):
    import bench_run

    monkeypatch.setattr(bench_run, "STEPS", 3)
    assert re.search(r"\[-?\d+\.\d\d--?\d+\.\d\d\] ms added +\d", run(bench_run, "--only", "overhead"))


def test_a_child_that_fails_ends_the_run_with_its_reason(generate, tmp_path, monkeypatch):
    import bench

    monkeypatch.setattr(sys, "argv", ["-c"])
    monkeypatch.setattr(bench.subprocess, "run", lambda *_, **__: bench.subprocess.CompletedProcess([], 1, "", "Oh."))
    with pytest.raises(SystemExit, match=r"nothing, ours: Oh\."):
        bench.print_peaks("nothing", tmp_path)
