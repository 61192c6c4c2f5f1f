"""A server of Google Cloud Storage on this machine, for tests: gcp-storage-emulator, and what it leaves out.

python -m tests.gcs_server PORT_FILE: it has the bucket "bucket", in memory, and writes its port into the file.

POST {"after": N, "delete": [PREFIX, ...], "copy": {PREFIX: PREFIX, ...}} to /meanwhile: so much changes at once, as if
by another client, after N further requests. GET says whether that is still to come. POST [PREFIX, ...] to /forbidden:
what begins so may be listed, but not read or written, until it is told others.
"""

import re
import sys
from functools import partial
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import RLock

from gcp_storage_emulator import server
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import buckets, objects
from gcp_storage_emulator.storage import Storage


def generation_of(storage, bucket, name):
    try:
        return storage.get_file_obj(bucket, name)["generation"]
    except NotFound:
        return "0"


def conditional(handle):
    """Returns `handle`, which then heeds ifGenerationMatch and ifGenerationNotMatch, and names the generation."""

    def handled(request, response, storage):
        bucket = request.params["bucket_name"]
        name = request.params.get("object_id") or request.query.get("name", [""])[0]
        if not name and isinstance(request.data, dict):
            name = request.data.get("meta", request.data).get("name", "")
        found = generation_of(storage, bucket, name)
        if name.startswith(tuple(FORBIDDEN)):
            response.status = HTTPStatus.FORBIDDEN
        elif request.query.get("ifGenerationMatch", [found]) != [found]:
            response.status = HTTPStatus.PRECONDITION_FAILED
        elif request.query.get("ifGenerationNotMatch") == [found]:
            response.status = HTTPStatus.NOT_MODIFIED
        else:
            handle(request, response, storage)
            response["X-Goog-Generation"] = generation_of(storage, bucket, name)

    return handled


def move(request, response, storage):
    request.params["dest_bucket_name"] = request.params["bucket_name"]
    objects.copy(request, response, storage)
    if response.status == HTTPStatus.OK:
        storage.delete_file(request.params["bucket_name"], request.params["object_id"])


def alone(handle):
    """Returns `handle`, which one request at a time enters; their answers are sent at once, as clients read slowly."""

    def handled(request, response, storage):
        request.data  # noqa: B018 (it is read from the connection)
        with LOCK:
            handle(request, response, storage)
            meanwhile(storage)

    return handled


def meanwhile(storage):
    if PLANNED and PLANNED["after"] > 0:
        PLANNED["after"] -= 1
    elif PLANNED:
        names = [found["name"] for found in storage.get_file_list("bucket")[0]]
        for name in names:
            for prefix, to in PLANNED["copy"].items():
                if name.startswith(prefix):
                    objects._copy("", storage, "bucket", name, "bucket", name.replace(prefix, to, 1))
            if name.startswith(tuple(PLANNED["delete"])):
                storage.delete_file("bucket", name)
        PLANNED.clear()


def plan(request, response, storage):
    with LOCK:
        PLANNED.update(request.data)
        if PLANNED["after"] == 0:
            meanwhile(storage)


def planned(request, response, storage):
    response.json(bool(PLANNED))


def forbid(request, response, storage):
    FORBIDDEN[:] = request.data


class Brief(Storage):
    """It lasts as long as the server, so that it keeps no list on a disk and nothing of what is deleted."""

    def _write_config_to_file(self):
        pass

    def _bucket_soft_delete_retention_seconds(self, bucket_name):
        return 0


LOCK, PLANNED, FORBIDDEN = RLock(), {}, []
MOVE = re.escape("/storage/v1") + r"/b/(?P<bucket_name>[^/]+)/o/(?P<object_id>.+)/moveTo/o/(?P<dest_object_id>.+)"
CONDITIONAL = (objects.get, objects.download, objects.insert, objects.delete)
server.HANDLERS = (
    ("/meanwhile", {"POST": plan, "GET": planned}),
    ("/forbidden", {"POST": forbid}),
    (MOVE, {"POST": alone(move)}),
    *(
        (path, {verb: alone(conditional(of) if of in CONDITIONAL else of) for verb, of in verbs.items()})
        for path, verbs in server.HANDLERS
    ),
)


def main():
    storage = Brief(use_memory_fs=True)
    buckets.create_bucket("bucket", storage)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(server.RequestHandler, storage)) as running:
        file = Path(sys.argv[1])
        file.with_suffix(".partial").write_text(str(running.server_address[1]))
        file.with_suffix(".partial").replace(file)
        running.serve_forever()


if __name__ == "__main__":
    main()
