"""The decoder: ragged documents in, hidden states and logits out."""

from mmgpt.gpt.cache import Cache
from mmgpt.gpt.cross import Media
from mmgpt.gpt.documents import Documents
from mmgpt.gpt.transformer import GPT, Block, Transformer

__all__ = ["GPT", "Block", "Cache", "Documents", "Media", "Transformer"]
