"""Signing up and logging in: names that are unique over all shards, and no way to find out by trying who has one."""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import delete, func, select
from werkzeug.security import check_password_hash, generate_password_hash

from photos.models import Attempt, User
from shardkit import ShardKit
from shardkit.errors import KeyTakenError

NAME = re.compile(r"[a-z0-9][a-z0-9_.]{1,22}[a-z0-9]")
PASSWORD_LEAST, PASSWORD_MOST = 8, 200
WINDOW_S = 300


class RefusedError(ValueError):
    """Cannot be done; the message is for the person who asked."""


class TooManyError(RefusedError):
    """Tried too often; wait ``WINDOW_S``."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How often somebody may try to log in within ``WINDOW_S``."""

    name_from_address: int = 5
    address: int = 50
    name: int = 100


def sign_up(kit: ShardKit, *, name: str, full_name: str, password: str, method: str = "scrypt") -> User:
    """Make an account. Raises RefusedError."""
    name, full_name = name.strip().lower(), " ".join(full_name.split())
    if not NAME.fullmatch(name):
        raise RefusedError(
            "A name has 3 to 24 letters a to z, digits, dots or underscores, and begins and ends with a letter or digit."
        )
    if not 1 <= len(full_name) <= 60 or not full_name.isprintable():
        raise RefusedError("Tell us what to call you, in up to 60 characters.")
    if not PASSWORD_LEAST <= len(password) <= PASSWORD_MOST:
        raise RefusedError(f"A password has at least {PASSWORD_LEAST} characters.")
    user = User(name=name, full_name=full_name, bio="", password_hash=generate_password_hash(password, method))
    try:
        with kit.begin(f"u-{secrets.token_hex(8)}", expire_on_commit=False) as session:
            session.add(user)
    except KeyTakenError:
        raise RefusedError("This name is taken. Try another one.") from None
    return user


def log_in(kit: ShardKit, *, name: str, password: str, address: str, limits: Limits, method: str = "scrypt") -> tuple[str, str]:
    """Tenant and name of the account. Raises RefusedError, in the same words and time for a wrong name and a wrong password."""
    name = name.strip().lower()
    both = f"login:{hashlib.sha256(f'{name} {address}'.encode()).hexdigest()[:24]}"
    of_name = f"login:name:{hashlib.sha256(name.encode()).hexdigest()[:24]}"
    for key, most in ((both, limits.name_from_address), (f"login:from:{address}", limits.address), (of_name, limits.name)):
        if _count(kit, key) > most:
            raise TooManyError("That was tried too often. Wait five minutes, then try again.")
    route = kit.locate_by(User.name, name) if NAME.fullmatch(name) else None
    stored = None
    if route is not None:
        with kit.read(route.tenant) as session:
            stored = session.scalar(select(User.password_hash).where(User.name == name))
    right = check_password_hash(stored or _nobody(method), password[:PASSWORD_MOST])
    if stored is None or route is None or not right:
        raise RefusedError("The name or the password is wrong.")
    with kit.begin(both) as session:
        session.execute(delete(Attempt))
    return str(route.tenant), name


def _count(kit: ShardKit, key: str) -> int:
    """How often *key* was tried lately, this time included: it is written down before it is known whether it was right."""

    def work(session):
        session.execute(delete(Attempt).where(Attempt.at < func.now() - timedelta(seconds=WINDOW_S)))
        session.add(Attempt())
        session.flush()
        return session.scalar(select(func.count()).select_from(Attempt))

    return kit.run(key, work)


_hashes: dict[str, str] = {}


def _nobody(method: str) -> str:
    """A hash no password has, as slow to compare as everybody's."""
    if method not in _hashes:
        _hashes[method] = generate_password_hash(secrets.token_hex(16), method)
    return _hashes[method]
