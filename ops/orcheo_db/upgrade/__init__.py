"""Another release of Orcheo on a database that an older one made: `python -m orcheo_db.upgrade inspect|apply|verify`.

It runs inside the `orcheo` image of the release to come, with the environment and the secrets of the init job
(`bootstrap.job`), while the app is stopped. What no bootstrap of the app does is done here, in one transaction; after it
the ordinary init job runs. `orcheo-db upgrade-app` on the host calls all of it in order.

    tables      which tables carry a workspace's id and where their JSON repeats it
    schema      columns that the app needs and doesn't add, unique indexes that it has given up
    workspaces  the workspaces there are, and the one that stray rows go to
    remap       stray rows to a workspace, names that would collide
    names       the pure part of that
    digest      what a table holds, as two numbers that a move of workspace doesn't change
    inspect, apply, verify   the three commands
    read        verify's second half: every row through the app's own stores
    report      hazards as lines
"""
