"""Encodings of masks: each says its structure back, patterns are numbered as in the textbook, bounds are counts."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from starfire_cli.formats.packed import encoding, streams
from starfire_cli.formats.packed.encoding import ENCODINGS
from starfire_cli.formats.packed.encodings.window import _rank
from starfire_cli.formats.packed.streams import Damaged, StreamReader, StreamWriter
from tests.helpers.packed_strategies import STRUCTURES

GRIDS = st.one_of(
    st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(1)),
    st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(2, 9)),
    st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(10, 70)),
)


@pytest.mark.parametrize("name", ENCODINGS.names())
@given(shape=GRIDS, seed=st.integers(0, 2**32 - 1), structure=st.sampled_from(STRUCTURES))
def test_an_encoding_gives_the_mask_back_or_says_that_it_does_not_fit(name, shape, seed, structure) -> None:
    mask = structure(shape, np.random.default_rng(seed)).numpy()
    out = StreamWriter()
    bits = ENCODINGS.build(name).encode(mask, out)
    if bits is None:
        assert out.getvalue() == b""
        return
    reader = StreamReader(out.getvalue())
    alive = ENCODINGS.build(name).decode(shape, reader)
    reader.finish()
    assert np.array_equal(alive.mask().reshape(shape), mask)
    assert np.array_equal(alive.places(0, len(alive.bits)), np.flatnonzero(mask))
    assert 0 <= bits <= mask.size + 16 * (mask.shape[1] + 1)


@given(shape=GRIDS, seed=st.integers(0, 2**32 - 1), structure=st.sampled_from(STRUCTURES))
def test_the_chosen_encoding_is_the_shortest(shape, seed, structure) -> None:
    mask = structure(shape, np.random.default_rng(seed)).numpy()
    chosen = encoding.encode(mask, "normal")
    sizes = {}
    for name in ENCODINGS.names():
        out = StreamWriter()
        if ENCODINGS.build(name).encode(mask, out) is not None:
            sizes[name] = len(out.getvalue())
    assert sizes[chosen.name] == len(chosen.data) == min(sizes.values())


def test_patterns_are_numbered_by_the_combinatorial_number_system() -> None:
    for n in (2, 4, 9):
        for k in range(1, n):
            # Colexicographic order: sorted by the last place, then the one before it, ...
            patterns = sorted(itertools.combinations(range(n), k), key=lambda p: p[::-1])
            masks = np.zeros((len(patterns), n), np.bool_)
            for row, pattern in zip(masks, patterns, strict=True):
                row[list(pattern)] = True
            assert _rank(masks).tolist() == list(range(math.comb(n, k)))


@pytest.mark.parametrize(("n", "k"), [(9, 4), (25, 12), (49, 22), (62, 31)])
def test_uniform_windows_take_little_more_than_their_information(n: int, k: int) -> None:
    order = np.random.default_rng(0).random((64, 64, n)).argsort(-1).argsort(-1)
    out = StreamWriter()
    bits = ENCODINGS.build("window").encode(order < k, out)
    assert bits == pytest.approx(64 * 64 * math.log2(math.comb(n, k)), rel=1e-12)
    assert bits / 8 <= len(out.getvalue()) < 1.03 * bits / 8 + 30


@pytest.mark.parametrize("alive", [0.1, 0.2, 0.4, 0.5])
def test_bits_take_little_more_than_their_entropy(alive: float) -> None:
    bits = np.random.default_rng(0).random(400_000) < alive
    out = StreamWriter()
    out.bits(bits)
    p = bits.mean()
    entropy = -(p * math.log2(p) + (1 - p) * math.log2(1 - p)) * bits.size / 8
    assert entropy <= len(out.getvalue()) < 1.03 * entropy


@pytest.mark.parametrize("alive", [0.02, 0.004])
def test_gaps_are_read_in_pieces(alive: float, monkeypatch: pytest.MonkeyPatch) -> None:
    bits = np.random.default_rng(0).random(100_000) < alive
    bits[-1] = True
    out = StreamWriter()
    out.bits(bits)
    assert out.getvalue()[0] == streams.GAPS
    for piece in (1, 7, 1000, 1 << 18):
        monkeypatch.setattr(streams, "_GAPS_AT_ONCE", piece)
        assert np.array_equal(StreamReader(out.getvalue()).bits(bits.size), bits)
    with pytest.raises(Damaged, match="gaps lead out of the layer"):
        StreamReader(out.getvalue()).bits(bits.size - 1)


def test_bounds_are_counts() -> None:
    rng = np.random.default_rng(0)
    ck = np.zeros((10, 4, 9), np.bool_)
    for channel in range(4):
        ck[rng.permutation(10)[:3], channel] = True
    said = encoding.encode(ck, "normal")
    assert said.bound_bits == pytest.approx(math.log2(math.comb(10, 3) ** 4))
    loose = rng.random((7, 5, 1)) < 0.5
    assert encoding.encode(loose, "normal").bound_bits <= math.log2(math.comb(35, int(loose.sum()))) + 1e-9
    assert encoding.encode(np.ones((3, 4, 9), np.bool_), "normal") == ("dense", b"", 0.0)


def test_an_unknown_encoding_is_damage() -> None:
    with pytest.raises(Damaged, match="unknown encoding 'magic'"):
        encoding.decode("magic", (2, 2), StreamReader(b""))
