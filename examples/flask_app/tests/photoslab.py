"""Somebody with a browser, for tests: no JavaScript, but every form is filled in as it was served."""

from __future__ import annotations

import io
import itertools
import re

from PIL import Image

_numbers = itertools.count()
PASSWORD = "correct horse"


class Visitor:
    """Somebody with a browser: forms are filled in as they were served."""

    def __init__(self, app, name=None):
        self.app, self.client = app, app.test_client()
        self.name = name or f"person{next(_numbers)}"

    def get(self, path, **how):
        return self.client.get(path, buffered=True, **how)

    def form(self, path):
        """Hidden fields of the (last) form on a page."""
        page = self.get(path).text
        return dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', page))

    def post(self, path, page=None, **fields):
        htmx = fields.pop("htmx", False)
        return self.client.post(
            path,
            data={**self.form(page or path), **fields},
            content_type="multipart/form-data",
            headers={"HX-Request": "true"} if htmx else {},
        )

    def join(self):
        done = self.post("/join", name=self.name, full_name=f"The {self.name}", password=PASSWORD)
        assert done.status_code == 302, done.text
        return self

    def log_in(self, password=PASSWORD):
        return self.post("/login", name=self.name, password=password)

    def share(self, picture=None, caption="", **fields):
        """Share a photo; gives its id."""
        done = self.post("/new", photo=(io.BytesIO(picture or jpeg()), "photo.jpg"), caption=caption, **fields)
        assert done.status_code == 302, done.text
        return int(done.location.rpartition("/")[2])

    @property
    def me(self):
        with self.client.session_transaction() as session:
            return session["tenant"]


def jpeg(size=(320, 240), colour="teal", **options):
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "JPEG", **options)
    return out.getvalue()
