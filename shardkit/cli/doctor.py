"""``shardkit doctor``: what is wrong, what could go wrong, and what to do about it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from shardkit.cli.common import BEHIND, config_option, dry_run_option, go_on, json_option, print_json, settings_from, yes_option
from shardkit.core.health import CHECKS
from shardkit.doctor import Diagnosis, chosen, diagnose, fix, plan_fixes


@click.command(epilog=f"Checks: {', '.join(CHECKS)}.")
@click.option("--only", multiple=True, metavar="CHECK", help="Run this check only; may be given again.")
@click.option("--skip", multiple=True, metavar="CHECK", help="Leave this check out: a risk that is accepted.")
@click.option("--thorough", is_flag=True, help="Read every row for the check rows; else a sample of large tables.")
@click.option("--row-timeout", type=float, default=5.0, show_default=True, help="Seconds for the rows of one table.")
@click.option("--backend-memory", type=int, default=256, show_default=True, help="MB that one connection may come to hold.")
@click.option("--fix", "mend", is_flag=True, help="End transactions in doubt by their record; make what of ours is missing.")
@config_option
@json_option
@dry_run_option
@yes_option
@click.pass_context
def doctor(
    ctx: click.Context,
    only: tuple[str, ...],
    skip: tuple[str, ...],
    thorough: bool,
    row_timeout: float,
    backend_memory: int,
    mend: bool,
    config: Path | None,
    as_json: bool,
    dry_run: bool,
    yes: bool,
) -> None:
    """Look for what is wrong, and for what could go wrong, and say what to do.

    It changes nothing, unless --fix. Exit code 3 if something was found.
    """
    settings = settings_from(config)

    def look() -> Diagnosis:
        return diagnose(
            settings,
            checks=chosen(only, skip),
            row_timeout_s=row_timeout,
            thorough=thorough,
            backend_bytes=backend_memory << 20,
        )

    found = look()
    if mend and (fixes := plan_fixes(found)):
        for one in fixes:
            click.echo(f"{one.where}: {one.what}", err=True)
        go_on("Do this?", yes=yes, dry_run=dry_run)
        fix(settings, found)
        found = look()
    if as_json:
        print_json({"checks": found.checks, "findings": [asdict(one) for one in found.findings]})
    else:
        show(found)
    if found.findings:
        ctx.exit(BEHIND)


def show(found: Diagnosis) -> None:
    """The findings, for people."""
    for one in found.findings:
        click.echo(f"{one.severity:7}  {one.where}: {one.what} [{one.check}]\n         → {one.remedy}")
    problems = sum(one.severity == "problem" for one in found.findings)
    click.echo(
        f"{len(found.checks)} checks: {problems} problems, {len(found.findings) - problems} risks"
        if found.findings
        else f"{len(found.checks)} checks: nothing found",
        err=True,
    )
