"""Autoencoders: shapes and moments, the codebook, and what the discriminator sees."""

import numpy as np
import pytest
import torch
from networks import AUTOENCODERS, randomized

import models
from configs import UserError
from models.autoencoder.base import Autoencoder
from models.autoencoder.discriminator import PatchDiscriminator
from models.autoencoder.quantizer import SMOOTHING, Quantizer, measure_perplexity
from models.autoencoder.vq import VQAutoencoder


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def small(name, **changes):
    return randomized(models.build(name, **{"base": 8, "multipliers": [1, 2], "latent_channels": 3, **changes}))


@pytest.mark.parametrize("name", AUTOENCODERS)
@pytest.mark.parametrize(("multipliers", "factor"), [([1], 1), ([1, 2], 2), ([1, 1, 2], 4)])
def test_shapes_and_gradients(name, multipliers, factor):
    net, x = small(name, multipliers=multipliers, attention=True, in_channels=2), normal(2, 2, 16, 8).requires_grad_()
    moments = net.encode(x)
    assert isinstance(net, Autoencoder)
    assert net.factor == factor
    assert moments.mean.shape == moments.std.shape == (2, 3, 16 // factor, 8 // factor)
    moments.mean.sum().backward()
    assert x.grad.isfinite().all()
    z = moments.mean.detach().requires_grad_()
    made = net.decode(z)
    assert made.shape == x.shape
    made.sum().backward()
    assert z.grad.isfinite().all()
    assert z.grad.any()
    assert torch.equal(net(x), net.decode(net.encode(x).mean))


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_every_parameter_gets_a_gradient(name):
    net = small(name, attention=True).requires_grad_()
    moments = net.encode(normal(2, 1, 8, 8))
    net.decode(moments.mean + moments.std * normal(2, 3, 4, 4)).square().sum().backward()
    assert [key for key, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert net.last.weight.shape[0] == 1


def test_the_standard_deviation_is_bounded_where_the_encoder_is_not():
    net = small("autoencoder_kl")
    net.to_latent.weight.zero_()
    net.to_latent.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 1e3, -1e3, 2.0]))
    std = net.encode(normal(1, 1, 4, 4)).std[0, :, 0, 0]
    torch.testing.assert_close(std, torch.tensor([10.0, -15.0, 1.0]).exp())


@pytest.mark.parametrize("name", AUTOENCODERS)
@pytest.mark.parametrize("wrong", [{"base": 0}, {"multipliers": []}, {"latent_channels": 0}, {"blocks": 0}])
def test_numbers_that_mean_nothing(name, wrong):
    with pytest.raises(UserError, match=f"model.{next(iter(wrong))}="):
        small(name, **wrong)


@pytest.mark.parametrize(("shape", "got"), [((1, 1, 7, 8), "7 x 8"), ((1, 3, 8, 8), "3 channels")])
def test_images_that_do_not_fit(shape, got):
    with pytest.raises(UserError) as error:
        small("autoencoder_kl")(torch.zeros(shape))
    assert got in error.value.got


class TestQuantizer:
    def test_the_nearest_code_is_that_of_a_plain_search(self):
        quantizer, z = Quantizer(7, 3), normal(2, 3, 4, 5)
        codes = quantizer.nearest(z)
        for b, y, x in np.ndindex(2, 4, 5):
            distances = ((quantizer.codebook - z[b, :, y, x]) ** 2).sum(1)
            assert codes[b, y, x] == distances.argmin()
        assert torch.equal(quantizer(z), quantizer.look_up(codes))
        assert torch.equal(quantizer.nearest(quantizer(z)), codes)

    def test_few_distances_at_a_time_are_the_same(self, monkeypatch):
        quantizer, z = Quantizer(7, 3), normal(2, 3, 4, 5)
        whole = quantizer.nearest(z)
        monkeypatch.setattr("models.autoencoder.quantizer.MOST_DISTANCES", 20)
        assert torch.equal(quantizer.nearest(z), whole)

    def test_the_gradient_passes_straight_through(self):
        z, weights = normal(2, 3, 4, 4).requires_grad_(), normal(2, 3, 4, 4, seed=1)
        (Quantizer(5, 3)(z) * weights).sum().backward()
        assert torch.equal(z.grad, weights)

    def test_decoding_begins_with_the_nearest_code(self):
        net, z = small("autoencoder_vq", codes=6), normal(2, 3, 4, 4)
        assert isinstance(net, VQAutoencoder)
        code = net.quantizer.look_up(net.codes(z))
        assert not torch.equal(code, z)
        assert torch.equal(net.decode(z), net.decode(code))
        x = normal(1, 1, 8, 8)
        assert not net.encode(x).std.any()

    def test_perplexity(self):
        assert measure_perplexity(torch.tensor([0.0, 9.0, 0.0])) == 1
        assert measure_perplexity(torch.tensor([4.0, 4.0, 4.0, 0.0])).item() == pytest.approx(3)

    def test_moving_averages_are_those_of_a_plain_loop(self):
        """Three steps, in double precision, after a first one that takes the codes from the batch."""
        k, d, decay = 4, 2, 0.8
        quantizer = Quantizer(k, d, decay, revive=False, threshold=0.2)
        fresh = normal(k, d, seed=9)
        counts, sums, codebook = np.zeros(k), np.zeros((k, d)), quantizer.codebook.double().numpy()
        for step in range(4):
            z = normal(3, d, 2, 2, seed=step)
            codes = quantizer.nearest(z)
            vectors, flat = z.permute(0, 2, 3, 1).reshape(-1, d), codes.flatten()
            quantizer.update(quantizer.count(vectors, flat), fresh)
            nearest = ((vectors.double().numpy()[:, None] - codebook) ** 2).sum(2).argmin(1)
            assert (nearest == flat.numpy()).all()
            if step == 0:
                counts[:] = 0.2 * len(vectors) / k
                codebook = fresh.double().numpy()
                sums = counts[:, None] * codebook
            else:
                for j in range(k):
                    mine = vectors.double().numpy()[nearest == j]
                    counts[j] = decay * counts[j] + (1 - decay) * len(mine)
                    sums[j] = decay * sums[j] + (1 - decay) * mine.sum(0)
                n = counts.sum()
                codebook = sums / ((counts + SMOOTHING) / (n + k * SMOOTHING) * n)[:, None]
            np.testing.assert_allclose(quantizer.counts.numpy(), counts, rtol=1e-5)
            np.testing.assert_allclose(quantizer.codebook.numpy(), codebook, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("revive", [True, False])
    def test_a_dead_code_becomes_a_vector_of_the_batch_and_is_used(self, revive):
        quantizer = Quantizer(2, 1, decay=0.4, revive=revive, threshold=0.1)
        quantizer.update(torch.tensor([[4.0, 4.0], [4.0, 40.0]]), torch.tensor([[1.0], [10.0]]))
        assert quantizer.codebook.flatten().tolist() == [1, 10]
        z = torch.tensor([1.0, 1.0, 1.4, 0.6]).view(1, 1, 2, 2)
        counted = quantizer.count(z.flatten()[:, None], quantizer.nearest(z).flatten())
        quantizer.update(counted, torch.tensor([[1.4], [1.4]]))
        assert quantizer.codebook[0].item() == pytest.approx(1, rel=1e-3)
        assert (quantizer.codebook[1].item() == pytest.approx(1.4)) == revive
        assert (quantizer.nearest(z).flatten().tolist() == [0, 0, 1, 0]) == revive
        if revive:
            assert quantizer.counts[1] == pytest.approx(quantizer.sums[1].item() / 1.4)

    def test_all_is_in_buffers(self):
        quantizer = Quantizer(3, 2)
        assert list(quantizer.parameters()) == []
        assert set(quantizer.state_dict()) == {"codebook", "counts", "sums"}

    @pytest.mark.parametrize("wrong", [{"decay": 1.5}, {"threshold": 0.0}, {"codes": 0}])
    def test_numbers_that_mean_nothing(self, wrong):
        with pytest.raises(UserError, match=f"model.{next(iter(wrong))}="):
            Quantizer(**{"codes": 4, "dim": 2, **wrong})


class TestDiscriminator:
    @pytest.mark.parametrize(("layers", "field"), [(1, 16), (2, 34), (3, 70)])
    def test_the_field_is_where_the_gradient_reaches(self, layers, field):
        """Of one answer in the middle of a large image, along one axis. Group norm would see all of the image."""
        net, x = PatchDiscriminator(1, 4, layers, norm="none"), torch.zeros(1, 1, 96, 96, requires_grad=True)
        randomized(net)
        answer = net(x)
        answer[0, 0, answer.shape[2] // 2, answer.shape[3] // 2].backward()
        touched = (x.grad[0, 0].abs().sum(0) > 0).nonzero().flatten()
        assert net.field == field == touched.max() - touched.min() + 1

    def test_the_weights_begin_small(self):
        net = PatchDiscriminator(3, 64, 2)
        weights = torch.cat([p.flatten() for key, p in net.named_parameters() if p.dim() == 4])
        assert weights.mean().abs() < 1e-3
        assert weights.std().item() == pytest.approx(0.02, rel=0.02)
        assert [m.out_channels for m in net.modules() if isinstance(m, torch.nn.Conv2d)] == [64, 128, 256, 1]

    @pytest.mark.parametrize("wrong", [{"layers": 0}, {"base": 0}, {"norm": "batch"}])
    def test_arguments_that_mean_nothing(self, wrong):
        with pytest.raises(UserError, match=next(iter(wrong))):
            PatchDiscriminator(**{"in_channels": 1, **wrong})
