"""A group of commands that are imported when they are called."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import click

from etcuda.errors import EtcudaError


class _Failure(click.ClickException):
    """An ``EtcudaError``, shown as its message alone."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        click.echo(f"etcuda: {self.message}", file=file, err=True)


class LazyGroup(click.Group):
    """Lists its commands without importing them.

    Args:
        commands_in: the package with a module for each command, which holds it as ``command``.
        summaries: the commands' names, each with its line of the list.
    """

    def __init__(self, *arguments: Any, commands_in: str, summaries: Mapping[str, str], **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._package = commands_in
        self._summaries = dict(summaries)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands, sorted."""
        return sorted(self._summaries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports one command."""
        if cmd_name not in self._summaries:
            return None
        command: click.Command = importlib.import_module(f"{self._package}.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of ``--help``, from the summaries."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self._summaries[name]) for name in self.list_commands(ctx)])

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command; an error of etcuda ends it with status 2."""
        try:
            return super().invoke(ctx)
        except EtcudaError as error:
            raise _Failure(str(error)) from error
