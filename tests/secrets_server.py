"""A server that speaks AWS Secrets Manager's language (moto), as a process of its own, and the means to reach it: a profile in a credentials file."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PROFILE, REGION = "secrets", "eu-west-1"
ACCESS_KEY, SECRET_KEY = "AKIAOFTHISTEST000001", "secret-key-of-the-secrets-manager"


@dataclass
class SecretsServer:
    """``variables`` are those with which a process finds it; the credentials stand in a file alone."""

    folder: Path
    port: int
    process: subprocess.Popen | None = None

    @property
    def variables(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL_SECRETS_MANAGER": f"http://127.0.0.1:{self.port}",
            "AWS_REGION": REGION,
            "AWS_SHARED_CREDENTIALS_FILE": str(self.folder / "credentials"),
            "AWS_EC2_METADATA_DISABLED": "true",  # a machine that is no EC2 would be asked for a role, for seconds
        }

    def start(self) -> None:
        credentials = f"[{PROFILE}]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"
        (self.folder / "credentials").write_text(credentials)
        (self.folder / "credentials").chmod(0o600)
        with (self.folder / "moto.log").open("ab") as log:
            command = [sys.executable, "-c", "import sys; from moto.server import main; main(sys.argv[1:])", "-H", "127.0.0.1", "-p", str(self.port)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 120
        while not self.answers():
            assert self.process.poll() is None and time.monotonic() < deadline, (self.folder / "moto.log").read_text()[-3000:]
            time.sleep(0.1)

    def answers(self) -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self) -> None:
        """``kill -9``; what it held is gone with it."""
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def put(self, name: str, value: str) -> None:
        """Make a secret there, as an operator does with the aws command."""
        client = self._client()
        try:
            client.create_secret(Name=name, SecretString=value)
        except client.exceptions.ResourceExistsException:
            client.put_secret_value(SecretId=name, SecretString=value)

    def _client(self):
        import boto3

        keys = {"aws_access_key_id": ACCESS_KEY, "aws_secret_access_key": SECRET_KEY}
        return boto3.Session(region_name=REGION, **keys).client("secretsmanager", endpoint_url=f"http://127.0.0.1:{self.port}")


@contextmanager
def secrets_server(folder: Path) -> Iterator[SecretsServer]:
    """One that is up, and gone afterwards."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        server = SecretsServer(folder, probe.getsockname()[1])
    try:
        server.start()
        yield server
    finally:
        server.kill()


def without_aws() -> list[str]:
    """The names of this machine's own variables AWS_*."""
    return [name for name in os.environ if name.startswith("AWS_")]
