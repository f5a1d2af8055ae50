"""Text as a condition: a tokenizer of words, and an encoder whose tokens a network attends to."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from configs.errors import UserError
from configs.registry import closest
from models.attention import attend
from models.conditioning import Signal
from models.context import Context
from models.readers import Reader

PAD, BOS, EOS = 0, 1, 2
SPARE = tuple(f"<s{i}>" for i in range(8))
RESERVED = ("<pad>", "<bos>", "<eos>", *SPARE)
"""The first words of every vocabulary. Those of ``SPARE`` mean nothing: they are there to be given a meaning."""
WORD = re.compile(r"<\w+>|[^\W_]+(?:[-'][^\W_]+)*")


def split_words(text: str) -> list[str]:
    """The words of a text in lower case: letters and digits, with hyphens and apostrophes inside, or ``<...>``."""
    return WORD.findall(unicodedata.normalize("NFC", text).lower())


def list_words(words: Sequence[str]) -> list[str]:
    """A vocabulary: the reserved words, then these."""
    return [*RESERVED, *words]


class TextReader(Reader):
    """Captions by their words, one token for each: ``<bos> words <eos> <pad> ...``.

    :param words: the vocabulary, ``RESERVED`` first; a token is a place in it
    :param length: L, tokens of a caption
    :raises UserError: if the vocabulary does not begin with the reserved words, or names a word twice
    """

    def __init__(self, words: Sequence[str], length: int):
        self.words, self.length = list(words), length
        self._places = {word: place for place, word in enumerate(self.words)}
        if tuple(self.words[:len(RESERVED)]) != RESERVED or len(self._places) < len(self.words):
            raise UserError("a vocabulary that does not begin with the reserved words, or has words twice",
                            f"{', '.join(RESERVED[:4])}, ..., then the others", "words: null, which takes the data's")
        if length < 2:
            raise UserError(f"captions of {length} tokens", "at least 2, for their begin and end", "length=12")

    def read(self, values: Sequence[Any]) -> Int[Tensor, "b l"]:
        return torch.stack([self.encode(value) for value in values])

    def encode(self, text: Any) -> Int[Tensor, " l"]:
        """The tokens of a caption.

        :raises UserError: if it is no text, has a word that is not in the vocabulary, or too many words
        """
        if not isinstance(text, str):
            raise UserError(f"{self.name}={text}", "words, or a list of captions", f'{self.name}="..."')
        words = split_words(text)
        for word in words:
            if word not in self._places:
                known = closest(word, self.words[len(RESERVED):])
                raise UserError(f'the word "{word}" in {self.name}="{text}"', "words that the model has seen, such as "
                                + ", ".join(self.words[len(RESERVED):][:12]),
                                f'{self.name}="{text.lower().replace(word, known)}"')
        if len(words) > self.length - 2:
            raise UserError(f"{len(words)} words in {self.name}=\"{text}\"", f"at most {self.length - 2}",
                            f'{self.name}="{" ".join(words[:self.length - 2])}"')
        tokens = [BOS, *(self._places[word] for word in words), EOS]
        return torch.tensor(tokens + [PAD] * (self.length - len(tokens)))

    def write(self, raw: Tensor) -> list[str]:
        return [" ".join(self.words[token] for token in row if token not in (PAD, BOS, EOS)) for row in raw.tolist()]

    def caption(self, value: Any) -> str:
        return str(value)

    def list_words(self, row: Int[Tensor, " l"]) -> list[str]:
        """The word of each token of a caption, pads left out; "" for the later tokens of a word that has several."""
        return [self.words[token] for token in row.tolist() if token != PAD]


class TokenMixer(nn.Module):
    """A transformer layer (Vaswani et al. 2017, with the norm first, as in Xiong et al. 2020, arXiv 2002.04745): each
    token attends to the real ones, then passes a perceptron. Without mixing, the perceptron alone.

    :param dim: length D of a token
    :param heads: of the attention; 0 is no attention
    """

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        if heads:
            self.attention_norm, self.qkv, self.out = nn.LayerNorm(dim), nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"]) -> Float[Tensor, "b l d"]:
        if self.heads:
            parts = self.qkv(self.attention_norm(x)).unflatten(2, (3, self.heads, -1))
            q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
            x = x + self.out(attend(q, k, v, mask[:, None, None]).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm(x))


class CaptionSignal(TextReader, Signal):
    """A caption as tokens of a stream, of which the mean of the real ones may join the embedding.

    :ivar stream: of the context
    :ivar pool: makes the part of the embedding; None for none
    """

    stream: str
    pool: nn.Linear | None

    def make_context(self, tokens: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"]) -> Context:
        """The context of encoded captions."""
        emb = None
        if self.pool is not None:
            real = mask[..., None].to(tokens)
            emb = self.pool((tokens * real).sum(1) / real.sum(1))
        return Context(emb=emb, tokens={self.stream: tokens}, mask={self.stream: mask})

    def mirror(self, raw: Tensor, side: int) -> Tensor:
        words = [word for word in ("left", "right") if any(word in known for known in self.words)]
        if words:
            raise UserError(f"data.flip=true with captions that have the word {words[0]}", "images as they are",
                            "data.flip=false")
        return raw

    def silence(self) -> None:
        """Nothing becomes of the embedding, and there is nothing to do in a stream that no network attends to yet.

        :raises UserError: in ``main``: to what a trained network attends already, more tokens take some of the weight
        """
        if self.stream == "main":
            raise UserError(f"the signal {self.name} for a network that was trained without it", "tokens that it does "
                            "not attend to yet: those of main would change its answers at once",
                            f"condition.signals.{self.name}.stream=OTHER, and a network that reads it")
        if self.pool is not None:
            nn.init.zeros_(self.pool.weight)
            nn.init.zeros_(self.pool.bias)


class TextSignal(CaptionSignal):
    """A caption as tokens that the network attends to (Rombach et al. 2022, arXiv 2112.10752, section 3.3): an
    embedding of each word and place, and ``depth`` layers. Pads are masked everywhere, so that nothing depends on what
    is in them. The null is the empty caption, ``<bos> <eos>``.

    :param words: the vocabulary; null takes the data's. It is saved with the run
    :param length: L, tokens of a caption; null takes the data's
    :param dim: length E of the embedding of the other signals
    :param token_dim: length D of a token, the network's ``cross_dim``
    :param depth: layers
    :param heads: of their attention; 0 lets each word mean what it means wherever it stands, which editing by words
        needs
    :param stream: of the context: ``main`` is what networks attend to; any other is for a network around another that
        has been trained without it
    :param pooled: the mean of the real tokens joins the embedding, too, through a linear layer (Saharia et al. 2022,
        arXiv 2205.11487, section 2.4): a small network learns sooner what the words mean, but a changed word changes
        the whole image
    """

    def __init__(self, words: Sequence[str], length: int, dim: int, token_dim: int | None, depth: int = 2,
                 heads: int = 4, stream: str = "main", pooled: bool = False):
        Signal.__init__(self, dim)
        if token_dim is None:
            raise UserError("a text for a network that attends to no tokens", "the length of a token",
                            "model.cross_dim=64")
        TextReader.__init__(self, words, length)
        if heads and token_dim % heads:
            raise UserError(f"tokens of length {token_dim} for {heads} heads", "a multiple of it",
                            f"model.cross_dim={-(-token_dim // heads) * heads}")
        self.stream = stream
        self.embedding = nn.Embedding(len(self.words), token_dim)
        # As large as the words, so that a network tells the first colour from the second.
        self.places = nn.Parameter(torch.randn(length, token_dim))
        self.layers = nn.ModuleList(TokenMixer(token_dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(token_dim)
        self.pool = nn.Linear(token_dim, dim) if pooled else None
        self.register_buffer("empty", torch.tensor([BOS, EOS] + [PAD] * (length - 2)), persistent=False)

    def forward(self, value: Int[Tensor, "b l"]) -> Context:
        mask = value != PAD
        if value.device.type == "cpu" and not torch.compiler.is_compiling() and not mask.any(dim=1).all():
            raise UserError(f"a caption in {self.name} without a single token", "at least <bos> and <eos>",
                            f'{self.name}=""')
        x = self.embedding(value) + self.places[:value.shape[1]]
        for layer in self.layers:
            x = layer(x, mask)
        return self.make_context(self.norm(x), mask)

    def null(self, n: int) -> Context:
        return self.forward(self.get_buffer("empty")[None]).repeat(n)


def list_captions(signals: Mapping[str, object], ctx: Context) -> list[list[str]]:
    """The words of each row's caption, one for each token of the stream ``main``; none unless these tokens are those of
    one caption.

    :param signals: that made the context, by name
    """
    names = [name for name, part in ctx.parts.items() if "main" in part.tokens]
    signal = signals.get(names[0]) if len(names) == 1 else None
    if not isinstance(signal, CaptionSignal) or names[0] not in ctx.raw:
        return []
    return [signal.list_words(row) for row in ctx.raw[names[0]]]
