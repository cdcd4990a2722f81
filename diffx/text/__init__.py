"""Encoders of text, pictures and sounds behind one protocol, the sources that a model is told by, and a cache of embeddings.

An encoder turns a column of a batch into `Encoded`: token states, mask, pooled vector. `Bytes`, `Words` and `Codes` are trained along
with the denoiser and need nothing; `T5`, `CLIPText`, `CLIPImage` and `MiniLM` are frozen and need the extra ``text``;
`Mel` has no weights. `Sources` gives encoders the names under which networks take them; `Cached` remembers what a frozen encoder made.
"""

from .cache import Cached
from .codes import Codes
from .encoder import Encoded, Encoder, Row, TextEncoder, Tokenized, masked_mean
from .images import CLIPImage
from .keywords import KeyWords
from .learned import Bytes, Words
from .new_word import NewWord
from .pretrained import T5, CLIPText, MiniLM
from .sounds import Mel
from .sources import Sources, as_sources, pooled_name
from .spans import TokenSpan
from .store import Store
from .vectors import VectorTokens

__all__ = [
    "T5", "Bytes", "CLIPImage", "CLIPText", "Cached", "Codes", "Encoded", "Encoder", "KeyWords", "Mel", "MiniLM", "NewWord", "Row",
    "Sources", "Store", "TextEncoder", "TokenSpan", "Tokenized", "VectorTokens", "Words", "as_sources", "masked_mean", "pooled_name",
]  # fmt: skip
