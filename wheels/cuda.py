"""The CUDA library as a wheel of its own, for the CUDA that it was built with: maskcl-cuda13.

It is installed beside any wheel of maskcl of the same version; maskcl's loader finds it by the
name that belongs to torch's CUDA.
"""

from __future__ import annotations

import json
import sysconfig
from email.message import Message
from pathlib import Path

from wheel.wheelfile import WheelFile

from maskcl._version import __version__

ROOT = Path(__file__).resolve().parent.parent
RECORDED = ("platform", "torch_target", "cuda", "cuda_archs")


def write_wheel(library: Path, folder: Path) -> Path:
    """The wheel of ``library``, with what the record beside it says of the build."""
    built = json.loads((library.parent / "_build.json").read_text())
    record = {"maskcl": __version__} | {key: built[key] for key in RECORDED}
    package = f"maskcl_cuda{built['cuda'].split('.')[0]}"
    about = f"CUDA kernels of maskcl for a torch of CUDA {built['cuda'].split('.')[0]}."
    tag = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
    info = f"{package}-{__version__}.dist-info"
    path = folder / f"{package}-{__version__}-{tag}.whl"
    with WheelFile(path, "w") as wheel:
        wheel.writestr(f"{package}/__init__.py", f'"""{about} maskcl loads them."""\n')
        wheel.writestr(f"{package}/_build.json", json.dumps(record, indent=1) + "\n")
        wheel.write(library, f"{package}/{library.name}")
        wheel.write(ROOT / "LICENSE", f"{info}/licenses/LICENSE")
        wheel.writestr(f"{info}/METADATA", metadata(package.replace("_", "-"), about))
        wheel.writestr(f"{info}/WHEEL", header(tag))
    return path


def metadata(name: str, about: str) -> str:
    fields = {
        "Metadata-Version": "2.4",
        "Name": name,
        "Version": __version__,
        "Summary": about,
        "License-Expression": "Apache-2.0",
        "License-File": "LICENSE",
        "Requires-Python": ">=3.10",
        "Requires-Dist": f"maskcl=={__version__}",
        "Description-Content-Type": "text/markdown",
    }
    text = (
        f"{about} Install it beside maskcl {__version__}; `maskcl info` says whether it is loaded."
    )
    return _headers(fields, text)


def header(tag: str) -> str:
    fields = {
        "Wheel-Version": "1.0",
        "Generator": "maskcl",
        "Root-Is-Purelib": "false",
        "Tag": tag,
    }
    return _headers(fields, "")


def _headers(fields: dict[str, str], body: str) -> str:
    message = Message()
    for key, value in fields.items():
        message[key] = value
    message.set_payload(body)
    return message.as_string()
