"""mmgpt summarize: say a text in short."""

from mmgpt.cli import options
from mmgpt.errors import DataError


def main(arguments: list[str]) -> None:
    parser = options.parser("summarize", "Say a text in short.")
    parser.add_argument("file", metavar="FILE", help="the text in UTF-8; - reads standard input")
    options.add_model(parser)
    options.add_decoding(parser)
    args = parser.parse_args(arguments)

    from pathlib import Path

    import mmgpt
    from mmgpt.data.table import read_text

    text = read_text(Path("/dev/stdin" if args.file == "-" else args.file)).strip()
    if not text:
        raise DataError(f"{'standard input' if args.file == '-' else args.file}: no text to summarize")
    summary = mmgpt.load(args.model, int8=args.int8).summarize(text, **options.decoding(args))
    if args.json:
        options.show({"file": args.file, "summary": summary})
    else:
        print(summary)
