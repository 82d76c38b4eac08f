"""The search for settings that are better than the defaults (:mod:`limerank.tuning.tuner`)."""
