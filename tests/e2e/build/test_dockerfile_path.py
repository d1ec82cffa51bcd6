"""Contexts as `docker build` takes them: the Dockerfile at a path of its own, and ignore files, with both builders."""

import json

import pytest

from harness.bodies import MULTIPART, dockerfile, multipart, tar
from harness.build_box import BuildBox
from harness.client import Answer, Fields
from harness.registry import Registry

SHOWS_ALL = dockerfile("COPY . /all", "RUN cd /all && find . -mindepth 1 | sort | tr '\\n' ' '")
WRONG = dockerfile("RUN echo the wrong one; exit 1")


def upload(box: BuildBox, image: str, context: bytes, **spec: str) -> Answer:
    job = json.dumps({"kind": "build", "spec": {"image": image, **spec}})
    body = multipart({"job": job, "context": context})
    return box.call("POST", "/api/v2/jobs", body, headers={"Content-Type": MULTIPART})


def built(box: BuildBox, image: str, context: bytes, **spec: str) -> Fields:
    answer = upload(box, image, context, **spec)
    assert answer.status == 201, answer.text
    return box.succeeded(answer.json["id"])


def test_the_dockerfile_at_a_path(either_box: BuildBox, registry: Registry) -> None:
    """It is built, not the one at the top; the image sees the files of the context and nothing of ours."""
    files = {"Dockerfile": WRONG, "sub/app.Dockerfile": SHOWS_ALL, "word": "hello\n"}
    image = f"{registry.host}/paths/{either_box.builder}"
    job = built(either_box, image, tar(files), dockerfile_path="./sub/app.Dockerfile")
    assert job["spec"]["dockerfile_path"] == "./sub/app.Dockerfile"
    log = either_box.log(job["id"])
    assert "the wrong one" not in log
    assert "./Dockerfile ./sub ./sub/app.Dockerfile ./word" in log


def test_ignore_files(either_box: BuildBox, registry: Registry) -> None:
    """What `.dockerignore` names does not reach the image; the file beside the Dockerfile goes before it."""
    files = {
        "Dockerfile": SHOWS_ALL,
        ".dockerignore": "*\n!word\n!deep/kept\n",
        "word": "hello\n",
        "secret": "told\n",
        "deep/kept": "",
        "deep/lost": "",
        "other": SHOWS_ALL,
        "other.dockerignore": "*\n!secret\n",
    }
    image = f"{registry.host}/ignored/{either_box.builder}"
    log = either_box.log(built(either_box, image, tar(files))["id"])
    assert "./deep ./deep/kept ./word" in log
    assert "secret" not in log
    log = either_box.log(built(either_box, image, tar(files), dockerfile_path="other")["id"])
    assert "./secret" in log
    assert "./word" not in log


@pytest.mark.parametrize("path", ["absent", "../Dockerfile", "/Dockerfile", "DOCKERFILE", "Dockerfile/"])
def test_paths_that_are_refused(box: BuildBox, registry: Registry, path: str) -> None:
    """A Dockerfile that is not plainly in the tar is 400 at submission, and the answer names the path."""
    answer = upload(box, f"{registry.host}/paths/no", tar({"Dockerfile": SHOWS_ALL}), dockerfile_path=path)
    assert answer.status == 400
    assert answer.json["code"] == "invalid"
    assert path in answer.json["detail"]


def test_the_policy_is_about_the_dockerfile_at_the_path(box: BuildBox) -> None:
    """What is at the top of the tar lends it nothing."""
    files = {"Dockerfile": SHOWS_ALL, "evil": "# syntax=evil/frontend\nFROM scratch\n"}
    answer = upload(box, "example.org/app", tar(files), dockerfile_path="evil")
    assert answer.status == 422
    assert answer.json["code"] == "policy"
