"""What is installed, asked without importing it."""

from importlib.metadata import PackageNotFoundError, version

OLDEST_TORCH = (2, 11)
"""That pyproject.toml asks for."""


def installed_version(name: str) -> str | None:
    """Version of a package, None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def torch_problem() -> str | None:
    """Why nothing can run with the torch that is here, and what to do; None if it is new enough."""
    found = installed_version("torch")
    oldest = ".".join(map(str, OLDEST_TORCH))
    if found is None:
        return "torch is not installed: pip install --upgrade titans-seq"
    if tuple(map(int, found.split(".")[:2])) < OLDEST_TORCH:
        return f"torch {found} is too old, titans_seq needs {oldest} or newer: pip install --upgrade 'torch>={oldest}'"
    return None
