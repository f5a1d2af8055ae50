"""A text encoder of the library transformers with its tokenizer: frozen, whole in the checkpoint, and no code but the
library's own."""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from configs.errors import UserError, describe_error
from models.frozen import Frozen
from models.text_folder import DIRECTIONS, TOKENIZER, WEIGHTS, check_config

GROUP = 8
"""Captions that a frozen encoder takes at a time, always: what it makes of one does not depend on which are with it."""
REMEMBERED = 2**28
"""Bytes of encoded captions that are kept."""
FOREIGN = {"clip": ("vision_model.", "visual_projection.", "text_projection.", "logit_scale"),
           "t5": ("decoder.", "lm_head.")}
"""Weights of the other parts of a model, by the kind of the text encoder."""


class PretrainedEncoder(Frozen):
    """Captions through a CLIP text model (Radford et al. 2021, arXiv 2103.00020) or the encoder of a T5 (Raffel et al.
    2020, arXiv 1910.10683): its last hidden states, after its final norm. Weights and tokenizer lie in the checkpoint;
    the tokenizer as the bytes of its file. While no weight is trained, what was made of a caption is remembered.

    :param config: of the encoder, see :mod:`models.text_folder`
    :param size: bytes of the tokenizer's file
    :param length: L, tokens of a caption
    :ivar width: length H of a hidden state
    :raises UserError: if transformers is missing, or the config is none, or of an encoder of fewer places than L
    """

    def __init__(self, config: Mapping[str, Any], size: int, length: int):
        super().__init__()
        self.config, self.length = check_config(config, "condition.signals.text.config"), length
        self.encoder = build_encoder(self.config)
        given = self.encoder.config
        self.width = given.hidden_size
        places = given.max_position_embeddings if self.config["model_type"] == "clip" else length
        if not 2 <= length <= places:
            raise UserError(f"captions of {length} tokens for a text encoder of {places}", f"2 to {places} tokens",
                            f"condition.signals.text.length={places}")
        self.register_buffer("tokenizer", torch.zeros(size, dtype=torch.uint8))
        self.requires_grad_(False).train()
        self._reader: Any = None
        self._known: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()
        self._stamp: Any = None

    def read_files(self, folder: Path, checksum: str, tokenizer: str) -> None:
        """Take weights and tokenizer from a folder.

        :param checksum: SHA-256 of the file of the weights
        :param tokenizer: SHA-256 of the tokenizer's
        :raises UserError: if they are not there, are others than those of the checksums, or do not fit
        """
        try:
            with (folder / WEIGHTS).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            state, text = load_file(folder / WEIGHTS), (folder / TOKENIZER).read_bytes()
        except (OSError, SafetensorError) as error:
            raise UserError(f"{folder} cannot be read: {error}", f"{WEIGHTS} and {TOKENIZER}",
                            "condition.signals.text.folder=WHERE, if it has moved") from error
        read = hashlib.sha256(text).hexdigest()
        for name, mine, wanted in ((WEIGHTS, found, checksum), (TOKENIZER, read, tokenizer)):
            if mine != wanted:
                raise UserError(f"{folder / name} has the checksum {mine}", f"{wanted}, that of this run's config",
                                "the same command again, or condition.signals.text.folder=WHERE")
        fill_encoder(self.encoder, state, self.config["model_type"], folder / WEIGHTS)
        self.get_buffer("tokenizer").copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
        self._reader = None
        self.find_tokens("")

    @property
    def reader(self) -> Any:
        """The tokenizer.

        :raises UserError: if its file is none, or another encoder's
        """
        if self._reader is None:
            from tokenizers import Tokenizer

            try:
                reader = Tokenizer.from_buffer(self.get_buffer("tokenizer").cpu().numpy().tobytes())
            except Exception as error:  # the library has no class of its own for what cannot be read
                raise UserError(f"{TOKENIZER} cannot be read: {describe_error(error)}", "the file of a fast tokenizer",
                                DIRECTIONS) from error
            most = max(reader.get_vocab(with_added_tokens=True).values(), default=0)
            if most >= self.encoder.config.vocab_size:
                raise UserError(f"a tokenizer of {most + 1} tokens for an encoder of {self.encoder.config.vocab_size}",
                                "the tokenizer of this encoder", "a folder in which both were saved")
            reader.no_padding()
            reader.no_truncation()
            self._reader = reader
        return self._reader

    def find_tokens(self, text: str) -> tuple[int, ...]:
        """The tokens of a caption, with those that the tokenizer puts around it, however many they are.

        :raises UserError: if there is none, or one that the encoder does not have
        """
        tokens = tuple(self.reader.encode(text).ids)
        if not tokens or max(tokens) >= self.encoder.config.vocab_size:
            raise UserError(f'a tokenizer that makes {list(tokens)[:8]} of "{text}"', "at least one token, such as the "
                            "end's, each one of the encoder's", DIRECTIONS)
        return tokens

    def write_tokens(self, tokens: Sequence[int]) -> str:
        """The caption that tokens say."""
        return self.reader.decode(list(tokens), skip_special_tokens=True)

    def list_words(self, tokens: Sequence[int], text: str) -> list[str]:
        """The word of each token of a caption in lower case, "" for the later tokens of a word that has several; where
        the tokenizer makes other tokens of the text, each token is a word of its own."""
        read = self.reader.encode(text)
        if list(tokens) != read.ids:
            return [self.reader.id_to_token(token) for token in tokens]
        words: list[str] = []
        for place, word in enumerate(read.word_ids):
            if word is not None and place and read.word_ids[place - 1] == word:
                words.append("")
            else:
                begin, end = (0, 0) if word is None else read.word_to_chars(word)
                words.append(text[begin:end].strip().lower() or read.tokens[place])
        return words

    def forward(self, captions: Sequence[tuple[int, ...]]) -> tuple[Float[Tensor, "b l h"], Bool[Tensor, "b l"]]:
        """Hidden states of captions by their tokens, at most L each, and which are real; the others are zero."""
        found = self._find_states(list(dict.fromkeys(captions)))
        states = nn.utils.rnn.pad_sequence([found[tokens] for tokens in captions], batch_first=True)
        lengths = torch.tensor([len(tokens) for tokens in captions], device=states.device)
        mask = torch.arange(self.length, device=states.device) < lengths[:, None]
        return F.pad(states, (0, 0, 0, self.length - states.shape[1])), mask

    def _find_states(self, captions: list[tuple[int, ...]]) -> dict[tuple[int, ...], Tensor]:
        parameters = list(self.encoder.parameters())
        if any(parameter.requires_grad for parameter in parameters):
            self._known.clear()
            return self._encode(captions, len(captions))
        stamp = [(parameter.data_ptr(), parameter._version) for parameter in parameters]
        if stamp != self._stamp:  # other weights, or on another device
            self._known.clear()
            self._stamp = stamp
        with torch.no_grad():
            found = self._encode([tokens for tokens in captions if tokens not in self._known], GROUP)
        for tokens in captions:
            if tokens in found:
                self._known[tokens] = found[tokens]
            else:
                found[tokens] = self._known[tokens]
                self._known.move_to_end(tokens)
        most = REMEMBERED // (self.width * 4)
        held = sum(map(len, self._known))
        while held > most:
            held -= len(self._known.popitem(last=False)[0])
        return found

    def _encode(self, captions: Sequence[tuple[int, ...]], size: int) -> dict[tuple[int, ...], Tensor]:
        found = {}
        for first in range(0, len(captions), size):
            group = captions[first : first + size]
            tokens = torch.zeros(size, self.length, dtype=torch.int64)
            mask = torch.zeros_like(tokens)
            for row in range(size):
                own = group[min(row, len(group) - 1)]
                tokens[row, : len(own)], mask[row, : len(own)] = torch.tensor(own), 1
            device = self.get_buffer("tokenizer").device
            states = self.encoder(input_ids=tokens.to(device), attention_mask=mask.to(device)).last_hidden_state
            found |= {own: states[row, : len(own)].clone() for row, own in enumerate(group)}
        return found


def build_encoder(config: Mapping[str, Any]) -> Any:
    """The module of a config, with random weights.

    :raises UserError: if transformers is missing, or the numbers do not go together
    """
    try:
        from transformers import CLIPTextConfig, CLIPTextModel, T5Config
        from transformers.models.t5.modeling_t5 import T5Stack
    except ImportError as error:
        raise UserError(f"a pretrained text encoder without the library transformers ({error})",
                        "transformers, 5.0 or later", 'pip install "thaw[text]"') from error
    settings = {key: value for key, value in config.items() if key != "model_type"}
    try:
        if config["model_type"] == "clip":
            return CLIPTextModel(CLIPTextConfig(**settings))
        return T5Stack(T5Config(**settings, is_encoder_decoder=False, use_cache=False))
    except UserError:
        raise
    except Exception as error:  # the library's own checks have classes of their own
        raise UserError(f"a text encoder that cannot be built: {describe_error(error)}", "a config that transformers "
                        "builds", "another folder") from error


@torch.no_grad()
def fill_encoder(encoder: nn.Module, state: Mapping[str, Tensor], kind: str, path: Path) -> None:
    """Put the weights of a file into a text encoder, as float32; those of other parts of the model are left.

    :param kind: ``clip`` or ``t5``
    :param path: of the file, for messages
    :raises UserError: for other names or shapes, or numbers that are not finite
    """
    prefix = "text_model." if kind == "clip" else "encoder."
    # A T5 calls the table of its tokens "shared"; older files of CLIP hold the numbers of the places.
    theirs = {"embed_tokens.weight" if name == "shared.weight" else name.removeprefix(prefix): value
              for name, value in state.items()
              if not name.startswith(FOREIGN[kind]) and not name.endswith("position_ids")}
    mine = encoder.state_dict()
    odd = sorted(set(mine) ^ set(theirs)) or [name for name in mine if mine[name].shape != theirs[name].shape]
    if odd:
        raise UserError(f"{path}: {len(theirs)} tensors of a text encoder there, {len(mine)} in its config.json; the "
                        f"first that differs is {odd[0]}", "the weights of this config",
                        "the config.json and weights of one text encoder")
    for name, value in mine.items():
        value.copy_(theirs[name])
        if not value.isfinite().all():
            raise UserError(f"{name} in {path} has numbers that are not finite", "finite weights", "another file")
