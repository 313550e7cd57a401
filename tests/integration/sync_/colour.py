"""The few calls that are not the same in both colours."""

from __future__ import annotations


def run_sync(session, work):
    """What ``work(session)`` gives, with a session of the old kind."""
    return work(session)


def raw_connection(session):
    """The driver's connection under a session."""
    return session.connection().connection.driver_connection
