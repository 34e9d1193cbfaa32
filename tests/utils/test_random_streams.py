"""Streams that depend on their purpose and their place alone."""

import itertools

import torch

from resnet_se.utils.random_streams import derive_seed, stream


def test_seeds_differ_across_parts_and_their_order():
    parts = [
        p for n in (1, 2, 3, 4) for p in itertools.product((0, 1, 2**32), repeat=n)
    ]
    seeds = [derive_seed(purpose, *p) for p in parts for purpose in ("a", "b")]
    assert len(set(seeds)) == 2 * len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed("a", 3, 4) == derive_seed("a", 3, 4)


def test_a_stream_is_its_purpose_and_its_parts():
    draws = torch.rand(4, generator=stream("a", 1))
    assert torch.equal(torch.rand(4, generator=stream("a", 1)), draws)
    assert not torch.equal(torch.rand(4, generator=stream("b", 1)), draws)
