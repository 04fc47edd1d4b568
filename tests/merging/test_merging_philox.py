"""The random stream of masks: known answers, equality across devices, and statistics."""

import math

import numpy as np
import pytest
import torch

from evosearch.merging.philox import kept, key_of, lanes, torch_lanes

CONTENT = "ab" * 32
# The published known answers of Philox4x64-10: (counter, key, output), in 64-bit words.
KNOWN = [
    (0, (0, 0), (0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B)),
]


def halves(words: tuple[int, ...]) -> list[int]:
    return [half for word in words for half in (word & 0xFFFFFFFF, word >> 32)]


@pytest.mark.parametrize(("block", "key", "words"), KNOWN)
def test_known_answers(block, key, words):
    assert lanes(key, 8 * block, 8).tolist() == halves(words)
    assert torch_lanes(key, block, 1, "cpu").tolist() == halves(words)


def test_the_definition_is_frozen():
    """Exported recipes reproduce their weights only as long as these numbers hold."""
    key = key_of(7, CONTENT, "model.x")
    assert key == (10577822508360698830, 12962882924781923611)
    assert lanes(key, 3, 8).tolist() == [
        4216423250,
        815855422,
        3894690669,
        2653979440,
        1641279471,
        2794106977,
        4080638275,
        3916205882,
    ]
    assert kept(key, 0.5, 0, 24).int().tolist() == [
        1,
        1,
        0,
        0,
        1,
        0,
        0,
        1,
        0,
        0,
        0,
        1,
        1,
        1,
        1,
        0,
        0,
        1,
        0,
        0,
        1,
        0,
        1,
        0,
    ]


@pytest.mark.parametrize("start", [0, 1, 7, 8, 13, 8 * (2**32 - 2) + 3, 2**60])
@pytest.mark.parametrize("seed", range(3))
def test_torchs_arithmetic_gives_numpys_lanes(start, seed):
    key = key_of(seed, CONTENT, "t")
    ours = torch_lanes(key, start // 8, 14, "cpu")[start % 8 :][:100]
    assert torch.equal(lanes(key, start, 100), ours)
    for density in (1e-9, 0.3, 0.5, 0.999999):
        assert torch.equal(kept(key, density, start, 100), ours < int(density * 2**32 + 0.5))


def test_a_chunk_equals_its_slice_of_the_stream():
    key = key_of(0, CONTENT, "t")
    whole = lanes(key, 0, 1000)
    for start, count in ((0, 1), (1, 7), (5, 11), (8, 8), (991, 9), (17, 900), (40, 0)):
        assert torch.equal(lanes(key, start, count), whole[start : start + count])
        assert torch.equal(kept(key, 0.4, start, count), kept(key, 0.4, 0, 1000)[start : start + count])


def test_each_component_of_the_key_changes_the_stream():
    keys = [(0, CONTENT, "a"), (1, CONTENT, "a"), (0, "cd" * 32, "a"), (0, CONTENT, "b"), (2**63 - 1, CONTENT, "a")]
    streams = [tuple(lanes(key_of(*parts), 0, 4).tolist()) for parts in keys]
    assert len(set(streams)) == len(keys)


def test_density_one_keeps_everything_and_a_lower_density_keeps_a_subset():
    key = key_of(0, CONTENT, "t")
    assert kept(key, 1.0, 0, 5000).all()
    assert not kept(key, 1e-12, 0, 5000).any()
    few, more = kept(key, 0.2, 0, 5000), kept(key, 0.6, 0, 5000)
    assert (few & ~more).sum() == 0


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_as_many_are_kept_as_should_be_and_independently(density):
    n, seeds = 20_000, 60
    masks = np.stack([kept(key_of(seed, CONTENT, "t"), density, 0, n).numpy() for seed in range(seeds)])
    deviation = math.sqrt(density * (1 - density))
    means = (masks.mean(axis=1) - density) * math.sqrt(n) / deviation  # standard normal, one a seed
    assert abs(means.mean()) < 4 / math.sqrt(seeds)
    assert 0.6 < means.std() < 1.4
    assert np.abs(means).max() < 4.5
    centred = (masks - density) / deviation
    for lag in (1, 2, 4, 8):  # neighbours, and the same lane of neighbouring blocks
        correlation = (centred[:, lag:] * centred[:, :-lag]).mean() * math.sqrt(seeds * (n - lag))
        assert abs(correlation) < 4.5
    between = (centred[1:] * centred[:-1]).mean() * math.sqrt((seeds - 1) * n)  # the same element under other seeds
    assert abs(between) < 4.5
