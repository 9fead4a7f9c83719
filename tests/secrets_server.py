"""Run a server with the AWS Secrets Manager API (moto) as a separate process.

Processes reach it through a profile in a credentials file.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.ports import free_port

PROFILE, REGION = "secrets", "eu-west-1"
ACCESS_KEY, SECRET_KEY = "AKIAOFTHISTEST000001", "secret-key-of-the-secrets-manager"


@dataclass
class SecretsServer:
    """A running Secrets Manager server.

    ``variables`` are the environment variables that a process needs to find it. The credentials are
    only in a file.
    """

    folder: Path
    port: int
    process: subprocess.Popen | None = None

    @property
    def variables(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL_SECRETS_MANAGER": f"http://127.0.0.1:{self.port}",
            "AWS_REGION": REGION,
            "AWS_SHARED_CREDENTIALS_FILE": str(self.folder / "credentials"),
            # Otherwise boto asks the EC2 metadata service for a role, which takes seconds outside
            # EC2.
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def start(self) -> None:
        credentials = f"[{PROFILE}]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"
        (self.folder / "credentials").write_text(credentials)
        (self.folder / "credentials").chmod(0o600)
        with (self.folder / "moto.log").open("ab") as log:
            command = [
                sys.executable,
                "-c",
                "import sys; from moto.server import main; main(sys.argv[1:])",
                "-H",
                "127.0.0.1",
                "-p",
                str(self.port),
            ]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 120
        while not self.answers():
            assert self.process.poll() is None and time.monotonic() < deadline, (self.folder / "moto.log").read_text()[
                -3000:
            ]
            time.sleep(0.1)

    def answers(self) -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self) -> None:
        """Send SIGKILL. The server's data is lost."""
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def put(self, name: str, value: str) -> None:
        """Create a secret, as an operator does with the aws command."""
        client = self._client()
        try:
            client.create_secret(Name=name, SecretString=value)
        except client.exceptions.ResourceExistsException:
            client.put_secret_value(SecretId=name, SecretString=value)

    def _client(self):
        import boto3

        keys = {"aws_access_key_id": ACCESS_KEY, "aws_secret_access_key": SECRET_KEY}
        return boto3.Session(region_name=REGION, **keys).client(
            "secretsmanager", endpoint_url=f"http://127.0.0.1:{self.port}"
        )


@contextmanager
def secrets_server(folder: Path) -> Iterator[SecretsServer]:
    """Run a server and stop it afterwards."""
    server = SecretsServer(folder, free_port())
    try:
        server.start()
        yield server
    finally:
        server.kill()


def without_aws() -> list[str]:
    """Return the names of this machine's own AWS_* variables."""
    return [name for name in os.environ if name.startswith("AWS_")]
