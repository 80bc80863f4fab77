"""Which commands `memgrid coordinator` has."""

from __future__ import annotations

import typer

from memgrid_coordinator.cli import backups, calibrating, doctor, serving, tokens, upkeep, volunteers

app = typer.Typer(
    name="coordinator", help="Host a grid: hand out work, check it, publish cubes.", no_args_is_help=True
)
app.command()(serving.serve)
app.command()(volunteers.invite)
app.command()(volunteers.ban)
app.command()(volunteers.unban)
app.add_typer(tokens.app, name="token")
app.command()(tokens.audit)
app.command()(backups.backup)
app.command()(backups.restore)
app.command()(backups.migrate)
app.command()(doctor.doctor)
app.command()(calibrating.calibrate)
app.command()(upkeep.gc)
app.command()(upkeep.scrub)
