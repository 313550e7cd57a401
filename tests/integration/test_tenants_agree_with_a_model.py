"""Whatever three tenants of one shard do, each sees what a dictionary of its own would hold."""

from __future__ import annotations

import pytest
from fleet import Order, tenants_of
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from sqlalchemy import func, select, text, update

from shardkit import ShardKit

TENANTS = st.integers(0, 2)
NOTES = st.integers(0, 5).map(str)
AMOUNTS = st.integers(-5, 5)
COMMITS = st.booleans()


@pytest.fixture(scope="module")
def kit(fleet):
    with ShardKit(settings=fleet.settings(pool_size=1)) as kit:
        yield kit


def test_sessions_agree_with_a_dictionary_per_tenant(kit):
    names = tenants_of(kit.map, shard=3, count=3)

    class Program(RuleBasedStateMachine):
        @initialize()
        def empty(self):
            with kit.shard(3).begin() as s:
                s.execute(text("DELETE FROM orders"))
            self.model = [{} for _ in names]

        @rule(tenant=TENANTS, note=NOTES, amount=AMOUNTS, commit=COMMITS, raw=st.booleans())
        def put(self, tenant, note, amount, commit, raw):
            if note in self.model[tenant]:
                return
            with kit.session(names[tenant]) as s:
                if raw:
                    s.execute(text("INSERT INTO orders (note, amount) VALUES (:n, :a)"), {"n": note, "a": amount})
                else:
                    s.add(Order(note=note, amount=amount))
                    s.flush()
                if commit:
                    s.commit()
                    self.model[tenant][note] = amount

        @rule(tenant=TENANTS, amount=AMOUNTS, raw=st.booleans())
        def change_all(self, tenant, amount, raw):
            statement = text("UPDATE orders SET amount = :a") if raw else update(Order).values(amount=amount)
            with kit.begin(names[tenant]) as s:
                assert s.execute(statement, {"a": amount} if raw else None).rowcount == len(self.model[tenant])
            self.model[tenant] = dict.fromkeys(self.model[tenant], amount)

        @rule(tenant=TENANTS, note=NOTES, commit=COMMITS)
        def remove(self, tenant, note, commit):
            with kit.session(names[tenant]) as s:
                found = s.scalars(select(Order).where(Order.note == note)).one_or_none()
                assert (found is not None) == (note in self.model[tenant])
                if found is not None:
                    s.delete(found)
                    s.flush()
                    if commit:
                        s.commit()
                        del self.model[tenant][note]

        @rule(tenant=TENANTS, other=TENANTS)
        def get_by_id(self, tenant, other):
            with kit.shard(3).session() as s:
                ids = dict(s.execute(select(Order.id, Order.note).where(Order.tenant_id == names[other])).all())
            assert sorted(ids.values()) == sorted(self.model[other])
            with kit.read(names[tenant]) as s:
                for oid, note in ids.items():
                    found = s.get(Order, oid)
                    assert (found.note if found else None) == (note if tenant == other else None)

        @rule(tenant=TENANTS)
        def look(self, tenant):
            for session in (kit.session(names[tenant]), kit.read(names[tenant])):
                with session as s:
                    assert dict(s.execute(select(Order.note, Order.amount)).all()) == self.model[tenant]
                    assert dict(s.execute(text("SELECT note, amount FROM orders")).all()) == self.model[tenant]
                    assert s.scalar(select(func.count()).select_from(Order)) == len(self.model[tenant])

    run_state_machine_as_test(
        Program,
        settings=settings(max_examples=25, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)),
    )
