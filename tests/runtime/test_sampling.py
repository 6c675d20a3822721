import numpy as np
import pytest

from skim_runtime.sampling import Sampler

LOGITS = np.log(np.array([0.05, 0.4, 0.15, 0.1, 0.3], np.float32))


def frequencies(**options):
    sampler = Sampler(seed=1, **options)
    draws = np.bincount([sampler(LOGITS) for _ in range(8000)], minlength=5)
    return draws / draws.sum()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"temperature": 1.0}, [0.05, 0.4, 0.15, 0.1, 0.3]),
        ({"temperature": 1.0, "top_k": 2}, [0, 4 / 7, 0, 0, 3 / 7]),
        ({"temperature": 1.0, "top_k": 9}, [0.05, 0.4, 0.15, 0.1, 0.3]),
        ({"temperature": 1.0, "top_p": 0.7001}, [0, 0.4 / 0.85, 0.15 / 0.85, 0, 0.3 / 0.85]),
        ({"temperature": 1.0, "top_p": 0.4 - 1e-4}, [0, 1, 0, 0, 0]),
        ({"temperature": 1.0, "top_k": 3, "top_p": 0.8}, [0, 4 / 7, 0, 0, 3 / 7]),
        ({"temperature": 0.5}, np.array([0.05, 0.4, 0.15, 0.1, 0.3]) ** 2 / 0.285),
        ({}, [0, 1, 0, 0, 0]),
    ],
)
def test_tokens_come_as_often_as_their_probability(options, expected):
    np.testing.assert_allclose(frequencies(**options), expected, atol=0.022)  # 4 standard deviations


def test_the_nucleus_of_many_tokens_is_the_smallest_set():
    """Against a plain sort over a vocabulary where most tokens are skipped before sorting."""
    logits = np.random.default_rng(0).normal(0, 3, 5000).astype(np.float32)
    probability = np.exp(logits.astype(np.float64))
    probability /= probability.sum()
    order = np.argsort(-probability)
    nucleus = set(order[: np.searchsorted(np.cumsum(probability[order]), 0.5) + 1].tolist())
    sampler = Sampler(temperature=1.0, top_p=0.5, seed=2)
    drawn = {sampler(logits) for _ in range(4000)}
    assert drawn <= nucleus
    assert len(drawn) > 0.8 * len(nucleus)
