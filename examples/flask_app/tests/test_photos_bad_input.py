"""What people, and those who mean no good, may send: each is refused in words a person can read, and changes nothing."""

from __future__ import annotations

import dataclasses
import io
import re
import struct
import zlib

import psycopg
import pytest
from photoslab import PASSWORD, Visitor, jpeg
from PIL import Image
from psycopg import sql
from sqlalchemy import func, select

from photos import images
from photos.accounts import Limits
from photos.models import Attempt, Comment, Follow, Photo, User
from shardkit.contrib.flask.extension import Mounted


def png_header(width, height):
    """A PNG of a few bytes that says it is enormous."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def bomb(side):
    """A PNG whose pixels are really there, all alike: small as a file, large in memory."""
    out = io.BytesIO()
    Image.new("1", (side, side)).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not a photo"),
        (b"#!/bin/sh\nrm -rf /\n", "not a photo"),
        (b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", "not a photo"),
        (b"%PDF-1.4 and so on", "not a photo"),
        (b"\xff\xd8\xff\xe0" + b"\0" * 100, "not a photo"),
        (jpeg()[:400], "(damaged|not a photo)"),
        (png_header(60_000, 60_000), "too many pixels"),
        (png_header(7_000, 7_000), "too many pixels"),
        (bomb(8_000), "too many pixels"),
        (png_header(2**31 - 1, 2**31 - 1), "(too many pixels|not a photo)"),
        (jpeg((10, 10)), "too small"),
    ],
    ids=["empty", "script", "svg", "pdf", "stub", "cut off", "says enormous", "says large", "bomb", "overflow", "tiny"],
)
def test_what_is_no_photo_is_refused(visitor, kit, data, said):
    ann = visitor()
    answer = ann.post("/new", photo=(io.BytesIO(data), "photo.jpg"), caption="look")
    assert answer.status_code == 422
    assert re.search(said, answer.text)
    assert "look</textarea>" in answer.text, "what was typed is still there"
    with kit.read(ann.me) as session:
        assert session.scalar(select(func.count()).select_from(Photo)) == 0


def test_no_file_and_a_file_too_large(visitor):
    ann = visitor()
    assert "Choose a photo" in ann.post("/new", caption="x").text
    large = ann.client.post("/new", data=b"\0" * (13 << 20), content_type="multipart/form-data; boundary=x")
    assert large.status_code == 413
    assert "12 MB" in large.text


def test_where_and_when_a_photo_was_taken_is_removed_and_it_stands_upright(visitor):
    exif = Image.Exif()
    exif[0x0110], exif[0x0112] = "SecretPhone 9", 6  # model; to be turned by 90 degrees
    exif.get_ifd(0x8825).update({1: "N", 2: (52.0, 31.0, 12.0), 3: "E", 4: (13.0, 24.0, 18.0)})
    photo = visitor().share(jpeg((400, 200), exif=exif, comment=b"SecretPhone home address"))
    client = visitor().client
    for size in ("full", "thumb"):
        data = client.get(f"/media/{photo}-{size}.jpg", buffered=True).data
        assert b"SecretPhone" not in data
        assert b"Exif" not in data
        with Image.open(io.BytesIO(data)) as opened:
            assert not opened.getexif()
            assert opened.format == "JPEG"
            if size == "full":
                assert opened.size == (200, 400)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "CMYK", "L", "I;16", "1"])
def test_every_kind_of_pixels_becomes_a_jpeg(mode):
    out = io.BytesIO()
    Image.new(mode, (100, 80)).save(out, "JPEG" if mode == "CMYK" else "PNG")
    out.seek(0)
    made = images.prepare(out)
    assert (made.width, made.height) == (100, 80)
    with Image.open(io.BytesIO(made.files["full"])) as opened:
        assert opened.mode == "RGB"
        if mode in {"RGBA", "LA"}:
            assert opened.getpixel((5, 5)) == (255, 255, 255), "what is transparent is white"


EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'"


def test_html_in_names_captions_and_comments_stays_text(app):
    ann = Visitor(app)
    ann.post("/join", name=ann.name, full_name=EVIL, password=PASSWORD)
    photo = ann.share(caption=EVIL)
    ann.post(f"/p/{photo}/comments", page=f"/p/{photo}", text=EVIL)
    for path in (f"/u/{ann.name}", f"/p/{photo}", "/", "/explore"):
        page = ann.get(path)
        assert "<script>alert" not in page.text, path
        assert "<img src=x" not in page.text, path
        assert "default-src 'self'" in page.headers["Content-Security-Policy"]
    assert ann.get(f"/p/{photo}").text.count("&lt;script&gt;") >= 2
    refused = Visitor(app).post("/join", name="<b>x</b>", full_name="x", password=PASSWORD)
    assert refused.status_code == 422
    assert "&lt;b&gt;x" in refused.text


@pytest.mark.parametrize("name", ["", "ab", "a" * 25, "Ännchen", "a b", "../etc", "-dash", "x\0y", "trailing."])
def test_names_that_cannot_be(app, name):
    assert Visitor(app).post("/join", name=name, full_name="x", password=PASSWORD).status_code == 422
    assert Visitor(app).get(f"/u/{name or 'x'}").status_code == 404


def test_a_name_is_taken_once_over_all_shards(app, kit, visitor):
    ann = visitor()
    again = Visitor(app, ann.name.upper()).post("/join", name=ann.name.upper(), full_name="x", password=PASSWORD)
    assert again.status_code == 422
    assert "taken" in again.text
    assert kit.fan_out_scalar(select(func.count()).select_from(User).where(User.name == ann.name)) == 1


@pytest.mark.parametrize("photo", [0, 1, 2**63 - 1, 2**63, 10**30, 5 << 10, 8191 << 10 | 1 << 40])
def test_ids_that_are_nobodys(visitor, photo):
    ann = visitor()
    assert ann.get(f"/p/{photo}").status_code == 404
    assert ann.get(f"/media/{photo}-full.jpg").status_code == 404
    assert ann.get("/media/1-../../../../etc/passwd-full.jpg").status_code == 404
    for deed in ("like", "unlike", "delete", "comments"):
        assert ann.post(f"/p/{photo}/{deed}", page="/new", text="x").status_code == 404
    for path in ("/", "/explore", f"/u/{ann.name}"):
        assert ann.get(f"{path}?before={photo}").status_code == 200
        assert ann.get(f"{path}?before=-{photo}x").status_code == 200


def test_somebody_elses_photo_cannot_be_taken_down(visitor):
    ann, mallory = visitor(), visitor()
    photo = ann.share()
    assert mallory.post(f"/p/{photo}/delete", page="/new").status_code == 404
    assert ann.get(f"/p/{photo}").status_code == 200
    assert ann.get(f"/media/{photo}-full.jpg").status_code == 200
    assert "Take down" not in mallory.get(f"/p/{photo}").text


def test_a_forged_tenant_says_nothing(visitor):
    ann, mallory = visitor(), visitor()
    secret = ann.share(caption="for nobody in particular")
    for forged in ({"X-Tenant": ann.me}, {"Tenant": ann.me}, {"X-Forwarded-User": ann.name}):
        assert "Nothing here yet" in mallory.get("/", headers=forged).text, "it is mallory's feed"
    assert mallory.client.post(f"/p/{secret}/delete?tenant={ann.me}", headers={"X-Tenant": ann.me}).status_code == 400
    cookie = mallory.client.get_cookie("session").value
    for forged in (cookie[:-3] + "abc", cookie.replace(".", ".x", 1), "x", ""):
        mallory.client.set_cookie("session", forged)
        assert "Join Lumen" in mallory.get("/").text


def test_a_cookie_of_an_account_that_is_no_more(visitor):
    ann = visitor()
    with ann.client.session_transaction() as session:
        session["tenant"] = "u-nobody"
    assert "Join Lumen" in ann.get("/").text
    assert ann.get("/new").status_code == 302


def test_forms_without_their_token_or_of_another_site(visitor):
    ann = visitor()
    photo = ann.share()
    for path in (f"/p/{photo}/like", f"/p/{photo}/delete", "/logout", "/new", f"/u/{ann.name}/follow"):
        answer = ann.client.post(path, data={"csrf_token": "guessed"})
        assert answer.status_code == 400, path
        assert "open too long" in answer.text
    assert ann.client.get(f"/p/{photo}/like").status_code == 405


def test_cookies_are_kept_from_scripts_and_from_plain_http(configured):
    from photos import create_app

    app = create_app(**{k: v for k, v in configured.items() if k != "SESSION_COOKIE_SECURE"})
    try:
        cookie = app.test_client().get("/login", base_url="https://localhost").headers["Set-Cookie"]
    finally:
        app.extensions["shardkit"].close()
    assert all(flag in cookie for flag in ("Secure", "HttpOnly", "SameSite=Lax"))


def test_comments_too_long_empty_or_of_a_page_that_was_changed(visitor, kit):
    ann = visitor()
    photo = ann.share()
    for text in ("", "   ", "x" * 501):
        answer = ann.post(f"/p/{photo}/comments", page=f"/p/{photo}", text=text)
        assert answer.status_code == 422
        assert "1 to 500" in answer.text
    assert ann.post(f"/p/{photo}/comments", page=f"/p/{photo}", text="x", nonce="").status_code == 422
    assert ann.post(f"/p/{photo}/comments", page=f"/p/{photo}", text="fine \U0001f600", htmx=True).status_code == 200
    with kit.read(ann.me) as session:
        assert session.scalars(select(Comment.text)).all() == ["fine \U0001f600"]


def test_a_photo_taken_down_while_somebody_looks_at_it(visitor, deliver):
    ann, bob = visitor(), visitor()
    photo = ann.share()
    fields = bob.form(f"/p/{photo}")
    bob.post(f"/p/{photo}/like", page=f"/p/{photo}")  # its effect is under way
    ann.post(f"/p/{photo}/delete", page=f"/p/{photo}")
    deliver()
    for deed in ("like", "comments"):
        gone = bob.client.post(f"/p/{photo}/{deed}", data={**fields, "text": "x"}, headers={"HX-Request": "true"})
        assert gone.status_code == 404
        assert "taken down" in gone.text
        assert gone.headers["HX-Retarget"] == "#problem"


@pytest.mark.parametrize(
    "where", ["//evil.example", "https://evil.example/", "/\\evil.example", "javascript:alert(1)", "/\t/evil", ""]
)
def test_logging_in_leads_nowhere_else(app, visitor, where):
    ann = visitor()
    stranger = Visitor(app, ann.name)
    fields = stranger.form("/login")
    answer = stranger.client.post(
        "/login", query_string={"next": where}, data={**fields, "name": ann.name, "password": PASSWORD}
    )
    assert (answer.status_code, answer.location) == (302, "/")


def test_log_in_says_nothing_about_who_is_there_and_has_a_limit(app, visitor):
    ann = visitor()
    wrong = [Visitor(app, name).log_in("wrong password") for name in (ann.name, "nobody.there", "<nobody>", "")]
    assert {answer.status_code for answer in wrong} == {422}
    assert all("The name or the password is wrong." in answer.text for answer in wrong)
    guesser = Visitor(app, ann.name)
    answers = [guesser.log_in(f"guess {n}") for n in range(5)]
    assert [answer.status_code for answer in answers] == [422] * 4 + [429]
    assert guesser.log_in().status_code == 429, "also with the right one"
    assert int(answers[-1].headers["Retry-After"]) == 300
    elsewhere = Visitor(app, ann.name)
    elsewhere.client.environ_base["REMOTE_ADDR"] = "127.0.0.9"
    assert elsewhere.log_in().status_code == 302, "from elsewhere the owner still comes in"


def test_an_address_that_tries_many_names(configured):
    from photos import create_app

    app = create_app(**{**configured, "LOGIN_LIMITS": dataclasses.replace(Limits(), address=3)})
    try:
        guesser = Visitor(app)
        guesser.client.environ_base["REMOTE_ADDR"] = "127.0.0.77"
        codes = []
        for number in range(5):
            guesser.name = f"name{number}"
            codes.append(guesser.log_in("x" * 8).status_code)
    finally:
        app.extensions["shardkit"].close()
    assert codes == [422, 422, 422, 429, 429]


def test_a_cookie_from_before_a_move(kit, visitor, databases):

    from shardkit.catalog.changes import flip
    from shardkit.core.names import schema_name

    ann = visitor()
    photo = ann.share(caption="before the move")
    route = kit.locate(ann.me)
    with psycopg.connect(databases.servers[route.server], autocommit=True) as server:
        rename = sql.SQL("ALTER SCHEMA {} RENAME TO {}")
        server.execute(rename.format(sql.Identifier(route.schema), sql.Identifier(schema_name(route.shard, route.epoch + 1))))
    with psycopg.connect(databases.catalog_url, autocommit=True) as catalog:
        flip(catalog, route.shard, server=route.server, expected_epoch=route.epoch)
    assert "before the move" in ann.get("/").text
    assert ann.get(f"/p/{photo}").status_code == 200
    ann.share(caption="after the move")
    assert "after the move" in ann.get("/").text


def test_a_shard_that_is_moving_is_a_page_that_says_so(visitor, monkeypatch):
    from photos import feeds
    from shardkit.errors import ShardMovedError

    def moving(*_args, **_how):
        raise ShardMovedError

    ann = visitor()
    monkeypatch.setattr(feeds, "feed", moving)
    answer = ann.get("/")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert "moving some furniture" in answer.text


def test_the_feed_of_somebody_who_follows_ten_thousand(kit, visitor, databases):
    fan, stars = visitor(), [visitor() for _ in range(12)]
    shown = [star.share(caption=f"star {n:02}") for n, star in enumerate(stars)]
    route = kit.locate(fan.me)
    with psycopg.connect(databases.servers[route.server], autocommit=True) as server:  # ten thousand clicks take too long
        server.execute(sql.SQL("SET search_path TO {}").format(sql.Identifier(route.schema)))
        server.execute(
            "INSERT INTO follows (tenant_id, whom, name, famous) SELECT %s, 'u-' || n, 'u' || n, n %% 20 = 0"
            " FROM generate_series(1, 10000) AS n",
            (fan.me,),
        )
        server.execute("INSERT INTO feed SELECT %s, n, 'u-1' FROM generate_series(1, 500) AS n", (fan.me,))
    with kit.begin(fan.me) as session:
        session.add_all(Follow(whom=star.me, name=star.name, famous=True) for star in stars)
    page = fan.get("/")
    assert page.status_code == 200
    places = [page.text.index(f"/p/{photo}") for photo in sorted(shown, reverse=True)]
    assert places == sorted(places)
    assert fan.get("/?before=400").status_code == 200
    assert fan.get(f"/u/{fan.name}/following").status_code == 200


def test_without_a_key_nothing_starts(configured):
    from photos import create_app

    with pytest.raises(RuntimeError, match="PHOTOS_SECRET_KEY"):
        create_app(**{**configured, "SECRET_KEY": ""})


def test_attempts_of_long_ago_are_forgotten(app, kit, visitor):
    assert isinstance(app.extensions["shardkit"], Mounted)
    ann = visitor()
    guesser = Visitor(app, ann.name)
    for n in range(5):
        guesser.log_in(f"guess {n}")
    for shard in kit.map.placements:
        with kit.shard(shard).begin() as session:
            session.execute(Attempt.__table__.update().values(at=func.now() - func.make_interval(0, 0, 0, 0, 0, 6)))
    assert guesser.log_in().status_code == 302
