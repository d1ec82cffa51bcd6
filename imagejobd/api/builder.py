"""The builder API (`/api/v1/build` and its status and logs), wire-compatible with the service it replaces.

A client knows three stages, Building, Pushing, Finished, or `Failed: <message>`; everything finer is mapped onto them.
Keys of requests are matched without regard to case, as the original's Go decoder did.
"""

from http import HTTPStatus

import msgspec
from aiohttp import web

from imagejobd.api.bodies import base64_chunks, is_multipart, parts, read_body, read_part
from imagejobd.api.ignored import note_ignored
from imagejobd.api.intake import Intake, Uploads, new_job
from imagejobd.api.joblog import pieces
from imagejobd.api.wire import NOT_JSON, detail_of, exact_json_response, send
from imagejobd.model.errors import ErrorCode, Fault, NotFound, invalid
from imagejobd.model.job import Job, Json, State
from imagejobd.model.kind import Upload

KIND = "build"
JSON_PART_MAX_BYTES = 1024 * 1024
PART_NAMES = frozenset({"json", "tarfile"})
NULL = msgspec.Raw(b"null")
EMPTY = frozenset({b"null", b'""'})
# What to build, by precedence.
SOURCES = ("dockerfile", "tarfile", "tarurl", "tar_url")
PUSHING_PHASES = frozenset({"pushing", "purging"})

INSUFFICIENT = "Insufficient Information.  Must provide at least an Image Name and a Dockerfile/Tarurl."
UNKNOWN_JOB = "Jobid doesn't exist in the cache.  Bad request."

# The members of a request by name in lower case, not decoded yet: what nobody needs takes no memory.
Fields = dict[str, msgspec.Raw]

# Made once: msgspec.json.decode(…, type=…) reads the type anew each time.
_decode_fields = msgspec.json.Decoder(Fields).decode
_decode_text = msgspec.json.Decoder(str | None).decode
_decode_flag = msgspec.json.Decoder(bool | None, strict=False).decode


def routes(intake: Intake) -> list[web.RouteDef]:
    api = BuilderApi(intake)
    return [
        web.post("/api/v1/build", api.build),
        web.get("/api/v1/{jobid}/status", api.status),
        web.get("/api/v1/{jobid}/logs", api.logs, allow_head=False),  # aiohttp would send the stream to HEAD too
    ]


class BuilderApi:
    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._kind = intake.kinds[KIND]

    async def build(self, request: web.Request) -> web.Response:
        """Accept a build. The answer is sent after the job is on disk."""
        caller = self._intake.caller(request)
        async with self._intake.uploads(caller) as uploads:
            if is_multipart(request):
                fields, upload = await self._multipart(request, uploads)
            else:
                body = await read_body(request, self._intake.server, uploads.hold_json)
                fields, upload = _fields(body, "the request body"), None
            note_ignored(request, _ignored(fields, has_tar=upload is not None))
            accepted = await self._intake.parse(self._kind, *await self._spec(fields, upload, uploads))
            enqueued = await self._intake.submit(new_job(KIND, accepted, caller))
        return _answer({"JobIdentifier": enqueued.uuid})

    async def status(self, request: web.Request) -> web.Response:
        job = await self._job(request)
        return _answer({"Status": stage(job, await self._intake.latest_phase(job))})

    async def logs(self, request: web.Request) -> web.StreamResponse:
        """The whole log as one string, empty before the first line; sent as it is read, because it may be large."""
        job = await self._job(request)
        response = web.StreamResponse(headers={"Content-Type": "application/json; charset=utf-8"})
        await response.prepare(request)
        await response.write(b'{\n  "Logs": "')
        async for data in pieces(self._intake.store, job, 0, job.log_bytes):
            text = msgspec.json.encode(data.decode())[1:-1]
            await send(response, text, idle_s=self._intake.server.body_idle_s)
        await response.write_eof(b'"\n}')
        return response

    async def _job(self, request: web.Request) -> Job:
        job = await self._intake.job_by_uuid(request, request.match_info["jobid"], KIND)
        if job is None:
            raise NotFound(UNKNOWN_JOB)
        return job

    async def _multipart(self, request: web.Request, uploads: Uploads) -> tuple[Fields, Upload | None]:
        """Read the tar part into the content store and the JSON part into memory.

        Parts are known by name (`TarFile`, `Json`), else by position: tar first, JSON second.
        """
        fields: Fields | None = None
        upload: Upload | None = None
        async for part in parts(request, self._intake.server):
            name = part.name.lower()
            is_json = name == "json" if name in PART_NAMES else upload is not None
            if is_json and fields is None:
                fields = _fields(await read_part(part, JSON_PART_MAX_BYTES, uploads.hold_json), "the Json part")
            elif not is_json and upload is None:
                upload = await uploads.receive(self._kind, part.chunks, {})
            else:
                raise invalid(f"unexpected multipart part {part.name!r}: one tar and one Json part are enough")
        if fields is None:
            raise invalid(INSUFFICIENT)
        return fields, upload

    async def _spec(self, fields: Fields, upload: Upload | None, uploads: Uploads) -> tuple[Json, Upload | None]:
        """The builder's fields as the build kind's spec. Precedence: dockerfile, then tar, then tar URL."""
        image, dockerfile = _text(fields, "image_name"), _text(fields, "dockerfile")
        tar, tar_url = _text(fields, "tarfile"), _text(fields, "tarurl") or _text(fields, "tar_url")
        if not image or not (dockerfile or upload or tar or tar_url):
            raise invalid(INSUFFICIENT)
        username, password = _text(fields, "username"), _text(fields, "password")
        spec: Json = {
            "image": image,
            # Both are optional here, and clients leave the password empty where there is none.
            "username": username if password else "",
            "password": password,
            "nocache": _flag(fields, "nocache"),
        }
        if dockerfile:
            return spec | {"dockerfile": dockerfile}, None
        if upload is None and tar:
            upload = await uploads.receive(self._kind, base64_chunks(tar, "TarFile"), {})
        if upload is None:
            return spec | {"tar_url": tar_url}, None
        return spec, upload


def stage(job: Job, phase: str | None) -> str:
    """Which of the document's stages a job is at; `phase` is its current or, between attempts, its last one."""
    match job.state:
        case State.SUCCEEDED:
            return "Finished"
        case State.FAILED:
            return f"Failed: {job.error.message if job.error else 'unknown'}"
        case State.CANCELLED:
            return "Failed: cancelled"
        case _:
            return "Pushing" if phase in PUSHING_PHASES else "Building"


def error_response(request: web.Request, fault: Fault, status: HTTPStatus) -> web.Response:
    """How this API says no. For whatever is wrong with a request its document knows one status."""
    if fault.code is ErrorCode.POLICY:
        status = HTTPStatus.BAD_REQUEST
    return _answer({"Error": fault.message} | detail_of(fault, "Detail"), status)


def _answer(value: dict[str, str], status: int = HTTPStatus.OK) -> web.Response:
    return exact_json_response(value, status, indent=2)


def _fields(body: bytearray, what: str) -> Fields:
    try:
        members = _decode_fields(body)
    except msgspec.ValidationError:
        raise invalid(f"{what} must be a JSON object") from None
    except NOT_JSON as error:
        raise invalid(f"{what} is not valid JSON: {error}") from None
    return {name.lower(): value for name, value in members.items()}


def _ignored(fields: Fields, *, has_tar: bool) -> list[str]:
    """The names, in lower case, of what was given and is not used: sources beyond the first, a user without a password,
    and what this API does not know."""
    names = [name for name, value in fields.items() if bytes(value) not in EMPTY]
    sources = [name for name in SOURCES if name in names or (has_tar and name == "tarfile")]
    used = {"image_name", "nocache", "password", *sources[:1], *(["username"] if "password" in names else [])}
    return [name for name in [*names, *sources] if name not in used]


def _text(fields: Fields, name: str) -> str:
    try:
        return _decode_text(fields.get(name, NULL)) or ""
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise invalid(f"{name} must be a string") from None


def _flag(fields: Fields, name: str) -> bool:
    """A boolean, also as "true" or "false"."""
    try:
        return _decode_flag(fields.get(name, NULL)) or False
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise invalid(f"{name} must be true or false") from None
