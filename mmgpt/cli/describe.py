"""mmgpt describe: tell what happens in videos and sounds."""

from mmgpt.cli import options
from mmgpt.cli.files import answer_files


def main(arguments: list[str]) -> None:
    parser = options.parser("describe", "Tell what happens in videos and sounds, one line each.")
    parser.add_argument("media", nargs="+", metavar="FILE", help="videos, sounds or pictures, by their endings")
    options.add_examples(parser, "DESCRIPTION")
    options.add_model(parser)
    options.add_decoding(parser)
    args = parser.parse_args(arguments)
    answer_files(args, args.media, "describe", "media", "description")
