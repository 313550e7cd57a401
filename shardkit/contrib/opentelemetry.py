"""OpenTelemetry: a span for every statement, which says whose it was (as a digest), where it ran, and where it was led on to.

    instrument(kit)          # the global tracer provider; or instrument(kit, tracer_provider=...)

A fan-out is a span with one below it for each message to a server. Reads of the cache are events of the span one stands in,
``shardkit.cache`` with ``shardkit.cache.hit``. Text and parameters of statements are not recorded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, TracerProvider
from sqlalchemy import event
from sqlalchemy.engine import Engine

from shardkit.contrib.identify import Kit, of_error, of_route
from shardkit.core.shardmap import Route
from shardkit.orm.fanwatch import Message, Watch

SPAN: Final = "_shardkit_span"


def instrument(kit: Kit, *, tracer_provider: TracerProvider | None = None, secret: str = "") -> None:
    """Trace what *kit* does from now on. *secret* goes into the tenants' digests."""
    tracer = trace.get_tracer("shardkit", tracer_provider=tracer_provider)
    engines = kit._router.engines

    def begin(connection: Any, _cursor: Any, statement: str, _parameters: Any, context: Any, _many: bool) -> None:  # noqa: FBT001  # SQLAlchemy's signature
        route = _route(connection)
        if route is None or context is None:
            return
        operation = statement.lstrip().partition(" ")[0].upper()[:16]
        attributes = {"db.system.name": "postgresql", "db.operation.name": operation, **_named(route, secret)}
        setattr(context, SPAN, tracer.start_span(operation, kind=SpanKind.CLIENT, attributes=attributes))

    def end(connection: Any, _cursor: Any, _statement: str, _parameters: Any, context: Any, _many: bool) -> None:  # noqa: FBT001  # SQLAlchemy's signature
        span: Span | None = getattr(context, SPAN, None)
        if span is not None:
            route = _route(connection)
            if route is not None:  # where it ran in the end: the shard may have moved on the way
                span.set_attributes(_named(route, secret))
            span.end()

    def failed(found: Any) -> None:
        span: Span | None = getattr(found.execution_context, SPAN, None)
        if span is not None and span.is_recording():
            _fail(span, getattr(found, "chained_exception", None) or found.original_exception)
            span.end()

    def listen(engine: Engine) -> None:
        event.listen(engine, "before_cursor_execute", begin)
        event.listen(engine, "after_cursor_execute", end)
        event.listen(engine, "handle_error", failed)

    engines.on_engine(listen)
    kit.cache.counts.on_read = _cache_read
    kit._fan_out.watch = _fan_outs(tracer)


def _fan_outs(tracer: Tracer) -> Watch:
    """A watch that makes spans. Those of messages are told of their parent: they begin in other threads or tasks."""

    @contextmanager
    def fan_out(routes: Sequence[Route]) -> Iterator[Message]:
        servers = {route.server for route in routes}
        asked = {"shardkit.fan_out.shards": len(routes), "shardkit.fan_out.servers": len(servers)}
        with _ended(tracer.start_span("fan-out", attributes=asked)) as span:
            around = trace.set_span_in_context(span)

            @contextmanager
            def message(server: str, shards: int | None, statements: int) -> Iterator[None]:
                attributes: dict[str, str | int] = {"db.system.name": "postgresql", "shardkit.server": server}
                attributes["shardkit.statements"] = statements
                if shards is not None:
                    attributes["shardkit.shards"] = shards
                with _ended(tracer.start_span("fan-out message", around, SpanKind.CLIENT, attributes)):
                    yield

            yield message

    return fan_out


@contextmanager
def _ended(span: Span) -> Iterator[Span]:
    """End *span* with the block, and say what went wrong in it."""
    try:
        yield span
    except BaseException as exc:
        _fail(span, exc)
        raise
    finally:
        span.end()


def _fail(span: Span, error: BaseException) -> None:
    """Say of *error* what names nobody: its message may hold a row."""
    span.set_attributes({f"shardkit.{name}": value for name, value in of_error(error).items()})
    span.set_attribute("error.type", type(error).__name__)
    span.set_status(Status(StatusCode.ERROR))


def _route(connection: Any) -> Route | None:
    leg = getattr(connection.connection.driver_connection, "leg", None)
    return None if leg is None else leg.route


def _named(route: Route, secret: str) -> dict[str, str | int]:
    return {f"shardkit.{name}": value for name, value in of_route(route, secret=secret).items()}


def _cache_read(hits: int, misses: int) -> None:
    attributes = {"shardkit.cache.hit": not misses, "shardkit.cache.hits": hits, "shardkit.cache.misses": misses}
    trace.get_current_span().add_event("shardkit.cache", attributes)
