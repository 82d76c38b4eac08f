"""Jobs on a cluster, run by an existing engine: the parts of :mod:`limerank.parts`, and trainings
by several processes.

What travels is names of files and numbers, never data: all machines of the cluster share the
folders. :mod:`~limerank.cluster.jobs` decides which part is computed when and how often,
:mod:`~limerank.cluster.work` computes one, :mod:`~limerank.cluster.training` starts the processes
of a training, again where one ends, and :mod:`~limerank.cluster.on_ray` runs both on Ray (the extra
``limerank[ray]``).
"""
