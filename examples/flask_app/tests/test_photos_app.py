"""What people do, page by page."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from photoslab import Visitor
from sqlalchemy import func, select

from photos.models import Comment, FeedEntry, Follow, Follower, Like, LikedBy, Photo, User


def test_from_joining_to_the_feed(both, deliver):
    ann, bob = Visitor(both).join(), Visitor(both).join()
    assert "Nothing here yet" in bob.get("/").text
    photo = ann.share(caption="First light")
    assert "First light" in ann.get("/").text
    page = bob.get(f"/u/{ann.name}").text
    assert "First light" in page
    assert ">Follow</button>" in page
    assert bob.post(f"/u/{ann.name}/follow", page=f"/u/{ann.name}").status_code == 302
    deliver()
    assert "First light" in bob.get("/").text
    later = ann.share(caption="Second light")
    deliver()
    assert "Second light" in bob.get("/").text
    assert bob.post(f"/p/{later}/like", page="/").status_code == 302
    bob.post(f"/p/{later}/comments", page=f"/p/{later}", text="How nice")
    deliver()
    page = ann.get(f"/p/{later}").text
    assert "1 like<" in page
    assert "How nice" in page
    assert "<strong>1</strong> follower<" in ann.get(f"/u/{ann.name}").text
    assert bob.name in ann.get(f"/u/{ann.name}/followers").text
    assert ann.name in bob.get(f"/u/{bob.name}/following").text
    bob.post(f"/u/{ann.name}/unfollow", page=f"/u/{ann.name}")
    bob.post(f"/p/{later}/unlike", page=f"/p/{later}")
    deliver()
    assert "First light" not in (page := bob.get("/").text)
    assert "Second light" not in page
    assert "0 likes<" in ann.get(f"/p/{later}").text
    assert ann.post(f"/p/{photo}/delete", page=f"/p/{photo}").status_code == 302
    assert ann.get(f"/p/{photo}").status_code == 404
    assert ann.get(f"/media/{photo}-full.jpg").status_code == 404
    assert bob.post("/logout", page="/").status_code == 302
    assert "Join Lumen" in bob.get("/").text
    assert bob.get("/new").status_code == 302


def test_strangers_see_photos_and_are_asked_to_log_in_for_the_rest(app, visitor):
    photo = visitor().share(caption="For everybody")
    stranger = Visitor(app)
    assert "For everybody" in stranger.get(f"/p/{photo}").text
    for path in ("/", "/explore", "/join", "/login", f"/media/{photo}-thumb.jpg"):
        assert stranger.get(path).status_code == 200, path
    asked = stranger.get("/new")
    assert (asked.status_code, asked.location) == (302, "/login?next=/new")
    refused = stranger.post(f"/p/{photo}/like", page=f"/p/{photo}", htmx=True)
    assert (refused.status_code, refused.headers["HX-Redirect"]) == (401, "/login")


def test_explore_shows_the_newest_of_all_shards(app, visitor):
    people = [visitor() for _ in range(6)]
    made = [person.share() for person in people]
    app.extensions["explore"]._kept = (0.0, [])
    page = people[0].get("/explore").text
    places = [page.index(f"/p/{photo}") for photo in sorted(made, reverse=True)]
    assert places == sorted(places)
    assert len({photo >> 10 & 8191 for photo in made}) > 1, "they are in several shards"


def test_older_photos_come_page_by_page(visitor, deliver):
    ann, bob = visitor(), visitor()
    made = [ann.share(caption=f"number {n:02}") for n in range(15)]
    deliver()
    bob.post(f"/u/{ann.name}/follow", page=f"/u/{ann.name}")
    deliver()
    first = ann.get("/").text
    assert "number 14" in first
    assert "number 02" not in first
    more = ann.get(f"/?before={made[3]}", headers={"HX-Request": "true"}).text
    assert all(f"number {n:02}" in more for n in range(3))
    assert "<html" not in more
    assert "number 14" in bob.get("/").text


def test_photos_of_the_famous_are_found_on_reading(kit, visitor, deliver):
    star, fans = visitor(), [visitor() for _ in range(6)]
    star.share(caption="before fame")
    for fan in fans:
        fan.post(f"/u/{star.name}/follow", page=f"/u/{star.name}")
        deliver()
    shown = star.share(caption="after fame")
    deliver()
    for fan in fans:
        with kit.read(fan.me) as session:
            assert session.scalar(select(Follow.famous)) is True
        page = fan.get("/").text
        assert page.count("after fame") == page.count("before fame") > 0
    with kit.read(fans[0].me) as session:
        assert session.get(FeedEntry, (fans[0].me, shown)) is None, "it was not written into feeds"


def test_two_people_follow_each_other_at_once(kit, visitor, deliver):
    pairs = [(visitor(), visitor()) for _ in range(4)]

    def follow(pair):
        who, whom = pair
        return who.post(f"/u/{whom.name}/follow", page=f"/u/{whom.name}").status_code

    both_ways = [way for one, other in pairs for way in ((one, other), (other, one))]
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(follow, both_ways)) == {302}
        list(pool.map(lambda _: deliver(), range(3)))
    deliver()
    for who, whom in both_ways:
        with kit.read(who.me) as session:
            user = session.scalars(select(User)).one()
            assert (user.following, user.followers) == (1, 1)
            assert session.scalars(select(Follow.whom)).all() == session.scalars(select(Follower.who)).all() == [whom.me]


def test_what_is_sent_twice_is_done_once(kit, visitor, deliver):
    ann, bob = visitor(), visitor()
    photo = ann.share()
    fields = bob.form(f"/p/{photo}")
    with ThreadPoolExecutor(6) as pool:

        def send(path):
            client = bob.app.test_client()
            client.set_cookie("session", bob.client.get_cookie("session").value)
            return client.post(path, data={**fields, "text": "Once"}).status_code

        jobs = [
            pool.submit(send, path)
            for path in [f"/p/{photo}/like", f"/p/{photo}/comments", f"/u/{ann.name}/follow"]
            for _ in range(5)
        ]
        assert {job.result() for job in jobs} <= {200, 302}
    deliver()
    with kit.read(ann.me) as session:
        found = session.get(Photo, photo)
        assert (found.likes, found.comments) == (1, 1)
        assert session.scalar(select(func.count()).select_from(LikedBy)) == 1
        assert session.scalar(select(func.count()).select_from(Comment)) == 1
        assert session.scalar(select(User.followers)) == 1
    with kit.read(bob.me) as session:
        assert session.scalar(select(func.count()).select_from(Like)) == 1
    nonce = ann.form("/new")
    assert ann.share(**nonce) == ann.share(**nonce)
    with kit.read(ann.me) as session:
        assert session.scalar(select(User.photos)) == 2


def test_the_count_after_a_click_is_the_one_to_come(visitor, deliver):
    ann, bob = visitor(), visitor()
    photo = ann.share()
    clicked = bob.post(f"/p/{photo}/like", page=f"/p/{photo}", htmx=True).text
    assert "1 like<" in clicked
    assert 'aria-pressed="true"' in clicked
    deliver()
    assert "1 like<" in bob.post(f"/p/{photo}/like", page=f"/p/{photo}", htmx=True).text
    assert "0 likes<" in bob.post(f"/p/{photo}/unlike", page=f"/p/{photo}", htmx=True).text
