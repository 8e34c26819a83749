"""crc32c of joined ranges, and the ledger that proves objects with it."""

from __future__ import annotations

import itertools
import random
from concurrent.futures import ThreadPoolExecutor

import google_crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relex_core.errors import DataError
from relex_core.storage.base import ObjectInfo
from relex_core.storage.crc32c import combine, encode
from relex_core.storage.ledger import ChecksumLedger

DATA = random.Random(0).randbytes(5000)
INFO = ObjectInfo("step_60/model.safetensors", len(DATA), 7, encode(google_crc32c.value(DATA)))


def ranges(cuts: list[int]) -> list[tuple[int, int]]:
    """The ranges between `cuts`, which tile DATA."""
    ends = sorted({0, len(DATA), *cuts})
    return list(itertools.pairwise(ends))


def record(ledger: ChecksumLedger, start: int, stop: int, data: bytes = DATA, info: ObjectInfo = INFO) -> None:
    ledger.record(info, start, stop - start, google_crc32c.value(data[start:stop]))


cuts = st.lists(st.integers(0, len(DATA)), max_size=20)


class TestCombine:
    def test_the_check_value_of_the_standard(self) -> None:
        assert combine(google_crc32c.value(b"1234"), google_crc32c.value(b"56789"), 5) == 0xE3069283

    @given(st.binary(), st.binary())
    def test_it_is_the_checksum_of_the_joined_bytes(self, first: bytes, second: bytes) -> None:
        joined = combine(google_crc32c.value(first), google_crc32c.value(second), len(second))
        assert joined == google_crc32c.value(first + second)

    def test_long_ranges(self) -> None:
        first, second = b"abc", bytes(50_000_001)
        assert combine(google_crc32c.value(first), google_crc32c.value(second), len(second)) == google_crc32c.value(
            first + second
        )

    def test_base64_is_that_of_google(self) -> None:
        assert encode(google_crc32c.value(b"hello")) == "mnG7TA=="  # as the server says for an object with this content


class TestLedger:
    @given(cuts, st.randoms())
    def test_ranges_in_any_order_prove_the_object(self, cuts: list[int], random_: random.Random) -> None:
        ledger, parts = ChecksumLedger(), ranges(cuts)
        random_.shuffle(parts)
        for part in parts[:-1]:
            record(ledger, *part)
            assert not ledger.verified
        record(ledger, *parts[-1])
        assert ledger.verified == {(INFO.name, INFO.generation)}

    @given(cuts, st.randoms(), st.integers(0, len(DATA) - 1))
    def test_any_flipped_bit_is_found(self, cuts: list[int], random_: random.Random, position: int) -> None:
        ledger, parts = ChecksumLedger("gs://bucket"), ranges(cuts)
        random_.shuffle(parts)
        spoilt = bytearray(DATA)
        spoilt[position] ^= 1 << position % 8
        with pytest.raises(DataError) as caught:
            for part in parts:
                record(ledger, *part, data=bytes(spoilt))
        assert caught.value.where == f"gs://bucket/{INFO.name}"
        assert INFO.crc32c is not None and INFO.crc32c in caught.value.expected
        assert not ledger.verified

    def test_ranges_swapped_in_place_are_found(self) -> None:
        ledger = ChecksumLedger()
        with pytest.raises(DataError):
            for start, stop, other in ((0, 2500, 2500), (2500, 5000, 0)):
                ledger.record(INFO, start, stop - start, google_crc32c.value(DATA[other : other + 2500]))

    def test_a_gap_proves_nothing(self) -> None:
        ledger = ChecksumLedger()
        for start, stop in ((0, 1000), (1001, 5000), (2000, 3000), (0, 1000)):
            record(ledger, start, stop)
        assert not ledger.verified
        record(ledger, 1000, 1001)
        assert ledger.verified

    def test_overlaps_are_left_out(self) -> None:
        ledger = ChecksumLedger()
        for start, stop in ((1000, 2000), (0, 1500), (1500, 2500), (1000, 2000), (900, 2100), (1200, 1300)):
            record(ledger, start, stop)
        record(ledger, 0, 1000)
        record(ledger, 2000, 5000)
        assert ledger.verified

    def test_objects_and_generations_are_kept_apart(self) -> None:
        ledger = ChecksumLedger()
        record(ledger, 0, 2500)
        for other in (ObjectInfo(INFO.name, INFO.size, 8, INFO.crc32c), ObjectInfo("other", INFO.size, 7, INFO.crc32c)):
            record(ledger, 2500, 5000, info=other)
        assert not ledger.verified

    def test_an_object_can_be_proved_again(self) -> None:
        ledger = ChecksumLedger()
        record(ledger, 0, 5000)
        with pytest.raises(DataError):
            record(ledger, 0, 5000, data=bytes(5000))

    def test_an_object_without_a_checksum_is_ignored(self) -> None:
        ledger = ChecksumLedger()
        record(ledger, 0, 5000, data=bytes(5000), info=ObjectInfo(INFO.name, INFO.size, 7))
        assert not ledger.verified

    def test_from_many_threads(self) -> None:
        ledger, parts = ChecksumLedger(), ranges(list(range(0, 5000, 7)))
        random.Random(1).shuffle(parts)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda part: record(ledger, *part), parts))
        assert ledger.verified
