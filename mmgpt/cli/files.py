"""One answer for each of several files, as `caption`, `describe` and `transcribe` give them."""

import argparse
import sys

from mmgpt.cli import options

GROUP = 32  # files decoded and answered together


def answer_files(arguments: argparse.Namespace, files: list[str], task: str, modality: str, key: str) -> None:
    """Print an answer to each file, a line each. A file that cannot be used is told on stderr and costs itself alone.

    Exits with 1 if there was one.

    Args:
        arguments: With model, int8, json, example and what `options.decoding` takes.
        files: Their names.
        task: A name of TASKS.
        modality: image, audio, or media: each what its name's ending says. In JSON, the name of the file's field.
        key: In JSON, the name of the answer's field.
    """
    import mmgpt
    from mmgpt.content import Audio, Image, Medium, Video
    from mmgpt.data.folders import medium_of
    from mmgpt.errors import MediaError
    from mmgpt.generation import Decoding
    from mmgpt.processor import TooLongError
    from mmgpt.tasks import TASKS, few_shot

    def part(name: str) -> Medium:
        if modality == "media":
            return medium_of(name, Video)
        return {"image": Image, "audio": Audio}[modality](name)

    examples = [(TASKS[task].conversation(part(name)), answer) for name, answer in arguments.example]
    decoding = Decoding(**options.decoding(arguments))
    assistant = mmgpt.load(arguments.model, int8=arguments.int8)
    broken = False
    for start in range(0, len(files), GROUP):
        names, prompts = [], []
        for name in files[start : start + GROUP]:
            try:
                conversation = few_shot(examples, TASKS[task].conversation(part(name)))
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
