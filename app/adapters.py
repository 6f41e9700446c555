"""Adapters that can answer: those in the state folder, those that come with Paddock, and folders elsewhere."""

from __future__ import annotations

from collections.abc import Hashable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from app.config import Settings
from app.errors import AppError
from finetune.errors import FinetuneError, nearest

if TYPE_CHECKING:
    from finetune.folder import Base
    from llama.model import Transformer
    from llama.serving import Serving

SHIPPED = Path(__file__).resolve().parent.parent / "data" / "adapters"
READER = "reader"  # the one of them that answers from passages, for the default model
NONE, AUTO = "none", "auto"


class Shelf:
    """The adapters of one state folder, for the model of its settings; where an `Engine` gets them from."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def folders(self) -> dict[str, Path]:
        """Every adapter's folder by its name; one in the state folder hides one of ours that has the same name."""
        places = (SHIPPED, self._settings.adapters)
        found = (path for place in places for path in sorted(place.glob("*")) if path.is_dir())
        return {path.name: path for path in found if not path.name.startswith(".")}

    def folder_of(self, name: str) -> Path:
        """An adapter's folder, by its name or as a path. Raises AppError where there is none."""
        if not name.strip():
            raise AppError("the adapter's name is empty; see `paddock finetune list`")
        known, path = self.folders(), Path(name).expanduser()
        if name in known:
            return known[name]
        if path.is_dir():
            return path
        if not known:
            raise AppError(f"there is no adapter '{name}'; there are: none yet; train one")
        raise AppError(
            f"there is no adapter '{name}'; did you mean '{nearest(name, known)}'? There are: {', '.join(known)}"
        )

    def chosen(self, name: str) -> str | None:
        """The adapter that a setting stands for, None for the bare model.

        Raises AppError where there is none of that name, and FinetuneError where it cannot answer beside this model.
        """
        from finetune.folder import read_card, require_base

        if name == AUTO:
            folder = self.folders().get(READER)
            return READER if folder is not None and self._fits(folder) else None
        if name == NONE:
            return None
        folder = self.folder_of(name)
        if (card := read_card(folder)).base is not None:
            require_base(label(name) or name, card, self._base)
        # A path to one that has a name is that one: it is not loaded twice.
        known = {path.resolve(): each for each, path in self.folders().items()}
        return known.get(folder.resolve(), name)

    def fitting(self) -> list[str]:
        """Names of those that were made for this model, as far as they say."""
        return [name for name, folder in self.folders().items() if self._fits(folder)]

    def _fits(self, folder: Path) -> bool:
        from finetune.folder import read_card

        try:
            base = read_card(folder).base
            return base is None or base.model_hash == self._model_hash
        except (FinetuneError, OSError):  # one that is damaged, or a model that is not there
            return False

    def digest(self, name: str) -> str:
        """SHA-256 of an adapter's files."""
        from llama.identity import model_hash

        return model_hash(self.folder_of(name), self._known)

    def stamp(self, name: str) -> Hashable:
        """Changes with the adapter's files."""
        folder = self.folder_of(name)
        return tuple((each.name, each.stat().st_mtime_ns, each.stat().st_size) for each in sorted(folder.iterdir()))

    def load(self, name: str, model: Transformer) -> Serving:
        """Raises FinetuneError for one that was made for another model, vocabulary or chat template."""
        from finetune.folder import serve_adapter

        return serve_adapter(self.folder_of(name), model, self._base)

    @property
    def _known(self) -> Path:
        return self._settings.cache / "models.json"

    @property
    def _path(self) -> Path:
        return self._settings.path_of_model(self._settings.model)

    @cached_property
    def _model_hash(self) -> str:
        from llama.identity import model_hash

        return model_hash(self._path, self._known)

    @cached_property
    def _base(self) -> Base:
        from finetune.run import base_of
        from llama.checkpoint import open_checkpoint

        return base_of(open_checkpoint(self._path), self._known)


def label(adapter: str | None) -> str | None:
    """An adapter's name as it is told: of a path its last part, as of a model."""
    return None if adapter is None else Path(adapter).name
