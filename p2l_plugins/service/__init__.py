"""The HTTP scorer (`p2l serve`, extra `serve`): scores, leaderboards and routing over a bundle, and a page for people.

`settings` is what an operator sets, `run` starts processes, `app` assembles the application. `watch` and `guard` stand
before it, `routes` and `models` are the interface, `service` is the process's bundle and life, `scoring` asks the cache
before the engine, `metrics` counts. The page is in `page/`.
"""
