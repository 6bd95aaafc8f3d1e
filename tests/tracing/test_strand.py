"""Threads and asyncio tasks that something is open in."""

from __future__ import annotations

import asyncio
import threading

from latentaug.tracing.strand import Strand


def test_other_threads_are_elsewhere() -> None:
    strand, told = Strand(), []
    thread = threading.Thread(target=lambda: told.append(strand.is_elsewhere()))
    thread.start()
    thread.join()
    assert told == [True]
    assert not strand.is_elsewhere()


def test_other_tasks_are_elsewhere_but_not_those_that_a_task_starts() -> None:
    async def told(strand: Strand) -> bool:
        return strand.is_elsewhere()

    async def opens(opened: asyncio.Future[Strand], done: asyncio.Event) -> bool:
        strand = Strand()
        opened.set_result(strand)
        await done.wait()
        return await asyncio.create_task(told(strand))

    async def main() -> tuple[bool, bool, bool]:
        opened, done = asyncio.get_running_loop().create_future(), asyncio.Event()
        task = asyncio.create_task(opens(opened, done))
        strand = await opened
        other = strand.is_elsewhere()
        done.set()
        return other, await task, strand.is_elsewhere()

    assert asyncio.run(main()) == (True, False, False)  # the last: once the task has ended
