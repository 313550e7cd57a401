"""Metrics, traces, tags and logs say where a unit of work ran, and never whose it was by name."""

from __future__ import annotations

import io
import json
import logging
import threading

import pytest
import sentry_sdk
from cachelab import Photo, cached_fleet_on
from fleet import Order
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Integer, cast, func, select, text

from shardkit import AsyncShardKit, ShardKit
from shardkit.catalog import journal
from shardkit.contrib.logs import JsonLines, TenantFields
from shardkit.contrib.opentelemetry import instrument
from shardkit.contrib.prometheus import ClusterCollector, KitCollector
from shardkit.contrib.sentry import install
from shardkit.core.hashing import tenant_digest
from shardkit.errors import FanOutError, ServerDownError, ShardMovedError


def scraped(*collectors):
    """Samples of one scrape: {(name, labels without the kit's name): value}."""
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    found = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            labels = tuple(value for label, value in sorted(sample.labels.items()) if label != "kit")
            found[sample.name, *labels] = sample.value
    return found


def test_counters_of_a_process(fleet, kit, tenant, eventually):
    route = kit.locate(tenant)
    before = scraped(KitCollector(kit))
    assert before["shardkit_map_version",] == kit.map.version
    with kit.session(tenant) as session:
        session.execute(select(Order.id)).all()
        assert scraped(KitCollector(kit))["shardkit_pool_in_use", route.server] == 1
    assert scraped(KitCollector(kit))["shardkit_pool_in_use", route.server] == 0

    def led_on():
        with kit.begin(tenant) as session:
            session.execute(select(Order.id)).all()

    fleet.close_epoch(route)
    reader = threading.Thread(target=led_on)
    reader.start()
    try:
        eventually(lambda: scraped(KitCollector(kit))["shardkit_fences_total",] == before["shardkit_fences_total",] + 1)
    finally:
        fleet.flip(route)  # after the fence was met: told before, the map would have led around it
        reader.join()
    after = scraped(KitCollector(kit))
    assert after["shardkit_fences_total",] == before["shardkit_fences_total",] + 1
    assert after["shardkit_map_version",] == before["shardkit_map_version",] + 1


def test_retries_are_counted(kit, tenant):
    tries = iter([ShardMovedError("once"), ServerDownError("twice"), None])

    def work(_session):
        if (error := next(tries)) is not None:
            raise error

    kit.run(tenant, work)
    assert kit.stats().retries == 2


def test_waiting_callers_are_counted(fleet, tenant, eventually):
    with ShardKit(settings=fleet.settings(pool_size=1)) as kit:
        server = kit.locate(tenant).server
        with kit.session(tenant) as first:
            first.execute(text("SELECT 1"))

            def second():
                with kit.session(tenant) as session:
                    session.execute(text("SELECT 1"))

            waiter = threading.Thread(target=second)
            waiter.start()
            eventually(lambda: scraped(KitCollector(kit))["shardkit_pool_waiting", server] == 1)
        waiter.join()
        assert scraped(KitCollector(kit))["shardkit_pool_waiting", server] == 0


def test_the_cluster_from_outside(fleet, kit):
    route = kit.map.route(3)
    with fleet.admin() as catalog:
        move = journal.begin(catalog, shard=3, source=route.server, target=fleet.other(route.server), epoch=route.epoch)
        catalog.execute("UPDATE shardkit_catalog.moves SET problem = 'no room' WHERE id = %s", (move.id,))
    try:
        found = scraped(ClusterCollector(kit, outbox=True))
    finally:
        with fleet.admin() as catalog:
            catalog.execute("DELETE FROM shardkit_catalog.moves WHERE id = %s", (move.id,))
    assert found["shardkit_catalog_up",] == 1
    assert {found["shardkit_server_up", name] for name in fleet.servers} == {1}
    assert sum(found["shardkit_server_shards", name] for name in fleet.servers) == 16
    assert found["shardkit_server_bytes", "pg1"] > 1_000_000
    assert found["shardkit_moves", "planned"] == found["shardkit_moves_stuck",] == 1
    assert found["shardkit_outbox_waiting",] == 0
    gone = ClusterCollector(kit, pulse=silent)
    assert scraped(gone) == {("shardkit_catalog_up",): 0}


def silent():
    raise ServerDownError("the catalog does not answer")


@pytest.fixture
def spans():
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield provider, exporter.get_finished_spans
    provider.shutdown()


def test_spans_say_where_and_never_who(fleet, kit, spans, tenant):
    provider, finished = spans
    instrument(kit, tracer_provider=provider, secret="salt")
    route = kit.locate(tenant)
    with kit.begin(tenant) as session:
        session.add(Order(note=f"traced {tenant}"))
    fleet.move(route, elsewhere=False)
    with kit.read(tenant) as session:
        session.scalars(select(Order.note)).all()
    inserted, *_, selected = finished()
    digest = tenant_digest(tenant, secret="salt")
    expected = {"shardkit.tenant": digest, "shardkit.shard": route.shard, "shardkit.server": route.server}
    for span, operation, epoch in ((inserted, "INSERT", route.epoch), (selected, "SELECT", route.epoch + 1)):
        assert expected.items() <= dict(span.attributes).items()
        assert span.name == operation
        assert span.attributes["shardkit.epoch"] == epoch  # where it was led on to
    assert all(tenant not in span.to_json() for span in finished())


def test_a_span_of_a_statement_that_fails(kit, spans, tenant):
    provider, finished = spans
    instrument(kit, tracer_provider=provider)
    with pytest.raises(Exception, match="nonsense"), kit.session(tenant) as session:
        session.execute(text("SELECT nonsense"))
    (span,) = finished()
    assert not span.status.is_ok
    assert span.attributes["error.type"]


async def test_spans_of_asyncio_hang_together(fleet, spans, tenant):
    provider, finished = spans
    async with AsyncShardKit(settings=fleet.settings()) as kit:
        instrument(kit, tracer_provider=provider)
        with provider.get_tracer("web").start_as_current_span("request"):
            async with kit.session(tenant) as session:
                await session.execute(text("SELECT 1"))
    statement, request = finished()
    assert statement.parent.span_id == request.context.span_id


def messages_of(finished):
    """The span of the one fan-out, and those of its messages."""
    (parent,) = [span for span in finished() if span.name == "fan-out"]
    messages = [span for span in finished() if span.name == "fan-out message"]
    assert all(span.parent.span_id == parent.context.span_id for span in messages)
    return parent, messages


def test_a_fan_out_is_a_span_with_one_for_each_server_below(kit, spans, tenant):
    provider, finished = spans
    with kit.begin(tenant) as session:
        session.add(Order(note=f"fanned {tenant}"))
    instrument(kit, tracer_provider=provider)
    with provider.get_tracer("web").start_as_current_span("request") as request:
        assert len(kit.fan_out(select(Order).where(Order.note == f"fanned {tenant}")).rows) == 1
    parent, messages = messages_of(finished)
    assert parent.parent.span_id == request.context.span_id
    assert dict(parent.attributes) == {"shardkit.fan_out.shards": 16, "shardkit.fan_out.servers": 2}
    told = {span.attributes["shardkit.server"]: span.attributes["shardkit.shards"] for span in messages}
    assert told == {name: len(kit.map.shards_on(name)) for name in kit.map.servers}
    assert {span.attributes["shardkit.statements"] for span in messages} == {1}
    assert all(span.status.is_ok or span.status.is_unset for span in (parent, *messages))
    assert all(tenant not in span.to_json() for span in finished())


def test_a_fan_out_over_tenants_names_none_and_shows_that_a_shard_had_moved(fleet, kit, spans, tenant, eventually):
    provider, finished = spans
    instrument(kit, tracer_provider=provider)
    route, counted = kit.locate(tenant), []

    def count():
        counted.append(kit.fan_out_scalar(select(func.count()).select_from(Order), tenants=[tenant]))

    fleet.close_epoch(route)
    asking = threading.Thread(target=count)
    asking.start()
    try:
        eventually(finished)  # the message that found no schema
    finally:
        fleet.flip(route)
        asking.join()
    assert counted == [0]
    parent, messages = messages_of(finished)
    assert dict(parent.attributes) == {"shardkit.fan_out.shards": 1, "shardkit.fan_out.servers": 1}
    first, again = messages
    assert (first.attributes["error.type"], first.status.is_ok) == ("UndefinedTable", False)
    assert (again.attributes["shardkit.server"], again.status.status_code.name) == (route.server, "UNSET")
    assert all(tenant not in span.to_json() for span in finished())


def test_a_fan_out_that_fails_says_so_without_a_row(kit, spans, tenant):
    provider, finished = spans
    with kit.begin(tenant) as session:
        session.add(Order(note=f"secret {tenant}"))
    instrument(kit, tracer_provider=provider)
    with pytest.raises(FanOutError, match="secret"):
        kit.fan_out(
            select(cast(Order.note, Integer)).where(Order.note == f"secret {tenant}")
        )  # other tests' notes are none either
    parent, messages = messages_of(finished)
    assert parent.attributes["error.type"] == "FanOutError"
    assert parent.attributes["shardkit.error_code"] == FanOutError.code
    assert {span.attributes.get("error.type") for span in messages} >= {"InvalidTextRepresentation"}
    assert not parent.status.is_ok
    assert all("secret" not in span.to_json() for span in finished())


async def test_a_stream_with_asyncio_is_a_span_until_its_end(fleet, spans):
    provider, finished = spans
    async with AsyncShardKit(settings=fleet.settings()) as kit:
        instrument(kit, tracer_provider=provider)
        async with kit.fan_out_stream(select(Order.id).order_by(Order.id), batch=1_000) as rows:
            async for _ in rows:
                assert not [span for span in finished() if span.name == "fan-out"]
        parent, messages = messages_of(finished)
        asked = [span.attributes["shardkit.shards"] for span in messages if "shardkit.shards" in span.attributes]
        assert sum(asked) == parent.attributes["shardkit.fan_out.shards"] == 16
        assert len(messages) >= 2 * len(asked), "a FETCH at least for each DECLARE"


def test_reads_of_the_cache_are_events(local_cluster, spans):
    provider, finished = spans
    with cached_fleet_on(local_cluster) as fleet, ShardKit(settings=fleet.settings()) as kit:
        instrument(kit, tracer_provider=provider)
        with kit.begin("acme") as session:
            session.add(photo := Photo(user_id=1, slug="a"))
            session.flush()
            number = photo.id
        with provider.get_tracer("web").start_as_current_span("request"):
            for _ in range(2):
                kit.cache.get_row(Photo, number, tenant="acme")
        request = next(span for span in finished() if span.name == "request")
        hits = [one.attributes["shardkit.cache.hit"] for one in request.events if one.name == "shardkit.cache"]
        assert hits == [False, True]
        found = scraped(KitCollector(kit))
        assert found["shardkit_cache_reads_total", "hit"] == found["shardkit_cache_reads_total", "miss"] == 1
        assert found["shardkit_cache_events_total", "fills"] == 1


class Nowhere(sentry_sdk.Transport):
    def capture_envelope(self, envelope):
        pytest.fail("an event was sent")


def test_sentry_tags(kit, tenant):
    events = []
    client = sentry_sdk.Client(
        dsn="http://key@127.0.0.1:1/1",
        transport=Nowhere,
        before_send=lambda event, _: events.append(event),
        default_integrations=False,
    )
    install(kit)
    with sentry_sdk.isolation_scope() as scope:
        scope.set_client(client)
        with kit.tenant(tenant):
            try:
                raise ShardMovedError("secret")
            except ShardMovedError as exc:
                sentry_sdk.capture_exception(exc)
        sentry_sdk.capture_message("outside")
    client.close()
    inside, outside = events
    route = kit.locate(tenant)
    tags = inside["tags"]
    assert tags["shardkit.shard"] == str(route.shard)
    assert tags["shardkit.tenant"] == tenant_digest(tenant)
    assert tags["shardkit.error_code"] == ShardMovedError.code
    assert tags["shardkit.outcome"] == "not done"
    assert not [tag for tag in outside.get("tags", {}) if tag.startswith("shardkit.")]


def test_structured_logs(kit, tenant):
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(TenantFields(kit))
    handler.setFormatter(JsonLines())
    log = logging.getLogger("shop.orders")
    log.addHandler(handler)
    log.propagate = False
    with kit.tenant(tenant):
        log.warning("placed %s", "an order", extra={"order": 7})
        try:
            raise ServerDownError("gone")
        except ServerDownError:
            log.exception("failed")
    log.warning("outside")
    placed, failed, outside = map(json.loads, stream.getvalue().splitlines())
    assert (placed["message"], placed["order"], placed["level"]) == ("placed an order", 7, "WARNING")
    route = kit.locate(tenant)
    assert placed["shardkit"] == {
        "tenant": tenant_digest(tenant),
        "shard": route.shard,
        "server": route.server,
        "epoch": route.epoch,
        "map_version": kit.map.version,
    }
    assert failed["shardkit"]["error_code"] == ServerDownError.code
    assert "ServerDownError" in failed["exception"]
    assert "shardkit" not in outside
    assert tenant not in stream.getvalue()


def test_digests_are_of_their_secret_and_type():
    assert tenant_digest("42") != tenant_digest(42) != tenant_digest(42, secret="x")
    assert tenant_digest("acme") == tenant_digest("acme")
    assert len(tenant_digest("acme")) == 16
