"""The read-your-writes token: a position in one shard's log, for a cookie or a header, that nobody but us can have made.

Version 1, big-endian, base64 without padding: version, shard, epoch, timeline, LSN, and 16 bytes of HMAC-SHA256 over all of
it and the cluster's id. A token holds nothing secret and grants nothing: the most a stolen or old one can do is to make a read
go to the primary, or to let it see an older state within the read's lag bound, which is what it sees without a token.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import struct
from typing import Final, NamedTuple
from uuid import UUID

from shardkit.core.lag import Position, lsn_number
from shardkit.core.shardmap import Route
from shardkit.errors import TokenError

_VERSION: Final = 1
_FORM: Final = struct.Struct(">BHIIQ")
_MAC_BYTES: Final = 16
_LENGTH: Final = -(-(_FORM.size + _MAC_BYTES) * 4 // 3)
_REFUSED: Final = (
    "this read-your-writes token is {}: it was not used and nothing was read. Drop it (read without one, or from the primary)"
)


class Token(NamedTuple):
    """Everything committed to ``shard`` before ``position``, while it was at ``epoch``."""

    shard: int
    epoch: int
    position: Position


NOWHERE: Final = Position(0, 0)
"""Of no server's log: a token with it leads to the primary."""


def token_after(route: Route, timeline: str | None, lsn: str | None) -> Token:
    """The token of a COMMIT on *route* behind which the log was at *lsn*, as PostgreSQL writes it, if that was asked."""
    position = NOWHERE if timeline is None or lsn is None else Position(int(timeline, 16), lsn_number(lsn))
    return Token(route.shard, route.epoch, position)


def token_key(cluster_id: UUID, secret: str | None) -> bytes:
    """Key of a cluster's tokens. Without a *secret* it only tells clusters apart and finds damage; it stops no forger."""
    return hmac.digest((secret or "").encode(), b"shardkit token " + cluster_id.bytes, "sha256")


def seal(token: Token, key: bytes) -> str:
    """*token* as text of 47 characters, safe in URLs, cookies and headers."""
    data = _FORM.pack(_VERSION, token.shard, token.epoch, *token.position)
    return base64.urlsafe_b64encode(data + _mac(data, key)).rstrip(b"=").decode()


def unseal(text: str, key: bytes) -> Token:
    """The token in *text*. Raises TokenError for anything that ``seal`` did not make with this *key*."""
    if not isinstance(text, str) or len(text) != _LENGTH:
        raise TokenError(_REFUSED.format("malformed"))
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise TokenError(_REFUSED.format("malformed")) from None
    data, mac = data[: _FORM.size], data[_FORM.size :]
    version, shard, epoch, timeline, lsn = _FORM.unpack(data)
    if not hmac.compare_digest(mac, _mac(data, key)):
        raise TokenError(_REFUSED.format("forged, damaged, or another cluster's"))
    if version != _VERSION:
        raise TokenError(_REFUSED.format(f"of version {version}, which this shardkit does not know"))
    return Token(shard, epoch, Position(timeline, lsn))


def _mac(data: bytes, key: bytes) -> bytes:
    return hmac.digest(key, data, "sha256")[:_MAC_BYTES]
