"""Small text encoders of transformers with random weights, in folders as their users find them."""

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

from configs import compose, construct
from configs.values import to_plain
from diffusion import commands  # noqa: F401  (registers the resolvers)
from diffusion.data.scenes.captions import WORDS
from models.pretrained_text import PretrainedTextSignal
from models.text import RESERVED

SPECIAL = ["<pad>", "<start>", "<end>", "<unk>"]
PIECES = [*SPECIAL, *sorted(set("-".join(WORDS[len(RESERVED):]).split("-"))), "-", "purple", "!"]
CLIP = {"vocab_size": len(PIECES), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2,
        "pad_token_id": 0}
T5 = {"vocab_size": len(PIECES) + 3, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2,
      "feed_forward_proj": "gated-gelu"}
VISION = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 8,
          "patch_size": 4}
FAST = ["experiment=ddpm_digits", "debug=fast", "model=nano", "model.base=8", "model.emb_dim=32", "model.cross_dim=16",
        "trainer.threads=1", "trainer.accelerator=cpu", "data=scenes", "data.source=digits", "data.size=16",
        "data.count=32", "data.count_test=8", "callbacks.pictures.count=0", "condition=text_pretrained",
        "condition.signals.text.length=12"]
"""A training on scenes of such an encoder, but for its folder."""


def make_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Whole words and hyphens, between begin and end as CLIP has them, or before the end as T5 has it."""
    tokenizer = Tokenizer(WordLevel({piece: place for place, piece in enumerate(PIECES)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    single = "<start> $A <end>" if kind.startswith("clip") else "$A <end>"
    tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=[("<start>", 1), ("<end>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<start>",
                                   eos_token="<end>", unk_token="<unk>")


def save_encoder(folder: Path, kind: str, seed: int = 3, **settings) -> Path:
    """An encoder and its tokenizer.

    :param kind: ``clip_text_model``, ``clip`` (with the encoder of images), ``t5``, or ``t5_whole`` (with the decoder)
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = {"clip_text_model": lambda: CLIPTextModel(CLIPTextConfig(**{**CLIP, **settings})),
                 "clip": lambda: CLIPModel(CLIPConfig(text_config={**CLIP, **settings}, vision_config=VISION)),
                 "t5": lambda: T5EncoderModel(T5Config(**{**T5, **settings})),
                 "t5_whole": lambda: T5ForConditionalGeneration(T5Config(**{**T5, **settings}))}[kind]()
        for value in model.parameters():  # transformers begins with weights so small that little depends on them
            value.data = torch.randn(value.shape) * (0.3 if value.dim() > 1 else 0.1) + (value.dim() == 1)
    model.save_pretrained(folder)
    make_tokenizer(kind).save_pretrained(folder)
    return folder


def where(folder: Path) -> str:
    """The setting that names a folder."""
    return f"condition.signals.text.folder={folder}"


def signal_of(folder: Path, length: int = 12, **settings) -> PretrainedTextSignal:
    """The signal of a folder as a new training has it."""
    overrides = [f"condition.signals.text.{key}={value}" for key, value in
                 {"folder": folder, "length": length, **settings}.items()]
    node = to_plain(compose("train", [*FAST, *overrides]))["condition"]["signals"]["text"]
    signal = construct({**node, "words": WORDS})
    signal.prepare()
    return signal
