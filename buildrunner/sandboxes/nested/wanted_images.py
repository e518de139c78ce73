"""Images that steps pulled by themselves, pulled once more on the host engine for the next build.

The host engine's images are shared with each nested engine. What a step's ``docker pull`` or
``FROM`` brings into a sandbox is gone with it: without this, every build would pull it again. The
host engine pulls it from its registry, with the user's logins; nothing is taken from a sandbox,
whose steps could have put anything under that name.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress

from buildrunner.containers.image_name import ImageName
from buildrunner.containers.protocol import ContainerEngine
from buildrunner.errors import EngineError, ImagePullError
from buildrunner.sandboxes.nested.host_pulls import HostPulls
from buildrunner.sandboxes.nested.loopback import is_of_this_machine

_MOST = 100  # notes; a config that pulls without end must not fill the machine


class WantedImages:
    """Notes of names, a file each, and a thread that works them off.

    Any number of processes may share the folder: two that pull the same image at the same time are
    one pull to the engine.

    Args:
        folder: for the notes; made when there is one.
        host: has them, or not.
        note_use: told of them (by id) when the host has them.
        own: pulls the images that this build noted.
        left: pulls the images that earlier builds noted.
    """

    def __init__(
        self,
        folder: str,
        host: ContainerEngine,
        note_use: Callable[[Iterable[str]], None],
        *,
        own: HostPulls,
        left: HostPulls,
    ) -> None:
        self._own = own
        self._left = left
        self._own_names: set[str] = set()
        self._folder = folder
        self._host = host
        self._note_use = note_use
        self._news = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def note(self, name: str) -> None:
        """A nested engine has pulled ``name``. The host gets it as soon as it can.

        At a loopback address, the sandbox may have a registry of its own: that is another one than
        what listens there on the machine.
        """
        if is_of_this_machine(ImageName.parse(name).registry):
            return
        with suppress(OSError, EngineError):  # it is only about speed
            if (image := self._host.find_image(name)) is not None:
                self._note_use((image.id,))
                return
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            if len(os.listdir(self._folder)) >= _MOST:
                return
            self._own_names.add(name)
            with open(self._path(name), "w", encoding="utf-8") as file:
                file.write(name)
            self.work()

    def work(self) -> None:
        """Pull what is noted, in the background."""
        with self._lock:
            self._news.set()
            if self._thread is None and not self._stop.is_set():
                self._thread = threading.Thread(target=self._work, daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Stop; what is not pulled by then, somebody else will pull. Idempotent."""
        self._stop.set()
        self._news.set()
        with self._lock:  # from now on none is started
            thread = self._thread
        if thread is not None:
            thread.join()

    def _work(self) -> None:
        while not self._stop.is_set():
            self._news.clear()
            for name in self._noted():
                if self._stop.is_set():
                    return
                self._pull(name)
            self._news.wait()

    def _noted(self) -> list[str]:
        names = []
        with suppress(OSError):
            for entry in sorted(os.listdir(self._folder)):
                with open(os.path.join(self._folder, entry), encoding="utf-8") as file:
                    names.append(file.read())
        return list(filter(None, names))  # one that is being written is empty

    def _pull(self, name: str) -> None:
        try:
            pulls = self._own if name in self._own_names else self._left
            image = self._host.find_image(name) or pulls.pull(name, cancel=self._stop)
            self._note_use((image.id,))
        except ImagePullError as error:
            if error.transient or self._stop.is_set():
                return  # the next build tries again
        except EngineError:
            return
        with suppress(OSError):
            os.unlink(self._path(name))

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, hashlib.sha256(name.encode()).hexdigest()[:32])
