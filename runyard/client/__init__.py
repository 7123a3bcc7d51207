"""The programmatic surface: start runs, follow them, read their logs, decide.

    async with Runyard.connect() as yard:
        run = await yard.start("ci.yml", run="build-and-test")
        async for line in run.logs("test", follow=True):
            print(line.text)
        print((await run.result()).phase)

It starts workflows by name and imports none of `workflows`, `activities`, `workers`, so that a program with a
`workflows` package of its own can use it.
"""

from runyard.client.run import Run
from runyard.client.yard import Phase, Runyard

__all__ = ["Phase", "Run", "Runyard"]
