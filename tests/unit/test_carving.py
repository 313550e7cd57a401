"""Which tables go along with a tenant: decided from what they are, and refused where nobody can tell."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shardkit.core.carving import OURS, Contents, Going, Part, carve

SCOPED = Contents("orders", tenant_column=True, protected=True, rows=True)
BARE = Contents("rates", tenant_column=False, protected=False, rows=True)
EMPTY = BARE._replace(table="drafts", rows=False)


def test_rows_of_the_tenant_go_along_and_empty_tables_stay():
    found = carve([SCOPED, EMPTY])
    assert dict(found.parts) == {
        "orders": Part(Going.ITS_ROWS, "tenant_id"),
        "drafts": Part(Going.NOTHING, empty=True),
    }
    assert found.refused == ()


def test_rows_of_nobody_are_refused_unless_they_may_be_copied():
    ((what, remedy),) = carve([BARE]).refused
    assert "rates has rows and no column tenant_id" in what
    assert "--whole rates" in remedy
    allowed = carve([BARE], whole=["rates"])
    assert allowed.parts["rates"] == Part(Going.WHOLE)
    assert not allowed.refused


def test_a_table_without_row_level_security_is_refused():
    ((what, remedy),) = carve([SCOPED._replace(protected=False)]).refused
    assert "no row-level security" in what
    assert "shardkit.protect" in remedy


def test_whole_is_for_tables_that_need_it():
    for table in (SCOPED, Contents("shardkit_keys", tenant_column=False, protected=False, rows=True)):
        ((what, _),) = carve([table], whole=[table.table]).refused
        assert "not one to be copied wholly" in what
    ((what, _),) = carve([], whole=["nowhere"]).refused
    assert what == "there is no table nowhere"


def test_shardkits_own_tables_are_known():
    names = [
        "shardkit_keys",
        "shardkit_claims",
        "shardkit_outbox",
        "shardkit_inbox",
        "shardkit_cache_outbox",
        "alembic_version",
    ]
    found = carve(Contents(name, tenant_column=False, protected=False, rows=True) for name in names)
    assert found.refused == ()
    assert {name for name, part in found.parts.items() if part.going is Going.NOTHING} == {
        "shardkit_keys",
        "shardkit_outbox",
        "shardkit_cache_outbox",
    }
    assert all(found.parts[name] == OURS[name] for name in ("shardkit_claims", "shardkit_inbox", "alembic_version"))


TABLES = st.lists(
    st.builds(Contents, st.text("abc", min_size=1, max_size=3), st.booleans(), st.booleans(), st.booleans()),
    unique_by=lambda table: table.table,
)


@given(TABLES, st.sets(st.text("abc", min_size=1, max_size=3), max_size=3))
def test_no_row_is_left_or_copied_by_guess(tables, whole):
    found = carve(tables, whole=whole)
    assert found.parts.keys() == {table.table for table in tables}
    for table in tables:
        part = found.parts[table.table]
        if not found.refused:
            assert part.going is not Going.NOTHING or not table.rows
            assert part.going is not Going.WHOLE or table.table in whole
            assert part.going is not Going.ITS_ROWS or (table.tenant_column and table.protected)
