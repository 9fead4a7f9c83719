"""Podman with a separate store, and a base image for machines without access to an image registry.

Everything is stored in one folder, ``AIRLOOP_TEST_IMAGES`` (default:
``~/.cache/airloop-test-images``), which may be deleted. A second run reuses its layers. The
machine's own containers, images and packet filters are not changed: builds and containers use the
host network.
"""

import json
import os
import re
import shutil
import subprocess
from functools import cached_property
from pathlib import Path

from include.settings import REPOSITORY

FOLDER = Path(os.environ.get("AIRLOOP_TEST_IMAGES", Path.home() / ".cache/airloop-test-images"))
# cgroupfs and runc support machines without systemd and with version 1 of control groups. Limits
# are lowered, because raising them may be refused.
CONTAINERS_CONF = """
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_backend = "netavark"
"""
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


def reason_to_skip() -> str | None:
    """Return the reason why no image can be built here, or None."""
    lacking = [program for program in ("podman", "runc", "debootstrap") if shutil.which(program) is None]
    if lacking:
        return f"no {', '.join(lacking)} (apt-get install podman runc debootstrap)"
    return None if os.geteuid() == 0 else "not root"


class Engine:
    """Builds the Dockerfiles and runs the resulting images."""

    def __init__(self) -> None:
        FOLDER.mkdir(parents=True, exist_ok=True)
        conf = FOLDER / "containers.conf"
        conf.write_text(CONTAINERS_CONF)
        policy = FOLDER / "policy.json"
        policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        self.environment = {
            **os.environ,
            "CONTAINERS_CONF": str(conf),
            "TMPDIR": str(FOLDER),
            "BUILDAH_ISOLATION": "chroot",
        }
        self.podman = [
            "podman",
            "--root",
            str(FOLDER / "store"),
            "--runroot",
            str(FOLDER / "run"),
            "--cgroup-manager",
            "cgroupfs",
        ]

    def __call__(self, *arguments: str, check: bool = True, timeout: float = 900) -> subprocess.CompletedProcess:
        """Run ``engine("images")`` and return output and errors together, as text."""
        ended = subprocess.run(
            [*self.podman, *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and ended.returncode:
            raise RuntimeError(f"podman {' '.join(arguments)} ended with {ended.returncode}:\n{ended.stdout[-4000:]}")
        return ended

    def start(self, *arguments: str) -> subprocess.Popen:
        return subprocess.Popen(
            [*self.podman, *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def build(self, image: str, **arguments: str) -> str:
        """Build the complete image of ``deploy/images/<image>/Dockerfile`` and return its name."""
        name = f"localhost/airloop-{image}:test"
        # Without a TORCH: the build that is available on this machine.
        given = {"BASE": self.base, "TORCH": "", "GIT_SHA": "0123abc", **arguments}
        options = [option for key, value in given.items() for option in ("--build-arg", f"{key}={value}")]
        mounts = [*(f"--volume={folder}:{folder}" for folder in find_links()), f"--volume={uv_cache()}:/var/cache/uv"]
        file = REPOSITORY / "deploy/images" / image / "Dockerfile"
        self(
            "build",
            "--network",
            "host",
            "--layers",
            *options,
            *mounts,
            "--file",
            str(file),
            "--tag",
            name,
            str(REPOSITORY),
            timeout=3600,
        )
        return name

    @cached_property
    def base(self) -> str:
        """Build a small Debian with Python 3.11 in place of the Dockerfiles' own base.

        It includes this machine's configuration for PyPI.
        """
        name = "localhost/airloop-test-base:1"
        if self("image", "exists", name, check=False).returncode == 0:
            return name
        root = FOLDER / "base"
        shutil.rmtree(root, ignore_errors=True)
        command = [
            "debootstrap",
            "--variant=minbase",
            "--include=python3,python3-venv,ca-certificates",
            "bookworm",
            str(root),
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=900)
        shutil.rmtree(root / "var/cache/apt", ignore_errors=True)
        shutil.rmtree(root / "var/lib/apt/lists", ignore_errors=True)
        shutil.copy(CERTIFICATES, root / CERTIFICATES.relative_to("/"))
        (root / "etc/pip.conf").write_text(f"[global]\ncert = {CERTIFICATES}\n")
        (root / "etc/uv").mkdir()
        links = json.dumps([str(folder) for folder in find_links()])
        (root / "etc/uv/uv.toml").write_text(
            f'native-tls = true\ncache-dir = "/var/cache/uv"\n[pip]\nfind-links = {links}\n'
        )
        packed = FOLDER / "base.tar"
        subprocess.run(["tar", "-C", str(root), "--numeric-owner", "-cf", str(packed), "."], check=True)
        self("import", str(packed), name)
        packed.unlink()
        shutil.rmtree(root)
        return name

    def run(
        self, image: str, *command: str, options: tuple[str, ...] = (), check: bool = True, timeout: float = 600
    ) -> subprocess.CompletedProcess:
        """Run a container with the restrictions of Airloop's pods.

        It is read-only, runs as nobody without capabilities, and has /tmp in memory.
        """
        return self("run", "--rm", *HARDENED, *options, image, *command, check=check, timeout=timeout)

    def root_of(self, image: str, folder: Path) -> Path:
        """Unpack the image's file system into the folder and return the folder."""
        folder.mkdir(parents=True)
        container = self("create", image).stdout.split()[-1]
        packed = folder.with_suffix(".tar")
        self("export", "--output", str(packed), container)
        self("rm", container)
        subprocess.run(["tar", "-C", str(folder), "-xpf", str(packed)], check=True)
        packed.unlink()
        return folder

    def config(self, image: str) -> dict:
        return json.loads(self("image", "inspect", image).stdout)[0]["Config"]


HARDENED = (
    "--network",
    "host",
    "--read-only",
    "--read-only-tmpfs=false",
    "--tmpfs",
    "/tmp:rw,mode=1777",
    "--cap-drop",
    "ALL",
    "--security-opt",
    "no-new-privileges",
)


def find_links() -> list[Path]:
    """Return the folders of wheels in this machine's pip configuration."""
    configured = subprocess.run(
        ["python3", "-m", "pip", "config", "get", "global.find-links"], capture_output=True, text=True, check=False
    ).stdout
    words = re.split(r"\s+", f"{configured} {os.environ.get('PIP_FIND_LINKS', '')}")
    return [Path(word) for word in dict.fromkeys(words) if word and Path(word).is_dir()]


def uv_cache() -> Path:
    """Return this machine's uv cache."""
    folder = Path(os.environ.get("UV_CACHE_DIR", Path.home() / ".cache/uv"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
