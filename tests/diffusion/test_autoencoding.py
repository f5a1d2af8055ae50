"""Autoencoders are training runs: the terms of the loss, the codebook's steps, the discriminator's start."""

import copy

import pytest
import torch
from helpers import equal, train
from networks import randomized
from poison import poison

from configs import UserError, registry
from degradations.randomness import BatchStream
from diffusion.objectives.adversarial import Adversarial, balance_gradients
from diffusion.objectives.autoencoder import NetworkAutoencoder
from diffusion.objectives.autoencoding import Autoencoding, measure_kl
from diffusion.runs import checkpoint
from diffusion.training.optimization import AdamW
from models.autoencoder.base import Autoencoder, Moments
from models.autoencoder.discriminator import PatchDiscriminator
from models.autoencoder.kl import KLAutoencoder
from models.autoencoder.vq import VQAutoencoder
from models.conditioning import ConditionEncoder

pytestmark = pytest.mark.commands

NONE = ConditionEncoder({}, 32)
DEGRADATION = registry.build("degradation", "gaussian")
SMALL = ["debug=fast", "precision=32", "trainer.threads=1", "trainer.accelerator=cpu", "model.base=4",
         "callbacks.pictures.count=0", "callbacks.checkpoint.every=1", "callbacks.checkpoint.keep=0",
         "optimizer.lr=0.01", "optimizer.decay=none", "ema=0.5", "run.name=x"]
KL = ["experiment=autoencoder_digits", *SMALL]
VQ = ["experiment=autoencoder_digits_vq", *SMALL, "model.codes=8"]
ADVERSARIAL = ["objective/discriminator=patch", "objective.discriminator.network.base=4"]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stream(total, rows=None, step=0):
    return BatchStream(1, step, rows or slice(0, total), total)


def ask(criterion, network, x0, rng=None, evaluator=None):
    evaluator = evaluator or criterion.use(network, DEGRADATION, "32")
    return criterion(evaluator, NONE, DEGRADATION, x0, {}, rng or stream(len(x0)))


def contents(run):
    return {step: checkpoint.read(path) for step, path in checkpoint.list_checkpoints(run.checkpoints).items()}


class Points(Autoencoder):
    """Its latents are the images, doubled."""

    in_channels, latent_channels, factor = 1, 1, 1

    def __init__(self, std=0.0):
        super().__init__()
        self.std = std

    def encode(self, x):
        return Moments(2 * x, torch.full_like(x, self.std))

    def decode(self, z):
        return z / 2


class TestLoss:
    def test_the_divergence_from_the_standard_normal_distribution_is_that_of_torch(self):
        mean, std = normal(2, 3, 4, 4), normal(2, 3, 4, 4, seed=1).exp()
        one = torch.distributions.Normal(0.0, 1.0)
        expected = torch.distributions.kl_divergence(torch.distributions.Normal(mean, std), one)
        torch.testing.assert_close(measure_kl(Moments(mean, std)), expected.flatten(1))
        assert not measure_kl(Moments(torch.zeros(2, 1, 3, 3), torch.ones(2, 1, 3, 3))).any()

    @pytest.mark.parametrize(("error", "power"), [("l1", 1), ("l2", 2)])
    def test_the_error_is_a_mean_over_pixels_at_a_latent_that_is_drawn(self, error, power):
        x0, std = normal(5, 1, 4, 4), 0.3
        losses = ask(Autoencoding(error, kl_weight=0.0), Points(std), x0)
        n = stream(5).normal("latent", (5, 1, 4, 4))
        expected = (std * n / 2).abs().pow(power).mean((1, 2, 3))
        torch.testing.assert_close(losses.values, expected, atol=1e-6, rtol=1e-4)
        assert set(losses.logs) == {"error"}
        assert losses.values.shape == losses.t.shape == (5,)

    def test_the_two_reductions_of_the_divergence(self):
        net, x0 = randomized(KLAutoencoder(3, 2, 8, (1, 2), 1)), normal(2, 3, 8, 8)
        mean, total = (ask(Autoencoding(kl_weight=w, kl_reduction=r), net, x0) for w, r in (
            (0.5 * 2 * 4 * 4 / (3 * 8 * 8), "mean"), (0.5, "sum")))
        torch.testing.assert_close(mean.values, total.values)
        torch.testing.assert_close(mean.values - mean.logs["error"], 0.5 * total.logs["kl"])
        torch.testing.assert_close(mean.logs["kl"], measure_kl(net.encode(x0)).mean(1))

    def test_commitment_moves_the_encoder_alone_and_towards_the_codes(self):
        net, x0 = randomized(VQAutoencoder(1, 2, 4, 8, (1, 2), 1)).requires_grad_(), normal(2, 1, 8, 8)
        z = net.encode(x0).mean.detach().requires_grad_()

        class Perfect(NetworkAutoencoder):
            """The reconstruction has no error, so that there is nothing else to learn."""

            def encode(self, x):
                return Moments(z, torch.zeros_like(z))

            def decode(self, z):
                return x0

        losses = ask(Autoencoding(commitment=0.25), net, x0, evaluator=Perfect(net))
        losses.values.mean().backward()
        gradient, z = z.grad, z.detach()
        code = net.quantizer.look_up(net.codes(z))
        torch.testing.assert_close(gradient, 0.25 * 2 * (z - code) / z.numel())
        assert all(p.grad is None for p in net.parameters())
        torch.testing.assert_close(losses.values, 0.25 * (z - code).square().mean((1, 2, 3)))
        used = net.codes(z).unique().numel() / 4
        assert losses.logs["codes"].tolist() == pytest.approx([used] * 2)

    @pytest.mark.parametrize("wrong", [{"error": "l3"}, {"kl_reduction": "max"}, {"kl_weight": -1.0},
                                       {"commitment": -1.0}, {"perceptual_weight": float("nan")}])
    def test_settings_that_mean_nothing(self, wrong):
        with pytest.raises(UserError, match=f"objective.{next(iter(wrong))}="):
            Autoencoding(**wrong)


class TestCodebook:
    """``finish_step``, without a trainer."""

    @staticmethod
    def start(codes=8):
        net = randomized(VQAutoencoder(1, 2, codes, 8, (1, 2), 1, decay=0.5)).requires_grad_()
        net.quantizer.counts.fill_(4)
        net.quantizer.sums.copy_(4 * net.quantizer.codebook)
        return net

    def test_in_parts_and_on_two_ranks_it_is_the_same(self):
        """Codes 3 and 5 are far away, die, and become the same vectors everywhere."""
        x0, first = normal(8, 1, 8, 8), self.start()
        for each in (3, 5):
            first.quantizer.codebook[each] = 1e3
            first.quantizer.counts[each] = 1e-3
        whole, parts, ranks = first, copy.deepcopy(first), [copy.deepcopy(first) for _ in range(2)]
        rows = [slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 8)]

        def give(criterion, net, some):
            for each in some:
                ask(criterion, net, x0[each], stream(8, each))
            return criterion

        criterion = give(Autoencoding(), whole, [slice(0, 8)])
        criterion.finish_step(NetworkAutoencoder(whole), stream(8), lambda value: value)
        give(Autoencoding(), parts, rows).finish_step(NetworkAutoencoder(parts), stream(8), lambda value: value)
        # Each rank in turn hands in its share; in the second round both know the sum.
        criteria, shares = [give(Autoencoding(), net, rows[i::2]) for i, net in enumerate(ranks)], []
        for net, each in zip(copy.deepcopy(ranks), copy.deepcopy(criteria)):
            each.finish_step(NetworkAutoencoder(net), stream(8), lambda value: shares.append(value) or value)
        for net, each in zip(ranks, criteria):
            each.finish_step(NetworkAutoencoder(net), stream(8), lambda value: sum(shares))
        for other in (parts, *ranks):
            for name in ("codebook", "counts", "sums"):
                torch.testing.assert_close(getattr(other.quantizer, name), getattr(whole.quantizer, name))
        vectors = whole.encode(x0).mean.detach().movedim(1, -1).flatten(0, 2)
        for each in (3, 5):
            assert ((vectors - whole.quantizer.codebook[each]).abs().amax(1) < 1e-5).any(), "a row of the batch"

    def test_more_codes_than_images(self):
        net, x0 = self.start(50), normal(2, 1, 8, 8)
        net.quantizer.counts.zero_()
        criterion = Autoencoding()
        ask(criterion, net, x0)
        criterion.finish_step(NetworkAutoencoder(net), stream(2), lambda value: value)
        vectors = net.encode(x0).mean.detach().movedim(1, -1).flatten(0, 2)
        distances = (net.quantizer.codebook[:, None] - vectors).abs().amax(2)
        assert (distances.amin(1) < 1e-5).all()
        assert len(distances.argmin(1).unique()) > 10

    def test_an_encoder_that_is_not_trained_keeps_its_codes(self):
        net, criterion = self.start().requires_grad_(False), Autoencoding()
        before = copy.deepcopy(net.quantizer.state_dict())
        ask(criterion, net, normal(2, 1, 8, 8))
        criterion.finish_step(NetworkAutoencoder(net), stream(2), lambda value: value)
        assert equal(net.quantizer.state_dict(), before)

    def test_training_in_parts_resumed_averaged(self, tmp_path):
        steps = ["max_steps=4"]
        whole = contents(train(tmp_path / "a", *VQ, *steps))
        parts = contents(train(tmp_path / "b", *VQ, *steps, "accumulate=2"))
        for name, value in whole[4]["raw"].items():
            torch.testing.assert_close(parts[4]["raw"][name], value, atol=1e-4, rtol=1e-3)
        train(tmp_path / "c", *VQ, "max_steps=2")
        again = contents(train(tmp_path / "c", *VQ, *steps))
        for name in ("raw", "ema", "optimizers", "tally"):
            assert equal(again[4][name], whole[4][name]), name
        for content in whole.values():
            assert torch.equal(content["ema"]["net.quantizer.codebook"], content["raw"]["net.quantizer.codebook"])
            assert not torch.equal(content["ema"]["net.to_latent.weight"], content["raw"]["net.to_latent.weight"])
        assert not torch.equal(whole[1]["raw"]["net.quantizer.codebook"], whole[2]["raw"]["net.quantizer.codebook"])

    @pytest.mark.parametrize("kind", ["loss", "gradient"])
    def test_a_step_that_is_left_out_changes_no_code(self, tmp_path, monkeypatch, kind):
        monkeypatch.setattr(Autoencoding, "__call__", poison(Autoencoding.__call__, kind, {1, 3}, 5))
        after = contents(train(tmp_path, *VQ, "max_steps=4"))
        first, *rest = (after[step]["raw"]["net.quantizer.codebook"] for step in (1, 2, 3, 4))
        assert not after[1]["raw"]["net.quantizer.counts"].any()
        assert not torch.equal(first, rest[0]), "it begins with the first step that counts"
        assert torch.equal(rest[0], rest[1])
        assert not torch.equal(rest[1], rest[2])
        assert equal(after[2]["raw"], after[3]["raw"])


class TestDiscriminator:
    @staticmethod
    def part(**changes):
        network = randomized(PatchDiscriminator(1, 4, 1)).requires_grad_()
        return Adversarial(network, AdamW(), **{"weight": 0.5, **changes})

    def test_both_losses(self):
        part, net, x0 = self.part(adaptive=False), randomized(KLAutoencoder(1, 2, 8, (1, 2), 1)), normal(3, 1, 16, 16)
        losses = ask(Autoencoding(discriminator=part), net.requires_grad_(), x0)
        plain = ask(Autoencoding(), net, x0)
        evaluator = NetworkAutoencoder(net)
        moments = evaluator.encode(x0)
        made = evaluator.decode(moments.mean + moments.std * stream(3).normal("latent", moments.mean.shape))
        real, fake = part.network(x0), part.network(made)
        torch.testing.assert_close(losses.values, plain.values - 0.5 * fake.mean((1, 2, 3)))
        hinge = ((1 - real).clamp(min=0).mean((1, 2, 3)) + (1 + fake).clamp(min=0).mean((1, 2, 3))) / 2
        torch.testing.assert_close(losses.critics["discriminator"], hinge)
        losses.values.mean().backward()
        assert all(p.grad is None for p in part.network.parameters())
        net.zero_grad()
        ask(Autoencoding(discriminator=part), net, x0).critics["discriminator"].mean().backward()
        assert all(p.grad is None for p in net.parameters())
        assert all(p.grad is not None for p in part.network.parameters())

    def test_the_balance_of_gradients(self):
        """``|c| / |d|`` of two linear losses; the same when both are scaled."""
        last = torch.ones(4, requires_grad=True)
        c, d = normal(4), 10 * normal(4, seed=1)
        losses = (c @ last, d @ last)
        balance = balance_gradients(*losses, last)
        assert balance.item() == pytest.approx(c.norm().item() / d.norm().item(), rel=1e-4)
        assert balance_gradients(2 * losses[0], 2 * losses[1], last).item() == pytest.approx(balance.item(), rel=1e-4)
        assert not balance.requires_grad
        assert balance_gradients(1e9 * losses[0], losses[1], last) == 1e4

    def test_it_is_the_weight(self):
        part, net, x0 = self.part(), randomized(KLAutoencoder(1, 2, 8, (1, 2), 1)), normal(3, 1, 16, 16)
        losses = ask(Autoencoding(kl_weight=0.0, discriminator=part), net.requires_grad_(), x0)
        evaluator, rng = NetworkAutoencoder(net), stream(3)
        moments = evaluator.encode(x0)
        made = evaluator.decode(moments.mean + moments.std * rng.normal("latent", moments.mean.shape))
        error, g = (x0 - made).abs().mean(), -part.network(made).mean()
        norms = [torch.autograd.grad(loss, net.last.weight, retain_graph=True)[0].norm() for loss in (error, g)]
        expected = 0.5 * norms[0] / (norms[1] + 1e-4)
        torch.testing.assert_close(losses.logs["g_weight"], expected.expand(3))
        torch.testing.assert_close(losses.values.mean(), error + expected * g)

    def test_larger_patches_than_the_image_are_refused(self, tmp_path):
        with pytest.raises(UserError, match="patches of 34 px for images of 16 px"):
            train(tmp_path, *KL, *ADVERSARIAL, "objective.discriminator.network.layers=2")

    @pytest.mark.parametrize("wrong", [{"weight": -1.0}, {"start": -1}])
    def test_settings_that_mean_nothing(self, wrong):
        with pytest.raises(UserError, match=f"objective.discriminator.{next(iter(wrong))}="):
            self.part(**wrong)

    @pytest.mark.parametrize("accumulate", [1, 2])
    def test_it_starts_when_it_should_and_resumes_exactly(self, tmp_path, accumulate):
        settings = [*KL, *ADVERSARIAL, "objective.discriminator.start=2", f"accumulate={accumulate}"]
        whole = contents(train(tmp_path / "whole", *settings, "max_steps=4"))
        name = "critics.discriminator.layers.0.weight"
        assert torch.equal(whole[1]["raw"][name], whole[2]["raw"][name])
        assert not torch.equal(whole[2]["raw"][name], whole[3]["raw"][name])
        for stop in (1, 2, 3):
            train(tmp_path / f"{stop}", *settings, f"max_steps={stop}")
            again = contents(train(tmp_path / f"{stop}", *settings, "max_steps=4"))
            for part in ("raw", "ema", "optimizers", "tally"):
                assert equal(again[4][part], whole[4][part]), (stop, part)
