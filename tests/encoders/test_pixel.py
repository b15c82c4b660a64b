import pytest
import torch

from microdit.encoders import Autoencoder, PixelAutoencoder


def test_images_survive_the_round_trip():
    images = torch.rand(2, 3, 8, 6)
    autoencoder = PixelAutoencoder()
    torch.testing.assert_close(autoencoder.decode(autoencoder.encode(images)), images)


def test_latents_are_the_pixels_between_minus_one_and_one():
    latents = PixelAutoencoder().encode(torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1))
    assert latents.flatten().tolist() == [-1, 0, 1]


def test_decoded_images_stay_between_zero_and_one():
    images = PixelAutoencoder().decode(torch.tensor([-3.0, 0.0, 3.0]).view(1, 3, 1, 1))
    assert images.flatten().tolist() == [0, 0.5, 1]


def test_it_is_an_autoencoder_and_says_what_a_model_must_know():
    autoencoder = PixelAutoencoder(sigma_data=0.4)
    assert isinstance(autoencoder, Autoencoder)
    assert (autoencoder.channels, autoencoder.downscale, autoencoder.sigma_data) == (3, 1, 0.4)
    assert autoencoder.weights is None


def test_a_protocol_left_unfinished_cannot_be_built():
    class HalfAutoencoder(Autoencoder):
        def decode(self, latents):
            return latents

    with pytest.raises(TypeError, match="encode"):
        HalfAutoencoder()
