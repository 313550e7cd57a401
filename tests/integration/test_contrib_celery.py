"""Celery tasks run as the tenant they were called for: eager, and through a broker and a worker."""

from __future__ import annotations

import pytest

celery = pytest.importorskip("celery", reason="Celery is not installed (extra: test)")

from celery import chain, group
from celery.contrib.testing.worker import start_worker
from celery.signals import before_task_publish, setup_logging
from fleet import Order
from sqlalchemy import select, text

from shardkit import ShardKit
from shardkit.contrib.celery import HEADER, tenant_task
from shardkit.errors import NoTenantError, TenantKeyError, TenantLockedError

WAIT_S = 60


@pytest.fixture(autouse=True)
def _logging_is_left_alone():
    """A worker would set the level of the process's root logger, for all tests to come."""

    def leave_it(**_):
        """Who hears this signal configures logging himself."""

    setup_logging.connect(leave_it)
    yield
    setup_logging.disconnect(leave_it)


@pytest.fixture
def kit(fleet):
    with ShardKit(settings=fleet.settings()) as kit:
        receivers = list(before_task_publish.receivers)
        yield kit
        before_task_publish.receivers = receivers


@pytest.fixture
def app(kit):
    app = celery.Celery("shop", broker="memory://", backend="cache+memory://", task_cls=tenant_task(kit), set_as_current=False)
    app.conf.update(task_store_eager_result=True, broker_connection_retry_on_startup=False)

    @app.task(shared=False, name="add")
    def add(note):
        with kit.begin() as session:
            session.add(Order(note=note))
        return kit.current_tenant

    @app.task(shared=False, name="notes")
    def notes(_before=None):
        with kit.read() as session:
            return [session.tenant, list(session.scalars(text("SELECT note FROM orders ORDER BY id")))]

    @app.task(shared=False, name="other")
    def other(tenant):
        with kit.read(tenant) as session:
            return list(session.scalars(select(Order.note)))

    @app.task(shared=False, name="again", bind=True, max_retries=3, default_retry_delay=0)
    def again(self):
        if self.request.retries < 2:
            raise self.retry(countdown=0)
        return [kit.current_tenant, self.request.retries]

    @app.task(shared=False, name="plain", base=celery.Task)
    def plain():
        with kit.read() as session:
            return list(session.scalars(select(Order.note)))

    yield app
    app.close()


@pytest.fixture(params=["eager", "worker"])
def running(request, app):
    """The application, with its tasks run at the call or by the threads of a worker."""
    if request.param == "eager":
        app.conf.task_always_eager = True
        yield app
    else:
        with start_worker(app, pool="threads", concurrency=4, perform_ping_check=False, shutdown_timeout=WAIT_S):
            yield app


def test_a_task_runs_as_the_tenant_of_its_caller(running, kit, neighbours):
    add, notes = running.tasks["add"], running.tasks["notes"]
    for tenant in neighbours:
        with kit.tenant(tenant):
            assert add.delay(f"of {tenant}").get(timeout=WAIT_S) == tenant
    for tenant in neighbours:
        with kit.tenant(tenant):
            assert notes.delay().get(timeout=WAIT_S) == [tenant, [f"of {tenant}"]]


def test_many_tenants_in_flight_never_mix(running, kit, tenant):
    tenants = [f"{tenant}-{number}" for number in range(20)]
    called = []
    for name in tenants:
        with kit.tenant(name):
            called.append(running.tasks["add"].delay(f"of {name}"))
    assert [task.get(timeout=WAIT_S) for task in called] == tenants
    called = []
    for name in tenants:
        with kit.tenant(name):
            called.append(running.tasks["notes"].delay())
    assert [task.get(timeout=WAIT_S) for task in called] == [[name, [f"of {name}"]] for name in tenants]


def test_a_task_nobody_called_for_a_tenant_has_none(running):
    with pytest.raises(NoTenantError):
        running.tasks["notes"].delay().get(timeout=WAIT_S)


def test_after_a_tenants_task_the_worker_has_no_tenant(running, kit, tenant):
    with kit.tenant(tenant):
        running.tasks["notes"].delay().get(timeout=WAIT_S)
    for _ in range(8):  # every thread of the worker
        with pytest.raises(NoTenantError):
            running.tasks["plain"].delay().get(timeout=WAIT_S)


def test_a_task_cannot_ask_for_another_tenant(running, kit, neighbours):
    one, other = neighbours
    with kit.tenant(one), pytest.raises(TenantLockedError):
        running.tasks["other"].delay(other).get(timeout=WAIT_S)


def test_a_forged_tenant_of_the_wrong_type_is_refused(running):
    with pytest.raises(TenantKeyError):
        running.tasks["notes"].apply_async(headers={HEADER: 7}).get(timeout=WAIT_S)


def test_chains_groups_and_retries_stay_with_the_tenant(running, kit, tenant):
    add, notes, again = (running.tasks[name] for name in ("add", "notes", "again"))
    with kit.tenant(tenant):
        chained = chain(add.s("one"), notes.s()).apply_async()
        grouped = group(add.si("two"), add.si("three")).apply_async()
        retried = again.delay()
    assert chained.get(timeout=WAIT_S)[0] == tenant
    assert grouped.get(timeout=WAIT_S) == [tenant, tenant]
    assert retried.get(timeout=WAIT_S) == [tenant, 2]


def test_send_task_by_name_carries_the_tenant_too(app, kit, tenant):
    with start_worker(app, pool="solo", perform_ping_check=False, shutdown_timeout=WAIT_S):
        with kit.tenant(tenant):
            assert app.send_task("notes").get(timeout=WAIT_S) == [tenant, []]


def test_calling_a_task_as_a_function_is_a_function_call(app, kit, tenant):
    with pytest.raises(NoTenantError):
        app.tasks["notes"]()
    with kit.tenant(tenant):
        assert app.tasks["notes"]() == [tenant, []]
