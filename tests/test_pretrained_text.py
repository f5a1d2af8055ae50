"""Captions through a CLIP or T5 of transformers: random weights, saved in a folder as its users find one."""

import json
import logging
import shutil

import pytest
import torch
from helpers import done, train
from safetensors.torch import load_file

from configs import UserError, compose
from diffusion import commands, load
from diffusion.data.scenes.captions import WORDS
from diffusion.loading import rebuild
from diffusion.runs import checkpoint
from diffusion.runs.identity import extract_identity
from models import pretrained_encoder
from models.text_folder import TOKENIZER, WEIGHTS

pytest.importorskip("transformers")

from text_encoders import FAST, make_tokenizer, save_encoder, signal_of, where
from transformers import CLIPTextModel, T5EncoderModel

pytestmark = pytest.mark.commands

KINDS = ("clip_text_model", "clip", "t5", "t5_whole")
CAPTIONS = ["a small red seven top-left on black", "a zero", "", "purple seven !"]


def encode(signal, captions):
    """Hidden states of captions, and which are real."""
    return signal.frozen([signal.frozen.find_tokens(caption) for caption in captions])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("encoders")
    return {kind: save_encoder(place / kind, kind) for kind in KINDS}


@pytest.fixture(scope="module")
def run(folders, tmp_path_factory):
    """Two steps with an encoder whose folder is gone by now."""
    gone = shutil.copytree(folders["clip_text_model"], tmp_path_factory.mktemp("gone") / "clip")
    run = train(tmp_path_factory.mktemp("runs"), *FAST, where(gone), "max_steps=2", "run.name=clip",
                "callbacks.checkpoint.every=1")
    shutil.rmtree(gone)
    return run, gone


class TestEncoder:
    @pytest.mark.parametrize("kind", KINDS)
    def test_it_is_transformers_own(self, folders, kind):
        folder = folders[kind]
        original = (CLIPTextModel if kind.startswith("clip") else T5EncoderModel).from_pretrained(
            folder, local_files_only=True).eval()
        given = make_tokenizer(kind)(CAPTIONS, padding="max_length", max_length=12, return_tensors="pt")
        with torch.no_grad():
            theirs = original(input_ids=given.input_ids, attention_mask=given.attention_mask).last_hidden_state
        states, mask = encode(signal_of(folder), CAPTIONS)
        assert torch.equal(mask, given.attention_mask.bool())
        torch.testing.assert_close(states[mask], theirs[mask], atol=1e-5, rtol=1e-5)
        assert (theirs[0] - theirs[1]).abs().max() > 0.1
        assert not states[~mask].any()

    @pytest.mark.parametrize("kind", ["clip_text_model", "t5"])
    def test_pads_are_inert(self, folders, kind):
        """Alone and at its own length, a caption means the same."""
        short, long = signal_of(folders[kind], 11), signal_of(folders[kind], 12)
        (few, mask), (many, more) = encode(short, CAPTIONS[:1]), encode(long, CAPTIONS)
        torch.testing.assert_close(few[0][mask[0]], many[0][more[0]], atol=1e-5, rtol=1e-5)

    def test_what_it_makes_of_a_caption_depends_on_no_other(self, folders):
        one, other = signal_of(folders["t5"]), signal_of(folders["t5"])
        alone, _ = encode(one, CAPTIONS[1:2])
        together, _ = encode(other, [*CAPTIONS * 2, "a one", "a two", *CAPTIONS])
        assert torch.equal(alone[0], together[1])
        assert torch.equal(together[1], together[-3])

    def test_a_caption_is_encoded_once(self, folders, monkeypatch):
        signal, calls = signal_of(folders["clip_text_model"]), []
        signal.frozen.encoder.register_forward_hook(lambda *_: calls.append(1))
        before, _ = encode(signal, CAPTIONS)
        again, _ = encode(signal, CAPTIONS[::-1])
        assert len(calls) == 1
        assert torch.equal(before, again.flip(0))
        monkeypatch.setattr(pretrained_encoder, "REMEMBERED", 4 * 16 * 10)  # ten tokens
        encode(signal, ["a one"])
        assert sum(map(len, signal.frozen._known)) <= 10
        assert torch.equal(encode(signal, CAPTIONS)[0], before)

    def test_other_weights_are_not_taken_for_the_remembered_ones(self, folders):
        signal = signal_of(folders["clip_text_model"])
        before, _ = encode(signal, CAPTIONS)
        with torch.no_grad():
            signal.frozen.encoder.final_layer_norm.bias.add_(1)
        after, mask = encode(signal, CAPTIONS)
        torch.testing.assert_close(after[mask], before[mask] + 1)
        signal.frozen.encoder.final_layer_norm.requires_grad_(True)
        states, _ = encode(signal, CAPTIONS)
        torch.testing.assert_close(states, after)
        states.sum().backward()
        assert torch.equal(signal.frozen.encoder.final_layer_norm.bias.grad, mask.sum().float().expand(16))


class TestSignal:
    def test_words_of_the_data_and_typed_captions_are_the_same(self, folders):
        """The raw values of a caption in the data's words, and of the same one in tokens, make the same context."""
        signal = signal_of(folders["t5"], pooled="true").eval()
        words = signal.read(["a small red seven top-left on black"])
        tokens = torch.tensor([[len(signal.words) + token for token in signal.frozen.find_tokens(CAPTIONS[0])]])
        assert words.max() < len(signal.words) <= tokens.min()
        one, other = signal(words[:, :9]), signal(tokens)
        assert torch.equal(one.tokens["main"], other.tokens["main"])
        assert torch.equal(one.emb, other.emb)
        assert signal.write(words) == [CAPTIONS[0]]

    def test_any_word_may_be_typed(self, folders):
        signal = signal_of(folders["clip_text_model"])
        raw = signal.read(["a purple seven", "a seven"])
        assert raw.shape == (2, 12)
        assert signal.write(raw) == ["a purple seven", "a seven"]
        assert torch.equal(signal.read(signal.write(raw)), raw)
        with pytest.raises(UserError, match="at most 12"):
            signal.read(["a " * 20])

    def test_the_null_is_the_empty_caption(self, folders):
        signal = signal_of(folders["clip_text_model"])
        null, empty = signal.null(2), signal(signal.read(["", ""]))
        assert torch.equal(null.tokens["main"], empty.tokens["main"])
        assert torch.equal(null.mask["main"], empty.mask["main"])
        assert null.mask["main"].sum(1).tolist() == [2, 2]

    def test_without_a_folder_there_is_nothing_to_read(self, folders):
        signal = signal_of(folders["t5"])
        signal.folder = None
        with pytest.raises(UserError, match="without its folder"):
            signal.prepare()

    def test_long_captions_of_the_data_are_cut_before_their_end(self, folders, caplog):
        signal = signal_of(folders["clip_text_model"], 6)
        with caplog.at_level(logging.WARNING):
            signal(torch.full((1, 9), WORDS.index("a")))
        assert "are cut" in caplog.text
        assert (1, *[signal.frozen.find_tokens("a")[1]] * 4, 2) in signal.frozen._known


class TestRun:
    def test_its_checkpoint_is_enough(self, run, folders):
        trained, gone = run
        assert not gone.exists()
        done("sample.py", f"run={trained.folder}", "text=a purple seven !", "samples=0-1", "sampler.num_steps=2",
             "device=cpu", "guidance=cfg")
        model = load(trained.folder, device="cpu")
        recipe = model.recipe(["sampler.num_steps=2"])
        a, b = (model.sample([0], recipe=recipe, text=text) for text in ("a purple seven", "a zero"))
        assert a.isfinite().all()
        assert not torch.equal(a, b)

    def test_the_encoder_is_not_trained_and_kept_once(self, run, folders):
        content = checkpoint.read_latest(run[0].checkpoints)
        place, theirs = "encoder.signals.text.frozen.", load_file(folders["clip_text_model"] / WEIGHTS)
        for name, value in theirs.items():
            assert torch.equal(content["frozen"][f"{place}encoder.{name.removeprefix('text_model.')}"], value)
        text = bytes(content["frozen"][f"{place}tokenizer"].tolist())
        assert text == (folders["clip_text_model"] / TOKENIZER).read_bytes()
        assert not any(name.startswith(place) for kind in ("raw", "ema") for name in content[kind])
        assert "encoder.signals.text.project.weight" in content["raw"]

    def test_it_is_exported_whole(self, run, tmp_path):
        done("scripts/export.py", f"run={run[0].folder}", f"to={tmp_path / 'clip.safetensors'}")
        mine, other = (load(place, device="cpu") for place in (tmp_path / "clip.safetensors", run[0].folder))
        a, b = (model.sample([0], recipe=model.recipe(["sampler.num_steps=2"]), text="a purple seven")
                for model in (mine, other))
        assert torch.equal(a, b)

    def test_it_goes_on_without_the_folder(self, run, folders, tmp_path):
        trained, gone = run
        runs = shutil.copytree(trained.folder.parents[1], tmp_path / "runs")
        same = [*FAST, "run.name=clip", "max_steps=4"]
        resumed = train(runs, *same, where(gone))
        whole = train(tmp_path / "whole", *same, where(folders["clip_text_model"]))
        mine, other = (load(each.folder, device="cpu").weights.state_dict() for each in (resumed, whole))
        assert all(torch.equal(mine[name], value) for name, value in other.items())
        assert str(gone) not in json.dumps(extract_identity(trained.config))
        with pytest.raises(UserError, match="cannot be read"):  # a new one needs the weights
            train(runs, *FAST, where(gone), "run.name=new")
        changed = save_encoder(tmp_path / "other", "clip_text_model", seed=4)
        with pytest.raises(UserError, match="checksum"):
            train(runs, *same[:-1], where(changed), "max_steps=6")

    def test_another_run_brings_the_encoder(self, run, folders, tmp_path):
        cfg = compose("train", [*FAST[:-2], "condition=text", f"run.root={tmp_path}", "max_steps=1"])
        cfg.condition.signals.text = f"${{of:{run[0].folder},condition.signals.text}}"
        cfg.begin = {"base": {"run": str(run[0].folder), "map": {"encoder": "encoder"}}}
        made = load(commands.train(cfg, "test").folder, device="cpu")
        theirs = load(run[0].folder, device="cpu").weights.encoder.signals["text"].frozen.state_dict()
        mine = made.weights.encoder.signals["text"].frozen.state_dict()
        assert all(torch.equal(mine[name], value) for name, value in theirs.items())

    def test_it_can_be_trained(self, folders, tmp_path):
        made = train(tmp_path, *FAST, where(folders["t5"]), "max_steps=4", "run.name=tuned", "optimizer.lr=0.01",
                     "trainable=[net.*,encoder.signals.text.*]")
        content = checkpoint.read_latest(made.checkpoints)
        name = "encoder.signals.text.frozen.encoder.final_layer_norm.weight"
        assert not torch.equal(content["raw"][name],
                               load_file(folders["t5"] / WEIGHTS)["encoder.final_layer_norm.weight"])
        model = load(made.folder, device="cpu")
        assert model.sample([0], recipe=model.recipe(["sampler.num_steps=2"]), text="a seven").isfinite().all()

    @pytest.mark.parametrize(("config", "said"), [
        ({"hidden_size": 2**20, "num_attention_heads": 1}, "more than"), ({"num_hidden_layers": 10**6}, "more than"),
        ({"model_type": "auto"}, "clip or t5"), ({"hidden_act": "os.system"}, "hidden_act"), ({"x": "y"}, "x=y")])
    def test_a_strangers_config_makes_nothing_else(self, run, config, said):
        model = load(run[0].folder, device="cpu")
        condition = model.config["condition"]
        text = condition["signals"]["text"]
        node = {**condition, "signals": {"text": {**text, "config": {**text["config"], **config}}}}
        with pytest.raises(UserError, match=said):
            rebuild({**model.config, "condition": node}, model.weights.state_dict(), "a file",
                    ("degradations", "models", "samplers", "diffusion"))
