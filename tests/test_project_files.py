"""Files that other programs read: workflows, hooks, issue forms, the citation, the coverage."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml", reason="pyyaml comes with the train extra")

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.search(r"^\.PHONY: (.+)$", MAKEFILE, re.M)[1].split())  # type: ignore[index]


def read(path: Path) -> dict[Any, Any]:
    return yaml.safe_load(path.read_text())


def steps(path: Path) -> list[dict[str, Any]]:
    jobs = read(path)["jobs"].values()
    return [step for job in jobs for step in job.get("steps", [])]


def made(command: str) -> list[str]:
    """The targets that a shell command has make build: its words without options and variables."""
    lines = command.replace("\\\n", " ").splitlines()
    words = [line.split()[1:] for line in lines if line.split()[:1] == ["make"]]
    return [word for line in words for word in line if re.fullmatch(r"[a-z]+", word)]


def test_the_two_workflows_are_there() -> None:
    assert [path.name for path in WORKFLOWS] == ["release.yml", "test.yml"]
    assert [path.name for path in FORMS] == ["bug.yml", "idea.yml"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_runs_targets_that_exist_by_pinned_actions_without_secrets(path: Path) -> None:
    workflow = read(path)
    assert set(workflow[True]) <= {"push", "pull_request", "workflow_call"}  # YAML's `on`
    assert workflow["permissions"] == {"contents": "read"}
    targets = [target for step in steps(path) for target in made(step.get("run", ""))]
    assert targets
    assert set(targets) <= TARGETS
    for step in steps(path):
        assert ("uses" in step) != ("run" in step)
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+)", step["uses"]), step
    assert "secrets" not in path.read_text()


def test_only_the_job_that_publishes_may_speak_for_the_project() -> None:
    jobs = read(ROOT / ".github" / "workflows" / "release.yml")["jobs"]
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert set(jobs["publish"]["needs"]) == set(jobs) - {"publish"}
    assert not any("permissions" in job for name, job in jobs.items() if name != "publish")
    # Nothing of the project runs where the token can be had.
    assert not any("run" in step for step in jobs["publish"]["steps"])


def test_workflows_build_in_the_image_whose_glibc_is_that_of_torchs_wheels() -> None:
    images = {job.get("container") for path in WORKFLOWS for job in read(path)["jobs"].values()}
    assert images == {None, "quay.io/pypa/manylinux_2_28_x86_64"}


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_an_issue_form_asks_for_what_maskcl_info_says(path: Path) -> None:
    form = read(path)
    assert {"name", "description", "body"} <= set(form)
    assert any("`maskcl info`" in part["attributes"]["label"] for part in form["body"])
    assert len({part["id"] for part in form["body"]}) == len(form["body"])


def test_hooks_are_the_programs_of_make_lint() -> None:
    (local,) = read(ROOT / ".pre-commit-config.yaml")["repos"]
    assert local["repo"] == "local"
    programs = {tuple(hook["entry"].split()[:2]) for hook in local["hooks"]}
    for recipe in re.findall(r"^\t\$\(VENV\)/bin/((?:ruff|mypy).*)$", MAKEFILE, re.M):
        assert (f".venv/bin/{recipe.split()[0]}", *recipe.split()[1:2]) in programs
    assert all(hook["language"] == "system" for hook in local["hooks"])


def test_citation_names_the_authors_of_the_package_and_the_papers_of_the_methods() -> None:
    citation = read(ROOT / "CITATION.cff")
    project = (ROOT / "pyproject.toml").read_text()
    for author in citation["authors"]:
        assert f'{{name = "{author["name"]}"}}' in project
    assert {paper["url"] for paper in citation["references"]} == {
        f"https://arxiv.org/abs/{number}" for number in ("1801.01423", "1801.06519", "1711.09601")
    }


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("target", sorted(TARGETS - {"clean"}))
def test_make_knows_what_every_target_takes(target: str) -> None:
    ran = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", target], cwd=ROOT, capture_output=True
    )
    assert ran.returncode == 0, ran.stderr.decode()


def test_the_makefile_says_what_every_target_does() -> None:
    head = MAKEFILE.split("\n\n")[0]
    told = set(re.findall(r"^# make (\w+)  ", head, re.M))
    inner = {"lint", "types", "tests", "build", "valgrind", "chromium"}  # parts of `make test`
    assert told == TARGETS - inner


def test_contributing_names_files_and_targets_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    paths = set(re.findall(r"`([\w.]+/[\w./]*\w)`", text)) | set(
        re.findall(r"\]\(([\w/.]+)\)", text)
    )
    here = {path for path in paths if "damped" not in path}  # the op that is made up
    assert len(here) > 15
    assert [path for path in here if not (ROOT / path).exists()] == []
    assert set(re.findall(r"`make (\w+)", text)) <= TARGETS
    folders = {str(Path(path).parent) for path in paths - here}
    assert {"maskcl/reference", "maskcl/ops", "maskcl/triton", "csrc/cpu", "csrc/cuda"} <= folders
    assert all((ROOT / folder).is_dir() for folder in folders)
