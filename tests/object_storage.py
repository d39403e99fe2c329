"""An S3 server on this machine, for tests: what is in the environment finds it, in other processes, too."""

import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import boto3
import fsspec
import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        pass


class ObjectStorage:
    """An S3 server. What it holds outlives a stop.

    requests: method and path of each, "GET /bucket/key". sent: bytes of all answers.
    """

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.sent = 0
        self._app = DomainDispatcherApplication(create_backend_app)
        self._port = 0
        self._server: BaseWSGIServer | None = None
        self.start()

    @property
    def endpoint(self) -> str:
        """http://HOST:PORT."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def client(self) -> Any:
        """Of boto3, so that what fsspec remembers is not used."""
        return boto3.client("s3", endpoint_url=self.endpoint)

    def start(self) -> None:
        """Answer, at the same port as before."""
        self._server = make_server("127.0.0.1", self._port, self._answer, threaded=True, request_handler=_Quiet)
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections from now on."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def fill(self, bucket: str, folder: Path, prefix: str = "") -> str:
        """Put the files of a folder into a new or an old bucket. Returns the URL of the folder there."""
        client = self.client
        client.create_bucket(Bucket=bucket)
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            client.put_object(
                Bucket=bucket, Key=f"{prefix}{path.relative_to(folder).as_posix()}", Body=path.read_bytes()
            )
        return f"s3://{bucket}/{prefix}".rstrip("/")

    def objects(self, bucket: str) -> dict[str, bytes]:
        """All keys of a bucket, with what they hold."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        keys = [each["Key"] for page in pages for each in page.get("Contents", ())]
        return {key: self.client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}

    def _answer(self, environment: WSGIEnvironment, respond: StartResponse) -> Iterable[bytes]:
        query = environment.get("QUERY_STRING", "")
        path = environment["PATH_INFO"] + (f"?{query}" if query else "")
        self.requests.append(f"{environment['REQUEST_METHOD']} {path}")
        answer = list(self._app(environment, respond))
        self.sent += sum(map(len, answer))
        return answer


def forget_connections() -> None:
    """Let fsspec connect anew, as a new process would."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStorage]:
    """An empty server; environment variables lead to it."""
    nowhere = tmp_path_factory.mktemp("aws") / "none"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": str(nowhere),
            "AWS_SHARED_CREDENTIALS_FILE": str(nowhere),
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_MAX_ATTEMPTS": "1",
        }.items():
            patch.setenv(name, value)
        for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_REGION", "AWS_ENDPOINT_URL_S3"):
            patch.delenv(name, raising=False)
        server = ObjectStorage()
        patch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        forget_connections()
        _empty(server)
        yield server
        forget_connections()
        _empty(server)
        server.stop()


def _empty(server: ObjectStorage) -> None:
    """The state of moto is of the process."""
    client = server.client
    for bucket in client.list_buckets()["Buckets"]:
        for key in server.objects(bucket["Name"]):
            client.delete_object(Bucket=bucket["Name"], Key=key)
        client.delete_bucket(Bucket=bucket["Name"])
