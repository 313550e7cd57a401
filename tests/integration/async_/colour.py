"""The few calls that are not the same in both colours."""

from __future__ import annotations


async def run_sync(session, work):
    """What ``work(session)`` gives, with a session of the old kind."""
    return await session.run_sync(work)


async def raw_connection(session):
    """The driver's connection under a session."""
    return (await (await session.connection()).get_raw_connection()).driver_connection
