"""What a run has found, written after every step: a run that is cut short still tells all that it knew."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from skim_runtime.errors import UserError
from skim_runtime.measure.report import save_json

__all__ = ["DONE", "Record"]

DONE = "done"


class Record:
    """The file `record.json` of a directory.

    Attributes:
        content: all of it; `steps` has what each step came to, by name: status ("done", or why not), seconds, result.
        kept: the steps that an earlier run of the same commit and target had done.

    Raises:
        UserError: there is a record of another commit, or it is damaged.
    """

    def __init__(self, directory: Path, head: Mapping[str, Any]) -> None:
        self._path = directory / "record.json"
        self.content: dict[str, Any] = {**head, "steps": {}}
        if self._path.exists():
            before = self._read()
            for key in ("commit", "stand_in"):
                if before.get(key) != head[key]:
                    raise UserError(
                        f"{self._path}: is of {key} {before.get(key)}, not {head[key]}: name another directory"
                    )
            self.content["steps"] = before["steps"]
        self.kept = [name for name in self.content["steps"] if self.done(name)]

    def done(self, step: str) -> bool:
        """Whether a step has gone well."""
        return bool(self.content["steps"].get(step, {}).get("status") == DONE)

    def result(self, step: str) -> dict[str, Any]:
        """What a step found; nothing if it has not run."""
        found: dict[str, Any] = self.content["steps"].get(step, {}).get("result") or {}
        return found

    def add(self, step: str, status: str, seconds: float, result: Mapping[str, Any] | None) -> None:
        """What a step came to; what an earlier run has found of it stays if this one has found less."""
        before = self.result(step)
        if len(json.dumps(before)) > len(json.dumps(result or {})):
            result = before
        self.content["steps"][step] = {"status": status, "seconds": round(seconds, 1), "result": result}
        save_json(self._path, self.content)

    def _read(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(self._path.read_text("utf-8"))
            if not isinstance(found.get("steps"), dict):
                raise ValueError("it has no steps")
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(f"{self._path}: is no record: {error}") from error
        return found
