"""Folders of text encoders that are none, or do not fit: each is refused with a sentence."""

import json
import re
import shutil
import sys

import pytest
import torch
from helpers import done
from safetensors.torch import load_file, save_file

from configs import UserError
from models.text_folder import CONFIG, TOKENIZER, WEIGHTS, read_config

pytest.importorskip("transformers")

from text_encoders import FAST, save_encoder, signal_of, where

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return save_encoder(tmp_path_factory.mktemp("encoders") / "clip", "clip_text_model")


class TestRefusals:
    @pytest.fixture
    def folder(self, original, tmp_path):
        return shutil.copytree(original, tmp_path / "clip")

    def change(self, folder, **settings):
        path = folder / CONFIG
        path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))

    def test_on_the_command_line(self, folder, tmp_path, monkeypatch):
        """In words, before any work."""
        def refuse(*overrides):
            said = done("train.py", *FAST, f"run.root={tmp_path / 'runs'}", *overrides, code=2)
            assert not (tmp_path / "runs").exists()
            return said

        assert "no folder" in refuse(where(tmp_path / "none"))
        assert "condition.signals.text.folder" in refuse()
        assert "clip.length=16" in refuse(where(folder), "condition.signals.text.length=77").replace(
            "condition.signals.text", "clip")
        (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
        assert "pickle" in refuse(where(folder))
        (folder / "pytorch_model.bin").rename(folder / WEIGHTS)
        monkeypatch.setitem(sys.modules, "transformers", None)
        assert 'pip install "thaw[text]"' in refuse(where(folder))

    @pytest.mark.parametrize(("name", "said"), [(CONFIG, "no config.json"), (TOKENIZER, "no tokenizer.json"),
                                                (WEIGHTS, "no model.safetensors")])
    def test_a_file_that_is_missing(self, folder, name, said):
        (folder / name).unlink()
        with pytest.raises(UserError, match=said):
            read_config(folder)

    @pytest.mark.parametrize(("settings", "said"), [
        ({"model_type": "bert"}, "a model of type bert"), ({"model_type": None}, "nothing of transformers"),
        ({"model_type": ["t5"]}, "a model of type"), ({"hidden_act": "${oc.env:HOME}"}, "hidden_act"),
        ({"layer_norm_eps": float("inf")}, "layer_norm_eps"), ({"num_hidden_layers": 2**30}, "num_hidden_layers"),
        ({"more": "x" * 2**20}, "more than 1048576 bytes")])
    def test_a_config_that_is_none(self, folder, settings, said):
        self.change(folder, **settings)
        with pytest.raises(UserError, match=said):
            read_config(folder)

    @pytest.mark.parametrize(("settings", "said"), [
        ({"num_hidden_layers": 3}, "of a text encoder"), ({"num_hidden_layers": 1}, "of a text encoder"),
        ({"intermediate_size": 24}, "the first that differs"), ({"num_attention_heads": 3}, "cannot be built")])
    def test_a_config_that_does_not_fit(self, folder, settings, said):
        self.change(folder, **settings)
        with pytest.raises(UserError, match=said):
            signal_of(folder)

    def test_damaged_files(self, folder):
        state = load_file(folder / WEIGHTS)
        name = next(iter(state))
        save_file({**state, name: torch.full_like(state[name], torch.nan)}, folder / WEIGHTS)
        with pytest.raises(UserError, match="not finite"):
            signal_of(folder)
        (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:1000])
        with pytest.raises(UserError, match="cannot be read"):
            signal_of(folder)
        save_file(state, folder / WEIGHTS)
        whole = (folder / TOKENIZER).read_text()
        (folder / TOKENIZER).write_text("{}")
        with pytest.raises(UserError, match="cannot be read"):
            signal_of(folder)
        (folder / TOKENIZER).write_text(re.sub(r'("purple": ?)\d+', r"\g<1>999", whole))
        with pytest.raises(UserError, match="a tokenizer of"):
            signal_of(folder)
