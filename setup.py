"""What pyproject.toml cannot say: in a wheel the top-level ``migrations`` live inside the package."""

from __future__ import annotations

from setuptools import find_namespace_packages, find_packages, setup

TREES = ["", *("." + name for name in find_namespace_packages("migrations", exclude=["*__pycache__*"]))]

setup(
    packages=[*find_packages(include=["shardkit", "shardkit.*"]), *("shardkit.migrations" + tree for tree in TREES)],
    package_dir={"shardkit.migrations": "migrations"},
    package_data={"": ["py.typed", "*.sql", "*.mako", "static/*"]},
)
