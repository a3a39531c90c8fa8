"""The bytes of a value: small, and unreadable rather than wrong."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2l_plugins.cache.entry import Entry
from p2l_plugins.cache.settings import derive_secret
from p2l_plugins.cache.value import KEYED_VERSION, VERSION, Unreadable, decode, encode

KEY = "p2l:1:" + "f" * 32 + ":" + "0" * 32
SECRET = derive_secret("s3cret")


def reason(value, key=KEY, models=None, secret=b""):
    with pytest.raises(Unreadable) as caught:
        decode(key, value, models, secret)
    return str(caught.value)


def test_130_models_take_at_most_600_bytes():
    assert len(encode(KEY, Entry(np.zeros(130, np.float32), 1.0))) == 534
    assert len(encode(KEY, Entry(np.zeros(130, np.float32), 1.0, False, 0.5))) == 538


@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=200),
    st.none() | st.floats(allow_nan=False, allow_infinity=False, width=32),
    st.none() | st.booleans(),
    st.none() | st.floats(0, 1, width=32),
)
def test_what_was_encoded_is_decoded_bit_by_bit(coefs, raw_eta, truncated, unknown):
    entry = Entry(np.array(coefs, np.float32), raw_eta, truncated, unknown)
    back = decode(KEY, encode(KEY, entry), len(coefs))
    assert back.coefs.tobytes() == entry.coefs.tobytes()
    assert back[1:] == (raw_eta, truncated, unknown)


def test_under_a_secret_a_value_is_12_bytes_longer_and_comes_back():
    entry = Entry(np.linspace(-3, 3, 130, dtype=np.float32), 0.5, False, 0.25)
    value = encode(KEY, entry, SECRET)
    assert len(value) == 550
    back = decode(KEY, value, 130, SECRET)
    assert (back.coefs.tobytes(), back[1:]) == (entry.coefs.tobytes(), entry[1:])


@given(st.integers(0, 549 * 8 + 7))
def test_any_flipped_bit_is_noticed_under_a_secret(bit):
    value = bytearray(encode(KEY, Entry(np.linspace(-3, 3, 130, dtype=np.float32), 0.5, False, 0.5), SECRET))
    value[bit // 8] ^= 1 << bit % 8
    assert reason(bytes(value), secret=SECRET)


def test_under_a_secret_nobody_else_makes_a_value():
    entry = Entry(np.ones(3, np.float32), None)
    good = encode(KEY, entry, SECRET)
    plain = encode(KEY, entry)  # which whoever writes to the store can make
    assert reason(plain, secret=SECRET) == "version"
    assert reason(plain[:2] + bytes([KEYED_VERSION]) + plain[3:], secret=SECRET) == "length"
    body = good[:-16]
    assert reason(body + struct.pack("<I", zlib.crc32(body, zlib.crc32(KEY.encode()))) * 4, secret=SECRET) == "forged"
    assert reason(encode(KEY, entry, derive_secret("other")), secret=SECRET) == "forged"
    assert reason(good, key=KEY[:-1] + "1", secret=SECRET) == "forged"  # a value that was copied to another key
    assert reason(good) == "version"  # for a reader without the secret, of this version or an older one


@given(st.binary(max_size=700))
def test_garbage_is_unreadable(garbage):
    assert reason(garbage)
    assert reason(garbage, secret=SECRET)


@given(st.integers(0, 533 * 8 + 7), st.none() | st.just(0.5))
def test_any_flipped_bit_is_noticed(bit, unknown):
    value = bytearray(encode(KEY, Entry(np.linspace(-3, 3, 130, dtype=np.float32), 0.5, False, unknown)))
    value[bit // 8] ^= 1 << bit % 8
    assert reason(bytes(value))


@pytest.mark.parametrize("length", [0, 1, 2, 9, 10, 13, 14, 100, 533])
def test_a_part_of_a_value_is_unreadable(length):
    assert reason(encode(KEY, Entry(np.ones(130, np.float32), None))[:length])


def test_each_fault_has_a_name():
    good = encode(KEY, Entry(np.ones(3, np.float32), None))
    assert reason("text") == "type"
    assert reason(b"garbage of some length") == "format"
    assert reason(good[:2] + bytes([VERSION + 1]) + good[3:]) == "version"
    assert reason(good[:-1]) == "length"
    assert reason(good, key=KEY[:-1] + "1") == "checksum"  # a value that was copied to another key
    assert reason(good, models=4) == "models"


def test_a_value_from_before_the_share_of_unknown_tokens_is_read_as_one_that_does_not_say_it():
    body = struct.pack("<2sBBHf", b"P2", 1, 1 | 4, 2, 0.5) + np.array([1.0, -2.0], "<f4").tobytes()
    entry = decode(KEY, body + struct.pack("<I", zlib.crc32(body, zlib.crc32(KEY.encode()))), 2)
    assert entry.coefs.tolist() == [1.0, -2.0]
    assert entry[1:] == (0.5, False, None)


@pytest.mark.parametrize(("flags", "share"), [(8, 1.5), (8, -0.1), (8, float("nan")), (16, 0.5)])
def test_a_share_that_is_none_and_a_flag_that_nobody_knows_are_unreadable(flags, share):
    body = struct.pack("<2sBBHf", b"P2", 1, flags, 1, 0.0) + np.array([1.0, share], "<f4").tobytes()
    value = body + struct.pack("<I", zlib.crc32(body, zlib.crc32(KEY.encode())))
    assert reason(value) == ("version" if flags == 16 else "numbers")


@pytest.mark.parametrize("share", [-0.01, 1.01, float("nan")])
def test_a_share_that_is_none_is_not_written(share):
    with pytest.raises(ValueError, match="share of unknown tokens"):
        encode(KEY, Entry(np.ones(2, np.float32), None, False, share))


def test_the_other_byte_order_is_unreadable():
    coefs = np.ones(3, ">f4")
    assert (
        reason(struct.pack(">2sBBHf", b"P2", VERSION, 0, 3, 0.0) + coefs.tobytes() + struct.pack(">I", 0)) == "length"
    )
    palindrome = np.ones(0x0101, ">f4")  # a number of models that reads the same in both orders
    value = struct.pack(">2sBBHf", b"P2", VERSION, 0, 0x0101, 0.0) + palindrome.tobytes() + struct.pack(">I", 0)
    assert reason(value) == "checksum"


def test_numbers_that_are_not_finite_are_unreadable_even_under_a_good_checksum():
    body = struct.pack("<2sBBHf", b"P2", VERSION, 0, 2, 0.0) + np.array([1.0, np.nan], "<f4").tobytes()
    assert reason(body + struct.pack("<I", zlib.crc32(body, zlib.crc32(KEY.encode())))) == "numbers"


@pytest.mark.parametrize("coefs", [np.zeros((1, 2)), np.zeros(0), np.zeros(70_000), np.array([np.inf])])
def test_what_a_value_can_not_hold_is_refused(coefs):
    with pytest.raises(ValueError, match=r"coefs|finite"):
        encode(KEY, Entry(coefs.astype(np.float32), None))
