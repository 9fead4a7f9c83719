"""Podman with a store of its own, and a base image for machines that reach no image registry.

Everything lies in one folder, ``AIRLOOP_TEST_IMAGES`` (default: ``~/.cache/airloop-test-images``), which may be deleted; a second run finds its layers there.
Nothing of the machine's own containers, images or packet filters is touched: what is built and run here uses the machine's network as it is.
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
# cgroupfs and runc: machines without systemd, and with control groups of version 1. Limits are lowered, since raising them may be refused.
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
    """Why no image can be built here, or None."""
    lacking = [program for program in ("podman", "runc", "debootstrap") if shutil.which(program) is None]
    if lacking:
        return f"no {', '.join(lacking)} (apt-get install podman runc debootstrap)"
    return None if os.geteuid() == 0 else "not root"


class Engine:
    """Builds the Dockerfiles and runs what came of them."""

    def __init__(self) -> None:
        FOLDER.mkdir(parents=True, exist_ok=True)
        conf = FOLDER / "containers.conf"
        conf.write_text(CONTAINERS_CONF)
        policy = FOLDER / "policy.json"
        policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        self.environment = {**os.environ, "CONTAINERS_CONF": str(conf), "TMPDIR": str(FOLDER), "BUILDAH_ISOLATION": "chroot"}
        self.podman = ["podman", "--root", str(FOLDER / "store"), "--runroot", str(FOLDER / "run"), "--cgroup-manager", "cgroupfs"]

    def __call__(self, *arguments: str, check: bool = True, timeout: float = 900) -> subprocess.CompletedProcess:
        """``engine("images")``; output and errors together, as text."""
        ended = subprocess.run(
            [*self.podman, *arguments], env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout, check=False
        )
        if check and ended.returncode:
            raise RuntimeError(f"podman {' '.join(arguments)} ended with {ended.returncode}:\n{ended.stdout[-4000:]}")
        return ended

    def start(self, *arguments: str) -> subprocess.Popen:
        return subprocess.Popen([*self.podman, *arguments], env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def build(self, image: str, **arguments: str) -> str:
        """The image of ``deploy/images/<image>/Dockerfile``, whole; gives its name."""
        name = f"localhost/airloop-{image}:test"
        given = {"BASE": self.base, "TORCH": "", "GIT_SHA": "0123abc", **arguments}  # without a TORCH: the build that this machine has at hand
        options = [option for key, value in given.items() for option in ("--build-arg", f"{key}={value}")]
        mounts = [*(f"--volume={folder}:{folder}" for folder in find_links()), f"--volume={uv_cache()}:/var/cache/uv"]
        file = REPOSITORY / "deploy/images" / image / "Dockerfile"
        self("build", "--network", "host", "--layers", *options, *mounts, "--file", str(file), "--tag", name, str(REPOSITORY), timeout=3600)
        return name

    @cached_property
    def base(self) -> str:
        """A small Debian with its Python 3.11, in the place of the Dockerfiles' own base; with this machine's ways to PyPI."""
        name = "localhost/airloop-test-base:1"
        if self("image", "exists", name, check=False).returncode == 0:
            return name
        root = FOLDER / "base"
        shutil.rmtree(root, ignore_errors=True)
        command = ["debootstrap", "--variant=minbase", "--include=python3,python3-venv,ca-certificates", "bookworm", str(root)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=900)
        shutil.rmtree(root / "var/cache/apt", ignore_errors=True)
        shutil.rmtree(root / "var/lib/apt/lists", ignore_errors=True)
        shutil.copy(CERTIFICATES, root / CERTIFICATES.relative_to("/"))
        (root / "etc/pip.conf").write_text(f"[global]\ncert = {CERTIFICATES}\n")
        (root / "etc/uv").mkdir()
        links = json.dumps([str(folder) for folder in find_links()])
        (root / "etc/uv/uv.toml").write_text(f'native-tls = true\ncache-dir = "/var/cache/uv"\n[pip]\nfind-links = {links}\n')
        packed = FOLDER / "base.tar"
        subprocess.run(["tar", "-C", str(root), "--numeric-owner", "-cf", str(packed), "."], check=True)
        self("import", str(packed), name)
        packed.unlink()
        shutil.rmtree(root)
        return name

    def run(self, image: str, *command: str, options: tuple[str, ...] = (), check: bool = True, timeout: float = 600) -> subprocess.CompletedProcess:
        """A container as the house's pods are: read-only, nobody, no capabilities, /tmp in memory."""
        return self("run", "--rm", *HARDENED, *options, image, *command, check=check, timeout=timeout)

    def root_of(self, image: str, folder: Path) -> Path:
        """The image's file system, unpacked."""
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
    "--network", "host", "--read-only", "--read-only-tmpfs=false", "--tmpfs", "/tmp:rw,mode=1777", "--cap-drop", "ALL", "--security-opt", "no-new-privileges",
)  # fmt: skip


def find_links() -> list[Path]:
    """Folders of wheels that pip is told of on this machine."""
    configured = subprocess.run(["python3", "-m", "pip", "config", "get", "global.find-links"], capture_output=True, text=True, check=False).stdout
    words = re.split(r"\s+", f"{configured} {os.environ.get('PIP_FIND_LINKS', '')}")
    return [Path(word) for word in dict.fromkeys(words) if word and Path(word).is_dir()]


def uv_cache() -> Path:
    """What uv has downloaded on this machine before."""
    folder = Path(os.environ.get("UV_CACHE_DIR", Path.home() / ".cache/uv"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
