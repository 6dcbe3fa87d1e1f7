"""One answer for each of several files, as `caption` and `transcribe` give them."""

import argparse
import sys

from mmgpt.cli import options

GROUP = 32  # files decoded and answered together


def answer_files(arguments: argparse.Namespace, files: list[str], task: str, modality: str, key: str) -> None:
    """Print an answer to each file, a line each. A file that cannot be used is told on stderr and costs itself alone.

    Exits with 1 if there was one.
    """
    import mmgpt
    from mmgpt.content import Audio, Image
    from mmgpt.errors import MediaError
    from mmgpt.generation import Decoding
    from mmgpt.processor import TooLongError
    from mmgpt.tasks import TASKS

    kind = {"image": Image, "audio": Audio}[modality]
    decoding = Decoding(**options.decoding(arguments))
    assistant = mmgpt.load(arguments.model, int8=arguments.int8)
    broken = False
    for start in range(0, len(files), GROUP):
        names, prompts = [], []
        for name in files[start : start + GROUP]:
            try:
                conversation = TASKS[task].conversation(kind(name))
                prompts.append(assistant.processor.encode_prompt(conversation, where=name))
                names.append(name)
            except (MediaError, TooLongError) as error:
                broken = True
                print(f"mmgpt: error: {' '.join(str(error).split())}", file=sys.stderr)
        for name, answer in zip(names, assistant.reply_examples(prompts, decoding), strict=True):
            if arguments.json:
                options.show({modality: name, key: answer})
            else:
                print(answer if len(files) == 1 else f"{name}: {answer}")
    if broken:
        sys.exit(1)
