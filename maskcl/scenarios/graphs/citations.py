"""Citations and co-authors from files in torch_geometric's raw layout; nothing is written there."""

from __future__ import annotations

import pickle
import shutil
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskcl.graph import csr
from maskcl.scenarios.base import Scenario, ScenarioError
from maskcl.scenarios.graphs.build import About, node_scenario
from maskcl.scenarios.graphs.cut import Items, Request, split
from maskcl.scenarios.graphs.features import both_ways, sparse
from maskcl.scenarios.graphs.reading import (
    check_csr,
    find_folder,
    first_line,
    geometric,
    read_pickle,
    require,
    require_lines,
)

CITATIONS = {"cora": "Cora", "citeseer": "CiteSeer"}

_PARTS = ("x", "tx", "allx", "y", "ty", "ally", "graph")


def planetoid(request: Request, data: Path | None, variant: str) -> Scenario:
    """Classification of papers by subject (Yang et al. 2016), their public split.

    Args:
        request: what is asked.
        data: folder with ``Cora/raw/ind.cora.x`` and so on.
        variant: "cora" or "citeseer".

    Raises:
        ScenarioError: a file is missing, damaged or not what its name says.
    """
    places = [f"{CITATIONS[variant]}/raw", f"Planetoid/{CITATIONS[variant]}/raw", "raw", "."]
    folder = find_folder(request.name, data, f"ind.{variant}.x", places)
    for part in _PARTS:
        require(folder / f"ind.{variant}.{part}")
    require_lines(folder / f"ind.{variant}.test.index")
    read = _planetoid_data(folder, variant)
    about = About(
        f"{CITATIONS[variant]}, Planetoid's files",
        "Planetoid's: 20 nodes a class for training, 1,000 for test; its 500 for validation unused",
        "bag of words",
    )
    items = Items(read.y, read.train_mask, read.test_mask)
    return node_scenario(request, sparse(read.x), read.edge_index, items, about)


def coauthor(request: Request, data: Path | None, variant: str) -> Scenario:
    """Classification of authors by field (Shchur et al. 2018).

    Args:
        request: what is asked.
        data: folder with ``CS/raw/ms_academic_cs.npz``.
        variant: "cs".

    Raises:
        ScenarioError: the file is missing, damaged or not what its name says.
    """
    file = f"ms_academic_{variant}.npz"
    name = variant.upper()
    folder = find_folder(
        request.name, data, file, [f"{name}/raw", f"Coauthor/{name}/raw", "raw", "."]
    )
    path = folder / file
    x = _npz_matrix(path, "attr")
    links = _npz_matrix(path, "adj").to_sparse_coo().indices().t()
    labels = torch.from_numpy(_npz(path, "labels").astype(np.int64))
    if labels.shape != (x.shape[0],) or (len(links) and int(links.max()) >= len(labels)):
        raise ScenarioError(
            f"{path}: {x.shape[0]} authors, but labels of shape {tuple(labels.shape)} and links "
            f"up to author {int(links.max())}: it is damaged"
        )
    if int(labels.min()) < 0:
        raise ScenarioError(f"{path} has label {int(labels.min())}, wanted at least 0")
    train, test = split(labels, request.seed)
    about = About(
        f"Coauthor {name}, torch_geometric's file",
        "a fifth of each class held out for test by the seed",
        "whether a word is among the keywords of an author's papers",
    )
    edges = both_ways(links, len(labels))
    return node_scenario(request, x, edges, Items(labels, train, test), about)


def _planetoid_data(folder: Path, variant: str) -> Any:
    """What torch_geometric reads from a checked copy: its reader unpickles whatever it finds."""
    geometric("planetoid")
    from torch_geometric.io import read_planetoid_data

    with tempfile.TemporaryDirectory(prefix="maskcl-planetoid-") as copy:
        for part in _PARTS:
            name = f"ind.{variant}.{part}"
            content = _checked_part(folder / name, part)
            (Path(copy) / name).write_bytes(pickle.dumps(content))
        index = f"ind.{variant}.test.index"
        shutil.copyfile(folder / index, Path(copy) / index)
        try:
            read = read_planetoid_data(copy, variant)
        except (ValueError, RuntimeError, IndexError, TypeError, AttributeError) as error:
            raise ScenarioError(
                f"{folder}: ind.{variant}.* do not fit together, one is cut off or damaged: "
                f"{first_line(error)}"
            ) from error
    count, edges = read.x.shape[0], read.edge_index
    if edges.numel() and not 0 <= int(edges.min()) <= int(edges.max()) < count:
        raise ScenarioError(
            f"{folder / f'ind.{variant}.graph'} names node {int(edges.max())} of {count}: "
            "it is damaged"
        )
    return read


def _checked_part(path: Path, part: str) -> Any:
    """The content of one of Planetoid's pickles.

    Raises:
        ScenarioError: it is no such pickle, asks for more than data need, or holds something else.
    """
    content = read_pickle(path)
    if part == "graph":
        if isinstance(content, dict) and all(isinstance(v, list) for v in content.values()):
            return content
        raise ScenarioError(f"{path} holds no dictionary of lists: it is damaged")
    if part in ("y", "ty", "ally"):
        if isinstance(content, np.ndarray) and content.ndim == 2 and content.dtype.kind in "biuf":
            return content
        raise ScenarioError(f"{path} holds no table of numbers: it is damaged")
    from scipy.sparse import csr_matrix

    if not isinstance(content, csr_matrix):
        raise ScenarioError(f"{path} holds no sparse matrix: it is damaged")
    # Its fields come from the file, and scipy's product trusts them.
    fields = vars(content)
    shape = fields.get("_shape", (0, 0))
    parts = [np.asarray(fields.get(key)) for key in ("data", "indices", "indptr")]
    check_csr(path, parts[0], parts[1], parts[2], shape)
    return csr_matrix(tuple(parts), shape=shape)


def _npz(path: Path, key: str) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as content:
            return content[key]
    except KeyError:
        raise ScenarioError(f"{path} has no array {key!r}") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ScenarioError(
            f"{path} cannot be read, it is cut off or damaged: {first_line(error)}"
        ) from error


def _npz_matrix(path: Path, name: str) -> Tensor:
    """Sparse CSR: 1 where the file's matrix is above 0."""
    values, columns, starts, shape = (
        _npz(path, f"{name}_{part}") for part in ("data", "indices", "indptr", "shape")
    )
    check_csr(path, values, columns, starts, shape.tolist())
    rows = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    places = torch.from_numpy(np.stack([rows, columns]).astype(np.int64)[:, values > 0])
    ones = torch.ones(places.shape[1])
    return csr(places, ones, (int(shape[0]), int(shape[1])))
