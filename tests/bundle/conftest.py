import pytest

from .models import export_tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Exports one of `MODELS` by name, once."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = export_tiny(name, tmp_path_factory.mktemp("bundle"))
        return made[name]

    return get
