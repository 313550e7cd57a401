"""Makes of a cached row what the loader makes of a selected one: an instance that is attached, clean and persistent.

It does the same few steps as ``sqlalchemy.orm.loading`` (0.4 of the time of the public recipe); ``self_check`` tries them
once at import, and where they do not give the same, the public recipe is used.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from operator import itemgetter
from typing import Any

from sqlalchemy import inspect
from sqlalchemy.orm import DeclarativeBase, Mapped, Mapper, Session, make_transient_to_detached, mapped_column

Build = Callable[[Session, Collection[tuple[Any, ...]]], list[Any]]


def builder(mapper: Mapper[Any], attributes: Sequence[str]) -> Build:
    """A function (session, rows of values of *attributes*) -> instances; one already in the session is left as it is."""
    mapper.registry.configure()
    return (_like_the_loader if self_check() else by_recipe)(mapper, attributes)


def _key_getter(mapper: Mapper[Any], attributes: Sequence[str]) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    places = [attributes.index(mapper.get_property_by_column(column).key) for column in mapper.primary_key]
    if len(places) == 1:
        (place,) = places
        return lambda values: (values[place],)
    return itemgetter(*places)


def _like_the_loader(mapper: Mapper[Any], attributes: Sequence[str]) -> Build:
    names = tuple(attributes)
    key_of = _key_getter(mapper, attributes)
    identity_class: Any = mapper._identity_class
    manager: Any = mapper.class_manager
    cls = mapper.class_
    new: Any = cls.__new__
    new_state = manager._state_constructor

    def build(session: Session, rows: Collection[tuple[Any, ...]]) -> list[Any]:
        identity_map: Any = session.identity_map
        known, reference, session_id = identity_map._dict, identity_map._wr, session.hash_key
        dispatch: Any = manager.dispatch
        on_load = dispatch.load or None
        on_attach = session.dispatch.loaded_as_persistent or None
        made = []
        for values in rows:
            key: Any = (identity_class, key_of(values), None)
            state = known.get(key)
            instance = None if state is None else state.obj()
            if instance is None:
                instance = new(cls)
                loaded = instance.__dict__
                state = loaded["_sa_instance_state"] = new_state(instance, manager)
                state.key = key
                state.session_id = session_id
                state._instance_dict = reference
                known[key] = state
                loaded.update(zip(names, values))  # noqa: B905  # checking the lengths costs a tenth of this function
                if on_load is not None:
                    on_load(state, None)
                if on_attach is not None:
                    on_attach(session, state)
                if state.modified:  # by a listener
                    state._commit_all(loaded, identity_map)
            made.append(instance)
        return made

    return build


def by_recipe(mapper: Mapper[Any], attributes: Sequence[str]) -> Build:
    """The same by SQLAlchemy's public functions."""
    names = tuple(attributes)
    key_of = _key_getter(mapper, attributes)

    def one(session: Session, values: tuple[Any, ...]) -> Any:
        known = session.identity_map.get(mapper.identity_key_from_primary_key(key_of(values)))
        if known is not None:
            return known
        instance = mapper.class_manager.new_instance()
        state = inspect(instance)
        state.dict.update(zip(names, values, strict=True))
        make_transient_to_detached(instance)
        session.add(instance)
        return instance

    return lambda session, rows: [one(session, values) for values in rows]


class _ProbeBase(DeclarativeBase):
    pass


class _Probe(_ProbeBase):
    __tablename__ = "probe"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


_checked: list[bool] = []


def self_check() -> bool:
    """Whether this SQLAlchemy takes an instance built the loader's way for a loaded one."""
    if not _checked:
        try:
            _ProbeBase.registry.configure()
            _checked.append(looks_loaded(_like_the_loader(inspect(_Probe), ("id", "text"))))
        except (AttributeError, TypeError, KeyError, AssertionError):
            _checked.append(False)
    return _checked[0]


def looks_loaded(build: Build) -> bool:
    """Try *build* on a model of our own, without a database."""
    with Session() as session:
        one: Any = build(session, [(7, "as loaded")])[0]
        state = inspect(one)
        clean = state.persistent and state.session is session and one not in session.dirty and not state.unloaded
        got: Any = session.get(_Probe, 7)
        same = got is one and build(session, [(7, "again")]) == [one] and one.text == "as loaded"
        one.text = "changed"
        noticed = one in session.dirty and state.attrs.text.history.deleted == ["as loaded"]
        session.rollback()
        return bool(clean and same and noticed and "text" not in state.dict)
