"""From prompts to answers: how tokens are chosen, and the engine that decodes many requests at once."""

from mmgpt.generation.decoding import Answer, Choice, Decoding, settled
from mmgpt.generation.engine import Engine, Request

__all__ = ["Answer", "Choice", "Decoding", "Engine", "Request", "settled"]
