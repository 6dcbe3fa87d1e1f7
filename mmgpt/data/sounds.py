"""A folder of sounds and a file of their transcripts or labels.

    folder/transcripts.csv       file,transcript[,split] in the first row, then a row for each sound
                                 or labels.csv or metadata.csv, each also as .tsv or .jsonl
    folder/hello.wav             or folder/sounds/hello.wav, audio/hello.wav, recordings/hello.wav

A column of words (transcript, text, word, ...) makes sounds to transcribe; where there is none, a column of labels
(label, category, class) makes sounds to classify. So of Free Spoken Digit's `label` 0 and `word` zero, it is the word
that is learnt. Two columns of words, or two of labels, are an error: only their owner knows which is meant.
"""

from itertools import product
from pathlib import Path

from mmgpt.content import Audio
from mmgpt.data.annotations import Annotations
from mmgpt.data.sample import Sample
from mmgpt.data.table import Table, find_table, read_table
from mmgpt.errors import DataError, shown
from mmgpt.folder import MediaFolder

_SOUND = ("file", "file_name", "filename", "path", "audio", "sound")
_WORDS = ("transcript", "transcription", "text", "sentence", "word")
_LABEL = ("label", "category", "class")
_FILES = tuple(map("".join, product(("transcripts", "labels", "metadata"), (".csv", ".tsv", ".jsonl"))))
_PLACES = ("sounds", "audio", "recordings")


def read_sounds(path: Path, split: str) -> list[Sample]:
    """The sounds of a split, in the order of their rows; several rows of one sound are several right answers.

    Args:
        path: The folder, or the file of transcripts or labels inside it.
        split: By the column "split", or else every tenth sound by name is held out (see splits.members).

    Raises:
        DataError: A row is malformed or its sound is missing.
    """
    path = find_table(path, _FILES)
    annotations = Annotations(path, MediaFolder(path.parent, _PLACES), Audio)
    table = read_table(path, annotations.faults)
    sound = table.required_column(_SOUND, "sound")
    text, task = _text_column(table)
    split_column = table.column(("split",), "split")
    for where, fields in table.rows:
        annotations.add(where, fields.get(sound), fields.get(text), fields.get(split_column) if split_column else None)
    return annotations.samples(split, task)


def _text_column(table: Table) -> tuple[str, str]:
    words = table.column(_WORDS, "transcript")
    if words is not None:
        return words, "transcribe"
    label = table.column(_LABEL, "label")
    if label is not None:
        return label, "classify"
    raise DataError(
        f"{table.path}: no column of transcripts (named {' or '.join(_WORDS)}) or labels ({' or '.join(_LABEL)}); "
        f"the columns are {shown(', '.join(table.columns))}"
    )
