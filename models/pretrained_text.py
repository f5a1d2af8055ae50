"""Captions as a pretrained text encoder understands them."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from configs.errors import UserError
from models.conditioning import Signal
from models.context import Context
from models.pretrained_encoder import PretrainedEncoder
from models.text import PAD, CaptionSignal, TextReader, split_words

log = logging.getLogger(__name__)


class PretrainedTextSignal(CaptionSignal):
    """A caption as tokens that the network attends to: the hidden states of a frozen CLIP or T5 (Rombach et al. 2022,
    arXiv 2112.10752; Saharia et al. 2022, arXiv 2205.11487), then a norm and a linear layer, which are trained. Pads
    are masked. The null is the empty caption.

    Raw values are numbers of one vocabulary: the data's words, then all tokens of the encoder, from ``len(words)`` on.
    Captions of the data are words, joined by blanks for the encoder's tokenizer; what is typed may hold anything else,
    and is then tokens.

    :param config: of the encoder, see :mod:`models.text_folder`
    :param tokenizer: ``size`` in bytes and ``checksum`` (SHA-256) of its file
    :param checksum: SHA-256 of the file of its weights
    :param words: the data's vocabulary; null takes it from the data
    :param dim: length E of the embedding of the other signals
    :param token_dim: length D of a token, the network's ``cross_dim``
    :param length: L, tokens of the encoder for a caption; longer ones of the data are cut, with a warning
    :param folder: where the files lie; they are read once, before a new training, since checkpoints hold them. None if
        they come with ``begin``
    :param stream: of the context, see :class:`models.text.TextSignal`
    :param pooled: the mean of the real tokens joins the embedding, too
    """

    def __init__(self, config: Mapping[str, Any], tokenizer: Mapping[str, Any], checksum: str, words: Sequence[str],
                 dim: int, token_dim: int, length: int = 77, folder: str | None = None, stream: str = "main",
                 pooled: bool = False):
        Signal.__init__(self, dim)
        TextReader.__init__(self, words, length)
        self.tokenizer, self.checksum, self.folder, self.stream = dict(tokenizer), checksum, folder, stream
        self.frozen = PretrainedEncoder(config, self.tokenizer["size"], length)
        self.norm = nn.LayerNorm(self.frozen.width)
        self.project = nn.Linear(self.frozen.width, token_dim)
        self.pool = nn.Linear(token_dim, dim) if pooled else None
        self._warned = False

    def prepare(self) -> None:
        """Read weights and tokenizer.

        :raises UserError: see :meth:`models.pretrained_encoder.PretrainedEncoder.read_files`
        """
        if self.folder is None:
            raise UserError("a pretrained text encoder without its folder", "the folder of the user, which the config "
                            "of another run cannot name", f"condition.signals.{self.name}.folder=FOLDER, or "
                            "begin.base.map={encoder: encoder} to take the weights of the other run")
        self.frozen.read_files(Path(self.folder).expanduser(), self.checksum, self.tokenizer["checksum"])

    def encode(self, text: Any) -> Int[Tensor, " l"]:
        """The raw values of a caption: words of the data, if it is made of these alone, else tokens of the encoder.

        :raises UserError: if it is no text, or has too many tokens
        """
        if not isinstance(text, str):
            raise UserError(f"{self.name}={text}", "words, or a list of captions", f'{self.name}="..."')
        tokens, words = self.frozen.find_tokens(text), split_words(text)
        if len(tokens) > self.length:
            raise UserError(f'{len(tokens)} tokens in {self.name}="{text}"', f"at most {self.length}",
                            "a shorter caption")
        if " ".join(words) == text and all(word in self._places for word in words) and len(words) <= self.length - 2:
            return super().encode(text)
        raw = [len(self.words) + token for token in tokens]
        return torch.tensor(raw + [PAD] * (self.length - len(raw)))

    def write(self, raw: Tensor) -> list[str]:
        known = len(self.words)
        return [self.frozen.write_tokens([token - known for token in row if token != PAD])
                if max(row) >= known else super(PretrainedTextSignal, self).write(torch.tensor([row]))[0]
                for row in raw.tolist()]

    def list_words(self, row: Int[Tensor, " l"]) -> list[str]:
        return self.frozen.list_words(self._find_tokens(tuple(row.tolist())), self.write(row[None])[0])

    def forward(self, value: Int[Tensor, "b n"]) -> Context:
        rows = list(map(tuple, value.tolist()))
        tokens = {row: self._find_tokens(row) for row in dict.fromkeys(rows)}
        states, mask = self.frozen([tokens[row] for row in rows])
        return self.make_context(self.project(self.norm(states)), mask)

    def null(self, n: int) -> Context:
        return self.forward(torch.full((1, 1), PAD)).repeat(n)

    def _find_tokens(self, row: tuple[int, ...]) -> tuple[int, ...]:
        known = len(self.words)
        if max(row) >= known:
            tokens = tuple(token - known for token in row if token != PAD)
            if min(tokens) < 0 or max(tokens) >= self.frozen.encoder.config.vocab_size:
                raise UserError(f"{self.name} with numbers of words and of tokens, or of none", "one or the other",
                                f'{self.name}="..."')
            return tokens[: self.length]
        tokens = self.frozen.find_tokens(TextReader.write(self, torch.tensor([row]))[0])
        if len(tokens) > self.length and not self._warned:
            self._warned = True
            log.warning("captions of more than %d tokens of the text encoder are cut", self.length)
        # The last token is the end of the caption, which stays.
        return tokens if len(tokens) <= self.length else (*tokens[: self.length - 1], tokens[-1])
