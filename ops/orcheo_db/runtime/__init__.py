"""Orcheo's own processes in the `orcheo` image: `python -m orcheo_db.runtime backend|worker|beat|ready|vault`.

The app takes its configuration from environment variables alone. Here they are made inside the process, from the mounted
configuration and secret files, so that no secret stands in `docker inspect`, in a command line or in the environment that a
container was started with. Upstream's known defects are worked around in one module before the app is imported.

    settings      the app's environment from the mounted files
    workarounds   upstream's defects, each with the releases that have it
    processes     backend (uvicorn), worker and beat (Celery)
    asgi          what uvicorn imports
    ready         health checks: an authenticated call, a worker's heartbeat, Redis
    vault         does this key open the credentials that are there?
    pools         which connection pools the app's stores open (the pool arithmetic is tested against it)
"""
