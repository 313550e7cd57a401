"""What a program's models are made of: table kinds, columns, mixins."""

from __future__ import annotations
