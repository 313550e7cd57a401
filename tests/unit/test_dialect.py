"""A shard's schema is put into a statement once, and a program's own translations are its own."""

from __future__ import annotations

from typing import Any

import pytest

from shardkit.db.dialect import RoutedDialect

TEXT = "SELECT __[SCHEMA__none].photos.id FROM __[SCHEMA__none].photos"


def render(text: str, schemas: dict[str | None, Any]) -> str:
    preparer = RoutedDialect().identifier_preparer._with_schema_translate(schemas)
    return preparer._render_schema_translates(text, schemas)


def test_schema_is_rendered_once_for_each_shard() -> None:
    schemas: dict[str | None, Any] = {None: "s0001_e1"}
    first = render(TEXT, schemas)
    assert first == "SELECT s0001_e1.photos.id FROM s0001_e1.photos"
    again = [render(TEXT, schemas) for _ in range(3)]  # SQLAlchemy has added a key of its own to the map by now
    assert all(text is first for text in again)
    assert render(TEXT, {None: "s0002_e1"}) == "SELECT s0002_e1.photos.id FROM s0002_e1.photos"


@pytest.mark.parametrize("more", [{}, {None: "s0001_e1"}])
def test_translations_of_the_program_itself_are_not_mixed_up(more: dict[str | None, Any]) -> None:
    text = "SELECT __[SCHEMA_own].things.id"
    assert render(text, {"own": "one", **more}) == "SELECT one.things.id"
    assert render(text, {"own": "two", **more}) == "SELECT two.things.id"
