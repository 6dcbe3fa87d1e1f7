"""Options that several commands share, and their answers on the screen."""

import argparse
import difflib
import json
from pathlib import Path
from typing import Any, NoReturn

from mmgpt.errors import ConfigError, DataError

DEFAULT_MODEL = "runs/demo"
PUBLIC_CAPTIONER = "nlpconnect/vit-gpt2-image-captioning"


class Parser(argparse.ArgumentParser):
    """Tells bad usage as all errors are told, in one line, where argparse would print the whole usage."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{with_nearest(message, self)} (see {self.prog} --help)")


def parser(command: str, description: str) -> Parser:
    return Parser(prog=f"mmgpt {command}", description=description)


def run_parser(command: str, description: str) -> Parser:
    """Of a command that looks at a training run; what it does not know are arguments of `mmgpt train`."""
    return Parser(
        prog=f"mmgpt {command}",
        usage="%(prog)s [[--config] FILE] [--FIELD VALUE ...] [options]",
        description=description,
        epilog="All arguments of `mmgpt train` are taken too; `mmgpt train --help` lists them.",
        allow_abbrev=False,
    )


def with_nearest(message: str, parser: argparse.ArgumentParser) -> str:
    """The message, and if it is about unknown options, what the first of them was probably meant to be."""
    known = [name for action in parser._actions for name in action.option_strings]
    _, _, unknown = message.partition("unrecognized arguments: ")
    option = unknown.partition(" ")[0].partition("=")[0]
    near = difflib.get_close_matches(option, known, 1)
    return f"{message}; did you mean {near[0]}?" if near else message


def add_model(parser: argparse.ArgumentParser, default: str = DEFAULT_MODEL) -> None:
    parser.add_argument(
        "--model", default=default, metavar="DIR", help="a trained model, or one of the Hub (default: %(default)s)"
    )
    add_how(parser)


def add_how(parser: argparse.ArgumentParser) -> None:
    """How a model computes and how it is told."""
    add_int8(parser)
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")


def add_int8(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--int8", action="store_true", help="compute in int8 on the CPU: faster, and nearly as exact")


def add_media(parser: argparse.ArgumentParser) -> None:
    """Media that are asked about: a list of files of each kind."""
    for modality in ("image", "audio", "video"):
        parser.add_argument(
            f"--{modality}", action="append", default=[], metavar="FILE", help="may be given several times"
        )


def add_examples(parser: argparse.ArgumentParser, answer: str) -> None:
    parser.add_argument(
        "--example",
        nargs=2,
        action="append",
        default=[],
        metavar=("FILE", answer),
        help="stands before what is asked, and may be given several times (few-shot)",
    )


def add_decoding(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="longest answer (default: 64)")
    parser.add_argument("--beams", type=int, default=1, metavar="N", help="width of the beam search (default: 1, none)")
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="draw answers; 0 takes the likeliest (default: 0)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws (default: 0)")


def decoding(arguments: argparse.Namespace) -> dict[str, Any]:
    """The decoding settings of the command line, as Assistant's methods take them."""
    names = ("max_new_tokens", "beams", "temperature", "seed")
    return {name: getattr(arguments, name) for name in names}


def read_file(name: str) -> str:
    """The text of a file, or of standard input (-). Raises DataError: It cannot be read, or there is none."""
    from mmgpt.data.table import read_text

    text = read_text(Path("/dev/stdin" if name == "-" else name)).strip()
    if not text:
        raise DataError(f"{'standard input' if name == '-' else name}: there is no text in it")
    return text


def show(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False))
