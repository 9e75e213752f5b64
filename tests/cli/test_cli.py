"""The command ``etcuda``: what it imports, how it ends, completion."""

from __future__ import annotations

import json
import os
import pathlib
import resource
import subprocess
import sys

import pytest

import etcuda
from etcuda import cli
from etcuda.errors import EtcudaError

ROOT = pathlib.Path(__file__).resolve().parents[2]
HEAVY = ("torch", "executorch", "triton", "numpy", "rich", "etcuda.kernels", "etcuda.backend", "etcuda.runtime")
COMMAND_FILES = sorted(
    {path.stem for path in pathlib.Path(cli.__file__).parent.glob("*.py")} - {"__init__", "__main__"}
)


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that imports the etcuda that this one does."""
    roots = [str(pathlib.Path(etcuda.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, roots)), **environment}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, env=env)


@pytest.mark.parametrize(
    "arguments", [None, [], ["--help"], ["--version"], ["tune", "--help"], ["inspect", "--help"], ["nonsense"]], ids=str
)
def test_nothing_heavy_is_imported_before_a_command_runs(arguments: list[str] | None) -> None:
    code = f"import json, sys\nfrom etcuda.cli import main\narguments = {arguments!r}\n"
    code += "if arguments is not None: main(arguments)\nprint(json.dumps(sorted(sys.modules)))"
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    modules = json.loads(done.stdout.splitlines()[-1])
    assert "etcuda.cli" in modules
    assert [name for name in HEAVY if name in modules] == []
    commands = [name for name in cli.COMMANDS if f"etcuda.cli.{name}" in modules]
    assert commands == [name for name in cli.COMMANDS if arguments is not None and name in arguments]


def test_help_takes_less_than_three_tenths_of_a_second() -> None:
    taken = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert python("-m", "etcuda", "--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # The processor's time, which does not depend on what else runs here.
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(taken) < 0.3


@pytest.mark.parametrize("module", ["etcuda", "etcuda.cli"])
def test_as_a_module(module: str) -> None:
    done = python("-m", module, "--version")
    assert (done.returncode, done.stdout) == (0, f"etcuda {etcuda.__version__}\n")
    done = python("-m", module, "tune")
    assert done.returncode == 2
    assert "Missing argument 'FAMILY'" in done.stderr


def test_every_command_has_a_file_and_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(cli.COMMANDS) == set(COMMAND_FILES) - {"group"}
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name, summary in cli.COMMANDS.items():
        assert f"  {name}" in shown
        assert summary in shown
        assert cli.main([name, "--help"]) == 0
        assert f"Usage: etcuda {name} " in capsys.readouterr().out


def test_an_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tuna"]) == 2
    assert "No such command 'tuna'" in capsys.readouterr().err


def test_an_error_of_etcuda_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from etcuda.kernels.common import tuner

    def fail(*_arguments: object) -> int:
        raise EtcudaError("the reason, and what to do.")

    monkeypatch.setattr(tuner, "run", fail)
    assert cli.main(["tune", "int4"]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "etcuda: the reason, and what to do.\n")


def test_other_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    from etcuda.kernels.common import tuner

    def fail(*_arguments: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(tuner, "run", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["tune", "int4"])


def test_completion() -> None:
    code = (
        "import sys\nfrom etcuda.cli import main\nstatus = main()\nassert 'torch' not in sys.modules\nsys.exit(status)"
    )
    script = python("-c", code, _ETCUDA_COMPLETE="bash_source")
    assert script.returncode == 0, script.stderr
    assert "_ETCUDA_COMPLETE=bash_complete" in script.stdout
    found = python("-c", code, _ETCUDA_COMPLETE="bash_complete", COMP_WORDS="etcuda t", COMP_CWORD="1")
    assert found.stdout == "plain,tune\n"
    found = python("-c", code, _ETCUDA_COMPLETE="bash_complete", COMP_WORDS="etcuda tune --re", COMP_CWORD="2")
    assert found.stdout == "plain,--resume\n"


def test_the_readme_shows_how_to_complete() -> None:
    assert 'eval "$(_ETCUDA_COMPLETE=bash_source etcuda)"' in (ROOT / "README.md").read_text()
