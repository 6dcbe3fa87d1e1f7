"""mmgpt serve: a model behind OpenAI's API."""

import argparse
import sys
from dataclasses import fields
from pathlib import Path

from mmgpt.cli import options
from mmgpt.errors import ConfigError
from mmgpt.serving.moderation import BlockList
from mmgpt.serving.settings import ENVIRONMENT, Limits, listen, read_keys

LOCAL = ("127.0.0.1", "localhost", "::1")


def main(arguments: list[str]) -> None:
    parser = options.parser("serve", "Serve a model to the clients of OpenAI's API, many at once.")
    parser.add_argument(
        "model",
        nargs="?",
        default=options.DEFAULT_MODEL,
        metavar="MODEL",
        help="a trained model, or one of the Hub; clients call it by its last name (default: %(default)s)",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s, this machine)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes one that is free (default: %(default)s)")
    parser.add_argument(
        "--api-keys", metavar="FILE", help=f"who may ask: one key to a line (default: {ENVIRONMENT}, or everybody)"
    )
    parser.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="URL",
        help="a web page's origin that may ask; repeatable",
    )
    parser.add_argument(
        "--allow-fetch",
        action="append",
        default=[],
        metavar="HOST",
        help="fetch media at addresses of this host, *.its.parts, or * for all of the internet; repeatable",
    )
    parser.add_argument(
        "--block-list", metavar="FILE", help="refuse requests, and end answers, with one of these phrases in them"
    )
    options.add_int8(parser)
    parser.add_argument(
        "--rows", type=_positive, default=32, metavar="N", help="answers decoded at once (default: %(default)s)"
    )
    for limit in fields(Limits):
        parser.add_argument(
            f"--max-{limit.name}",
            type=_positive,
            default=limit.default,
            metavar="N",
            help=f"most {limit.metadata['help']} (default: %(default)s)",
        )
    args = parser.parse_args(arguments)

    keys = read_keys(args.api_keys)
    moderator = BlockList.read(args.block_list) if args.block_list else None
    limits = Limits(**{limit.name: getattr(args, f"max_{limit.name}") for limit in fields(Limits)})
    listening = listen(args.host, args.port)
    try:
        from mmgpt.serving.server import serve
    except ModuleNotFoundError as error:
        raise ConfigError(f"serve: needs {error.name}; install it with `uv sync --extra serve`") from None
    import mmgpt
    from mmgpt.threads import apart, compute_alone

    compute_alone()  # this thread serves; the engine has one of its own, with a team that no other may slow down
    if not keys and args.host not in LOCAL:
        print(f"mmgpt: warning: {args.host} without --api-keys: whoever reaches it may ask", file=sys.stderr)
    name = Path(args.model).name or Path(args.model).resolve().name
    serve(
        apart(lambda: mmgpt.load(args.model, int8=args.int8)),  # for as many threads as the engine will have
        name,
        listening,
        limits=limits,
        keys=keys,
        origins=args.allow_origin,
        rows=args.rows,
        moderator=moderator,
        fetch=args.allow_fetch,
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)
