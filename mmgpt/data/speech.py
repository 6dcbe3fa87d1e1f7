"""Speech with its transcripts: LibriSpeech as it is (Panayotov et al. 2015), and manifests as NeMo's users write them.

folder/train-clean-100/19/198/19-198.trans.txt     19-198-0000 NORTHANGER ABBEY
folder/train-clean-100/19/198/19-198-0000.flac     beside it; folder/ may also be train-clean-100/ itself

folder/train_manifest.json, dev_manifest.json      {"audio_filepath": "wavs/a.wav", "duration": 1.5, "text": "hello"}
                                                   to a line; also .jsonl, or manifest.json(l) for all
"""

import re
from pathlib import Path

from mmgpt.content import Audio
from mmgpt.data.annotations import Annotations
from mmgpt.data.sample import Sample
from mmgpt.data.splits import split_name
from mmgpt.data.table import parse_json, read_lines
from mmgpt.errors import DataError, shown
from mmgpt.folder import MediaFolder

_MANIFEST = re.compile(r"(?:([a-z]+)_)?manifest\.jsonl?")
_TRANSCRIPTS = ".trans.txt"


def read_speech(path: Path, split: str) -> list[Sample]:
    """The sounds of a split to transcribe, in the order of their transcripts' files and lines.

    Args:
        path: The folder, or one manifest, from which every tenth sound by name is held out (see splits.members).
        split: A manifest's by its name, or by the key "split" in its rows; LibriSpeech's by its folders (dev-clean and
            dev-other are "dev"). Where none is "dev", every tenth sound of training by name is held out.

    Raises:
        DataError: A line is malformed or its sound is missing.
    """
    if path.is_file():
        annotations = Annotations(path, MediaFolder(path.parent), Audio)
        _add_manifest(annotations, path, None)
        return annotations.samples(split, "transcribe")
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder")
    folder = MediaFolder(path)
    annotations = Annotations(path, folder, Audio)
    manifests = [(file, match[1]) for file in sorted(path.iterdir()) if (match := _MANIFEST.fullmatch(file.name))]
    for manifest, own in manifests:
        _add_manifest(annotations, manifest, own)
    if not manifests:
        transcripts = [name for name in folder.files({".txt"}) if name.endswith(_TRANSCRIPTS)]
        if not transcripts:
            raise DataError(
                f"{path}: no manifest.json, manifest.jsonl or …{_TRANSCRIPTS} is here; format speech reads those"
            )
        for name in transcripts:
            _add_transcripts(annotations, path, name)
    return annotations.samples(split, "transcribe")


def _add_manifest(annotations: Annotations, path: Path, split: str | None) -> None:
    root = f"{path.parent.resolve()}/"
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        with annotations.faults.row():
            row = parse_json(line, path, number)
            if not isinstance(row, dict):
                raise DataError(f'{where}: not an object; a line is {{"audio_filepath": ..., "text": ...}}')
            if row.get("offset"):
                told = shown(row["offset"])
                raise DataError(f"{where}: the offset is {told}; sounds are read whole, so cut the file")
            name = row.get("audio_filepath")
            # NeMo writes absolute paths; one into the manifest's own folder means the file there.
            name = name.removeprefix(root) if isinstance(name, str) else name
            annotations.add(where, name, row.get("text"), split or row.get("split"))


def _add_transcripts(annotations: Annotations, root: Path, name: str) -> None:
    folder, _, _ = name.rpartition("/")
    split = split_name(re.split(r"[-_/]", name)[0]) if name.count("/") > 2 else None
    for number, line in read_lines(root / name):
        where = f"{root / name}:{number}"
        sound, blank, text = line.strip().partition(" ")
        with annotations.faults.row():
            if not blank:
                raise DataError(f"{where}: no transcript; a line is the sound's name, a blank and what is said")
            annotations.add(where, f"{folder}/{sound}.flac", text, split)
