"""The command: what it imports, its exit codes, and errors of one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmgpt.cli.main import COMMANDS

HEAVY = ("torch", "timm", "lightning", "transformers", "numpy", "av", "fastapi", "uvicorn")


def test_import_and_every_help_load_nothing_heavy():
    """In one process of its own: each command's --help in turn, then what they have loaded by then."""
    code = f"""
import sys, contextlib, io
import mmgpt
from mmgpt.cli.main import main
for arguments in {[[name] for name in COMMANDS] + [["tokenizer", "train"], []]!r}:
    sys.argv = ["mmgpt", *arguments, "--help"]
    told = io.StringIO()
    try:
        with contextlib.redirect_stdout(told):
            main()
    except SystemExit as ended:
        assert not ended.code, (arguments, ended.code)
    assert "usage: mmgpt" in told.getvalue() and "--help" in told.getvalue(), told.getvalue()
print(*[name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_info_tells_of_a_checkpoint_and_loads_nothing_heavy(model_directory):
    code = f"""
import sys
from mmgpt.cli.main import main
sys.argv = ["mmgpt", "info", {str(model_directory)!r}]
main()
print(*[name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    *told, heavy = done.stdout.splitlines()
    assert "M parameters" in told[0]
    assert heavy == ""


def test_public_names_are_all_there_and_lazy():
    import mmgpt

    for name in mmgpt.__all__:
        assert getattr(mmgpt, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Modle'"):
        mmgpt.Modle  # noqa: B018


def test_without_a_command_the_commands_are_listed_and_the_code_is_2(mmgpt_command):
    told = mmgpt_command()
    assert told.code == 2
    assert all(name in told.out for name in COMMANDS)
    assert mmgpt_command("--help") == type(told)(0, told.out, "")


def test_the_version_is_told(mmgpt_command):
    assert mmgpt_command("--version").out.strip()[0].isdigit()


def test_an_unknown_command_is_bad_usage(mmgpt_command):
    assert "'captoin' is not a command; there are: demo, train" in mmgpt_command("captoin", "a.jpg").error(2)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["caption", "a.jpg", "--modle", "x"], "unrecognized arguments: --modle x; did you mean --model?"),
        (["caption"], "required: IMAGE"),
        (["transcribe", "a.wav", "--beams", "two"], "argument --beams: invalid int value: 'two' (see mmgpt"),
        (["demo", "--samples", "many"], "invalid int value: 'many'"),
        (["tokenizer"], "required: command"),
        (["tokenizer", "train", "a.txt"], "required: --out"),
        (["info", "a", "b"], "unrecognized arguments: b"),
    ],
)
def test_bad_usage_is_one_line_and_2(mmgpt_command, arguments, told):
    assert told in mmgpt_command(*arguments).error(2)


def test_debug_shows_where_an_error_came_from(mmgpt_command, tmp_path):
    from mmgpt.errors import CheckpointError

    assert mmgpt_command("info", tmp_path / "no").code == 1
    with pytest.raises(CheckpointError):
        mmgpt_command("info", tmp_path / "no", "--debug")


def test_a_real_process_exits_with_the_code_and_debug_prints_the_traceback(tmp_path):
    command = [Path(sys.executable).with_name("mmgpt"), "train", "--config", tmp_path / "no.yaml"]
    for extra, first in (([], "mmgpt: error: "), (["--debug"], "Traceback")):
        done = subprocess.run([*command, *extra], capture_output=True, text=True, check=False, timeout=60)
        assert done.stderr.startswith(first), done.stderr
        assert extra or done.returncode == 2


@pytest.mark.parametrize("buffered", ["", "1"])
def test_a_reader_that_goes_away_is_told_nothing(buffered):
    """As in `mmgpt --help | true`."""
    read, write = os.pipe()
    os.close(read)
    command = [Path(sys.executable).with_name("mmgpt"), "--help"]
    environment = {**os.environ, "PYTHONUNBUFFERED": buffered}
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, env=environment, check=False, timeout=60)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


def test_files_that_the_system_refuses_are_told_in_one_line(mmgpt_command, tmp_path):
    """Whatever the command was about to do with them."""
    (tmp_path / "file").touch()
    line = mmgpt_command("train", "--out", tmp_path / "file" / "run").error(1)
    assert "cannot write" in line
    assert "Not a directory" in line
