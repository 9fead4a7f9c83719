"""Run docker-compose.yaml with Podman.

Our images are built from their Dockerfiles. Stand-ins replace other images. Podman's store and its
debootstrap base are those of tests/images. The project is called airloop-test, so that it does not
affect a user's stack. All created objects are removed by name.
"""

import os
import shutil
import ssl
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from include.settings import REPOSITORY
from tests.images.engine import FOLDER, Engine, find_links, reason_to_skip, uv_cache
from tests.integration.s3.conftest import MISSING, PROGRAM
from tests.ports import free_port

PROJECT = "airloop-test"
STANDINS = Path(__file__).parent / "standins"
# Variable of docker-compose.yaml -> stage of the stand-ins' Dockerfile.
OTHERS = {
    "POSTGRES_IMAGE": "postgres",
    "REDIS_IMAGE": "redis",
    "VERSITYGW_IMAGE": "versitygw",
    "CADDY_IMAGE": "caddy",
    "PROMETHEUS_IMAGE": "prometheus",
    "STATSD_EXPORTER_IMAGE": "statsd-exporter",
    "GRAFANA_IMAGE": "grafana",
}
NOT_SHOWN = """not shown here:
  Grafana and the statsd exporter, which are in no package (stand-ins: one reads the provisioning, one counts by the mapping)
  the official images' own entrypoints, versions and digests (Debian's packages stand in)
  health checks by the engine's own timer, and starts that wait for them (Podman 4.3, no systemd: deploy/compose/wait.py runs the checks)
  Let's Encrypt (the proxy's own certificate authority is used)"""  # noqa: E501


@dataclass
class Stack:
    """The stack as a user sees it: make, the proxy, and the engine.

    Only checks that need an administrator use the engine.
    """

    engine: Engine
    environment: dict[str, str]
    secrets: dict[str, str]
    port: int
    _context: ssl.SSLContext | None = field(default=None, repr=False)

    def make(self, *arguments: str, timeout: float = 1800) -> subprocess.CompletedProcess:
        command = ["make", *arguments, "COMPOSE=podman-compose", "ENGINE=podman"]
        return subprocess.run(
            command,
            cwd=REPOSITORY,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )

    def airloop(self, *arguments: str, timeout: float = 1800) -> subprocess.CompletedProcess:
        """Run an airloop command in a container with the environment of tasks.

        This is `docker compose run --rm airloop ...`.
        """
        command = [
            "podman-compose",
            "--env-file",
            self.environment["ENV_FILE"],
            "--profile",
            "tools",
            "run",
            "--rm",
            "-T",
            *arguments,
        ]
        return subprocess.run(
            command,
            cwd=REPOSITORY,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )

    def container(self, service: str) -> str:
        named = self.engine(
            "ps",
            "--all",
            "--quiet",
            "--filter",
            f"label=com.docker.compose.project={PROJECT}",
            "--filter",
            f"label=com.docker.compose.service={service}",
        ).stdout.split()
        assert len(named) == 1, (service, named)
        return named[0]

    def exec(self, service: str, *command: str, check: bool = True) -> str:
        return self.engine("exec", self.container(service), *command, check=check, timeout=120).stdout

    def client(self, name: str, **options) -> httpx.Client:
        """Return a client of https://<name>.localhost through the proxy.

        It verifies the certificate.
        """
        if self._context is None:
            authority = self.exec("proxy", "cat", "/data/caddy/pki/authorities/local/root.crt")
            self._context = ssl.create_default_context(cadata=authority)
        transport = ByProxy(verify=self._context)
        return httpx.Client(
            base_url=f"https://{name}.localhost:{self.port}",
            transport=transport,
            timeout=60,
            trust_env=False,
            **options,
        )


class ByProxy(httpx.HTTPTransport):
    """Connects to this machine for every name.

    Browsers resolve *.localhost, and the C library does not.
    """

    def handle_request(self, request):
        request.extensions = {**request.extensions, "sni_hostname": request.url.host}
        request.url = request.url.copy_with(host="127.0.0.1")
        return super().handle_request(request)


@pytest.fixture(scope="session")
def engine():
    lacking = [program for program in ("iptables", "catatonit") if shutil.which(program) is None]
    reason = reason_to_skip() or (
        f"no {', '.join(lacking)} (apt-get install iptables netavark aardvark-dns catatonit)" if lacking else None
    )
    reason = reason or (None if PROGRAM else MISSING)
    if reason:
        pytest.skip(f"docker-compose.yaml is not run: {reason}")
    return Engine()


@pytest.fixture(scope="session")
def others(engine) -> dict[str, str]:
    """Return variable -> the stand-in's name."""
    program = STANDINS / "versitygw"
    shutil.copy(PROGRAM, program)
    try:
        for stage in OTHERS.values():
            options = ["--network", "host", "--layers", "--build-arg", f"BASE={engine.base}", "--target", stage]
            engine("build", *options, "--tag", f"localhost/airloop-standin-{stage}:test", str(STANDINS))
    finally:
        program.unlink()
    return {variable: f"localhost/airloop-standin-{stage}:test" for variable, stage in OTHERS.items()}


@pytest.fixture(scope="session")
def stack(engine, others, tmp_path_factory, request):
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n{NOT_SHOWN}")
    folder = tmp_path_factory.mktemp("compose")
    settings = folder / "settings"
    made = subprocess.run(
        [sys.executable, "-m", "include.cli", "init-env", "--profile", "compose", "--file", str(settings)],
        cwd=REPOSITORY, env={**os.environ, "AIRLOOP_ENV_FILE": ""}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stdout + made.stderr
    ports = {"HTTP_PORT": free_port(), "HTTPS_PORT": free_port()}
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("AIRLOOP_", "AWS_", "AIRFLOW_"))},
        **others,
        **engine.environment,
        "PATH": f"{podman(engine, folder)}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "ENV_FILE": str(settings),
        "COMPOSE_PROJECT_NAME": PROJECT,
        "PODMAN_COMPOSE_IN_POD": "false",
        "IMAGE_TAG": "test",
        # The build that is available on this machine.
        "TORCH": "",
        "COMPOSE_TIMEOUT": "1500",
        "AIRLOOP_PROJECTS": "flights",
        "PROXY_ADDRESS": "127.0.0.1",
        **{name: str(port) for name, port in ports.items()},
    }
    lines = (line.partition("=") for line in settings.read_text().splitlines() if line and not line.startswith("#"))
    running_stack = Stack(engine, environment, {name: value for name, _, value in lines}, ports["HTTPS_PORT"])
    try:
        yield running_stack
    finally:
        print(running_stack.make("compose-down", "VOLUMES=yes", timeout=600).stdout[-3000:])


def podman(engine: Engine, folder: Path) -> Path:
    """Return a folder with a `podman` that uses this engine's store.

    It builds with this machine's options.
    """
    bin = folder / "bin"
    bin.mkdir()
    mounts = [*(f"--volume={links}:{links}" for links in find_links()), f"--volume={uv_cache()}:/var/cache/uv"]
    building = " ".join(["--network", "host", "--layers", "--build-arg", f"BASE={engine.base}", *mounts])
    real = shutil.which("podman")
    program = bin / "podman"
    options = " ".join(engine.podman[1:])
    # Podman 4.3 does not start a container if an exited dependency, such as a migration, requires a
    # running container ("not found in input list"). podman-compose itself waits for dependencies,
    # so no container requires any.
    program.write_text(f"""#!/bin/sh
if [ "$1" = build ]; then shift; exec {real} {options} build {building} "$@"; fi
for word; do shift; case "$word" in --requires=*) ;; *) set -- "$@" "$word" ;; esac; done
exec {real} {options} "$@"
""")
    program.chmod(0o755)
    assert FOLDER in Path(engine.podman[2]).parents
    return bin
