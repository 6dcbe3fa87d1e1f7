"""mmgpt ask: answer a question about pictures, sounds or videos, or about a text."""

from mmgpt.cli import options
from mmgpt.errors import ConfigError


def main(arguments: list[str]) -> None:
    parser = options.parser(
        "ask", "Answer a question about pictures, sounds, videos or a text, or about nothing but words."
    )
    parser.add_argument("question")
    options.add_media(parser)
    parser.add_argument("--text", metavar="FILE", help="what the question is about, in UTF-8; - reads standard input")
    parser.add_argument(
        "--example",
        nargs="+",
        action="append",
        default=[],
        metavar="[FILE ...] QUESTION ANSWER",
        help="stands before what is asked, and may be given several times (few-shot)",
    )
    options.add_model(parser)
    options.add_decoding(parser)
    args = parser.parse_args(arguments)
    if any(len(example) < 2 for example in args.example):
        raise ConfigError("--example: is a question and its answer, after the files that it is about")

    import mmgpt
    from mmgpt.data.folders import medium_of

    text = options.read_file(args.text) if args.text else ""
    examples = []
    for *names, question, right in args.example:
        examples.append(([*(medium_of(name, mmgpt.Video) for name in names), question], right))
    assistant = mmgpt.load(args.model, int8=args.int8)
    answer = assistant.ask(
        args.question,
        image=args.image,
        audio=args.audio,
        video=args.video,
        text=text,
        examples=examples,
        **options.decoding(args),
    )
    if args.json:
        options.show({"question": args.question, "answer": answer})
    else:
        print(answer)
