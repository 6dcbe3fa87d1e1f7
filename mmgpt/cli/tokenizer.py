"""mmgpt tokenizer train: a byte-level BPE on texts."""

from mmgpt.cli import options


def main(arguments: list[str]) -> None:
    parser = options.parser("tokenizer", "Tokenizers.")
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train a byte-level BPE on text files, a line at a time")
    train.add_argument("texts", nargs="+", metavar="TEXT", help="text files, UTF-8")
    train.add_argument("--vocab-size", type=int, default=4096, metavar="N", help="number of tokens (default: 4096)")
    train.add_argument("--out", required=True, metavar="DIR", help="directory for tokenizer.json")
    args = parser.parse_args(arguments)

    from pathlib import Path

    from mmgpt.errors import DataError
    from mmgpt.files import atomic_write
    from mmgpt.tokenizer import Tokenizer

    def lines():
        for name in args.texts:
            try:
                with Path(name).open(encoding="utf-8") as file:
                    yield from file
            except FileNotFoundError:
                raise DataError(f"{name}: no such file") from None
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"{name}: not readable as UTF-8 text: {error}") from None

    tokenizer = Tokenizer.train(lines(), args.vocab_size)
    with atomic_write(Path(args.out) / "tokenizer.json") as path:
        path.write_text(tokenizer.to_json(), encoding="utf-8")
    print(f"{len(tokenizer)} tokens in {Path(args.out) / 'tokenizer.json'}")
