"""Frames: cut right wherever the stream is cut, bounded, and whole."""

from __future__ import annotations

import itertools
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.control.channel import Channel, FrameError, FrameReader, encode

VALUES = [["ready"], ["stop", 2.5], {"a": [1, None, True]}, b"\x00\xff", "", "grün", "byte \udcff"]


@given(st.lists(st.integers(0, 200)))
def test_frames_survive_any_cut_of_the_stream(cuts: list[int]) -> None:
    """The same values come out, in order, however the bytes arrive."""
    data = b"".join(map(encode, VALUES))
    reader = FrameReader(1000)
    found = []
    points = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    for start, end in itertools.pairwise(points):
        found += reader.feed(data[start:end])
    assert found == VALUES
    assert reader.pending == 0


def test_a_frame_that_is_too_long_is_refused_at_its_length() -> None:
    """The reader never buffers what it will not accept."""
    with pytest.raises(FrameError, match="the limit is 10"):
        FrameReader(10).feed(b"\x00\x00\x00\x0b")


@pytest.mark.parametrize("packed", [b"\xc1", b"\x92\x01", b"\x01\x02", b"\x81\x91\x01\x02"])
def test_a_frame_that_is_no_value_is_refused(packed: bytes) -> None:
    """Reserved, incomplete and surplus bytes are errors, and so is a list as a key."""
    with pytest.raises(FrameError):
        FrameReader(100).feed(len(packed).to_bytes(4, "big") + packed)


def test_a_channel_tells_the_end_from_a_broken_frame() -> None:
    """EOFError between frames, FrameError inside one."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        Channel(theirs, 100).send(["hello", 1])
        theirs.sendall(encode([2])[:-1])
        theirs.shutdown(socket.SHUT_WR)
        channel = Channel(ours, 100)
        assert channel.receive() == ["hello", 1]
        with pytest.raises(FrameError, match="inside a frame"):
            channel.receive()
    ours, theirs = socket.socketpair()
    with ours:
        theirs.close()
        with pytest.raises(EOFError):
            Channel(ours, 100).receive()
