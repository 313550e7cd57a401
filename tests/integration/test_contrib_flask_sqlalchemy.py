"""An application written for one customer, with Flask-SQLAlchemy in the usual way, serves many after two lines are changed."""

from __future__ import annotations

import sys
import types
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("flask_sqlalchemy", reason="Flask-SQLAlchemy is not installed (extra: test)")

from fleet import fleet_on

from shardkit.errors import NoTenantError, SessionError, TenantMismatchError
from shardkit.schema.blueprint import from_metadata

BEFORE = """
from flask import Flask, abort, request
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import func

db = SQLAlchemy()


class Customer(db.Model):
    id = db.Column(db.Integer, primary_key=True)
    email = db.Column(db.String(120), unique=True, nullable=False)
    orders = db.relationship("Order", back_populates="customer", lazy="select")


class Order(db.Model):
    id: db.Mapped[int] = db.mapped_column(primary_key=True)
    item: db.Mapped[str]
    customer_id: db.Mapped[int] = db.mapped_column(db.ForeignKey("customer.id"))
    customer: db.Mapped[Customer] = db.relationship(back_populates="orders")


def create_app(**config):
    app = Flask(__name__)
    app.config.update(config)
    db.init_app(app)

    @app.post("/customers/<email>")
    def add(email):
        customer = Customer(email=email)
        db.session.add(customer)
        customer.orders.append(Order(item="first"))
        db.session.commit()
        return {"id": customer.id}

    @app.get("/customers")
    def customers():
        found = db.session.execute(db.select(Customer).order_by(Customer.email)).scalars()
        return [[c.email, [o.item for o in c.orders]] for c in found]

    @app.get("/customers/<int:number>")
    def customer(number):
        return db.get_or_404(Customer, number).email

    @app.get("/legacy")
    def legacy():
        page = db.paginate(db.select(Customer).order_by(Customer.id), page=1, per_page=1)
        return {"all": Customer.query.count(), "page": [c.email for c in page], "total": page.total,
                "joined": db.session.query(Order).join(Customer).filter(Customer.email.like("%@%")).count()}

    @app.get("/sum")
    def total():
        return str(db.session.scalar(db.select(func.count(Order.id))))

    @app.post("/fail/<email>")
    def fail(email):
        db.session.add(Customer(email=email))
        db.session.flush()
        abort(409)

    return app
"""
CHANGES = [
    ("db = SQLAlchemy()", 'db = SQLAlchemy(session_options={"class_": RoutedSession}, model_class=TenantModel)'),
    ("    db.init_app(app)", "    db.init_app(app); shards.init_app(app)"),
]
IMPORTS = """
from shardkit.contrib.flask import RoutedSession, ShardKit, TenantModel, from_host
shards = ShardKit(tenant=from_host("example.com"))
"""


def module_of(name, source):
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(source, f"{name}.py", "exec", dont_inherit=True), module.__dict__)
    return module


@pytest.fixture(scope="module")
def after():
    source = BEFORE
    for old, new in CHANGES:
        assert source.count(old) == 1
        source = source.replace(old, new)
    return module_of("shop_after", IMPORTS + source)


@pytest.fixture(scope="module")
def fleet(local_cluster, after):
    with fleet_on(local_cluster, blueprint=from_metadata(after.db.metadata)) as fleet:
        yield fleet


@pytest.fixture
def app(after, fleet):
    app = after.create_app(
        TESTING=True,
        SQLALCHEMY_DATABASE_URI="sqlite://",
        SHARDKIT_CATALOG_URL=fleet.catalog_url,
        SHARDKIT_POOL_TIMEOUT_S=120,
    )
    yield app
    app.extensions["shardkit"].close()


def at(tenant):
    return f"http://{tenant}.example.com"


def test_the_application_works_as_it_was_written():
    before = module_of("shop_before", BEFORE)
    app = before.create_app(SQLALCHEMY_DATABASE_URI="sqlite://")
    client = app.test_client()
    with app.app_context():
        before.db.create_all()
    serves(client, "http://localhost")


def serves(client, url):
    """The same visits, before and after; what they find."""
    made = client.post("/customers/ann@x", base_url=url).json["id"]
    client.post("/customers/bob@x", base_url=url)
    assert client.get("/customers", base_url=url).json == [["ann@x", ["first"]], ["bob@x", ["first"]]]
    assert client.get(f"/customers/{made}", base_url=url).text == "ann@x"
    assert client.get("/customers/999999", base_url=url).status_code == 404
    assert client.get("/legacy", base_url=url).json == {"all": 2, "page": ["ann@x"], "total": 2, "joined": 2}
    assert client.get("/sum", base_url=url).text == "2"
    assert client.post("/fail/carl@x", base_url=url).status_code == 409
    assert client.get("/sum", base_url=url).text == "2"
    return made


def test_with_two_lines_changed_every_tenant_has_a_shop_of_its_own(app, neighbours):
    client = app.test_client()
    numbers = {tenant: serves(client, at(tenant)) for tenant in neighbours}  # the same e-mail addresses, the same shard
    one, other = neighbours
    assert client.get(f"/customers/{numbers[one]}", base_url=at(other)).status_code == 404
    assert client.get("/customers").status_code == 400


def test_threads_of_many_tenants_never_mix(app, tenant):
    tenants = [f"{tenant}-{n}" for n in range(24)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda name: serves(app.test_client(), at(name)), tenants))


def test_requests_inside_one_application_context_never_mix(app, neighbours):
    one, other = neighbours
    with app.app_context():  # as tests of existing applications like to do
        client = app.test_client()
        client.post("/customers/only@x", base_url=at(one))
        assert client.get("/customers", base_url=at(other)).json == []
        assert client.get("/customers", base_url=at(one)).json == [["only@x", ["first"]]]


def test_outside_a_request_a_block_says_whose_session_it_is(app, after, neighbours):
    one, other = neighbours
    kit = app.extensions["shardkit"].kit
    db, customer = after.db, after.Customer
    with app.app_context():
        with pytest.raises(NoTenantError):
            db.session.scalars(db.select(customer)).all()
        with kit.tenant(one):
            db.session.add(customer(email="job@x"))
            db.session.commit()
        with kit.tenant(other):
            with pytest.raises(SessionError, match="another block"):
                db.session.scalars(db.select(customer)).all()
            db.session.add(customer(email="strayed@x"))  # to the session of the block before
            with pytest.raises(SessionError, match="another block"):
                db.session.commit()
            db.session.remove()
            assert db.session.scalars(db.select(customer.email)).all() == []
        with pytest.raises(SessionError, match="another block"):
            db.session.scalars(db.select(customer)).all()
        db.session.remove()
        with kit.tenant(one):
            assert db.session.scalars(db.select(customer.email)).all() == ["job@x"]


def test_a_model_whose_rows_all_tenants_would_share_is_refused(fleet, tenant):
    source = BEFORE.replace("db = SQLAlchemy()", 'db = SQLAlchemy(session_options={"class_": RoutedSession})')
    module = module_of("shop_unscoped", IMPORTS + source.replace(*CHANGES[1]))
    app = module.create_app(SQLALCHEMY_DATABASE_URI="sqlite://", SHARDKIT_CATALOG_URL=fleet.catalog_url)
    app.config["PROPAGATE_EXCEPTIONS"] = True
    try:
        for visit in (("GET", "/customers"), ("POST", "/customers/ann@x"), ("GET", "/legacy"), ("GET", "/sum")):
            with pytest.raises(TenantMismatchError, match="model_class=TenantModel"):
                app.test_client().open(visit[1], method=visit[0], base_url=at(tenant))
    finally:
        app.extensions["shardkit"].close()
