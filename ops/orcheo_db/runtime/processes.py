"""Running the app's three kinds of process: backend, worker, beat."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from orcheo_db.runtime import settings, workarounds

PORT = 8000  # inside the container; the port on the host is the spec's
DRAIN_SECONDS = 35  # the backend gives runs in progress 30 s; Compose waits a little longer (stop_grace_period)
# Longer than the 60 s that nginx and the clouds' load balancers keep an idle connection: the side that may send must be the
# first to close, or a request meets a connection that is just going. uvicorn's own 5 s does that to any client that polls.
KEEP_ALIVE_SECONDS = 75
# A task that a killed worker had taken comes back after this many seconds (kombu's default: an hour). If it had not yet begun the
# run, the run is executed then; a run that it had begun stays `running`, because the app skips whatever is not pending.
VISIBILITY_SECONDS = 300
WORKER_SIGN = Path("/tmp/orcheo-worker-alive")  # noqa: S108 - the container's own tmpfs
BEAT_SIGN = Path("/tmp/orcheo-beat-alive")  # noqa: S108


def say(text: str) -> None:
    print(f"orcheo-db: {text}", file=sys.stderr, flush=True)


def prepare() -> settings.AppConfig:
    """The app's environment and the workarounds, before anything of the app is imported.

    Raises:
        UserError: a mounted file is missing or damaged.
    """
    config = settings.read_config()
    settings.apply(config)
    for line in workarounds.apply(prepared_statements=config.prepared_statements):
        say(line)
    return config


def backend() -> None:
    """uvicorn with the web app, until it is told to stop."""
    import uvicorn  # noqa: PLC0415 - only here, and it takes its time

    config = settings.read_config()
    uvicorn.run(
        "orcheo_db.runtime.asgi:app",
        host="0.0.0.0",  # noqa: S104 - inside the container; Docker publishes it on the loopback address only
        port=PORT,
        workers=config.backend_processes,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        proxy_headers=False,  # nothing stands in front: a client's own X-Forwarded-For is not to be believed
    )


def _celery() -> Any:
    from orcheo_backend.worker.celery_app import celery_app  # noqa: PLC0415 - reads the environment while imported

    celery_app.conf.update(
        broker_transport_options={"visibility_timeout": VISIBILITY_SECONDS},
        broker_connection_retry_on_startup=True,  # Redis may come later
        worker_cancel_long_running_tasks_on_connection_loss=False,  # a restart of Redis must not end a run half-way
    )
    return celery_app


def _touch(sign: Path) -> Any:
    def touch(**_: Any) -> None:
        sign.touch()

    return touch


def worker() -> None:
    """A Celery worker that runs as many workflows at once as it has processes."""
    config = prepare()
    app = _celery()
    from celery import signals  # noqa: PLC0415

    # The worker's main loop sends a heartbeat every 2 s as long as it has its broker: the health check reads its age.
    touch = _touch(WORKER_SIGN)
    for signal in (signals.worker_ready, signals.heartbeat_sent):
        signal.connect(touch, weak=False)
    # No gossip and no mingle: there are no other workers to talk to, and the start is seconds quicker.
    app.worker_main(
        [
            "worker",
            "--loglevel=INFO",
            f"--concurrency={config.worker_processes}",
            "--without-gossip",
            "--without-mingle",
        ]
    )


def beat() -> None:
    """Celery beat: tells the workers every minute to start the cron triggers that are due."""
    prepare()
    app = _celery()
    from celery import signals  # noqa: PLC0415

    touch = _touch(BEAT_SIGN)
    for signal in (signals.beat_init, signals.after_task_publish):
        signal.connect(touch, weak=False)
    # What is due is in the database (cron_triggers.last_dispatched_at); beat's own file only paces it.
    os.chdir("/tmp")  # noqa: S108
    app.start(["beat", "--loglevel=INFO", "--schedule=/tmp/celerybeat-schedule", "--pidfile="])
