"""mmgpt generate: go on with a text."""

from mmgpt.cli import options


def main(arguments: list[str]) -> None:
    parser = options.parser(
        "generate",
        "Go on with a text, by a model that has learned plain texts. It appears as it is written; --temperature 0.8 "
        "draws it, and without, the likeliest comes each time.",
    )
    parser.add_argument("text", nargs="?", default="", metavar="TEXT", help="how it begins (default: with nothing)")
    options.add_model(parser)
    options.add_decoding(parser)
    args = parser.parse_args(arguments)

    import mmgpt

    assistant = mmgpt.load(args.model, int8=args.int8)
    decoding = options.decoding(args)
    if args.json:
        options.show({"text": args.text, "completion": assistant.complete(args.text, **decoding)})
        return
    print(args.text, end="", flush=True)
    if args.beams > 1:  # whose text is not settled before its end
        print(assistant.complete(args.text, **decoding), end="")
    else:
        for piece in assistant.stream_completion(args.text, **decoding):
            print(piece, end="", flush=True)
    print()
