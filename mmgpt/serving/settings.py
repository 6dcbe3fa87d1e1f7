"""How a server is set up: limits, who may ask, and where. Free of torch and FastAPI, so that --help is quick."""

import hashlib
import hmac
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path

from mmgpt.errors import ConfigError

ENVIRONMENT = "MMGPT_API_KEYS"


@dataclass(frozen=True)
class Limits:
    """What one request, or all of them together, may cost. What is beyond is refused before any work is done for it."""

    requests: int = field(default=64, metadata={"help": "requests at once, those that wait for their turn included"})
    body: int = field(default=32 << 20, metadata={"help": "bytes of a request"})
    media: int = field(default=16, metadata={"help": "pictures, sounds and videos of a request"})
    pixels: int = field(default=50_000_000, metadata={"help": "pixels of a picture"})
    seconds: int = field(default=600, metadata={"help": "seconds of a sound or video, if the model allows as many"})
    decoding: int = field(default=20, metadata={"help": "seconds that it may take to decode the media of a request"})
    memory: int = field(default=2 << 30, metadata={"help": "bytes of memory that decoding may take"})
    tokens: int = field(default=1024, metadata={"help": "tokens of an answer"})
    answers: int = field(default=16, metadata={"help": "answers of a request: n times the number of its prompts"})


class Keys:
    """The API keys. Without any, everybody may ask.

    Args:
        keys: As the clients send them.
    """

    def __init__(self, keys: list[str]):
        self._digests = [_digest(key) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def know(self, key: str) -> bool:
        """Whether this is one of the keys, in a time that tells nothing about them."""
        given, known = _digest(key), False
        for digest in self._digests:
            known |= hmac.compare_digest(digest, given)
        return known


def read_keys(path: str | None) -> Keys:
    """The keys of a file, one to a line, or else those of MMGPT_API_KEYS, with commas or spaces between them.

    Raises ConfigError if the file or the variable is there and holds no key, OSError if the file cannot be read.
    """
    if path is not None:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
        keys, where = [line for line in lines if line and not line.startswith("#")], path
    elif ENVIRONMENT in os.environ:
        keys, where = os.environ[ENVIRONMENT].replace(",", " ").split(), ENVIRONMENT
    else:
        return Keys([])
    if not keys:
        raise ConfigError(f"{where}: no API key there; write one to a line, or leave it out to serve everybody")
    return Keys(keys)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises ConfigError if it cannot."""
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot listen at {host}:{port} ({reason}); choose another --host or --port") from None
    # Connections take it over. asyncio does so only for sockets made with their protocol's number; without it a piece
    # of an answer waits for the client to acknowledge the one before, up to 40 ms.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
