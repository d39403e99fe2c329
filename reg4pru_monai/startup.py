"""What must be set before dependencies are imported, and a quick start for commands that need little of MONAI."""

import getpass
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

# MONAI imports all of itself, and these where they are installed: together as long as itself and torch.
OPTIONAL = ("ignite", "matplotlib", "mlflow", "onnx", "onnxruntime", "pandas", "tensorboard")


def adapt_environment() -> None:
    """Let dependencies run without a user name and without a home folder, as in containers and on clusters.

    MONAI looks up the user's name when it is imported, which fails for a user id without a name. If the home folder
    cannot be written, caches go to a per-user folder among the temporary files. Variables that are set are kept.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):
        os.environ["LOGNAME"] = f"uid{os.getuid()}" if hasattr(os, "getuid") else "user"
    if os.access(os.path.expanduser("~"), os.W_OK):
        return
    with suppress(OSError):  # no temporary files either: what needs a cache reports it
        folder = Path(tempfile.gettempdir()) / f"reg4pru-{getpass.getuser()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid == os.geteuid():  # not planted by somebody else
            for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
                os.environ.setdefault(name, str(folder))


def import_monai_alone() -> None:
    """Import MONAI as if the optional packages were not installed; they can be imported afterwards as usual.

    What MONAI offers on top of them (engines, handlers) is then missing in this process. Does nothing where MONAI is
    imported already.
    """
    if "monai" in sys.modules:
        return
    hidden = [name for name in OPTIONAL if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None makes an import fail
    try:
        import monai  # noqa: F401
    finally:
        for name in hidden:
            del sys.modules[name]
