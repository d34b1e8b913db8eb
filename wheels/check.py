"""Installs every wheel of dist in clean environments and tries it: ``python -m wheels.check``.

    --python python3.10 ...  interpreters; one that is not here is named and left out
    --torch 2.13.0 ...       versions for pip to install, or folders of environments whose torch and
                             numpy are linked into the clean one (where the Python is the same)

No compiler is on PATH. In each environment the wheel with the CPU library, the pure one, and the
CUDA one beside the first are installed; `pip check` passes, `maskcl info` says which native
libraries are loaded, and a network learns two tasks with the outputs of the first unchanged.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from wheels.build import DIST, WORK

COMPILERS = ("c++", "g++", "gcc", "cc", "clang++", "nvcc")
# The files and folders of torch, numpy and all that they need.
TORCH = """
import importlib.metadata as metadata, re
todo, found, names = ["torch", "numpy"], set(), set()
while todo:
    name = todo.pop()
    try:
        dist = metadata.distribution(name)
    except metadata.PackageNotFoundError:  # of another platform
        continue
    if name not in found:
        found.add(name)
        names |= {str(file).split("/")[0] for file in dist.files} - {".."}
        required = [wanted for wanted in dist.requires or [] if "extra ==" not in wanted]
        todo += [re.match(r"[\\w.-]+", wanted)[0] for wanted in required]
print(*sorted(names - {"__pycache__"}), sep="\\n")
"""
LEARN = """
import torch, maskcl
net = maskcl.nn.to_hat(maskcl.models.mlp((8,), classes=2), 2, torch.zeros(2, 8), classes=[2, 2])
hat, x, y = maskcl.HAT(), torch.rand(32, 8), torch.randint(2, (32,))
outputs = []
for task in range(2):
    state = hat.begin_task(net, task)
    optimizer = torch.optim.Adam(net.task_parameters(task), lr=0.01)
    guard = hat.protect(optimizer, net, state)
    for step in range(10):
        hat.before_step(net, state, progress=step / 9)
        optimizer.zero_grad()
        with net.task(task, state.scale):
            (torch.nn.functional.cross_entropy(net(x), y) + hat.loss_term(net, state)).backward()
        hat.after_backward(net, state)
        optimizer.step()
        hat.after_step(net, state)
    hat.end_task(net, state)
    guard.remove()
    with torch.no_grad(), net.task(0):
        outputs.append(net.eval()(x))
    net.train()
assert torch.equal(*outputs)
print(maskcl.__version__, torch.__version__, torch.version.cuda)
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="wheels.check")
    parser.add_argument("--python", nargs="+", default=[sys.executable])
    parser.add_argument("--torch", nargs="+", required=True)
    asked = parser.parse_args()
    wheels = sorted(DIST.glob("*.whl"))
    native = [w for w in wheels if w.name.startswith("maskcl-") and "none-any" not in w.name]
    pure = [w for w in wheels if "none-any" in w.name]
    cuda = [w for w in wheels if w.name.startswith("maskcl_cuda")]
    if len(native) != 1 or len(pure) != 1 or len(cuda) > 1:
        raise SystemExit(f"wheels: dist holds {[w.name for w in wheels]}; python -m wheels.build")
    for wheel in wheels:
        assert_licensed(wheel)
    tried = 0
    for name in asked.python:
        python = interpreter(name)
        if python is None:
            print(f"wheels: not tried: {name} is not here")
            continue
        for torch in asked.torch:
            tried += try_in(python, torch, native, pure, cuda)
    if not tried:
        raise SystemExit("wheels: no Python with a torch was found to try the wheels in")


def assert_licensed(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as content:
        names = content.namelist()
    if not any(name.endswith(".dist-info/licenses/LICENSE") for name in names):
        raise SystemExit(f"wheels: {wheel.name} holds no licence")


def interpreter(name: str) -> str | None:
    """The path of a Python that starts: pyenv has shims for versions that are not chosen."""
    near = [name, *sorted(map(str, Path.home().glob(f".pyenv/versions/*/bin/{name}")))]
    for found in filter(None, map(shutil.which, near)):
        ran = subprocess.run([found, "-c", "import venv"], capture_output=True, cwd="/")
        if ran.returncode == 0:
            return found
    return None


def try_in(python: str, torch: str, native: list[Path], pure: list[Path], cuda: list[Path]) -> int:
    """1 where the wheels work under this Python and this torch, 0 where there is no such torch."""
    version = said([python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]).strip()
    packages = next(Path(torch).resolve().glob(f"lib/python{version}/site-packages"), None)
    if os.sep in torch and packages is None:
        print(f"wheels: not tried: Python {version} with {torch}, which is of another Python")
        return 0
    folder = WORK / "environment"
    shutil.rmtree(folder, ignore_errors=True)
    said([python, "-m", "venv", str(folder)])
    pip(folder, "uninstall", "-q", "-y", "setuptools")  # older Pythons' own is older than torch's
    if packages is None:
        pip(folder, "install", "-q", f"torch=={torch}", "numpy")
    else:
        (own,) = folder.glob("lib/python*/site-packages")
        for name in said([str(packages.parents[2] / "bin/python"), "-c", TORCH]).splitlines():
            (own / name).symlink_to(packages / name)
    for wheels, loaded in ((native, {"cpp"}), (pure, set()), (native + cuda, {"cpp", "cuda"})):
        pip(folder, "install", "-q", "--no-index", "--no-deps", "--force-reinstall", *wheels)
        pip(folder, "check")
        learnt = in_clean(folder, "python", "-c", LEARN).split()
        wanted = loaded - {"cuda"} if not cuda or learnt[2] == "None" else loaded
        facts = in_clean(folder, "maskcl", "info")
        found = {n for n in ("cpp", "cuda") if f"  {n:<18} loaded" in facts.splitlines()}
        if found != wanted:
            raise SystemExit(f"wheels: {wanted} should be loaded, not {found}:\n{facts}")
        names = " + ".join(wheel.name for wheel in wheels)
        print(f"wheels: Python {version}, torch {learnt[1]}: {names}: loaded {sorted(found)}")
    shutil.rmtree(folder)
    return 1


def pip(folder: Path, *words: object) -> None:
    in_clean(folder, "python", "-m", "pip", "--disable-pip-version-check", *map(str, words))


def in_clean(folder: Path, *words: str) -> str:
    """What a command of the environment says, with nothing else on PATH."""
    path = str(folder / "bin")
    assert not any(shutil.which(name, path=path) for name in COMPILERS)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "MASKCL", "CUDA"))}
    return said([str(folder / "bin" / words[0]), *words[1:]], kept | {"PATH": path})


def said(words: list[str], environment: dict[str, str] | None = None) -> str:
    ran = subprocess.run(words, env=environment, cwd=WORK, text=True, capture_output=True)
    if ran.returncode:
        raise SystemExit(f"wheels: {' '.join(words)} failed\n{ran.stdout}\n{ran.stderr}")
    return ran.stdout


if __name__ == "__main__":
    main()
