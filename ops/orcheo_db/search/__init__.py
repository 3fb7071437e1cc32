"""Search over run history, chat messages and workflows: catch up, ask, page.

The schema `orcheo_search` is the init job's (`bootstrap/sql/search.sql`); here it is brought up to date and asked.

    request   what is looked for, checked; the cursor of a page
    index     catching up with the app's tables
    query     the question, its SQL and its answer
"""
