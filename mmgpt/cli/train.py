"""mmgpt train: a training run from a configuration file and fields set on the command line."""

from argparse import Namespace
from pathlib import Path

from mmgpt.cli import options
from mmgpt.config import from_dict
from mmgpt.errors import ConfigError
from mmgpt.run_config import TrainConfig


def main(arguments: list[str]) -> None:
    run(parse(arguments))


def parse(arguments: list[str]) -> TrainConfig:
    """The configuration: defaults, then the file, then the command line. Raises ConfigError.

    What comes first and is no option is the file; behind fields, it would go before them.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    usage = "mmgpt train [[--config] FILE] [--FIELD VALUE ...]"
    parser = ArgumentParser(prog="mmgpt train", usage=usage, description=TrainConfig.__doc__, exit_on_error=False)
    parser.add_argument("--config", action="config", help="a YAML file of these fields; see configs/")
    parser.add_class_arguments(TrainConfig, None)
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--config", *arguments]
    for path in _files(arguments):
        _check_keys(path)
    try:
        parsed = parser.parse_args(arguments)
    except ArgumentError as error:
        raise ConfigError(f"{options.with_nearest(str(error), parser)} (see mmgpt train --help)") from None
    values = parser.instantiate(parsed).as_dict()
    given = {argument.partition("=")[0] for argument in arguments}
    if "--batch_size" in given and "--batch_tokens" not in given:  # it replaces what the file says, as that would it
        values["batch_tokens"] = None
    return TrainConfig(**{name: value for name, value in values.items() if name != "config"})


def parse_with(parser: options.Parser, arguments: list[str]) -> tuple[Namespace, TrainConfig]:
    """A command's own options (`options.run_parser`), and the configuration of the run it looks at."""
    own, rest = parser.parse_known_args(arguments)
    return own, parse(rest)


def run(config: TrainConfig) -> None:
    """Train, evaluate on the validation split, and write the report."""
    save_config(config)

    from mmgpt.training.report import finish
    from mmgpt.training.run import train

    done = train(config)
    if not done.first:
        return
    finish(config, done)
    print(f"\nnext:  mmgpt info {config.out}\n       open {Path(config.out) / 'report.html'} in a browser")


def save_config(config: TrainConfig) -> None:
    """OUT/config.yaml: enough to run it again with `mmgpt train`."""
    import dataclasses
    import json

    import yaml

    from mmgpt.files import atomic_write

    plain = json.loads(json.dumps(dataclasses.asdict(config)))  # YAML knows no tuples
    with atomic_write(Path(config.out) / "config.yaml") as path:
        path.write_text(yaml.safe_dump(plain, sort_keys=False))


def _files(arguments: list[str]) -> list[Path]:
    files = []
    for here, after in zip(arguments, [*arguments, ""][1:], strict=True):
        if here == "--config":
            files.append(Path(after))
        elif here.startswith("--config="):
            files.append(Path(here.removeprefix("--config=")))
    return files


def _check_keys(path: Path) -> None:
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror or error}; name a configuration file, such as those in configs/"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds no fields; see configs/ for examples")
    from_dict(TrainConfig, values, f"{path}: config")
