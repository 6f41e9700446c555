"""Settings: where the state folder is, which layer wins, and one clear line for whatever is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from app.config import QUIET, Settings, load_settings, state_folder
from app.errors import AppError


def written(home: Path, text: str) -> dict[str, str]:
    """An environment whose state folder has this paddock.toml."""
    home.mkdir(parents=True, exist_ok=True)
    (home / "paddock.toml").write_text(text, encoding="utf-8")
    return {"PADDOCK_HOME": str(home)}


def complaint(environ: dict[str, str], **overrides: object) -> str:
    with pytest.raises(AppError) as caught:
        load_settings(environ, **overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_each_layer_overrides_the_one_before(tmp_path: Path) -> None:
    environ = written(tmp_path, "k = 5\nport = 9000\ntemperature = 0.5\n")
    assert load_settings({"PADDOCK_HOME": str(tmp_path / "none")}).k == 4
    assert load_settings(environ).k == 5
    assert load_settings({**environ, "PADDOCK_K": "6"}).k == 6
    settings = load_settings({**environ, "PADDOCK_K": "6", "PADDOCK_PORT": "9001"}, k=7, port=None)
    assert (settings.k, settings.port, settings.temperature) == (7, 9001, 0.5)


def test_every_setting_can_come_from_the_environment(tmp_path: Path) -> None:
    defaults = load_settings({"PADDOCK_HOME": str(tmp_path)})
    told = {f"PADDOCK_{name.upper()}": str(value) for name, value in defaults if name != "home"}
    assert load_settings({"PADDOCK_HOME": str(tmp_path), **told}) == defaults


def test_settings_do_not_change_once_made(tmp_path: Path) -> None:
    settings = load_settings({"PADDOCK_HOME": str(tmp_path)})
    with pytest.raises(ValidationError):
        settings.k = 9  # type: ignore[misc]


def test_home_is_the_variable_then_data_then_the_users_folder(tmp_path: Path) -> None:
    (tmp_path / "with" / "data").mkdir(parents=True)
    (tmp_path / "without").mkdir()
    assert state_folder({"PADDOCK_HOME": str(tmp_path / "x")}, tmp_path / "with") == tmp_path / "x"
    assert state_folder({"PADDOCK_HOME": ""}, tmp_path / "with") == tmp_path / "with" / "data"
    assert state_folder({}, tmp_path / "with") == tmp_path / "with" / "data"
    users = state_folder({}, tmp_path / "without")
    assert users.name == "paddock"
    assert tmp_path not in users.parents


def test_home_may_be_relative_or_start_at_the_users_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert state_folder({"PADDOCK_HOME": "here"}) == tmp_path / "here"
    assert state_folder({"PADDOCK_HOME": "~/there"}) == Path.home() / "there"


def test_the_folders_lie_under_home(tmp_path: Path) -> None:
    settings = load_settings({"PADDOCK_HOME": str(tmp_path)})
    assert {settings.inbox, settings.index, settings.models, settings.cache} == {
        tmp_path / name for name in ("inbox", "index", "models", "cache")
    }


@pytest.mark.parametrize(
    ("key", "near"), [("temprature", "temperature"), ("top_o", "top_p"), ("embeder", "embedder"), ("home", "")]
)
def test_an_unknown_key_names_file_and_nearest(tmp_path: Path, key: str, near: str) -> None:
    message = complaint(written(tmp_path, f"{key} = 1\n"))
    assert f"'{key}'" in message
    assert str(tmp_path / "paddock.toml") in message
    assert f"'{near}'" in message or not near


def test_an_unknown_variable_names_itself_and_the_nearest(tmp_path: Path) -> None:
    message = complaint({"PADDOCK_HOME": str(tmp_path), "PADDOCK_PROT": "1"})
    assert "PADDOCK_PROT" in message
    assert "'port'" in message


@pytest.mark.parametrize(
    ("toml", "environ", "overrides", "parts"),
    [
        ("k = 0", {}, {}, ("'k'", "paddock.toml", "0")),
        ('dtype = "float16"', {}, {}, ("'dtype'", "paddock.toml", "'float16'", "bfloat16")),
        ("k = 3", {"PADDOCK_K": "many"}, {}, ("'k'", "the environment", "'many'")),
        ("port = 80", {}, {"port": 70000}, ("'port'", "the command line", "70000")),
        ("model = 3", {}, {}, ("'model'", "paddock.toml", "3")),
    ],
)
def test_a_bad_value_tells_key_place_and_value(
    tmp_path: Path, toml: str, environ: dict[str, str], overrides: dict[str, object], parts: tuple[str, ...]
) -> None:
    message = complaint({**written(tmp_path, toml), **environ}, **overrides)
    assert [part for part in parts if part not in message] == []


@pytest.mark.parametrize("content", [b"k = ", b"k = 1\nk = 2\n", b"\xff\xfe\x00"])
def test_a_file_that_is_not_toml_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "paddock.toml").write_bytes(content)
    assert str(tmp_path / "paddock.toml") in complaint({"PADDOCK_HOME": str(tmp_path)})


def test_a_model_is_looked_for_under_models_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load_settings({"PADDOCK_HOME": str(tmp_path / "home")})
    (tmp_path / "m.gguf").write_bytes(b"")
    assert settings.path_of_model("m.gguf") == Path("m.gguf")
    settings.models.mkdir(parents=True)
    (settings.models / "m.gguf").write_bytes(b"")
    assert settings.path_of_model("m.gguf") == settings.models / "m.gguf"
    assert settings.path_of_model("nowhere.gguf") == settings.models / "nowhere.gguf"


def test_every_setting_is_described() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_quiet_turns_the_libraries_off() -> None:
    """In a process of its own, as the libraries read their variables when they are imported."""
    script = (
        "from app.config import quiet; quiet(); import os; from huggingface_hub import constants;"
        "from chromadb.config import Settings; from langsmith import utils;"
        "print(constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_TELEMETRY, Settings().anonymized_telemetry,"
        "utils.tracing_is_enabled(), os.environ['STREAMLIT_BROWSER_GATHER_USAGE_STATS'])"
    )
    environ = {name: value for name, value in os.environ.items() if name not in QUIET}
    done = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True", "False", "False", "false"]


def test_all_that_a_value_may_be_is_told(tmp_path: Path) -> None:
    said = complaint({**written(tmp_path, ""), "PADDOCK_MIN_CONFIDENCE": "1.5"})
    assert "'auto'" in said
    assert "less than or equal to 1" in said
    assert "\n" not in said
