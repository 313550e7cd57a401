"""The pages. Every form works without JavaScript; with it, htmx exchanges the part that changed."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from urllib.parse import urlsplit

from flask import Blueprint, current_app, redirect, render_template, request, send_from_directory, url_for
from sqlalchemy import select
from werkzeug.exceptions import NotFound

from photos import accounts, feeds, social
from photos.accounts import RefusedError
from photos.images import BadImageError
from photos.media import SIZES, path_of
from photos.models import Comment, Follow, Follower, Photo, User
from photos.visitor import enter, leave, me, shards
from shardkit.core.ids import check_id

views = Blueprint("photos", __name__)
PEOPLE = 100


@views.app_context_processor
def _common():
    return {"me": me, "nonce": lambda: secrets.token_hex(12), "ago": ago}


def ago(at: datetime) -> str:
    """How long something is past, for people."""
    seconds = max(0, (datetime.now(UTC) - at).total_seconds())
    for size, name in ((86_400 * 365, "y"), (86_400 * 7, "w"), (86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {name}"
    return "now"


@views.get("/")
@shards.tenant_optional
def home():
    """My feed; for strangers, what this is."""
    if me() is None:
        return render_template("welcome.html", items=_seen(_explore().photos(shards.kit)[:9]))
    before = _before()
    items = feeds.feed(shards.kit, me().tenant_id, before=before)
    return _page("feed.html", items, more="photos.home")


@views.get("/explore")
@shards.tenant_optional
def explore():
    """The newest photos of everybody."""
    before = _before()
    return _page("explore.html", _seen(_explore().photos(shards.kit, before=before)), more="photos.explore")


@views.get("/u/<name>")
@shards.tenant_optional
def profile(name: str):
    """Somebody's photos and counts."""
    kit, them = shards.kit, social.person(shards.kit, name)
    before = _before()
    photos = list(kit.cache.list(Photo, them.name, by="author", tenant=them.tenant_id)) if before is None else []
    if before is not None:
        with kit.read(them.tenant_id) as session:
            older = select(Photo).where(Photo.id < before).order_by(Photo.id.desc()).limit(24)
            photos = session.scalars(older).all()
    return _page("profile.html", _seen(photos[:24]), more="photos.profile", them=them, follows=_follows(them))


@views.get("/u/<name>/<any(followers, following):which>")
def people(name: str, which: str):
    """Who follows somebody, or whom they follow."""
    them = social.person(shards.kit, name)
    with shards.kit.read(them.tenant_id) as session:
        if which == "following":
            names = session.scalars(select(Follow.name).order_by(Follow.name).limit(PEOPLE)).all()
        else:
            tenants = session.scalars(select(Follower.who).order_by(Follower.who).limit(PEOPLE)).all()
            found = shards.kit.fan_out(select(User.name).order_by(User.name), tenants=tenants) if tenants else []
            names = [row.name for row in found]
    return render_template("people.html", them=them, which=which, names=names)


@views.get("/p/<int:photo_id>")
@shards.tenant_optional
def photo(photo_id: int):
    """One photo, and what was said about it. The id alone says where it is."""
    owner = social.owner_of(shards.kit, photo_id)
    return _photo_page(photo_id, owner)


def _photo_page(photo_id: int, owner: str, *, template: str = "photo.html", error: str = "", said: str = ""):
    found = shards.kit.cache.get_row(Photo, photo_id, tenant=owner)
    if found is None:
        raise NotFound
    comments = shards.kit.cache.list(Comment, photo_id, by="photo_id", tenant=owner)
    (item,) = _seen([found])
    page = render_template(template, item=item, comments=list(comments)[::-1], error=error, said=said)
    return page, 422 if error and "HX-Request" not in request.headers else 200


@views.post("/p/<int:photo_id>/<any(like, unlike):deed>")
def like(photo_id: int, deed: str):
    """Like a photo, or no more."""
    owner = social.owner_of(shards.kit, photo_id)
    changed = getattr(social, deed)(shards.kit, _me(), photo_id, owner)
    if "HX-Request" not in request.headers:
        return redirect(url_for("photos.photo", photo_id=photo_id))
    found = shards.kit.cache.get_row(Photo, photo_id, tenant=owner)
    likes = found.likes + (changed and (1 if deed == "like" else -1))  # the count itself follows in a moment
    return render_template("_like.html", item=feeds.Item(found, deed == "like"), likes=max(likes, 0))


@views.post("/p/<int:photo_id>/comments")
def comment(photo_id: int):
    """Say something about a photo."""
    owner, said, error = social.owner_of(shards.kit, photo_id), request.form.get("text", ""), ""
    try:
        social.comment(shards.kit, _me(), photo_id, owner, text=said, nonce=_nonce())
    except RefusedError as exc:
        error = str(exc)
    if "HX-Request" in request.headers:
        return _photo_page(photo_id, owner, template="_comments.html", error=error, said=said if error else "")
    if error:
        return _photo_page(photo_id, owner, error=error, said=said)
    return redirect(url_for("photos.photo", photo_id=photo_id))


@views.post("/p/<int:photo_id>/delete")
def delete(photo_id: int):
    """Take down a photo of mine."""
    social.take_down(shards.kit, _me(), photo_id, directory=current_app.config["MEDIA"])
    return redirect(url_for("photos.profile", name=_me().name))


@views.post("/u/<name>/<any(follow, unfollow):deed>")
def follow(name: str, deed: str):
    """Follow somebody, or no more."""
    them = social.person(shards.kit, name)
    changed = getattr(social, deed)(shards.kit, _me(), them)
    if "HX-Request" not in request.headers:
        return redirect(url_for("photos.profile", name=them.name))
    followers = max(them.followers + (changed and (1 if deed == "follow" else -1)), 0)
    return render_template("_follow.html", them=them, follows=deed == "follow", followers=followers)


@views.route("/new", methods=["GET", "POST"])
def new():
    """Share a photo."""
    if request.method == "GET":
        return render_template("new.html", error="", caption="")
    caption, file = request.form.get("caption", ""), request.files.get("photo")
    try:
        if file is None or not file.filename:
            raise RefusedError("Choose a photo first.")
        directory = current_app.config["MEDIA"]
        made = social.upload(shards.kit, _me(), file=file.stream, caption=caption, nonce=_nonce(), directory=directory)
    except (RefusedError, BadImageError) as exc:
        return render_template("new.html", error=str(exc), caption=caption), 422
    return redirect(url_for("photos.photo", photo_id=made))


@views.get("/media/<int:photo_id>-<any(full, thumb):size>.jpg")
@shards.no_tenant
def media(photo_id: int, size: str):
    """The file of a photo; it never changes."""
    assert size in SIZES
    answer = send_from_directory(current_app.config["MEDIA"], path_of(photo_id, size), max_age=31_536_000)
    answer.headers["Cache-Control"] = "public, max-age=31536000, immutable"
    return answer


@views.route("/join", methods=["GET", "POST"])
@shards.no_tenant
def join():
    """Make an account."""
    form = {key: request.form.get(key, "") for key in ("name", "full_name")}
    if request.method == "GET":
        return render_template("join.html", error="", form=form)
    password, method = request.form.get("password", ""), current_app.config["PASSWORD_METHOD"]
    try:
        user = accounts.sign_up(shards.kit, **form, password=password, method=method)
    except RefusedError as exc:
        return render_template("join.html", error=str(exc), form=form), 422
    enter(user.tenant_id, user.name)
    return redirect(url_for("photos.home"))


@views.route("/login", methods=["GET", "POST"])
@shards.no_tenant
def log_in():
    """Log in."""
    name = request.form.get("name", "")
    if request.method == "GET":
        return render_template("login.html", error="", name=name)
    try:
        found = accounts.log_in(
            shards.kit,
            name=name,
            password=request.form.get("password", ""),
            address=request.remote_addr or "nowhere",
            limits=current_app.config["LOGIN_LIMITS"],
            method=current_app.config["PASSWORD_METHOD"],
        )
    except accounts.TooManyError as exc:
        return render_template("login.html", error=str(exc), name=name), 429, {"Retry-After": str(accounts.WINDOW_S)}
    except RefusedError as exc:
        return render_template("login.html", error=str(exc), name=name), 422
    enter(*found)
    return redirect(_inside(request.args.get("next")))


@views.post("/logout")
@shards.no_tenant
def log_out():
    """Log out."""
    leave()
    return redirect(url_for("photos.home"))


def _page(template: str, items, *, more: str, **values):
    """A page of photos, or for htmx what comes after it."""
    after = items[-1].id if items and len(items) >= feeds.PAGE else None
    next_url = url_for(more, before=after, **(request.view_args or {})) if after else None
    if "HX-Request" in request.headers and "before" in request.args:
        template = "_posts.html" if template == "feed.html" else "_grid.html"
    return render_template(template, items=items, next_url=next_url, **values)


def _before() -> int | None:
    """Up to which id a page goes back; what cannot be an id is as if it were not there."""
    return request.args.get("before", type=lambda text: check_id(int(text)))


def _me():
    """The visitor, who has to be there."""
    found = me()
    if found is None:
        from shardkit.errors import NoTenantError

        raise NoTenantError
    return found


def _nonce() -> str:
    """What makes a form that is sent twice the same one."""
    given = request.form.get("nonce", "")
    if not 8 <= len(given) <= 64 or not given.isalnum():
        raise RefusedError("This form is not complete. Load the page again.")
    return f"{_me().tenant_id}:{given}"


def _seen(photos):
    return feeds.with_likes(shards.kit, me().tenant_id if me() else None, list(photos))


def _follows(them) -> bool:
    if me() is None:
        return False
    return shards.kit.cache.get_row(Follow, (me().tenant_id, them.tenant_id), tenant=me().tenant_id) is not None


def _explore() -> feeds.Explore:
    return current_app.extensions["explore"]


def _inside(url: str | None) -> str:
    """*url* if it is a page of ours: nobody is sent elsewhere by a link to our log-in."""
    parts = urlsplit(url or "")
    fine = url and not parts.scheme and not parts.netloc and url.startswith("/") and not url.startswith(("//", "/\\"))
    return url if fine and url else url_for("photos.home")
