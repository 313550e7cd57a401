"""Celery: the tenant of whoever calls a task travels in its headers, and is the current tenant where the task runs.

    app = Celery(task_cls=tenant_task(kit))

    @app.task
    def bill(order_id):
        with kit.begin() as session: ...          # the caller's tenant; no other one can be asked for

A task that nobody's block called has no tenant, and ``kit.session()`` in it raises NoTenantError.
"""

from __future__ import annotations

from typing import Any, Final

from celery import Task, current_task
from celery.signals import before_task_publish

from shardkit._sync.kit import ShardKit
from shardkit.core.hashing import TenantKey

HEADER: Final = "shardkit_tenant"


def tenant_task(kit: ShardKit) -> type[Task]:
    """The base class of an application's tasks, for ``Celery(task_cls=...)`` or ``@app.task(base=...)``.

    From now on every message this process publishes carries the current tenant of *kit*, also those of ``send_task`` and of the
    next tasks of a chain, which the worker publishes for the task that ended.
    """

    def carried() -> TenantKey | None:
        return kit.current_tenant if kit.current_tenant is not None else _of_request(current_task)

    def put_on(headers: dict[str, Any] | None = None, **_: Any) -> None:
        tenant = carried()
        if headers is not None and tenant is not None:
            headers.setdefault(HEADER, tenant)

    before_task_publish.connect(put_on, weak=False, dispatch_uid=f"{__name__}-{id(kit)}")

    class TenantTask(Task):  # type: ignore[misc]  # Celery has no types
        """A task that runs as the tenant it was called for."""

        abstract = True

        def apply(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
            """Run here and now (also for ``task_always_eager``), with the tenant in the headers as a broker would have it."""
            headers = dict(options.pop("headers", None) or {})
            put_on(headers)
            return super().apply(args, kwargs, headers=headers, **options)

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            if self.request.called_directly:  # a plain function call, in whatever block the caller stands
                return super().__call__(*args, **kwargs)
            tenant = _of_request(self)
            if tenant is None:
                return self.run(*args, **kwargs)
            with kit.tenant(tenant, lock=True):
                return self.run(*args, **kwargs)

    return TenantTask


def _of_request(task: Any) -> TenantKey | None:
    """The tenant in the headers of the message that *task* runs for."""
    if not task:
        return None
    request = task.request
    found: TenantKey | None = (request.headers or {}).get(HEADER, request.get(HEADER))
    return found
