import numpy as np
import torch

from grcn import rng


def test_tensor_and_python_hash_agree():
    a = torch.tensor([0, 1, -1, 2**62, -(2**63)])
    b = torch.arange(3)
    table = rng.hash_tensor(2**63 + 5, a[:, None], 7, b)
    expected = [[rng.hash_int(2**63 + 5, int(x), 7, int(y)) for y in b] for x in a]
    assert table.tolist() == expected
    assert (table >= 0).all()


def test_known_values():
    """Pinned: a change of the hash would change every run that was ever started."""
    assert rng.hash_int(0) == 0xE220A8397B1DCDAF & 2**63 - 1  # first output of splitmix64 from seed 0
    assert rng.hash_int(1, 2, 3) == rng.hash_tensor(1, torch.tensor(2), 3).item() == 5797055558538453683


def test_words_and_their_order_matter():
    values = {rng.hash_int(*words) for words in ((1,), (2,), (1, 2), (2, 1), (1, 0), (0, 1), (1, 2, 0))}
    assert len(values) == 7


def test_uniform_is_uniform():
    draws = np.array([rng.uniform(3, rng.AUGMENT, i) for i in range(20000)])
    counts = np.histogram(draws, bins=20, range=(0, 1))[0]
    assert draws.min() >= 0 and draws.max() < 1
    assert ((counts - 1000) ** 2 / 1000).sum() < 45  # chi-square, 19 degrees of freedom, p ~ 0.001
    bits = rng.hash_tensor(3, torch.arange(20000))[:, None] >> torch.arange(63) & 1
    assert (bits.double().mean(0) - 0.5).abs().max() < 0.02


def test_permutation():
    first, second = rng.permutation(100, 1, rng.ORDER, 0), rng.permutation(100, 1, rng.ORDER, 1)
    assert sorted(first) == sorted(second) == list(range(100))
    assert (first != second).any()
    assert (first == rng.permutation(100, 1, rng.ORDER, 0)).all()


def test_image_keys_come_from_the_targets_or_from_torch():
    cpu = torch.device("cpu")
    last = torch.arange(4)
    for targets in ([{"rng_key": 5}, {"rng_key": 2**63 - 9}], [{"rng_key": torch.tensor(5)}, {"rng_key": 2**63 - 9}]):
        states = rng.image_states(targets, cpu, (rng.ROIS,), (rng.DROPOUT, 1))
        for index, words in enumerate(((rng.ROIS,), (rng.DROPOUT, 1))):
            expected = rng.hash_tensor(torch.tensor([5, 2**63 - 9])[:, None], *words, last)
            assert torch.equal(rng.hash_on(states[index][:, None], last), expected)
    torch.manual_seed(0)
    first = rng.image_states([{}, {}], cpu, (1,))
    torch.manual_seed(0)
    assert torch.equal(first, rng.image_states([{}, {}], cpu, (1,)))
    assert first[0, 0] != first[0, 1]
