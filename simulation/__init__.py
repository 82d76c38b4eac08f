"""Deterministic simulation of the serving side: servers, their store and a plain model of both.

One process runs everything: one or two servers (:class:`limerank.serving.engine.Serving`, with the
package's own stores, user states, arms, live items and indexes), the server of a store, and
clients. A seed decides a history of operations, which of them overlap, in which order their steps
interleave at round trips to the store, what goes wrong there, and what the clocks show. Every
answer is compared with a plain model. The same seed gives the same history, and a failing one is
shrunk.

Modules import only from those above::

    lua            Lua scripts of the Valkey store, translated
    valkey_server  a Valkey server in memory
    scheduler      tasks, locks and the clock
    truth          the plain model
    world          small runs and indexes, and what the batch model says of them
    stores         the event stores, with round trips that pause and fail
    operations     histories, drawn from a seed
    checking       answers compared with the plain model
    running        servers, and operations on them
    histories      one history: run, or shrunk (shrinking)
    __main__       many histories: ``make simulate``

To cover another store, give :class:`~simulation.operations.Setting` a kind for it, and
:meth:`~simulation.running.Simulation.open_store` a store that calls ``scheduler.pause`` at its
round trips, draws faults from ``task.fault``, and calls ``task.effect`` when a change is made. A
new operation is a line in :data:`~simulation.operations.KINDS`, a method of
:class:`~simulation.running.Running` and a check.
"""
