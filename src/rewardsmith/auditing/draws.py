"""What draws depend on: a seed and texts, never the order of a file or what else is drawn."""

from __future__ import annotations

import hashlib
import zlib


def text_code(*texts: str) -> int:
    """Texts as a number of 32 bits, to seed a generator beside the seed itself.

    >>> text_code("prompt", "answer") == text_code("prompt", "other answer")
    False
    """
    return zlib.crc32("\x1f".join(texts).encode("utf-8", "surrogatepass"))


def draw_key(seed: int, *texts: str) -> bytes:
    """16 bytes that put texts into a random order, another one for each seed; with one seed, a name of a text that does not tell it."""
    text = "\x1f".join([str(seed), *texts])
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
