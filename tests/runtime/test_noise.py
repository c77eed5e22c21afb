"""Frozen random numbers: the vectors here may never change."""

import numpy as np
import pytest

from styleinv.runtime.noise import MOTION_DOMAIN, Z_DOMAIN, raw_numbers, standard_normal

WORD = 2**64

VECTORS = [  # (seed, domain, index), first raw numbers, first normals
    (
        (0, 0, 0),
        [213000021201967259, 4455796210202625458, 2055444239878205049, 10411612076246414556],
        [0.15853383451844166, 2.9828792826170734, -1.925691981917186, -0.8249255452762637],
    ),
    (
        (7, 1, 1),
        [18010356322687872779, 11900236222207309085, 7779061577554702313, 5820070939741350331],
        [-0.13399297862891804, -0.1729964108137992, -0.5257357529934619, 1.2043696524674774],
    ),
    (
        (2**64 - 1, 1, 10**9),
        [10524095557536472018, 17681482027380307542, 2016212166269627549, 12995075389818872085],
        [1.023665544430251, -0.2730379659184998, -0.593827510111384, -2.0185894779198206],
    ),
]


@pytest.mark.parametrize(("where", "raw", "normals"), VECTORS)
def test_committed_vectors(where, raw, normals):
    assert raw_numbers(*where, 4).tolist() == raw
    np.testing.assert_allclose(standard_normal(*where, 4), normals, rtol=0, atol=1e-14)


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x64-10 (Salmon et al., Parallel random numbers: as easy as 1, 2, 3), written from the paper."""
    for step in range(10):
        product_0, product_1 = 0xD2E7470EE14C6C93 * counter[0], 0xCA5A826395121157 * counter[2]
        k0, k1 = (key[0] + step * 0x9E3779B97F4A7C15) % WORD, (key[1] + step * 0xBB67AE8584CAA73B) % WORD
        counter = [
            product_1 // WORD ^ counter[1] ^ k0, product_1 % WORD,
            product_0 // WORD ^ counter[3] ^ k1, product_0 % WORD,
        ]  # fmt: skip
    return counter


def test_raw_numbers_are_philox():
    known = [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    assert philox([0, 0, 0, 0], [0, 0]) == known  # the authors' known answer
    seed, index = 123456789, 42
    blocks = [philox([block, 0, index, 0], [seed, MOTION_DOMAIN]) for block in (1, 2)]  # numpy counts up first
    assert raw_numbers(seed, MOTION_DOMAIN, index, 8).tolist() == blocks[0] + blocks[1]


def test_counts_share_their_beginning():
    whole = standard_normal(3, Z_DOMAIN, 0, 8)
    for count in range(8):
        found = standard_normal(3, Z_DOMAIN, 0, count)
        assert found.dtype == np.float64 and found.shape == (count,)
        np.testing.assert_array_equal(found, whole[:count])


def test_seed_domain_and_index_all_matter():
    draws = {standard_normal(*where, 4).tobytes() for where in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))}
    assert len(draws) == 4


def test_they_are_normal():
    drawn = standard_normal(5, MOTION_DOMAIN, 1, 100_000)
    assert abs(drawn.mean()) < 0.02 and abs(drawn.std() - 1) < 0.01
    assert abs((drawn**4).mean() - 3) < 0.1
    assert abs(np.corrcoef(drawn[0::2], drawn[1::2])[0, 1]) < 0.02


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seed_out_of_range(seed):
    with pytest.raises(ValueError, match=r"seed: found .*, expected a whole number from 0 to 2\^64 - 1"):
        standard_normal(seed, Z_DOMAIN, 0, 2)


def test_index_out_of_range():
    with pytest.raises(ValueError, match="index: found -1"):
        standard_normal(0, Z_DOMAIN, -1, 2)
