"""Text that grows token by token."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from chatgrpo.inference.deltas import TextStream
from tests.fakes import ByteTokens

decode = ByteTokens().decode


def pieces(text: str, *, stop: tuple[str, ...] = (), size: int = 1) -> list[str]:
    stream = TextStream(decode, stop=stop)
    ids = list(text.encode())
    out = [stream.push(ids[i : i + size]) for i in range(0, len(ids), size)]
    return [*out, stream.finish()]


def test_plain_text_comes_out_at_once() -> None:
    assert pieces("abc") == ["a", "b", "c", ""]


def test_half_a_character_is_held_back() -> None:
    assert pieces("é€😀") == ["", "é", "", "", "€", "", "", "", "😀", ""]


def test_bytes_that_never_become_a_character_come_out_at_the_end() -> None:
    stream = TextStream(decode)
    assert [stream.push([0xF0]), stream.push([0x9F]), stream.finish()] == ["", "", "\ufffd"]


def test_bytes_that_cannot_become_a_character_do_not_hold_the_stream_for_ever() -> None:
    stream = TextStream(decode)
    out = [stream.push([i]) for i in (0xFF, 0xFF, 0xFF, 0xFF)]
    assert out == ["", "", "", "\ufffd" * 4]


def test_stop_text_and_its_beginning_never_show() -> None:
    assert pieces("one END two", stop=("END",)) == ["o", "n", "e", " ", "", "", "", "", "", "", "", ""]


def test_the_beginning_of_a_stop_text_that_does_not_come_is_given_back() -> None:
    assert pieces("an E, EN", stop=("END",)) == ["a", "n", " ", "", "E,", " ", "", "", "EN"]


def test_the_earliest_of_several_stop_texts_counts() -> None:
    stream = TextStream(decode, stop=("world", "lo"))
    assert stream.push(list(b"hello world")) == "hel"
    assert stream.stopped
    assert stream.push(list(b" more")) == ""


def test_a_tokenizer_that_drops_a_leading_space_keeps_it_between_tokens() -> None:
    words = {1: "Hello", 2: " big", 3: " world"}
    stream = TextStream(lambda ids: "".join(words[i] for i in ids).lstrip())
    assert [stream.push([i]) for i in (1, 2, 3)] == ["Hello", " big", " world"]


@given(st.text(max_size=40), st.integers(1, 7))
def test_pieces_add_up_to_the_text_and_are_whole(text: str, size: int) -> None:
    out = pieces(text, size=size)
    assert "".join(out) == text
    assert all("\ufffd" not in piece or "\ufffd" in text for piece in out)


@given(st.text("ab", max_size=30), st.text("ab", min_size=1, max_size=4), st.integers(1, 5))
def test_stopping_equals_cutting_the_whole_text(text: str, stop: str, size: int) -> None:
    assert "".join(pieces(text, stop=(stop,), size=size)) == text.split(stop)[0]
