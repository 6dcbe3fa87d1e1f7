"""mmgpt caption: describe pictures."""

from mmgpt.cli import options
from mmgpt.cli.files import answer_files


def main(arguments: list[str]) -> None:
    parser = options.parser("caption", "Describe pictures, one line each.")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="picture files")
    options.add_model(parser, options.PUBLIC_CAPTIONER)
    options.add_decoding(parser)
    args = parser.parse_args(arguments)
    answer_files(args, args.images, "caption", "image", "caption")
