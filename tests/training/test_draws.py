"""What is drawn for a sample depends on the seed and its position, and on nothing else."""

import torch

from microdit.training.draws import TRAINING, VALIDATION, draw_chance

SHAPE = (3, 8, 8)


def draw(positions, seed=0, stream=TRAINING, dropout=0.1):
    return draw_chance(seed, stream, positions, SHAPE, patch_size=2, caption_dropout=dropout)


def test_a_sample_has_the_same_chance_in_any_batch():
    alone, among = draw([7]), draw([3, 7, 100])
    for a, b in zip(alone.draws, among.draws, strict=True):
        assert torch.equal(a[0], b[1])
    assert alone.drop_caption[0] == among.drop_caption[1]


def test_positions_seeds_and_streams_are_unrelated():
    base = draw([7]).draws.noise
    for other in (draw([8]), draw([7], seed=1), draw([7], stream=VALIDATION), draw([2**40])):
        correlation = torch.corrcoef(torch.stack([base.flatten(), other.draws.noise.flatten()]))[0, 1]
        assert abs(correlation) < 0.3


def test_the_draws_have_the_distributions_of_the_formula():
    chance = draw(range(4000), dropout=0.1)
    assert abs(chance.draws.noise_level.mean()) < 0.06
    assert abs(chance.draws.noise_level.std() - 1) < 0.04
    assert abs(chance.draws.noise.std() - 1) < 0.01
    assert abs(chance.draws.mask.mean() - 0.5) < 0.01
    assert 0 <= chance.draws.mask.min() < chance.draws.mask.max() < 1
    assert abs(chance.drop_caption.float().mean() - 0.1) < 0.02


def test_without_dropout_no_caption_is_dropped():
    assert not draw(range(500), dropout=0.0).drop_caption.any()
