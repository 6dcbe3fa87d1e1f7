"""mmgpt transcribe: write down speech."""

from mmgpt.cli import options
from mmgpt.cli.files import answer_files


def main(arguments: list[str]) -> None:
    parser = options.parser("transcribe", "Write down what is said in sounds, one line each.")
    parser.add_argument("sounds", nargs="+", metavar="SOUND", help="sound files")
    options.add_examples(parser, "TRANSCRIPT")
    options.add_model(parser)
    options.add_decoding(parser)
    args = parser.parse_args(arguments)
    answer_files(args, args.sounds, "transcribe", "audio", "transcript")
