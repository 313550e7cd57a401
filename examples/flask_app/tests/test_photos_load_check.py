"""What ``load.py`` asks of the database after people have gone finds a like that was lost, and one that was counted twice."""

from __future__ import annotations

import load
from sqlalchemy import delete, update

from photos.models import Like, Photo


def found(kit, deeds):
    return dict(line.rsplit(": ", 1) for line in load.check(kit, deeds))


def test_planted_losses_are_found(kit, visitor, deliver, tmp_path):
    ann, bob = visitor(), visitor()
    photo, deeds = ann.share(), tmp_path / "deeds"
    bob.post(f"/p/{photo}/like", page=f"/p/{photo}")
    deeds.write_text(f"like {bob.me} {photo}\n", "utf-8")
    deliver()
    before = found(kit, deeds)  # other tests of this cluster took photos down
    assert "acknowledged likes that are not there" not in before
    with kit.begin(ann.me) as session:
        session.execute(update(Photo).where(Photo.id == photo).values(likes=2))
    counted = "photos whose count is another one"
    assert int(found(kit, deeds)[counted]) == int(before.get(counted, 0)) + 1
    with kit.begin(bob.me) as session:
        session.execute(delete(Like).where(Like.photo_id == photo))
    after = found(kit, deeds)
    assert after["acknowledged likes that are not there"] == "1"
    deeds.write_text(f"comment {bob.me} {photo} nonce\nunknown {bob.me} {photo}\n", "utf-8")
    after = found(kit, deeds)
    assert after["acknowledged comments that are not there once"] == "1"
    assert after["deeds nobody knows the outcome of"] == "1"
