"""Options that several commands share, and their answers on the screen."""

import argparse
import json
from typing import Any

DEFAULT_MODEL = "runs/demo"


def parser(command: str, description: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=f"mmgpt {command}", description=description)


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=DEFAULT_MODEL, metavar="DIR", help="a trained model (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")


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


def show(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False))
