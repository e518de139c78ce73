"""The half of a server that runs builds, as a process that tests kill.

``python worker_process.py DATA DATABASE SANDBOX MAX_BUILDS SPARES``: says ``ready`` and works until
SIGTERM.
"""

import logging
import os
import signal
import sys
import threading

from buildrunner import wiring
from buildrunner.cli.serve.worker import ServerWorker, WorkerOptions
from buildrunner.settings import WorkerSettings
from buildrunner.worker.data_folder import DataFolder


def main():
    data, database, sandbox, max_builds, spares = sys.argv[1:]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    folder = DataFolder(data)
    with folder.lock():
        store = wiring.server_store(database)
        settings = WorkerSettings(
            data=folder.path, database=database, sandbox=sandbox, sources="files"
        )
        options = WorkerOptions(max_builds=int(max_builds), spare_sandboxes=int(spares))
        worker = ServerWorker(
            settings, store.queue, store.builds.find, folder, options, environ=os.environ
        )
        worker.start()
        signal.signal(signal.SIGUSR1, lambda *_: worker.wake())
        print("ready", flush=True)
        ended.wait()
        worker.stop()
        store.close()


if __name__ == "__main__":
    main()
