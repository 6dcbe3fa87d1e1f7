"""What is told of a model: a row for each of its parts, and the model card of what is shared on the Hub."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmgpt.config import ModelConfig

SENSES = {"image": "sees pictures", "audio": "hears sounds", "video": "watches clips"}
LOCAL = "./"
NOT_STATED = "not stated"
METRICS = {  # the Hub's names
    "exactly right": "exact_match",
    "word error rate": "wer",
    "character error rate": "cer",
    "macro-F1": "f1",
    "BLEU-4": "bleu",
    "CIDEr-D": "cider",
    "ROUGE-L": "rouge",
}
TASKS = {
    "caption": "image-to-text",
    "transcribe": "automatic-speech-recognition",
    "translate": "translation",
    "summarize": "summarization",
}
PIPELINES = {  # of a model with these modalities besides text; the Hub has none for pictures and sounds together
    (): "text-generation",
    ("image",): "image-text-to-text",
    ("image", "video"): "video-text-to-text",
    ("audio",): "audio-text-to-text",
}


def model_card(
    repo_id: str,
    config: ModelConfig,
    sizes: Mapping[str, int],
    training: Mapping[str, Any],
    *,
    tasks: Collection[str] = (),
    licence: str | None = None,
    data_licence: str | None = None,
    datasets: Sequence[str] = (),
) -> str:
    """The model card, Markdown under YAML, from what is known of the model; it says "not stated" where nothing is.

    Args:
        repo_id: Owner and name on the Hub.
        config: As it was resolved.
        sizes: Parameters of each module (`checkpoint.read_sizes`).
        training: What the run told of itself (`checkpoint.read_training`), without what is private.
        tasks: What it does, besides the tasks that it was measured on.
        licence, data_licence, datasets: As in `sharing.push`.
    """
    from huggingface_hub import ModelCardData

    name = repo_id.partition("/")[2]
    senses = [modality for modality in SENSES if getattr(config, modality) is not None]
    begun_from = training.get("begun_from", [])
    tasks = {*tasks, *(score["task"] for score in training.get("scores", []))}
    pipeline = _pipeline(config, tasks)
    data = ModelCardData(
        license=licence,
        library_name="mmgpt",
        tags=[*senses, "text"],
        pipeline_tag=pipeline,
        datasets=list(datasets) or None,
        base_model=[source for source in begun_from if not source.startswith(LOCAL)] or None,
        model_name=name,
        eval_results=_results(training, datasets, pipeline) or None,
    )
    sections = [
        f"# {name}",
        _what_it_is(config, sizes, senses, begun_from),
        _table(["part", ""], parts(config, sizes)),
        "## Use",
        _use(repo_id, _calls(config, tasks)),
        "## Data and licences",
        _table(
            ["", ""],
            [
                ("trained on", _data(training)),
                *([("samples", trained_on(training))] if {"samples", "epochs", "steps"} <= training.keys() else []),
                *([("data sets", ", ".join(datasets))] if datasets else []),
                ("licence of the data", data_licence or NOT_STATED),
                ("licence of the model", licence or NOT_STATED),
                *([("begun from, under licences of their own", _sources(begun_from))] if begun_from else []),
            ],
        ),
        "## Scores",
        _scores(training),
        "## Preprocessing",
        _list([*_preprocessing(config), "mmgpt does all of it; the settings are in config.json."]),
        "## Training",
        _table(["", ""], _settings(training)) or f"Settings: {NOT_STATED}.",
        "## Limits",
        _list(_limits(config, training)),
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"


def origin(source: str | Path) -> str:
    """How records name what a model began from: a Hub id, or a directory or file by its name alone, behind "./"."""
    return LOCAL + Path(source).resolve().name if Path(source).exists() else str(source).partition("@")[0]


def parts(config: ModelConfig, sizes: Mapping[str, int]) -> list[tuple[str, str]]:
    """Name and description of the decoder and of each modality's encoder. `config` is resolved."""
    gpt, image, audio, video = config.gpt.resolved(), config.image, config.audio, config.video
    told = {
        "decoder": f"{gpt.layers} layers, width {gpt.width}, {gpt.heads} heads, context {gpt.context}, "
        f"{gpt.vocab_size} tokens in the vocabulary ({sizes.get('gpt', 0) / 1e6:.2f} M)"
    }
    if image is not None:
        (rows, columns), (height, width) = image.grid or (0, 0), image.size or (0, 0)
        told["image"] = (
            f"{image.name} at {height} × {width} pixels, {rows} × {columns} tokens, "
            f"{config.adapter('image').kind} adapter ({sizes.get('encoders.image', 0) / 1e6:.2f} M)"
        )
    if audio is not None:
        told["audio"] = (
            f"{audio.name} at {audio.sample_rate} Hz, {1000 * audio.hop * audio.reduction / audio.sample_rate:g} ms "
            f"a token, {config.adapter('audio').kind} adapter ({sizes.get('encoders.audio', 0) / 1e6:.2f} M)"
        )
    if video is not None:
        rows, columns = video.grid
        sound = " and its sound" if video.sound and audio is not None else ""
        told["video"] = f"{video.frames} frames of {rows} × {columns} tokens{sound}"
    return list(told.items())


def trained_on(training: Mapping[str, Any]) -> str:
    """How many samples, how often."""
    count, epochs = training["samples"], training["epochs"]
    amount = "a stream" if count is None else f"{count:,}"
    how_long = f", {training['steps']:,} steps" if epochs is None else f" × {epochs} epoch{'' if epochs == 1 else 's'}"
    return amount + how_long


def _what_it_is(config: ModelConfig, sizes: Mapping[str, int], senses: Sequence[str], begun_from: Sequence[str]) -> str:
    *some, last = [*(SENSES[modality] for modality in senses), "reads text"]
    does = f"{', '.join(some)} and {last}" if some else last
    million = sum(sizes.values()) / 1e6
    said = f"A GPT of {million:.2f} M parameters that {does}, for mmgpt"
    said += f", begun from {_sources(begun_from)}." if begun_from else "."
    if config.pair is not None:
        said += " It pairs media with texts: vectors of both are near to each other where they belong together."
    return said


def _sources(begun_from: Sequence[str]) -> str:
    return ", ".join(
        f"{source.removeprefix(LOCAL)} (a local copy)" if source.startswith(LOCAL) else source for source in begun_from
    )


def _use(repo_id: str, calls: Sequence[tuple[str, str]]) -> str:
    shell = [f"uv run mmgpt {command} --model {repo_id}" for command, _ in calls]
    python = ["import mmgpt", "", f'model = mmgpt.load("{repo_id}")', *(f"print({call})" for _, call in calls)]
    lines = ["In a copy of mmgpt's repository, after `pip install uv`:", _fenced("", shell), _fenced("python", python)]
    return "\n\n".join(lines)


def _calls(config: ModelConfig, tasks: Collection[str]) -> list[tuple[str, str]]:
    """What to ask it, as a command and in Python: the tasks that it is known to do, else questions."""
    files = {"image": "photo.jpg", "audio": "sound.wav", "video": "clip.mp4"}
    senses = [modality for modality in files if getattr(config, modality) is not None]
    known = {
        "caption": ("caption photo.jpg", 'model.caption("photo.jpg")'),
        "transcribe": ("transcribe sound.wav", 'model.transcribe("sound.wav")'),
        "translate": ('translate "A dog runs." --to German', 'model.translate("A dog runs.", to="German")'),
        "summarize": ("summarize article.txt", 'model.summarize("A long article.")'),
    }
    calls = [call for task, call in known.items() if task in tasks and config.answers]
    if "classify" in tasks or not config.answers:
        file = files[senses[0]] if senses else "A text."
        given = f'"{file}"' if senses else f'mmgpt.Text("{file}")'
        calls.append((f'classify "{file}" --labels cat,dog', f'model.classify({given}, ["cat", "dog"])'))
    if calls:
        return calls
    question = "What is it?"
    media = [(f" --{one} {files[one]}", f', {one}="{files[one]}"') for one in senses] or [("", "")]
    return [(f'ask "{question}"{option}', f'model.ask("{question}"{argument})') for option, argument in media]


def _data(training: Mapping[str, Any]) -> str:
    read = ", ".join(f"{key} {training[key]}" for key in ("format", "split") if key in training)
    return training.get("data", NOT_STATED) + (f" ({read})" if read else "")


def _scores(training: Mapping[str, Any]) -> str:
    scores = training.get("scores", [])
    if not scores:
        return "None were measured."
    rows = [
        (one["task"], one["metric"], *(_shown(one.get(key)) for key in ("score", "control", "chance")), f"{one['n']:,}")
        for one in scores
    ]
    return "\n\n".join(
        [
            _table(["task", "metric", "score", "media shuffled", "chance", "n"], rows),
            "Times 100, on samples held out from training, which may be those by whose loss the checkpoint was chosen. "
            "Error rates and ranks are better the lower they are. Media shuffled: the same questions with the media "
            "exchanged among the samples, so what is left was not seen or heard.",
        ]
    )


def _shown(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _preprocessing(config: ModelConfig) -> list[str]:
    told = [f"Text: tokenizer.json, at most {config.gpt.context:,} tokens with the media."]
    if (image := config.image) is not None and image.size and image.mean and image.std:
        height, width = image.size
        how = "stretched" if image.crop_mode == "squash" else "resized, its own shape kept, and cropped in the middle"
        crop = f" (by {image.crop_pct:g} of its size)" if image.crop_mode != "squash" and image.crop_pct else ""
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (image.mean, image.std))
        told.append(
            f"Pictures: RGB, {how}{crop} to {height} × {width} pixels ({image.interpolation}), in 0..1, less the mean "
            f"({mean}), over the standard deviation ({std})."
        )
    if (audio := config.audio) is not None:
        told.append(
            f"Sounds: mono, {audio.sample_rate:,} Hz, at most {audio.max_seconds:g} s; log-mel spectrogram of "
            f"{audio.mels} bands, windows of {audio.window} samples, one every {audio.hop}."
        )
    if (video := config.video) is not None:
        sound = ", the sound track as sounds" if video.sound and config.audio is not None else ""
        told.append(
            f"Clips: {video.frames} frames, evenly spaced, as pictures{sound}; at most {video.max_seconds:g} s."
        )
    return told


def _settings(training: Mapping[str, Any]) -> list[tuple[str, str]]:
    names = ("steps", "minutes", "val_loss", "val_reward", "batch_size", "batch_tokens", "accumulate")
    names += ("learning_rate", "muon", "precision", "seed")
    return [(name.replace("_", " "), str(training[name])) for name in names if training.get(name) is not None]


def _limits(config: ModelConfig, training: Mapping[str, Any]) -> list[str]:
    limits = ["It knows what its data taught it and no more; what it says may be wrong, and is said all the same."]
    if any(score.get("control") is not None for score in training.get("scores", [])):
        limits.append("Where a score is near that with shuffled media, it answers without looking or listening.")
    return [
        *limits,
        "Nothing was measured of its bias or safety, and nothing in it filters what it is asked or says.",
        "Longer sounds and clips than are said above, and prompts longer than the context, are refused."
        if config.audio or config.video
        else "Prompts longer than the context are refused.",
    ]


def _pipeline(config: ModelConfig, tasks: Collection[str]) -> str | None:
    """The Hub's name for what it does, where there is one."""
    senses = tuple(modality for modality in SENSES if getattr(config, modality) is not None)
    if not config.answers:
        return "zero-shot-image-classification" if senses == ("image",) else None
    only = TASKS.get(next(iter(tasks))) if len(tasks) == 1 else None
    return only or PIPELINES.get(senses)


def _results(training: Mapping[str, Any], datasets: Sequence[str], pipeline: str | None) -> list[Any]:
    from huggingface_hub import EvalResult

    data = datasets[0] if len(datasets) == 1 else training.get("data", NOT_STATED)
    return [
        EvalResult(
            task_type=TASKS.get(score["task"]) or pipeline or "other",
            dataset_type=data,
            dataset_name=data,
            metric_type=METRICS.get(score["metric"]) or score["metric"].lower().replace(" ", "_"),
            metric_name=f"{score['task']}: {score['metric']}",  # the Hub's task alone does not tell which one of ours
            metric_value=round(100 * score["score"], 2),
        )
        for score in training.get("scores", [])
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _fenced(language: str, lines: Sequence[str]) -> str:
    return "\n".join([f"```{language}", *lines, "```"])
