"""Every error a user of mmgpt can cause: one class each, one clear line (what, where, what to do)."""


class MmgptError(Exception):
    """Base of all errors that are told to the user as one line, without a traceback."""


class MediaError(MmgptError):
    """A picture, sound or video cannot be decoded, or is beyond the limits."""


class DataError(MmgptError):
    """A data file is malformed: the message names the file, the line and the reason."""


class ConfigError(MmgptError):
    """A configuration cannot be used: the message names the field and what it may be."""


class CheckpointError(MmgptError):
    """A checkpoint is missing, incomplete, of another shape, or cannot be written."""


class TrainingError(MmgptError):
    """Training cannot go on: a loss that is not finite, a run that is not the one to resume."""


class ClusterError(MmgptError):
    """A cluster cannot be reached, or its workers cannot do what they are asked."""


class WriteError(MmgptError):
    """A file cannot be written: no space, no permission, a folder in the way."""


def shown(value: object) -> str:
    """A value of the user's, as an error quotes it: on one line and short."""
    text = repr(value)
    if isinstance(value, str):
        text = f'"{text[1:-1]}"'
    return text if len(text) <= 120 else text[:117] + "..."
