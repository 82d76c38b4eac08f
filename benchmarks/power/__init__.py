"""Power loss and I/O errors: every state that a disk may be left in, and every call that may fail.

    python -m benchmarks.power

Each job (:mod:`benchmarks.power.jobs`) changes files with the package's own code: an index, a
dataset, a run, the daily loop, an export, an event store. A library that is preloaded
(``shim.cpp``) records each write, truncation, creation, renaming, link, removal and synchronisation
in its order.

**Power loss.** From the record follow the states that a disk may be in when the power fails after
any of the calls (:mod:`benchmarks.power.disk`): what was not synchronised may be lost, torn between
sectors of 512 bytes, or on the disk before earlier calls are. Names of a folder that was not
synchronised may be lost as well. Each state is opened with the package's own code. It must contain
the old or the new version, all that was acknowledged, and never a mixture. On a part of the states
the job is done again; it must complete, and leave no temporary files.

**I/O errors.** The n-th call fails with EIO or ENOSPC, for every n: once, or from then on. The job
must end with an error that says what to do, the earlier version must open, and the job must
complete when it is done again without the fault.
"""
