"""Jobs on a cluster: the parts of :mod:`limerank.parts`, run by an existing engine.

What travels is names of files and numbers, never data: all machines of the cluster share the
folders. :mod:`~limerank.cluster.jobs` decides which part is computed when and how often,
:mod:`~limerank.cluster.work` computes one, and :mod:`~limerank.cluster.on_ray` runs them on Ray
(the extra ``limerank[ray]``).
"""
