"""VQA v2 as it is (Goyal et al. 2017; OK-VQA alike): questions, ten answers to each, and COCO's pictures.

folder/v2_OpenEnded_mscoco_train2014_questions.json
    {"questions": [{"question_id": 1, "image_id": 9, "question": "What is it?"}]}
folder/v2_mscoco_train2014_annotations.json
    {"annotations": [{"question_id": 1, "answers": [{"answer": "dog"}, ...], "multiple_choice_answer": "dog"}]}
folder/train2014/COCO_train2014_000000000009.jpg
    or in images/, images/train2014/ or folder/ itself, or named 000000000009.jpg

In training all questions about a picture are one sample, so that it is decoded and encoded once for them; batch_size
counts pictures then. Training learns the one answer most people gave (multiple_choice_answer): ten documents of one
question would repeat it, and teach what few people said. Held-out questions may be answered as at least three of the
ten did, whom VQA's own measure counts as wholly right; each answer once, the most frequent first. What each of the ten
said is kept beside them, for that measure, and the annotation's question_type and answer_type.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mmgpt.content import Image, Message, Part
from mmgpt.data.coco import objects
from mmgpt.data.faults import Faults
from mmgpt.data.gathered import Gathered
from mmgpt.data.sample import Sample
from mmgpt.data.splits import split_name
from mmgpt.data.table import parse_json, read_text
from mmgpt.errors import DataError, shown
from mmgpt.folder import MediaFolder

_NAME = re.compile(r"(?:.*_)?(([a-z]+)\d*)_(questions|annotations)\.json")
_AGREED, _ASKED = 3, 10  # people


def read_vqa(path: Path, split: str) -> list[Sample]:
    """The questions of a split, in the order of their file; those of training by picture.

    Args:
        path: The folder of the questions, the annotations and the pictures.
        split: By the names of the files; where there are none of "dev", every tenth picture of training is held out.

    Raises:
        DataError: The JSON is malformed, a question has no answers, or a picture is missing.
    """
    files = _files(path)
    wanted = split_name(split)
    own = "train" if wanted == "dev" and "dev" not in files else wanted
    if own not in files:
        raise DataError(f"{path}: no questions of the split {shown(split)}; there are {', '.join(files) or 'none'}")
    if set(files[own]) != {"questions", "annotations"}:
        [(there, file)] = files[own].items()
        absent = "annotations" if there == "questions" else "questions"
        raise DataError(f"{file}: no {absent} beside it; put ..._{absent}.json into the folder")
    questions, annotations = files[own]["questions"], files[own]["annotations"]
    gathered, pictures = Gathered(questions), {}
    answers = _answers(annotations, wanted == "train", gathered.faults)
    gathered.faults.raise_all()  # their questions would have no answers
    subset = _NAME.fullmatch(questions.name)[1]  # type: ignore[index]  # _files found it by this pattern
    folder = MediaFolder(path, ("images", subset, f"images/{subset}"))
    for where, question in objects(parse_json(read_text(questions), questions), "questions", questions):
        gathered.add(
            where, own if own != "train" else None, partial(_sample, question, answers, folder, subset, where, pictures)
        )
    samples = gathered.samples(split, hold_out="dev" not in files)
    return _by_picture(samples) if wanted == "train" else samples


def _by_picture(samples: Sequence[Sample]) -> list[Sample]:
    groups: dict[Part, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.prompt[0].parts[0], []).append(sample)
    return [replace(first, more=tuple(others)) for first, *others in groups.values()]


def _sample(
    question: dict[str, Any],
    answers: dict[Any, "_Annotation"],
    folder: MediaFolder,
    subset: str,
    where: str,
    pictures: dict[str, Image],
) -> Sample:
    number, picture, text = (question.get(key) for key in ("question_id", "image_id", "question"))
    if not isinstance(number, int | str) or number not in answers:
        raise DataError(f"question_id {shown(number)} has no annotation, so no answers; is it of another split?")
    if not isinstance(picture, int) or isinstance(picture, bool):
        raise DataError(f"image_id is {shown(picture)}; it is a number")
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"the question is {shown(text)}; it is a string that is not empty")
    names = (f"COCO_{subset}_{picture:012}.jpg", f"{picture:012}.jpg")
    found = next((name for name in names if folder.has(name)), names[0])
    right, votes, kinds = answers[number]
    picture = pictures.setdefault(found, Image(folder.find(found)))
    return Sample((Message.of("user", picture, text.strip()),), right, "ask", where, votes=votes, kinds=kinds)


class _Annotation(NamedTuple):
    """The right answers to a question, what each of the people said unless it is to learn, and its types."""

    right: tuple[str, ...]
    votes: tuple[str, ...]
    kinds: dict[str, str]


def _answers(path: Path, learn: bool, faults: Faults) -> dict[Any, _Annotation]:
    """What is told of each question, by its id."""
    found: dict[Any, _Annotation] = {}
    for where, annotation in objects(parse_json(read_text(path), path), "annotations", path):
        with faults.row():
            number = annotation.get("question_id")
            if not isinstance(number, int | str) or number in found:
                raise DataError(f"{where}: question_id {shown(number)} is missing, or that of an earlier annotation")
            found[number] = _answers_to(annotation, learn, where)
    return found


def _answers_to(annotation: dict[str, Any], learn: bool, where: str) -> _Annotation:
    given = annotation.get("answers")
    if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
        raise DataError(f'{where}: "answers" is {shown(given)}; it is a list of {{"answer": ...}}')
    counts: Counter[str] = Counter()
    for answer in (one.get("answer") for one in given):
        if not isinstance(answer, str):
            raise DataError(f"{where}: an answer is {shown(answer)}; it is a string")
        counts[answer.strip()] += 1
    first = annotation.get("multiple_choice_answer", next((answer for answer, _ in counts.most_common(1)), None))
    if not isinstance(first, str) or not first.strip():
        raise DataError(f"{where}: the answer is {shown(first)}; fill it in or remove the question")
    agreed = [] if learn else [answer for answer, count in counts.most_common() if answer and count >= _AGREED]
    votes = () if learn or len(given) != _ASKED else tuple(answer.get("answer") for answer in given)
    return _Annotation(tuple(dict.fromkeys([first.strip(), *agreed])), votes, vqa_kinds(annotation))


def vqa_kinds(annotation: Mapping[str, Any]) -> dict[str, str]:
    """The types of question and answer that an annotation tells: {"question type": "how many", "answer type": ...}."""
    told = {name: annotation.get(name) for name in ("question_type", "answer_type")}
    return {name.replace("_", " "): str(kind) for name, kind in told.items() if kind}


def _files(folder: Path) -> dict[str, dict[str, Path]]:
    """Split, then "questions" or "annotations", then the file."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; format vqa reads the folder of the questions and annotations")
    files: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.glob("*.json")):
        if match := _NAME.fullmatch(path.name):
            split = files.setdefault(split_name(match[2]), {})
            if match[3] in split:
                raise DataError(f"{folder}: which file: {split[match[3]].name} or {path.name}? Keep one in the folder")
            split[match[3]] = path
    return files
