"""Histories of real servers under faults: what clients asked and saw, and whether it was right.

Two or three ``limerank serve`` processes share a Valkey or Redis server, or a cluster. Clients
write down every request with its begin, its end and its answer, and an operator exports the store;
meanwhile a seed decides which processes are stopped or killed and which connections are cut, held
or slowed. Machines are network namespaces where the system has them. Afterwards a checker reads the
history and names every answer that breaks a promise of ``docs/reliability.md``. The seed decides
the faults and what clients draw, not how real processes interleave: a failing history is therefore
saved whole, and can be checked again (``python -m histories --check FILE``).

Modules import only from those above::

    record      a history, and its file
    checking    the promises, compared with a history
    proxy       TCP connections that can be cut, held and slowed
    world       runs, indexes and their live items
    processes   servers, stores and replicas as processes
    cluster     a Valkey cluster as processes, for tests and benchmarks
    network     what connects machines; proxies
    namespaces  a network of namespaces
    stores      one store, with a replica or not, or a cluster
    clients     clients and what they ask
    exporting   an operator who exports the store
    nemesis     faults
    running     one history, from the start of its servers to its last answers
    __main__    many histories: ``make histories``

The harness uses the HTTP API, the command line and the address of a store alone, so that it can run
on another kind of store: give :mod:`~histories.stores` a class like ``OneStore`` for it.
"""
