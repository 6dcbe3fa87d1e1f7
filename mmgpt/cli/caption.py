"""mmgpt caption: describe pictures, a few on the screen or any number into a file."""

from mmgpt.cli import options
from mmgpt.cli.files import answer_files
from mmgpt.errors import ConfigError


def main(arguments: list[str]) -> None:
    parser = options.parser(
        "caption",
        "Describe pictures, one line each. With --out into a file, where a start that was interrupted is gone on with.",
    )
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="picture files; with --out also folders, patterns ('photos/**'), - for names on standard input, .tar, "
        ".parquet",
    )
    parser.add_argument("--out", metavar="FILE", help="captions.jsonl: a line for each picture")
    parser.add_argument(
        "--threads", type=int, default=2, metavar="N", help="that decode pictures for --out (default: %(default)s)"
    )
    parser.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="what captions for --out: this process, or workers of the Ray cluster at RAY_ADDRESS or on this machine, "
        "all of which see pictures and model under the same paths and have mmgpt installed (default: %(default)s)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="of Ray, a model in each (default: one for each GPU, or for each core where there are none)",
    )
    options.add_examples(parser, "CAPTION")
    options.add_model(parser, options.PUBLIC_CAPTIONER)
    options.add_decoding(parser)
    args = parser.parse_args(arguments)
    if args.out is None:
        if args.engine == "ray" or args.workers:
            raise ConfigError("--engine, --workers: go with --out")
        answer_files(args, args.images, "caption", "image", "caption")
        return
    if args.example:
        raise ConfigError("--example: goes without --out")
    for name, number in (("threads", args.threads), ("workers", args.workers)):
        if number is not None and number < 1:
            raise ConfigError(f"--{name}: must be a whole number from 1 on, not {number}")
    if args.workers and args.engine != "ray":
        raise ConfigError("--workers: goes with --engine ray")

    import sys
    from pathlib import Path

    from mmgpt.bulk.captions import caption_all
    from mmgpt.data.pictures import find_pictures
    from mmgpt.generation import Decoding

    decoding = Decoding(**options.decoding(args))
    pictures, out = find_pictures(args.images), Path(args.out)
    found = caption_all(
        args.model,
        pictures,
        out,
        decoding,
        int8=args.int8,
        threads=args.threads,
        engine=args.engine,
        workers=args.workers,
    )
    if args.json:
        options.show({"described": found.described, "failed": found.failed, "before": found.before})
    else:
        also = f", {found.before:,} of them before" if found.before else ""
        print(f"{out}: {found.described:,} described, {found.failed:,} could not be{also}")
    if found.failed:
        print(f"mmgpt: error: see {out.with_suffix('.failed.jsonl')} for {found.failed:,} pictures", file=sys.stderr)
        sys.exit(1)
