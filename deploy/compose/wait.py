"""Wait until every service of the Compose stack is healthy and every one-shot has ended with 0.

Changes are printed, and on failure the last log lines of each unhealthy service.

    python3 deploy/compose/wait.py [--engine docker|podman] [--project airloop] [--timeout 900]

Needs Python's own library only. Podman runs health checks by timers of systemd; where there are
none they are run here.
"""

import argparse
import json
import subprocess
import sys
import time

SERVICE, PROJECT, ONE_OFF = "com.docker.compose.service", "com.docker.compose.project", "com.docker.compose.oneoff"


class Engine:
    """The containers of one project."""

    def __init__(self, program: str, project: str) -> None:
        self.program, self.project = program, project

    def ask(self, *arguments: str) -> str:
        return subprocess.run([self.program, *arguments], check=True, capture_output=True, text=True).stdout

    def containers(self) -> dict[str, dict]:
        """Service -> what the engine knows of its container."""
        ids = self.ask("ps", "--all", "--quiet", "--filter", f"label={PROJECT}={self.project}").split()
        found = json.loads(self.ask("inspect", *ids)) if ids else []
        return {
            c["Config"]["Labels"][SERVICE]: c for c in found if c["Config"]["Labels"].get(ONE_OFF, "False") != "True"
        }

    def state(self, container: dict) -> str:
        """``well``, ``done``, ``failed`` (it will not get well by itself), or what it is at."""
        now = container["State"]
        if container["HostConfig"]["RestartPolicy"]["Name"] == "on-failure":
            if now["Status"] == "exited":
                return "done" if now["ExitCode"] == 0 else f"ended with {now['ExitCode']}"
            return now["Status"]
        if now["Status"] != "running":
            return now["Status"]
        if not has_check(container):
            return "well"
        if self.program.endswith("podman"):
            return (
                "well"
                if subprocess.run(
                    [self.program, "healthcheck", "run", container["Id"]], capture_output=True, check=False
                ).returncode
                == 0
                else "starting"
            )
        return "well" if (health := now["Health"]["Status"]) == "healthy" else health

    def last_words(self, container: dict) -> str:
        said = subprocess.run(
            [self.program, "logs", "--tail", "25", container["Id"]],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return said.stdout


def has_check(container: dict) -> bool:
    test = (container["Config"].get("Healthcheck") or {}).get("Test") or ["NONE"]
    return test[0] != "NONE"


def wait(engine: Engine, timeout: float) -> bool:
    began, known = time.monotonic(), {}
    while True:
        containers = engine.containers()
        states = {service: engine.state(container) for service, container in sorted(containers.items())}
        for service, state in states.items():
            if known.get(service) != state:
                print(f"{time.monotonic() - began:6.1f} s  {service}: {state}", flush=True)
        known = states
        ill = {service: state for service, state in states.items() if state not in {"well", "done"}}
        if states and not ill:
            return True
        if time.monotonic() - began > timeout:
            print(
                f"not well after {timeout:.0f} s:"
                f" {', '.join(f'{s} ({state})' for s, state in ill.items()) or 'there is no container'}",
                file=sys.stderr,
            )
            for service in ill:
                print(f"--- the last words of {service}:\n{engine.last_words(containers[service])}", file=sys.stderr)
            return False
        time.sleep(2)


def main() -> int:
    parser = argparse.ArgumentParser(description="Waits until the Compose stack is well.")
    parser.add_argument("--engine", default="docker")
    parser.add_argument("--project", default="airloop")
    parser.add_argument("--timeout", type=float, default=900)
    given = parser.parse_args()
    return 0 if wait(Engine(given.engine, given.project), given.timeout) else 1


if __name__ == "__main__":
    sys.exit(main())
