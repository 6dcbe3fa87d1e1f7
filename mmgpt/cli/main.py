"""The `mmgpt` command: finds the subcommand, runs it, and tells errors in one line."""

import importlib
import os
import sys

from mmgpt.errors import ConfigError, MmgptError

# A command is a module of this package with main(arguments) -> None. It is imported only when it is called for.
COMMANDS = {
    "demo": "train a small model on a made world, evaluate it and write a report (start here)",
    "train": "train a model on your own data, by a configuration file",
    "data": "check that every row of your data can be read, and what is in them",
    "inspect": "see what the model gets of your data: tokens, pictures, spectrograms",
    "plan": "what a training run will take: memory, time, parameters",
    "tokenizer": "train a tokenizer on texts (tokenizer train)",
    "caption": "describe pictures",
    "ask": "answer a question about pictures, sounds, videos or a text",
    "transcribe": "write down speech",
    "describe": "tell what happens in videos and sounds",
    "generate": "go on with a text",
    "retrieve": "find the pictures, sounds and videos that a text, or one of them, is nearest to",
    "translate": "say a text in another language",
    "summarize": "say a text in short",
    "classify": "how likely labels are for a picture, sound, video or text",
    "explain": "where a model looks for each word it says",
    "eval": "a model's answers to a data set, their scores and a report",
    "score": "score predictions of any system against references",
    "serve": "answer the clients of OpenAI's API, many at once",
    "push": "share a model on the Hugging Face Hub, with a model card",
    "info": "what a checkpoint is: sizes, modalities, training, scores",
}

USAGE = "usage: mmgpt COMMAND [options]   (mmgpt COMMAND --help tells them; --debug shows tracebacks)\n\ncommands:\n"


def entry() -> None:
    """The process: `main`, and then nothing that could keep it.

    A stream of `datasets` that is left in its midst, as by an error, has threads with which Python's own end may wait
    for ever, or abort.
    """
    try:
        main()
    except SystemExit as end:
        if "datasets" not in sys.modules:
            raise
        sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else 0)


def main() -> None:
    """The command. Exits with 0, 1 if the work failed, 2 if it was asked for wrongly, 130 if interrupted."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    try:
        try:
            run([argument for argument in arguments if argument != "--debug"])
        finally:
            sys.stdout.flush()  # so that a reader who has gone is noticed here, not while Python ends
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody is told any more
        sys.exit(1)
    except KeyboardInterrupt:
        fail("interrupted", 130)
    except (MmgptError, OSError) as error:
        if debug:
            raise
        fail(str(error), 2 if isinstance(error, ConfigError) else 1)


def run(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE + "\n".join(f"  {name:12}{what}" for name, what in COMMANDS.items()))
        sys.exit(0 if arguments else 2)
    command, *rest = arguments
    if command == "--version":
        from importlib.metadata import version

        print(version("mmgpt"))
    elif command in COMMANDS:
        importlib.import_module(f"mmgpt.cli.{command}").main(rest)
    else:
        raise ConfigError(f"{command!r} is not a command; there are: {', '.join(COMMANDS)}")


def fail(message: str, code: int) -> None:
    print(f"mmgpt: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
