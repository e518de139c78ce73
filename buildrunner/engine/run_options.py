"""Options for the run of a plan. The plan itself says which steps run."""

from __future__ import annotations

import msgspec

from buildrunner.engine.image_pulls import PublicImages
from buildrunner.spec.model.build import Status


class RunOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of the machine and the user, not of the config.

    Attributes:
        push: push ``images`` at the end; False leaves the phase empty (``--no-push``).
        network: the user-defined network that steps join.
        keep_network: leave the removal of the network to another process.
        image_aliases: image that runs instead of another, by name, with or without a tag.
        image_advice: image -> a sentence of advice if it can't be pulled.
        install_command: command that makes stand-ins for builder images; the error names it if
            several images can't be pulled.
        public_images: the images that an untrusted build may use; None for a trusted build.
        leave_cleanup_to_guardian: after a success without deployments, the guardian removes
            containers, volumes and the network by their label, which saves the user 60 to 250 ms.
        labels: labels for all resources, besides the build's own.
        home_files: files for ``/builder/home`` before the first step, by relative path
            (registry credentials, ...).
        extra_hosts: ``name:address`` entries for the hosts file of every step.
        env: variables for every step (``NAME=value``); those of its config win.
        keep_logs: the engine keeps each step's output, so that another process can resume the
            build.
        disk_bytes: the most bytes of uploads that may be copied out of the workspace; None sets no
            limit.
        timeout_grace_s: seconds for a step to react to SIGTERM after a timeout (hosted: not
            published; semantics O-36 recommends 10 s).
        failure_grace_s: the same for a step that is stopped because another one failed.
        cancel_grace_s: the same after a cancel; everything must have ended within 2 s.
        cleanup_s: seconds until a slow clean-up is reported and given up. An engine on a disk that
            others write to at full speed may not answer for half a minute.
    """

    push: bool = True
    network: str = "cloudbuild"
    keep_network: bool = False
    image_aliases: dict[str, str] = {}
    image_advice: dict[str, str] = {}
    install_command: str = ""
    public_images: PublicImages | None = None
    leave_cleanup_to_guardian: bool = False
    labels: dict[str, str] = {}
    home_files: dict[str, bytes] = {}
    extra_hosts: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    keep_logs: bool = False
    disk_bytes: int | None = None
    timeout_grace_s: float = 10.0
    failure_grace_s: float = 2.0
    cancel_grace_s: float = 1.0
    cleanup_s: float = 120.0

    def grace_s(self, status: Status) -> float:
        """Return the seconds from SIGTERM to SIGKILL of running steps if the build ends so."""
        match status:
            case Status.CANCELLED:
                return self.cancel_grace_s
            case Status.TIMEOUT:
                return self.timeout_grace_s
            case _:
                return self.failure_grace_s
