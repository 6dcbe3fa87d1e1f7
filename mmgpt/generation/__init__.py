"""From a prompt to new tokens: one decoding loop for greedy search and sampling, and beam search."""

from mmgpt.generation.beam import beam_search
from mmgpt.generation.decode import Decoding, decode, generate

__all__ = ["Decoding", "beam_search", "decode", "generate"]
