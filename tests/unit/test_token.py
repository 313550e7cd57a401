"""A token says what was put into it, or is refused."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardkit.core.lag import Position
from shardkit.core.token import Token, seal, token_key, unseal
from shardkit.errors import TokenError

KEY = token_key(UUID(int=1), "secret")
TOKENS = st.builds(
    Token,
    st.integers(0, 8191),
    st.integers(1, 999_999_999),
    st.builds(Position, st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)),
)


@given(token=TOKENS)
def test_a_token_survives_its_text(token):
    text = seal(token, KEY)
    assert len(text) == 47
    assert unseal(text, KEY) == token


@given(token=TOKENS, at=st.integers(0, 46), letter=st.sampled_from("ABab01-_"))
def test_a_changed_letter_is_never_another_token(token, at, letter):
    text = seal(token, KEY)
    changed = text[:at] + letter + text[at + 1 :]
    try:
        assert unseal(changed, KEY) == token  # the last letter has bits that mean nothing
    except TokenError:
        assert changed != text


@given(text=st.text(max_size=60))
def test_any_text_is_refused(text):
    with pytest.raises(TokenError):
        unseal(text, KEY)


@pytest.mark.parametrize("text", [None, 47, b"A" * 47])
def test_what_is_no_text_is_refused(text):
    with pytest.raises(TokenError):
        unseal(text, KEY)


@pytest.mark.parametrize(
    "key", [token_key(UUID(int=2), "secret"), token_key(UUID(int=1), "other"), token_key(UUID(int=1), None)]
)
def test_another_clusters_key_or_secret_is_refused(key):
    with pytest.raises(TokenError, match="another cluster"):
        unseal(seal(Token(1, 1, Position(1, 1)), key), KEY)
