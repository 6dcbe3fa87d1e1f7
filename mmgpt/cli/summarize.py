"""mmgpt summarize: say a text in short."""

from mmgpt.cli import options


def main(arguments: list[str]) -> None:
    parser = options.parser("summarize", "Say a text in short.")
    parser.add_argument("file", metavar="FILE", help="the text in UTF-8; - reads standard input")
    options.add_model(parser)
    options.add_decoding(parser)
    args = parser.parse_args(arguments)

    import mmgpt

    text = options.read_file(args.file)
    summary = mmgpt.load(args.model, int8=args.int8).summarize(text, **options.decoding(args))
    if args.json:
        options.show({"file": args.file, "summary": summary})
    else:
        print(summary)
